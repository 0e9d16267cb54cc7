"""A list of checkpoints of one training: folders or hub revisions, oldest first, of one architecture and tokenizer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download

from tdaexp.models.hub import load_tokenizer
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.source import ADAPTER, HUB_ID, Source, locate
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint
from tdaexp.training.optimizer_state import FILE, read_settings

WHERE = "model.checkpoints"
NUMBER = re.compile(r"(\d+)(?!.*\d)")
PASSING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache")
"""Keys of a model's config that do not decide its architecture."""


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint after `step` updates: how to load it, and its optimiser's state where it has one (`state`)."""

    name: str
    step: int
    model: Pretrained
    identity: str
    state: Path | None


def snapshots(entries: list[str], base: Pretrained) -> list[Snapshot]:
    """The checkpoints that the entries name: folders, folders of such folders, or revisions of `base.pretrained`.

    A checkpoint's step is that of its optimiser's state, or the last number in its name. Errors (UserError): a folder
    that does not exist, steps that do not rise, another architecture or tokenizer, no state where `base.missing_state`
    is `refuse`.
    """
    named = [one for entry in entries for one in expanded(entry)]
    found = [_snapshot(name, base) for name in named]
    for before, after in itertools.pairwise(found):
        if after.step <= before.step:
            raise UserError(
                f"{WHERE}: '{after.name}' (step {after.step}) stands behind '{before.name}' (step {before.step}); list "
                "the checkpoints oldest first, each once"
            )
    _check_alike(found)
    return found


def step_in(name: str) -> int | None:
    """The last number in a name, None without one."""
    match = NUMBER.search(Path(name).name)
    return int(match[1]) if match else None


def expanded(entry: str) -> list[str]:
    """A folder that holds folders of checkpoints stands for them all, by their steps."""
    folder = Path(entry).expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file():
        return [entry]
    inside = [path for path in folder.iterdir() if (path / "config.json").is_file()]
    if not inside:
        raise UserError(f"{WHERE}: {entry} holds no checkpoint in hub format (config.json, *.safetensors)")
    return [str(path) for path in sorted(inside, key=lambda path: (step_in(path.name) or 0, path.name))]


def _snapshot(name: str, base: Pretrained) -> Snapshot:
    model = _model(name, base)
    if (Path(model.pretrained).expanduser() / ADAPTER).is_file():
        raise UserError(f"{WHERE}: '{name}' holds an adapter, and checkpoints are whole models; name those of the base")
    source = locate(model.pretrained, model.revision, WHERE)
    state = _state(source)
    step = read_settings(state).step if state else step_in(name)
    if step is None:
        raise UserError(f"{WHERE}: '{name}' does not tell its step; end its name in one, e.g. step-1000")
    if state is None and base.missing_state == "refuse":
        raise UserError(
            f"{WHERE}: '{name}' has no state of the optimiser ({FILE}); add it, or assume an optimiser that begins "
            "anew at each checkpoint: model.missing_state=fresh"
        )
    identity = fingerprint(source.identity, model.start_fingerprint(), state and file_fingerprint(state))
    return Snapshot(name, step, model, identity, state)


def _model(name: str, base: Pretrained) -> Pretrained:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return dataclasses.replace(base, pretrained=str(folder), revision=None)
    on_hub = HUB_ID.fullmatch(base.pretrained) and not Path(base.pretrained).expanduser().is_dir()
    if not on_hub or "/" in name or name.startswith((".", "~")):
        raise UserError(f"{WHERE}: {name}: no such folder; relative paths start where the command runs")
    return dataclasses.replace(base, revision=name)


def _state(source: Source) -> Path | None:
    if source.folder:
        return source.folder / FILE if (source.folder / FILE).is_file() else None
    try:
        return Path(hf_hub_download(source.name, FILE, revision=source.revision))
    except (hub_errors.EntryNotFoundError, hub_errors.LocalEntryNotFoundError):
        return None
    except (hub_errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{WHERE}: {source.name}: {FILE} cannot be fetched ({type(error).__name__})") from error


def _check_alike(found: list[Snapshot]) -> None:
    first, *others = found
    config, words = _config(first), _words(first)
    for other in others:
        theirs = _config(other)
        for key in sorted({*config, *theirs}):
            if config.get(key) != theirs.get(key):
                raise UserError(
                    f"{WHERE}: '{other.name}' is of another architecture than '{first.name}': {key} is "
                    f"{theirs.get(key)}, not {config.get(key)}; list checkpoints of one training"
                )
        own = _words(other)
        differ = [key for key in words if words[key] != own[key]]
        if differ:
            raise UserError(
                f"{WHERE}: '{other.name}' has another tokenizer than '{first.name}' (its {differ[0]} differs); list "
                "checkpoints of one training, or name the right tokenizer by model.tokenizer"
            )


def _config(one: Snapshot) -> dict[str, Any]:
    source = locate(one.model.pretrained, one.model.revision, WHERE)
    file = (
        source.folder / "config.json"
        if source.folder
        else Path(hf_hub_download(source.name, "config.json", revision=source.revision))
    )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({type(error).__name__}); fetch the checkpoint again") from error
    return {key: value for key, value in found.items() if key not in PASSING}


def _words(one: Snapshot) -> dict[str, Any]:
    """What decides how a tokenizer cuts a text."""
    model = one.model
    source = (
        locate(model.tokenizer, None, "model.tokenizer")
        if model.tokenizer
        else locate(model.pretrained, model.revision, WHERE)
    )
    tokenizer: Any = load_tokenizer(source, model.trust_remote_code)
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    kept = {key: rules.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "model")}
    return {"vocabulary": tokenizer.get_vocab(), **kept}
