"""What tells a model with an adapter from one without: its two matrices beside each adapted layer, and their config."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

MATRIX = re.compile(r"\.lora_[AB]\.\w+(\.(weight|bias))?$")


def is_matrix(name: str) -> bool:
    """Whether a module or a parameter of that name is one of the two matrices of an adapter."""
    return MATRIX.search(name) is not None


def is_adapted(model: nn.Module) -> bool:
    """Whether the model has an adapter that is not merged."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def train_only_adapter(model: nn.Module) -> None:
    """Let gradients into the adapter's matrices, and nowhere else; into all parameters of a model without one."""
    whole = not is_adapted(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(whole or is_matrix(name))


def config_of(model: PreTrainedModel) -> LoraConfig | None:
    """How peft describes the adapter of a model; None without one."""
    if not is_adapted(model):
        return None
    found: LoraConfig = model.peft_config["default"]  # type: ignore[assignment]
    return found


def base_of(model: PreTrainedModel) -> str | None:
    """Folder or hub id of an adapted model's base; None of one without an adapter."""
    config = config_of(model)
    return None if config is None else str(config.base_model_name_or_path)


@contextlib.contextmanager
def adapters_apart() -> Iterator[None]:
    """Inside the block transformers loads a base alone: of an adapter beside it we know ourselves."""
    from transformers.integrations import peft as integration
    from transformers.models.auto import auto_factory

    before = [(place, place.is_peft_available) for place in (integration, auto_factory)]
    for place, _ in before:
        place.is_peft_available = lambda: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for place, own in before:
            place.is_peft_available = own  # type: ignore[attr-defined]
