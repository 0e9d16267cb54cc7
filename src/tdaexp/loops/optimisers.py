"""What of a loop's optimiser is known here: its kind, its rates and weight decay, and its state on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tdaexp.runtime.errors import UserError
from tdaexp.training.optimizer_state import FILE, MOMENTS, Hyperparameters

UNKNOWN = ("amsgrad", "maximize", "nesterov", "dampening")
"""Settings that make another update of AdamW or SGD."""


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """`adamw` or `sgd`. Errors (UserError): an optimiser whose updates are neither's."""
    groups = optimizer.param_groups
    plain = not any(group.get(key) for group in groups for key in UNKNOWN)
    decoupled = isinstance(optimizer, torch.optim.AdamW) or not any(group.get("weight_decay") for group in groups)
    if isinstance(optimizer, torch.optim.Adam) and plain and decoupled:
        return "adamw"
    if isinstance(optimizer, torch.optim.SGD) and plain:
        return "sgd"
    raise UserError(
        f"loop: the updates of {type(optimizer).__name__} are not known with these settings; those that are: AdamW, "
        "Adam without weight decay, and SGD without Nesterov and dampening"
    )


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the next update. Errors (UserError): groups of parameters have different ones."""
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise UserError(
            f"loop: groups of parameters have learning rates of their own ({', '.join(map(str, sorted(rates)))}), and "
            "what reads a training knows one for all; give every group the same"
        )
    return rates.pop()


def alike(optimizer: torch.optim.Optimizer, keys: tuple[str, ...]) -> None:
    """Refuse (UserError) groups of parameters that differ in these settings."""
    for key in keys:
        found = {str(group.get(key)) for group in optimizer.param_groups}
        if len(found) > 1:
            raise UserError(f"loop: groups of parameters differ in {key} ({', '.join(sorted(found))}); give every "
                            "group the same")  # fmt: skip


def decays_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Weight decay by parameter name; 0 of what is not trained."""
    groups = optimizer.param_groups
    decay = {id(one): float(group.get("weight_decay", 0.0)) for group in groups for one in group["params"]}
    return {name: decay.get(id(one), 0.0) for name, one in model.named_parameters()}


def save_adam(
    folder: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, decay: dict[str, float], step: int
) -> None:
    """Write torch's AdamW as it goes on after `step` updates, in the form of `training.optimizer_state`."""
    group = optimizer.param_groups[0]
    tensors = {}
    for name, one in parameters.items():
        own = optimizer.state.get(one, {})  # nothing of a parameter that never had a gradient
        for key in MOMENTS:
            value = own[key].detach() if key in own else torch.zeros_like(one)
            tensors[f"{key}/{name}"] = value.float().cpu().contiguous()
    betas = float(group["betas"][0]), float(group["betas"][1])
    told = Hyperparameters(
        step, rate_of(optimizer), betas, float(group["eps"]), {name: decay[name] for name in parameters}
    )
    save_file(tensors, folder / FILE, metadata={"adamw": json.dumps(asdict(told))})
