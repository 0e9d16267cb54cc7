"""The map from a model's parameters to named components: disjoint groups that attribution is broken down by.

Names are the same across architectures: `embed`, `layers.3.attn.q` `.k` `.v` `.o`, `layers.3.mlp.gate` `.up` `.down`,
`norms` (all norm weights and biases), `lm_head` (when it is not tied to the embedding) and `pos_embed` (learned
positions). A component's order is the model's parameter order. Whatever no component covers is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from tdaexp.models.adapters import split_path
from tdaexp.models.layers import Layout, fused_at, joined, layout, names_of
from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHER = "other"


@dataclass(frozen=True, eq=False)
class Part:
    """One module's share in a component.

    `module`: dotted path. `kind`: 'linear' (y = x Wᵀ + b), 'conv1d' (y = x W + b, GPT-2), 'conv2d' (a matrix over
    patches), 'embedding', 'norm', or 'other': whatever has no rule, whose gradient is formed by autograd. `rows` [R]
    int64: the outputs that belong to the component when its matrix is fused with others, else None. `bias`: the
    module's bias belongs to the component too. `shape`: (outputs, inputs) of the part's weight, inputs being the
    vocabulary for an embedding and 0 for a norm or something else. `parameters`: full names, of a part without a rule.
    """

    module: str
    kind: str
    rows: np.ndarray | None
    bias: bool
    shape: tuple[int, int]
    parameters: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of parameters: weight and bias."""
        outputs, inputs = self.shape
        return outputs * max(inputs, 1) + (outputs if self.bias else 0)


@dataclass(frozen=True, eq=False)
class Component:
    """A named group of parameters; `size` counts each parameter once.

    A tied embedding has two parts on the same matrix, the embedding and the head: its gradient is their sum.
    """

    name: str
    parts: tuple[Part, ...]
    size: int

    @property
    def matrix(self) -> tuple[int, int]:
        """The gradient as a matrix: (outputs, inputs and bias), (vocabulary, width) or (parameters, 1)."""
        part = self.parts[0]
        if part.kind in ("norm", "other") or (len(self.parts) > 1 and not self.tied):
            return self.size, 1
        outputs, inputs = part.shape
        return (inputs, outputs) if part.kind == "embedding" else (outputs, inputs + part.bias)

    @property
    def captured(self) -> bool:
        """Whether hooks see all of its gradient; else autograd forms it (`gradients.explicit`)."""
        return all(part.kind != "other" for part in self.parts)

    @property
    def alone_linear(self) -> bool:
        """Whether the component is one linear layer, which may read what others read too."""
        return len(self.parts) == 1 and self.parts[0].kind in ("linear", "conv1d")

    @property
    def tied(self) -> bool:
        """Whether an embedding and a head share the component's one matrix."""
        return {"embedding", "linear"} <= {part.kind for part in self.parts}


@dataclass(frozen=True, eq=False)
class ComponentMap:
    """A model's components, what they leave out (`skipped`: name to size), and its number of parameters."""

    components: tuple[Component, ...]
    skipped: dict[str, int]
    total: int
    model_type: str = field(default="")

    @property
    def names(self) -> list[str]:
        """Component names in the model's parameter order."""
        return [component.name for component in self.components]

    @property
    def sizes(self) -> np.ndarray:
        """Parameters per component [K] int64."""
        return np.array([component.size for component in self.components], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.components)

    def select(self, names: Iterable[str]) -> ComponentMap:
        """Keep the named components, in the map's order; others count as skipped. Errors: unknown name."""
        wanted = list(names)
        for name in wanted:
            if name not in self.names:
                raise unknown("component", name, self.names, f"components of the {self.model_type} model")
        if not wanted:
            raise UserError("the selection of components is empty; name at least one of " + self.names[0] + ", …")
        kept = tuple(c for c in self.components if c.name in wanted)
        left_out = {c.name: c.size for c in self.components if c.name not in wanted}
        return ComponentMap(kept, {**self.skipped, **left_out}, self.total, self.model_type)

    def members(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Full names of each component's parameters in the model that the map is of."""
        return {component.name: tuple(parameters_of(model, component)) for component in self.components}

    def complete(self) -> ComponentMap:
        """The map with what it leaves out as one more component, `other`, so that sums over components are whole."""
        if not self.skipped:
            return self
        rest = grouped({OTHER: tuple(self.skipped)}, self.skipped).components
        return ComponentMap(self.components + rest, {}, self.total, self.model_type)

    def coverage_line(self) -> str:
        """One line for people: how many parameters are attributed, and by name what is not."""
        covered = int(self.sizes.sum())
        skipped = ", ".join(f"{name} ({size:,})" for name, size in list(self.skipped.items())[:10])
        more = f", and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else ""
        return (
            f"attributed {covered:,} of {self.total:,} parameters ({100 * covered / self.total:.4g} %) in "
            f"{len(self)} components; skipped: {skipped or 'none'}{more}"
        )


def grouped(members: Mapping[str, Sequence[str]], sizes: Mapping[str, int], model_type: str = "") -> ComponentMap:
    """The map of whole parameters in groups: component to names of its parameters, whose sizes are given by name.

    Autograd forms their gradients.
    """
    found = []
    for name, parameters in members.items():
        size = sum(sizes[parameter] for parameter in parameters)
        found.append(Component(name, (Part("", "other", None, False, (size, 0), tuple(parameters)),), size))
    return ComponentMap(tuple(found), {}, sum(one.size for one in found), model_type)


def parameters_of(model: nn.Module, component: Component) -> list[str]:
    """Full names of the parameters that a component has a share in, in the order in which vectors list them."""
    names: list[str] = []
    for part in component.parts:
        layer = model.get_submodule(part.module)
        own = [f"{part.module}.{name}" if part.module else name for name, _ in layer.named_parameters(recurse=False)]
        names += part.parameters or own
    return names


def component_map(model: PreTrainedModel) -> ComponentMap:
    """Find every parameter's component, on the meta device too. Errors: unsupported `config.model_type`."""
    table = layout(model.config.model_type)
    embedding = model.get_input_embeddings().weight
    modules = dict(model.named_modules())
    refuse_shared(model, (model.get_input_embeddings(), model.get_output_embeddings()))
    first: dict[int, int] = {id(p): place for place, p in enumerate(model.parameters())}
    found: dict[str, list[tuple[int, Part]]] = {}
    covered: set[int] = set()
    for path, module in modules.items():
        own = dict(module.named_parameters(recurse=False))
        if not own or not names_of(split_path(path)[0], table):
            continue
        tied = isinstance(module, nn.Linear) and module.weight is embedding
        covered |= {id(own["weight"])} if tied else {id(p) for p in own.values()}
        for name, part in _parts(path, module, table, model.config.num_attention_heads, tied):
            found.setdefault(name, []).append((first[id(own["weight"])], part))
    order = sorted(found, key=lambda name: min(place for place, _ in found[name]))
    return ComponentMap(
        tuple(_component(name, [part for _, part in found[name]]) for name in order),
        {name: p.numel() for name, p in model.named_parameters() if id(p) not in covered},
        sum(p.numel() for p in model.parameters()),
        model.config.model_type,
    )


def refuse_shared(model: nn.Module, tied: Sequence[nn.Module | None] = ()) -> None:
    """Refuse a parameter that several modules have: its gradient is a sum over all of them, which no capture forms.

    What the modules in `tied` have in common is formed. Errors (UserError): it names the first two places.
    """
    owners: dict[int, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            place = f"{path}.{name}"
            first, owner = owners.setdefault(id(parameter), (place, module))
            if first != place and not (owner is not module and owner in tied and module in tied):
                raise UserError(
                    f"the model's '{first}' and '{place}' are one tensor, whose gradient is a sum over both places and "
                    "belongs to no one component; give each place a tensor of its own"
                )


def _component(name: str, parts: list[Part]) -> Component:
    kinds = {part.kind for part in parts}
    counted = [part for part in parts if part.kind == "embedding"] if "embedding" in kinds else parts
    return Component(name, tuple(parts), sum(part.size for part in counted))


def _parts(path: str, module: nn.Module, table: Layout, heads: int, tied: bool) -> list[tuple[str, Part]]:
    """(component name, part) of one module with parameters: several for a fused matrix."""
    kind, shape = _kind(path, module)
    bias = getattr(module, "bias", None) is not None and not tied
    layer, matrix = split_path(path)
    if matrix:
        return [(f"{joined(names_of(layer, table))}.{matrix}", Part(path, kind, None, bias, shape))]
    fused = fused_at(layer, table)
    if fused is None:
        name = "embed" if tied else names_of(layer, table)[0]
        return [(name, Part(path, kind, None, bias, shape))]
    rows = fused.rows(shape[0], heads)
    return [
        (name, Part(path, kind, mine, bias, (len(mine), shape[1])))
        for name, mine in zip(fused.names, rows, strict=True)
    ]


def _kind(path: str, module: nn.Module) -> tuple[str, tuple[int, int]]:
    """Kind of layer and (outputs, inputs)."""
    from transformers.pytorch_utils import Conv1D

    weight = module.weight
    if not isinstance(weight, nn.Parameter):
        raise UserError(f"module '{path}' has no plain weight; load the model without quantisation or adapters")
    if isinstance(module, nn.Linear):
        return "linear", (weight.shape[0], weight.shape[1])
    if isinstance(module, Conv1D):
        return "conv1d", (weight.shape[1], weight.shape[0])
    if isinstance(module, nn.Embedding):
        return "embedding", (weight.shape[1], weight.shape[0])
    if weight.ndim == 1:
        return "norm", (weight.shape[0], 0)
    raise UserError(f"module '{path}' is a {type(module).__name__}, which has no gradient capture; use a plain model")
