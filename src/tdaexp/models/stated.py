"""Sizes of a model that a configuration states: checked by building the model without data, before anything is made.

transformers takes nearly any value without a word; a wrong one shows when a model is built, or in its first pass, as an
exception of torch. Here both are tried on tensors without data, which cost no memory, and the key at fault is named.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from tdaexp.models.kinds import check_kind
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SIZE = re.compile(r"(num|n)_\w+|d_\w+|\w+_(size|dim|layers|heads|rank|inner|embd)|hidden_size")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MOST_LAYERS, LARGEST = 1_000, 2**31
ELSEWHERE = {"vocab_size": "model.vocab_size", "max_position_embeddings": "model.context"}
SHARED = (
    "tie_word_embeddings",
)  # of the keys that every config of transformers has, the ones that say what a model is
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def checked_config(
    architecture: str, values: dict[str, Any], ours: dict[str, Any], *, context: int, where: str = "model.config"
) -> PretrainedConfig:
    """The config of a causal model from scratch: `values` of a person, `ours` from the tokenizer, `context` positions.

    Dropout is off: an explained model is a deterministic function.

    Raises:
        UserError: an unknown architecture or key, or values of which no model can be built; it names the key.
    """
    default = _default(architecture, f"{where.rpartition('.')[0]}.architecture")
    elsewhere = ELSEWHERE | {default.attribute_map.get(key, key): place for key, place in ELSEWHERE.items()}
    off = {key: 0.0 for key, value in default.to_dict().items() if _is_dropout(key, value)}
    for key, value in values.items():
        if key in elsewhere:
            raise UserError(f"{where}.{key}: set {elsewhere[key]} instead")
        if key in ours:
            raise UserError(f"{where}.{key}={value}: comes from the tokenizer, leave the key out")
        if key in off and value:
            raise UserError(f"{where}.{key}={value}: dropout is always off here, leave the key out")
    _check_values(values, default, where)
    if hasattr(default, "max_position_embeddings"):
        ours = {**ours, "max_position_embeddings": context}
    return _tried(architecture, values, {**off, **ours}, where)


def stated_config(values: dict[str, Any], where: str) -> PretrainedConfig:
    """The config that a model's `shape` states: `architecture`, and values of that type's config.

    Raises:
        UserError: no or an unknown architecture, an unknown key, values of which no model can be built.
    """
    rest = dict(values)
    architecture = rest.pop("architecture", "")
    _check_values(rest, _default(str(architecture), f"{where}.architecture"), where)
    return _tried(str(architecture), rest, {}, where)


def _default(architecture: str, where: str) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from tdaexp.models.loaded import quiet_transformers

    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unknown("architecture", architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, where)
    with quiet_transformers():
        default = AutoConfig.for_model(architecture)
    check_kind(default, f"{where}={architecture}")
    return default


def _check_values(values: dict[str, Any], default: PretrainedConfig, where: str) -> None:
    """Refuse unknown keys, values of another type than the default's, and sizes that are none."""
    from transformers import PretrainedConfig

    general = set(PretrainedConfig().to_dict()) - {*SHARED, *default.attribute_map.values()}
    usual = default.to_dict()
    keys = (set(usual) | set(default.attribute_map)) - general
    for key, value in values.items():
        if key not in keys:
            raise unknown("key", key, keys, where)
        before = usual.get(default.attribute_map.get(key, key))
        said, kind = f"{where}.{key}={value!r}", type(before)
        if kind in WORDS and not (type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(f"{said}: must be {WORDS[kind]}, as {before!r} is")
        if type(value) is int and SIZE.fullmatch(key) and (before is None or (type(before) is int and before > 0)):
            most = MOST_LAYERS if key in LAYERS else LARGEST
            if not 1 <= value <= most:
                raise UserError(f"{said}: must be an integer from 1 to {most}")


def _tried(architecture: str, values: dict[str, Any], ours: dict[str, Any], where: str) -> PretrainedConfig:
    found, reason = _attempt(architecture, values, ours)
    if found is not None:
        return found
    alone = (key for key in values if _attempt(architecture, {k: values[k] for k in values if k != key}, ours)[0])
    key = next(alone, None)
    if key is not None:
        raise UserError(f"{where}.{key}={values[key]!r}: {architecture} cannot be built with it: {reason}")
    said = ", ".join(f"{key}={value!r}" for key, value in values.items())
    raise UserError(f"{where}: {architecture} cannot be built with {said}: {reason}")


def _attempt(
    architecture: str, values: dict[str, Any], ours: dict[str, Any]
) -> tuple[PretrainedConfig | None, str | None]:
    """The config, if a model can be built and run with it; else None and the reason."""
    from transformers import AutoConfig

    from tdaexp.models.loaded import quiet_transformers

    config: PretrainedConfig | None = None
    try:
        with quiet_transformers():
            config = AutoConfig.for_model(architecture, **{**values, **ours})
            _pass(config)
    except Exception as error:  # transformers and torch have many classes for the same mistake
        plain = _uneven(config)
        if plain is not None:
            return None, plain
        reason = re.sub(r"\s+", " ", str(error)).strip()[:300] or "no reason is given"
        return None, f"{type(error).__name__}: {reason}" if isinstance(error, (KeyError, IndexError)) else reason
    return config, None


def _uneven(config: PretrainedConfig | None) -> str | None:
    """Which two sizes of a config do not divide, where that is what is wrong with it."""
    for whole, part in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
        large, small = getattr(config, whole, None), getattr(config, part, None)
        if isinstance(large, int) and isinstance(small, int) and small > 0 and large % small:
            return f"{whole}={large} is no multiple of {part}={small}"
    return None


def _pass(config: PretrainedConfig) -> None:
    """One pass of the model without data over two tokens: some sizes do not fit together only there."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tdaexp.models.empty import empty_model

    mode = FakeTensorMode()
    with quiet("torch._subclasses.fake_tensor", level=logging.CRITICAL + 1):  # it logs tracebacks of its own
        model = empty_model(config, torch.float32, mode)
        try:
            with torch.no_grad(), mode:
                model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
        except Exception as error:
            # what depends on data (which expert takes a token) cannot be known without any
            if not re.search("DataDependent|DynamicOutput|Unsupported", type(error).__name__):
                raise


def _is_dropout(key: str, value: Any) -> bool:
    return key.endswith(("dropout", "_pdrop")) and isinstance(value, float)
