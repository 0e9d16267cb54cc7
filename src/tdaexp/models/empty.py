"""Models without data: every parameter with its shape, none with a value. For plans; nothing is downloaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.models.loaded import freeze, quiet_transformers
from tdaexp.models.parts import has_experts
from tdaexp.runtime.errors import UserError
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
    for module in model.modules():
        if has_experts(module):  # which kernel takes what depends on data, or on the type
            module.forward = partial(_as_many_products, module)
    return freeze(model)


def _as_many_products(module: Any, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What experts cost: each token goes through k of them, here always the first."""
    rows = states.repeat_interleave(chosen.shape[1], dim=0)
    inside = module._apply_gate(nn.functional.linear(rows, module.gate_up_proj[0]))
    outside = nn.functional.linear(inside, module.down_proj[0]) * weights.reshape(-1, 1)
    return outside.view(len(states), chosen.shape[1], -1).sum(1).to(states.dtype)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal model of a transformers config in float32 with any weights, on the CPU."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        trusted = runs_own_code(config)
        model: PreTrainedModel = from_config(
            AutoModelForCausalLM, config, trust_remote_code=trusted, dtype=torch.float32
        ).eval()
        return model


def folder_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a folder in hub format. Errors (UserError): it cannot be read."""
    from transformers import AutoConfig

    from tdaexp.models.hub import reason_of
    from tdaexp.models.kinds import check_kind

    try:
        with quiet_transformers():
            config: PretrainedConfig = from_hub(
                AutoConfig, folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:
        raise UserError(f"{folder}: its config.json cannot be used: {reason_of(error)}") from error
    check_kind(config, str(folder))
    return config
