"""Find and read folders in hub format, locally or from the Hugging Face hub, with errors that people can act on.

Weights are read as safetensors, or as a PyTorch file with `weights_only`: nothing is executed. The network is
touched only when a config names a hub id.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tdaexp.models.loaded import quiet_transformers
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint
from tdaexp.runtime.quiet import quiet

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# What decides the function that a folder computes, and its tokens; notes and curves beside it do not.
CONTENT = ("config.json", "tokenizer*", "vocab*", "merges.txt", "spiece.model", "chat_template*", *WEIGHTS)
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors spells them
TRAINED = "training.json"  # beside the weights that a training of this program left


@dataclass(frozen=True)
class Source:
    """Where a model or tokenizer is read from: `name` and `revision` for transformers, `identity` for caches."""

    name: str
    revision: str | None
    identity: str
    folder: Path | None


def locate(name: str, revision: str | None, where: str) -> Source:
    """Resolve a folder or hub id, named by config key `where`, to something that can be loaded.

    A folder's identity is the hash of its weights, config and tokenizer files; that of a hub id is the id
    and the commit to which the revision points today.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{where}={name} is a folder and has no revision; leave model.revision unset")
        files = sorted({file for pattern in CONTENT for file in folder.glob(pattern)})
        identity = fingerprint([[file.name, file_fingerprint(file)] for file in files])
        return Source(str(folder), None, identity, folder)
    if folder.is_file():
        raise UserError(f"{where}={name} is a file; name the folder in hub format (config.json, *.safetensors)")
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"{where}={name}: no such folder, and not a hub id (owner/name); check the spelling")
    commit = _resolve_commit(name, revision, where)
    return Source(name, commit, f"{name}@{commit}", None)


def _resolve_commit(name: str, revision: str | None, where: str) -> str:
    at = f"{where}={name}" + (f" (revision {revision})" if revision else "")
    try:
        with quiet("huggingface_hub"):  # it announces each of its retries
            config = hf_hub_download(name, "config.json", revision=revision)
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f"{at}: the repository is gated; accept its terms on its page, then run `hf auth login`"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"{at}: the hub knows no such revision; check model.revision") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{at}: the hub knows no such repository (or it is private: `hf auth login`); check the id"
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{at}: the hub cannot be reached and the model is not in the local cache; set {where}=FOLDER"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise UserError(f"{at}: the repository has no config.json; it is not a transformers model") from error
    except (hub_errors.HfHubHTTPError, hub_errors.HFValidationError, OSError) as error:
        raise UserError(f"{at}: {_first_line(error)}; set {where}=FOLDER") from error
    return Path(config).parent.name  # …/snapshots/<commit>/config.json


def load_tokenizer(source: Source, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer; padding falls back to the end token (padding is always masked)."""
    mend = _mend(source.folder, "set model.tokenizer to a hub id or folder that has one")
    missing = f"{source.name}: no usable tokenizer there; {mend}"
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                source.name, revision=source.revision or "main", trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise UserError(f"{missing} ({_first_line(error)})") from error
    # Without any file transformers hands out an empty tokenizer of the model's usual class.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(missing)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def classes_of(source: Source, trust_remote_code: bool) -> tuple[str, ...] | None:
    """The classes' names, where the checkpoint is one for sequence classification; None where it is not.

    Errors (UserError): its config cannot be read, or it gives a number instead of a class.
    """
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                source.name, revision=source.revision or "main", trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise UserError(f"{source.name}: its config.json cannot be used: {_reason(error)}") from error
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return None
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UserError(
            f"{source.name}: gives numbers or several labels at once; only one class of many can be explained"
        )
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def load_weights(
    source: Source,
    dtype: torch.dtype,
    trust_remote_code: bool,
    attn_implementation: str | None = None,
    device: torch.device | str = "cpu",
    classifier: bool = False,
) -> PreTrainedModel:
    """Load the model in `dtype`; a checkpoint that does not fill every parameter is an error.

    On a GPU each tensor goes from the file straight to the device: main memory never holds the model. A checkpoint that
    is stored in another dtype is converted, and a line says so.
    """
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": torch.device(device)}
    _tell_conversion(source, dtype, trust_remote_code)
    try:
        with quiet_transformers():
            loaded: Any = auto.from_pretrained(
                source.name,
                revision=source.revision or "main",
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        mend = _mend(source.folder, "")
        raise UserError(f"{source.name}: the model cannot be loaded: {_reason(error)}{mend and f'; {mend}'}") from error
    model, report = loaded
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise UserError(
            f"{source.name}: the checkpoint lacks {len(names)} parameter tensors, {names[0]} among them; "
            f"it is incomplete or belongs to another architecture: {_mend(source.folder)}"
        )
    return model


def load_skeleton(source: Source, trust_remote_code: bool) -> PreTrainedModel:
    """The model without its weights (on the meta device): names, shapes and ties of its parameters."""
    revision = source.revision or "main"
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(source.name, revision=revision, trust_remote_code=trust_remote_code)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{source.name}: the model cannot be built from its config.json: {_reason(error)}") from error
    return model


def _tell_conversion(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> None:
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                source.name, revision=source.revision or "main", trust_remote_code=trust_remote_code
            )
    except Exception:  # loading the weights meets the same fault, and has the words for it
        return
    stated, wanted = getattr(config, "dtype", None), str(dtype).removeprefix("torch.")
    stated = {str(stated).removeprefix("torch.")} if isinstance(stated, torch.dtype) else set()
    stored = (_stored_types(source.folder) if source.folder else set()) or stated
    if stored - {wanted}:
        log.info("%s: stored in %s, run in %s (trainer.precision)", source.name, ", ".join(sorted(stored)), wanted)


def _stored_types(folder: Path) -> set[str]:
    """Floating-point types in a folder's safetensors files; its config.json may say something else."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return {FLOATS[one] for one in found if one in FLOATS}


def check_folder(folder: Path) -> None:
    """Refuse a folder without readable config or weights, with a missing shard or a truncated safetensors file."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no config.json; model.pretrained must be a folder in hub format")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: not readable ({_first_line(error)}); {_mend(folder)}") from error
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            raise UserError(f"{index}: not a readable index of shards; {_mend(folder)}") from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UserError(f"{folder}: the shard {missing[0]} is missing ({len(missing)} in all); {_mend(folder)}")
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder}: no weights (*.safetensors or pytorch_model*.bin); {_mend(folder)}")
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: truncated or corrupt ({error}); {_mend(folder)}") from error


def _mend(folder: Path | None, otherwise: str = "fetch the model again") -> str:
    """What to do about a damaged model: one that this program trained is trained anew once its folder is gone."""
    trained = folder is not None and (folder / TRAINED).is_file()
    return f"delete {folder} and run again" if trained else otherwise


def _reason(error: Exception) -> str:
    """The one line that helps: transformers' own messages run over many."""
    text = str(error)
    if "ignore_mismatched_sizes" in text:
        return "its tensors do not have the shapes that its config.json says; the files do not belong together"
    if "trust_remote_code" in text:
        return "it needs Python code of its own; set model.trust_remote_code=true if you trust its authors"
    if "PytorchStreamReader" in text or "weights_only" in text.lower():
        return f"damaged or unsafe PyTorch file ({_first_line(error)}); best have it as safetensors"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
