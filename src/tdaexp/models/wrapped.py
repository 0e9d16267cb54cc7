"""The model that is inside another object: one that torch.compile gave, or peft."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from tdaexp.runtime.errors import UserError


def compiled_from(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given; the model itself where it is no such result."""
    inner = getattr(model, "_orig_mod", None)
    return compiled_from(_alone(model, inner)) if isinstance(inner, nn.Module) else model


def language_model(model: nn.Module) -> nn.Module:
    """The model of transformers within a PeftModel or a compiled one, its adapters in it; else the model itself.

    Errors (UserError): the adapter is no part of the model (prompt learning), or the object around has hooks.
    """
    model = compiled_from(model)
    peft: Any = sys.modules.get("peft")  # somebody who has such a model has imported it
    if peft is None or not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UserError(
            f"model: a {type(model).__name__} with learned prompts is more than its model of transformers; only "
            "adapters within a model's layers (LoRA) can be explained"
        )
    if "forward" in vars(model):
        raise UserError(f"model: the forward of the {type(model).__name__} was replaced; hand over what it computes")
    inner: Any = model.base_model
    return language_model(_alone(model, _alone(inner, inner.model)))


def _alone(outer: nn.Module, inner: nn.Module) -> nn.Module:
    """The inner one. Errors (UserError): hooks on the outer one, which would not run."""
    if outer._forward_hooks or outer._forward_pre_hooks:
        raise UserError(
            f"model: hooks on a {type(outer).__name__} would not run: the {type(inner).__name__} in it is explained; "
            "put them there, or take them off"
        )
    return inner
