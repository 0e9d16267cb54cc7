"""What the parameters of one module are for capture: a kind of layer, found by the module's type, and its name.

A module that looks like no known kind (a bare parameter, a grouped convolution, …) is a part all the same: autograd
forms its gradient.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from tdaexp.models.layers import NORM, fused_at, name_of

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
ONE_OF_EXPERTS = re.compile(r"\bexperts\.\d+(\.|$)")  # a module that sees some tokens, of examples that it cannot tell
MATRICES = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class Part:
    """One module's share in a component.

    `module`: dotted path. `kind`: 'linear' (y = x Wᵀ + b), 'conv1d' (y = x W + b, GPT-2), 'conv2d' (a matrix over
    patches), 'embedding', 'norm', 'expert' (a linear map in a tensor [experts, outputs, inputs]), or 'other': whatever
    has no rule, whose gradient is formed by autograd. `rows` [R] int64: the outputs that belong to the component when
    its matrix is fused with others, else None. `bias`: the module's bias belongs to the component too. `shape`:
    (outputs, inputs) of the part's weight, inputs being the vocabulary for an embedding and 0 for a norm or something
    else. `parameters`: full names, of a part without a rule and of an expert, whose number is `expert`.
    """

    module: str
    kind: str
    rows: np.ndarray | None
    bias: bool
    shape: tuple[int, int]
    parameters: tuple[str, ...] = ()
    expert: int | None = None

    @property
    def size(self) -> int:
        """Number of parameters: weight and bias."""
        outputs, inputs = self.shape
        return outputs * max(inputs, 1) + (outputs if self.bias else 0)

    @property
    def matrix(self) -> tuple[str, tuple[str, ...], int | None]:
        """Which weight matrix it is, or is cut from."""
        return self.module, self.parameters, self.expert


def named_parts(
    path: str, module: nn.Module, own: dict[str, nn.Parameter], config: Any, name: str | None, experts: str
) -> list[tuple[str, Part]]:
    """(component name, part) of a module's own parameters: several of a fused matrix, and of experts.

    `name` where it is known by something else than its path. `config` is the transformers config. `experts` tells
    what a component of experts in one tensor is: one matrix of one 'expert', or all of a 'layer'.
    """
    if has_experts(module):
        return _experts(path, module, experts)
    kind = "other" if ONE_OF_EXPERTS.search(path) else _kind(module, own)
    if kind == "norm":
        return [("norms", Part(path, kind, None, "bias" in own, (own["weight"].numel(), 0)))]
    if kind == "other":
        names = tuple(f"{path}.{one}" if path else one for one in own)
        size = sum(parameter.numel() for parameter in own.values())
        return [(name or name_of(path), Part(path, kind, None, False, (size, 0), names))]
    shape = own["weight"].shape
    outputs, inputs = (shape[1], shape[0]) if kind in ("conv1d", "embedding") else (shape[0], shape[1])
    fused = None if name else fused_at(path, config, outputs)
    if fused is not None:
        pairs = zip(fused.names, fused.rows, strict=True)
        return [(one, Part(path, kind, rows, "bias" in own, (len(rows), inputs))) for one, rows in pairs]
    if name is None and is_router(module):
        name = f"{name_of(path).rpartition('.')[0]}.router".lstrip(".")
    return [(name or name_of(path), Part(path, kind, None, "bias" in own, (outputs, inputs)))]


def has_experts(module: nn.Module) -> bool:
    """Whether it holds gated experts as transformers does: W of gate and up [E, 2 I, d], W of down [E, d, I]."""
    own = dict(module.named_parameters(recurse=False))
    plain = not any(getattr(module, flag, True) for flag in ("is_transposed", "has_bias", "has_post_expert_norm"))
    gated = all(getattr(module, flag, False) for flag in ("has_gate", "is_concatenated", "_apply_gate"))
    return tuple(own) == MATRICES and plain and gated and all(one.ndim == 3 for one in own.values())


def is_router(module: nn.Module) -> bool:
    """Whether it chooses experts by a linear map that is its own weight."""
    return "router" in type(module).__name__.lower()


def _kind(module: nn.Module, own: dict[str, nn.Parameter]) -> str:
    from transformers.pytorch_utils import Conv1D

    weight = own.get("weight")
    plain = weight is not None and set(own) <= {"weight", "bias"}
    if weight is not None and plain and weight.ndim == 2:
        if isinstance(module, Conv1D):
            return "conv1d"
        if isinstance(module, nn.Embedding):
            return "embedding"
        if isinstance(module, nn.Linear) or is_router(module):
            return "linear"
    norm = isinstance(module, NORMS) or (NORM.search(type(module).__name__) and _reads_one(module))
    return "norm" if norm and plain and weight is not None and weight.ndim == 1 else "other"


def _reads_one(module: nn.Module) -> bool:
    """Whether its forward pass takes one tensor: a norm with a gate is something else."""
    return len(inspect.signature(module.forward).parameters) == 1


def _experts(path: str, module: Any, choice: str) -> list[tuple[str, Part]]:
    """Of each expert its gate, up and down."""
    stem = name_of(path)
    count, double, width = module.gate_up_proj.shape
    half = double // 2
    both = np.arange(double)
    found = []
    for number in range(count):
        for word, name, rows, shape in (
            ("gate", MATRICES[0], both[:half], (half, width)),
            ("up", MATRICES[0], both[half:], (half, width)),
            ("down", MATRICES[1], None, (width, half)),
        ):
            part = Part(path, "expert", rows, False, shape, (f"{path}.{name}",), number)
            found.append((f"{stem}.{number}.{word}" if choice == "expert" else stem, part))
    return found
