"""The linear layers of a model as curvature sees them: one block per weight matrix, cut into components by rows.

A fused matrix (query_key_value of BLOOM and GPT-NeoX, c_attn of GPT-2) is one layer: its q, k and v share the input
covariance A and have one joint output covariance S, which keeps the correlation between them. The layer's output rows
are ordered by component, so a component is a slice of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """One weight matrix: `outputs` O and `inputs` I, the bias's constant input included (last column).

    `members` are its components as slices of the O rows. `at_loss`: it runs only where there is loss (the head).
    `routed`: an expert's, which runs where a router sends it something; at other positions its factors are zeros.
    """

    name: str
    outputs: int
    inputs: int
    bias: bool
    members: tuple[tuple[str, slice], ...]
    at_loss: bool = False
    routed: bool = False

    @property
    def size(self) -> int:
        """Entries of a gradient."""
        return self.outputs * self.inputs


@dataclass(frozen=True, eq=False)
class Layers:
    """A model's layers with a factor rule, in parameter order.

    `map` is the component map that `capture` needs: one component per layer. `components` are the components that the
    layers are made of, and in `components.skipped` what has no factor rule or was not asked for.
    """

    layers: tuple[Layer, ...]
    map: ComponentMap
    components: ComponentMap

    @property
    def names(self) -> list[str]:
        """Layer names in order."""
        return [layer.name for layer in self.layers]

    def __getitem__(self, name: str) -> Layer:
        """The layer of that name."""
        return self.layers[self.names.index(name)]

    def __len__(self) -> int:
        return len(self.layers)

    def columns(self, layer: Layer) -> list[int]:
        """Places of a layer's members among the components."""
        return [self.components.names.index(name) for name, _ in layer.members]

    def part(self, names: list[str]) -> Layers:
        """Only the named layers."""
        chosen = tuple(layer for layer in self.layers if layer.name in names)
        members = [name for layer in chosen for name, _ in layer.members]
        return Layers(chosen, self.map.select(names), self.components.select(members))


def cut(layers: Layers, count: int) -> list[Layers]:
    """The layers, in order, in at most `count` parts of about equal size."""
    if count <= 1:
        return [layers]
    sizes = np.cumsum([layer.size for layer in layers.layers], dtype=float)
    part = np.minimum((sizes / sizes[-1] * count - 1e-9).astype(int), count - 1)
    return [layers.part([layers.names[k] for k in np.flatnonzero(part == p)]) for p in np.unique(part)]


def layers_of(components: ComponentMap, strict: bool = False) -> Layers:
    """Group the linear components by weight matrix; others (embeddings, norms, a tied head) have no factor rule.

    What has none is left out and named in the coverage line; with `strict` it is an error. Errors (UserError): nothing
    is left.
    """
    fit = [one for one in components.components if not _without_rule(one)]
    unfit = [one for one in components.components if _without_rule(one)]
    if unfit and strict:
        raise UserError(
            f"components without a factor rule: {', '.join(one.name for one in unfit)} (only linear and convolutional "
            "layers have one); name others in method.components, or set method.strict=false"
        )
    if not fit:
        raise UserError(
            "none of the chosen components is a linear or convolutional layer; name some in method.components, e.g. "
            "[layers.0.mlp.up]"
        )
    groups: dict[object, list[Component]] = {}
    for one in fit:
        groups.setdefault(one.parts[0].matrix, []).append(one)
    kept = components.select([one.name for one in fit])
    pairs = [_layer(group) for group in groups.values()]
    whole = ComponentMap(tuple(fused for _, fused in pairs), kept.skipped, kept.total, kept.model_type)
    return Layers(tuple(layer for layer, _ in pairs), whole, kept)


def _without_rule(component: Component) -> bool:
    return len(component.parts) > 1 or component.parts[0].kind not in ("linear", "conv1d", "conv2d", "expert")


def _layer(group: list[Component]) -> tuple[Layer, Component]:
    """A layer, and the component of its whole matrix for `capture`, rows ordered by member."""
    parts = [one.parts[0] for one in group]
    first = parts[0]
    heights = [part.shape[0] for part in parts]
    ends = np.cumsum(heights)
    members = tuple(
        (one.name, slice(int(end) - height, int(end))) for one, end, height in zip(group, ends, heights, strict=True)
    )
    name = group[0].name
    if len(group) > 1:  # layers.0.attn.q, .k, .v become layers.0.attn.qkv
        name = name.rpartition(".")[0] + "." + "".join(one.name.rpartition(".")[2] for one in group)
    rows = None if first.rows is None else np.concatenate([part.rows for part in parts if part.rows is not None])
    shape = (int(ends[-1]), first.shape[1])
    part = replace(first, rows=rows, shape=shape)
    at_loss = name.partition(".")[0] == "lm_head"  # an adapter's matrices there, too
    layer = Layer(name, shape[0], shape[1] + first.bias, first.bias, members, at_loss, first.kind == "expert")
    return layer, Component(name, (part,))
