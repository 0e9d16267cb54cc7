"""Models without data: every parameter with its shape, none with a value. For plans; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.models.loaded import freeze, quiet_transformers
from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def empty_model(config: PretrainedConfig, dtype: torch.dtype, mode: FakeTensorMode) -> PreTrainedModel:
    """The causal model of a transformers config with tensors of `mode`, frozen; ties are those of the config."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with quiet_transformers(), mode, no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
    return freeze(model)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal model of a transformers config in float32 with any weights, on the CPU."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def stated_config(values: dict[str, Any], where: str) -> PretrainedConfig:
    """The transformers config that a model's `shape` states: `architecture`, and values of that type's config.

    Errors (UserError): no or an unknown architecture, an unknown key, values that do not go together.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    rest = dict(values)
    architecture = str(rest.pop("architecture", ""))
    if architecture not in KNOWN:
        raise unknown("architecture", architecture, KNOWN, f"{where}.architecture")
    with quiet_transformers():
        default = AutoConfig.for_model(architecture)
        keys = set(default.to_dict()) | set(default.attribute_map)
        for key in rest:
            if key not in keys:
                raise unknown("key", key, keys, where)
        try:
            return AutoConfig.for_model(architecture, **rest)
        except Exception as error:  # transformers validates with classes of its own
            raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def folder_config(folder: Path) -> PretrainedConfig:
    """The config of a folder in hub format. Errors (UserError): it cannot be read."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: no readable config.json ({' '.join(str(error).split())[:200]})") from error
