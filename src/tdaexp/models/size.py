"""How large a model would be, known before any of it is in memory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.models.empty import empty_model
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.limits import refuse_beyond

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FEW = 2
TRAINED = 4 * 4  # bytes that a float32 parameter takes in training: itself, its gradient, two moments


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of the causal model of a config. Of many layers two and three are built: the others are like them.

    Errors (UserError): sizes that no computer can count with.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    if layers <= 8 * FEW:
        return _count(config)
    few, more = (_count(_with_layers(config, count)) for count in (FEW, FEW + 1))
    return few + (layers - FEW) * (more - few)


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    found = copy.deepcopy(config)
    if getattr(found, "layer_types", None):
        found.layer_types = found.layer_types[:layers]
    found.num_hidden_layers = layers
    return found


def _count(config: PretrainedConfig) -> int:
    try:
        model = empty_model(config, torch.float32, FakeTensorMode())
    except RuntimeError as error:  # Storage size calculation overflowed
        said = " ".join(str(error).split())
        raise UserError(f"model.config: larger than can be counted ({said}); make the model smaller") from error
    return sum(parameter.numel() for parameter in model.parameters())


def check_trainable(config: PretrainedConfig, where: str) -> None:
    """Refuse (UserError) a model that this machine cannot hold while it is trained."""
    count = count_parameters(config)
    what = f"{where}: training {count:.3g} parameters (with gradients and AdamW's moments)"
    refuse_beyond(TRAINED * float(count), what, "make the model smaller, or take a machine with more")
