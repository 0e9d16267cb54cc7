"""Where a model is read from: a folder in hub format, or a hub id; and whether the folder is whole.

The network is touched only when a config names a hub id.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint
from tdaexp.runtime.quiet import quiet
from tdaexp.runtime.seal import SEAL, require

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
STATE = "optimizer.safetensors"  # of a checkpoint that a training can go on from
TRAINED = "training.json"  # beside the weights that a training of this program left
ADAPTER = "adapter_config.json"
# Whatever lies in a model's folder may decide its function or its texts (weights, adapter, generation config,
# tokenizer, chat template, code of its own), but for these: notes for people, curves, and states of a training.
NOTES = (
    *("*.md", "LICENSE*", "NOTICE*", "*.png", "*.jpg", "*.pdf", "*.log", ".*", "events.out.*", TRAINED, SEAL),
    *("optimizer.*", "scheduler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin"),
)

REFUSALS = (
    (hub_errors.GatedRepoError, "the repository is gated; accept its terms on its page, then run `hf auth login`"),
    (hub_errors.RevisionNotFoundError, "the hub knows no such revision; check model.revision"),
    (
        hub_errors.RepositoryNotFoundError,
        "the hub knows no such repository (or it is private: `hf auth login`); check the id",
    ),
    (
        hub_errors.LocalEntryNotFoundError,
        "the hub cannot be reached and the model is not in the local cache; set WHERE=FOLDER",
    ),
    (
        hub_errors.EntryNotFoundError,
        "the repository has no FILE; it is no such model in the format of the hub",
    ),
)  # the first that fits counts: some are kinds of others
HUB_FAULTS = (hub_errors.HfHubHTTPError, hub_errors.EntryNotFoundError, hub_errors.HFValidationError, OSError)


@dataclass(frozen=True)
class Source:
    """Where a model or tokenizer is read from: `name` and `revision` for transformers, `identity` for caches."""

    name: str
    revision: str | None
    identity: str
    folder: Path | None


def locate(name: str, revision: str | None, where: str, file: str = "config.json") -> Source:
    """Resolve a folder or hub id, named by config key `where`, to something that can be loaded: it holds `file`.

    A folder's identity is that of its content (`content`); that of a hub id is the id and the commit to which the
    revision points today.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{where}={name} is a folder and has no revision; leave model.revision unset")
        return Source(str(folder), None, content(folder), folder)
    if folder.is_file():
        raise UserError(f"{where}={name} is a file; name the folder in hub format (config.json, *.safetensors)")
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"{where}={name}: no such folder, and not a hub id (owner/name); check the spelling")
    commit = _resolve_commit(name, revision, where, file)
    return Source(name, commit, f"{name}@{commit}", None)


def content(folder: Path) -> str:
    """Digest of all files that may decide what a model's folder computes, with their names.

    Folders in it count, unless they are models of their own (checkpoints of the same training, say).
    """
    files: list[Path] = []
    for at, inside, names in os.walk(folder):
        place = Path(at)
        own = [one for one in inside if not one.startswith((".", "__")) and not (place / one / "config.json").exists()]
        inside[:] = sorted(own)
        files += [place / one for one in sorted(names) if not any(fnmatch(one, note) for note in NOTES)]
    return fingerprint([[file.relative_to(folder).as_posix(), file_fingerprint(file)] for file in files])


def _resolve_commit(name: str, revision: str | None, where: str, file: str) -> str:
    at = f"{where}={name}" + (f" (revision {revision})" if revision else "")
    try:
        with quiet("huggingface_hub"):  # it announces each of its retries
            config = hf_hub_download(name, file, revision=revision)
    except HUB_FAULTS as error:
        known = (reason for kind, reason in REFUSALS if isinstance(error, kind))
        reason = next(known, f"{first_line(error)}; set {where}=FOLDER")
        raise UserError(f"{at}: {reason.replace('WHERE', where).replace('FILE', file)}") from error
    return Path(config).parent.name  # …/snapshots/<commit>/config.json


def hub_file(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a hub repository, fetched; None where it has none or cannot be reached."""
    if not HUB_ID.fullmatch(name):
        return None
    try:
        with quiet("huggingface_hub"):
            return Path(hf_hub_download(name, file, revision=revision))
    except HUB_FAULTS:
        return None


def check_folder(folder: Path) -> None:
    """Refuse a folder without readable config or weights, with a missing shard or a truncated safetensors file."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no config.json; model.pretrained must be a folder in hub format")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: not readable ({first_line(error)}); {mend(folder)}") from error
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            raise UserError(f"{index}: not a readable index of shards; {mend(folder)}") from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UserError(f"{folder}: the shard {missing[0]} is missing ({len(missing)} in all); {mend(folder)}")
    check_seal(folder)
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder}: no weights (*.safetensors or pytorch_model*.bin); {mend(folder)}")
    for file in files:
        check_tensors(file, mend(folder))


def check_seal(folder: Path) -> None:
    """Refuse a folder that was written here and has other files now."""
    if (folder / SEAL).is_file():
        remedy = f"run again, or delete {folder / SEAL} alone if you changed that file yourself"
        # The optimiser's state is large, and nobody's model: a checkpoint may be kept without it.
        require(folder, remedy, lambda name: name != STATE or (folder / name).exists())


def check_tensors(file: Path, remedy: str) -> None:
    """Refuse a truncated safetensors file, by its header; another kind of file is not looked at."""
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or corrupt ({error}); {remedy}") from error


def mend(folder: Path | None, otherwise: str = "fetch the model again") -> str:
    """What to do about a damaged model: one that this program trained is trained anew once its folder is gone."""
    trained = folder is not None and (folder / TRAINED).is_file()
    return f"delete {folder} and run again" if trained else otherwise


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
