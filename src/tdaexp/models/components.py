"""The map from a model's parameters to named components: disjoint groups that attribution is broken down by.

Names are the same across architectures: `embed`, `layers.3.attn.q` `.k` `.v` `.o`, `layers.3.mlp.gate` `.up` `.down`,
`layers.3.mlp.router` and `layers.3.mlp.experts.7.gate` where there are experts, `norms` (all norm weights and biases),
`lm_head` (when it is not tied to the embedding) and `pos_embed` (learned positions); what the words of `layers` do not
name has its path. A component's order is the model's parameter order. Whatever no component covers is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from tdaexp.models.parts import Part, named_parts
from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHER = "other"


@dataclass(frozen=True, eq=False)
class Component:
    """A named group of parameters.

    A tied embedding has two parts on the same matrix, the embedding and the head: its gradient is their sum.
    """

    name: str
    parts: tuple[Part, ...]

    @property
    def own(self) -> tuple[Part, ...]:
        """The parts that hold its parameters: of a tied matrix, the embedding alone."""
        return tuple(part for part in self.parts if part.kind == "embedding") if self.tied else self.parts

    @cached_property
    def size(self) -> int:
        """Number of parameters."""
        return sum(part.size for part in self.own)

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
    """A model's components and its number of parameters.

    `skipped` (name to size) are the parameters that no component covers, `unchosen` the components that were left out
    by choice.
    """

    components: tuple[Component, ...]
    skipped: dict[str, int]
    total: int
    model_type: str = field(default="")
    unchosen: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Component names in the model's parameter order."""
        return [component.name for component in self.components]

    @property
    def sizes(self) -> np.ndarray:
        """Parameters per component [K] int64."""
        return np.array([component.size for component in self.components], dtype=np.int64)

    @property
    def covered(self) -> int:
        """Parameters in components."""
        return int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self.components)

    def select(self, names: Iterable[str]) -> ComponentMap:
        """Keep the named components, in the map's order; the others are `unchosen`. Errors: unknown name."""
        wanted = list(names)
        for name in wanted:
            if name not in self.names:
                raise unknown("component", name, self.names, f"components of the {self.model_type} model")
        if not wanted:
            raise UserError("the selection of components is empty; name at least one of " + self.names[0] + ", …")
        kept = tuple(c for c in self.components if c.name in wanted)
        left_out = {c.name: c.size for c in self.components if c.name not in wanted}
        return replace(self, components=kept, unchosen={**self.unchosen, **left_out})

    def members(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Full names of each component's parameters in the model that the map is of."""
        return {component.name: tuple(parameters_of(model, component)) for component in self.components}

    def complete(self) -> ComponentMap:
        """The map with what it skips as one more component, `other`, so that sums over components are whole."""
        if not self.skipped:
            return self
        rest = grouped({OTHER: tuple(self.skipped)}, self.skipped).components
        return replace(self, components=self.components + rest, skipped={})

    def coverage_line(self) -> str:
        """One line for people: how many parameters are attributed, and by name what is not, by choice or at all."""
        unchosen = f"left out by choice: {listed(self.unchosen)}; " if self.unchosen else ""
        return (
            f"attributed {self.covered:,} of {self.total:,} parameters ({100 * self.covered / self.total:.4g} %) in "
            f"{len(self)} components; {unchosen}skipped: {listed(self.skipped)}"
        )


def listed(sizes: Mapping[str, int]) -> str:
    """The first ten names with their sizes, and how many more there are."""
    more = f", and {len(sizes) - 10} more" if len(sizes) > 10 else ""
    return (", ".join(f"{name} ({size:,})" for name, size in list(sizes.items())[:10]) or "none") + more


def grouped(members: Mapping[str, Sequence[str]], sizes: Mapping[str, int], model_type: str = "") -> ComponentMap:
    """The map of whole parameters in groups: component to names of its parameters, whose sizes are given by name.

    Autograd forms their gradients.
    """
    found = []
    for name, parameters in members.items():
        size = sum(sizes[parameter] for parameter in parameters)
        found.append(Component(name, (Part("", "other", None, False, (size, 0), tuple(parameters)),)))
    return ComponentMap(tuple(found), {}, sum(one.size for one in found), model_type)


def parameters_of(model: nn.Module, component: Component) -> list[str]:
    """Full names of the parameters that a component has a share in, in the order in which vectors list them."""
    return [name for part in component.parts for name in names_in(model, part)]


def names_in(model: nn.Module, part: Part) -> tuple[str, ...]:
    """Full names of the parameters that a part has a share in: those that it names, else all of its module."""
    stem, inside = f"{part.module}." if part.module else "", model.get_submodule(part.module)
    return part.parameters or tuple(f"{stem}{name}" for name, _ in inside.named_parameters(recurse=False))


def component_map(model: PreTrainedModel, experts: str = "expert") -> ComponentMap:
    """Find every parameter's component, on the meta device too. `experts` in one tensor: as in `named_parts`.

    Parameters without gradients (the integers of a quantised matrix) are skipped, and count for nothing.
    """
    inside, top = model.get_input_embeddings(), model.get_output_embeddings()
    embedding = getattr(inside, "weight", None)
    refuse_shared(model, (inside, top))
    first: dict[int, int] = {id(p): place for place, p in enumerate(model.parameters())}
    found: dict[str, list[tuple[int, Part]]] = {}
    covered: set[int] = set()
    for path, module in model.named_modules():
        tied = isinstance(module, nn.Linear) and module.weight is embedding
        own = {key: p for key, p in module.named_parameters(recurse=False) if p.is_floating_point()}
        if tied:  # its bias, where it has one, is no row of the embedding
            own = {"weight": own["weight"]}
        name = "embed" if module is inside or tied else "lm_head" if module is top else None
        covered |= {id(p) for p in own.values()}
        for component, part in named_parts(path, module, own, model.config, name, experts) if own else ():
            if component in found and part.kind not in ("norm", "expert") and not tied:  # another layer's name
                component = f"{path}.{component.rpartition('.')[2]}" if part.rows is not None else path
            found.setdefault(component, []).append((min(first[id(p)] for p in own.values()), part))
    order = sorted(found, key=lambda name: min(place for place, _ in found[name]))
    return ComponentMap(
        tuple(Component(name, tuple(part for _, part in found[name])) for name in order),
        {name: p.numel() for name, p in model.named_parameters() if id(p) not in covered},
        sum(p.numel() for p in model.parameters() if p.is_floating_point()),
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
