"""Models without data: every parameter with its shape, none with a value. For plans; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.models.loaded import freeze, quiet_transformers
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.hub import from_config, from_hub, runs_own_code

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def empty_model(config: PretrainedConfig, dtype: torch.dtype, mode: FakeTensorMode) -> PreTrainedModel:
    """The causal model of a transformers config with tensors of `mode`, frozen; ties are those of the config."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with quiet_transformers(), mode, no_init_weights():
        model = from_config(AutoModelForCausalLM, config, trust_remote_code=runs_own_code(config), dtype=dtype)
        model.tie_weights()
    return freeze(model)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal model of a transformers config in float32 with any weights, on the CPU."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        trusted = runs_own_code(config)
        return from_config(AutoModelForCausalLM, config, trust_remote_code=trusted, dtype=torch.float32).eval()


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


def folder_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a folder in hub format. Errors (UserError): it cannot be read."""
    from transformers import AutoConfig

    from tdaexp.models.hub import reason_of
    from tdaexp.models.kinds import check_kind

    try:
        with quiet_transformers():
            config = from_hub(AutoConfig, folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: its config.json cannot be used: {reason_of(error)}") from error
    check_kind(config, str(folder))
    return config
