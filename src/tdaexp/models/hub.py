"""Read tokenizers and weights in hub format, with errors that people can act on.

Weights are read as safetensors, or as a PyTorch file with `weights_only`: nothing is executed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tdaexp.models.adapted import adapters_apart
from tdaexp.models.kinds import check_direction, check_kind
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.source import Source, first_line, mend
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.hub import from_config, from_hub

log = logging.getLogger(__name__)
CLASSIFIES = "ForSequenceClassification"
"""How transformers ends the names of classes that put a text into one of a few classes."""
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors spells them


def load_tokenizer(source: Source, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer; padding falls back to the end token (padding is always masked)."""
    remedy = mend(source.folder, "set model.tokenizer to a hub id or folder that has one")
    missing = f"{source.name}: no usable tokenizer there; {remedy}"
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = from_hub(
                AutoTokenizer, source.name, revision=source.revision or "main", trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise UserError(f"{missing} ({reason_of(error)})") from error
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
        config = _config(source, trust_remote_code)
    except Exception as error:
        raise _unusable(source, error) from error
    if not any(name.endswith(CLASSIFIES) for name in config.architectures or ()):
        return None
    return class_names(config, source.name)


def class_names(config: Any, name: str) -> tuple[str, ...]:
    """The names of a classifier's classes, from its config.

    Errors (UserError): it is an encoder, or gives a number instead of a class.
    """
    check_direction(config, name)
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UserError(f"{name}: gives numbers or several labels at once; only one class of many can be explained")
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def check_causal(source: Source, trust_remote_code: bool) -> None:
    """Refuse a config that cannot be read, and a model that does not predict the next token."""
    try:
        config = _config(source, trust_remote_code)
    except Exception as error:
        raise _unusable(source, error) from error
    check_kind(config, source.name)


def load_weights(
    source: Source,
    dtype: torch.dtype,
    trust_remote_code: bool,
    how: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    classifier: bool = False,
) -> PreTrainedModel:
    """Load the model in `dtype`; a checkpoint that does not fill every parameter is an error.

    `how` are further keys of transformers' loader, left out where they are None.
    On a GPU each tensor goes from the file straight to the device: main memory never holds the model. A checkpoint that
    is stored in another dtype is converted, and a line says so.
    """
    if not classifier:
        check_causal(source, trust_remote_code)
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    options: dict[str, Any] = {key: value for key, value in (how or {}).items() if value is not None}
    if torch.device(device).type != "cpu":
        options["device_map"] = {"": torch.device(device)}
    if "quantization_config" in options and getattr(_config(source, trust_remote_code), "quantization_config", None):
        raise UserError(
            f"model.quantised: {source.name} is stored in few bits already, and read as it is; leave it out"
        )
    _tell_conversion(source, dtype, trust_remote_code)
    try:
        with quiet_transformers(), adapters_apart():
            loaded: Any = from_hub(
                auto,
                source.name,
                revision=source.revision or "main",
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        remedy = mend(source.folder, "")
        raise UserError(
            f"{source.name}: the model cannot be loaded: {reason_of(error)}{remedy and f'; {remedy}'}"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    if dtype == torch.float64:  # torch has no grouped products of doubles
        model.set_experts_implementation("eager")
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise UserError(
            f"{source.name}: the checkpoint lacks {len(names)} parameter tensors, {names[0]} among them; "
            f"it is incomplete or belongs to another architecture: {mend(source.folder)}"
        )
    return model


def load_skeleton(source: Source, trust_remote_code: bool, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model without its weights (on the meta device): names, shapes and ties of its parameters.

    With a `dtype` what is no parameter has its values, as of a model that is read in this type.
    """
    try:
        config = _config(source, trust_remote_code)
        check_kind(config, source.name)
        place = torch.device("meta") if dtype is None else init_empty_weights(include_buffers=False)
        options = {} if dtype is None else {"dtype": dtype}
        with quiet_transformers(), place:
            model: PreTrainedModel = from_config(
                AutoModelForCausalLM, config, trust_remote_code=trust_remote_code, **options
            )
        model.tie_weights()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source.name}: the model cannot be built from its config.json: {reason_of(error)}") from error
    return model


def _unusable(source: Source, error: Exception) -> UserError:
    return UserError(f"{source.name}: its config.json cannot be used: {reason_of(error)}")


def _config(source: Source, trust_remote_code: bool) -> Any:
    with quiet_transformers():
        return from_hub(
            AutoConfig, source.name, revision=source.revision or "main", trust_remote_code=trust_remote_code
        )


def stored_types(source: Source, trust_remote_code: bool) -> set[str]:
    """Floating-point types of a model's weights: those of a folder's files, else what its config says."""
    found = _types_in(source.folder) if source.folder else set()
    if found:
        return found
    try:
        stated = getattr(_config(source, trust_remote_code), "dtype", None)
    except Exception:  # loading the weights meets the same fault, and has the words for it
        return set()
    return {str(stated).removeprefix("torch.")} if isinstance(stated, torch.dtype) else set()


def _tell_conversion(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> None:
    wanted = str(dtype).removeprefix("torch.")
    stored = stored_types(source, trust_remote_code)
    if stored - {wanted}:
        log.info("%s: stored in %s, run in %s (trainer.precision)", source.name, ", ".join(sorted(stored)), wanted)


def _types_in(folder: Path) -> set[str]:
    """Floating-point types in a folder's safetensors files that can be read; its config.json may say something else."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return {FLOATS[one] for one in found if one in FLOATS}


def reason_of(error: Exception, trust: str = "set model.trust_remote_code=true if you trust its authors") -> str:
    """The one line that helps: transformers' own messages run over many. `trust` is how its own code is let in."""
    text = str(error)
    if "ignore_mismatched_sizes" in text:
        return "its tensors do not have the shapes that its config.json says; the files do not belong together"
    if "trust_remote_code" in text:
        return f"it needs Python code of its own; {trust}"
    if isinstance(error, UnpicklingError) or "PytorchStreamReader" in text or "weights_only" in text.lower():
        return f"damaged or unsafe PyTorch file ({first_line(error)}); best have it as safetensors"
    return first_line(error)
