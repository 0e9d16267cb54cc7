"""The components of a loaded language model: those that run, enough of them, and checked against autograd."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tdaexp.building.self_check import check_language_model
from tdaexp.models.components import Component, ComponentMap, component_map, names_in
from tdaexp.models.forward import forget
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.parts import Part
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.errors import UserError

WORDS = 2

_found: WeakKeyDictionary[nn.Module, tuple[Any, ComponentMap]] = WeakKeyDictionary()
"""Of each model what decided its map, and the map."""


def checked_map(loaded: LoadedModel) -> ComponentMap:
    """The model's components, whose gradients are autograd's. Checked once, and again when the model was changed.

    A model that is shared out keeps its map. Errors (UserError): they cover too small a share of its parameters; a
    gradient is not right (`self_check`).
    """
    model, name = loaded.model, str(loaded.model.name_or_path)
    types = {str(one.dtype) for one in model.parameters()}
    key = loaded.fingerprint, loaded.classes, loaded.experts, loaded.min_coverage, types
    known, components = _found.get(model, (None, None))
    if components is not None and known == key:
        return components
    forget(model)
    components = running(model, component_map(model, loaded.experts))
    share = components.covered / components.total
    if share < loaded.min_coverage:
        left = ", ".join(f"{one} ({size:,})" for one, size in list(components.skipped.items())[:3])
        raise UserError(
            f"{name}: components cover {100 * share:.3g} % of its parameters, less than model.min_coverage="
            f"{loaded.min_coverage:g}; skipped are {left}{', …' if len(components.skipped) > 3 else ''}: set a smaller "
            "model.min_coverage if answers without them are what you want"
        )
    check_language_model(model, components, NextToken(), name, len(loaded.classes or ()))
    _found[model] = key, components
    return components


def running(model: Any, components: ComponentMap) -> ComponentMap:
    """The components without the layers that a text does not run (a tower for pictures): those are skipped.

    Those with a layer that runs more than once have no rule: autograd forms their gradients.
    """
    ran: Counter[nn.Module] = Counter()
    parts = [part for one in components.components for part in one.parts if part.kind != "other"]
    layers = {part.module: model.get_submodule(part.module) for part in parts}
    handles = [layer.register_forward_hook(lambda layer, *_: ran.update([layer])) for layer in layers.values()]
    tokens = torch.zeros(1, WORDS, dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    idle = {path for path, layer in layers.items() if layer not in ran}
    again = {path for path, layer in layers.items() if ran[layer] > 1}
    components = components if not again else _formed(model, components, again)
    return components if not idle else _without(model, components, idle)


def _formed(model: nn.Module, components: ComponentMap, again: set[str]) -> ComponentMap:
    """The components of these layers without a rule; a share in a matrix, or in experts, keeps its own."""

    def formed(one: Component) -> Component:
        cut = any(part.rows is not None or part.kind == "expert" for part in one.parts)
        if cut or not any(part.module in again for part in one.parts):
            return one
        parts = (Part(part.module, "other", None, False, (part.size, 0), names_in(model, part)) for part in one.own)
        return replace(one, parts=tuple(parts))

    return replace(components, components=tuple(formed(one) for one in components.components))


def _without(model: nn.Module, components: ComponentMap, idle: set[str]) -> ComponentMap:
    kept: list[Component] = []
    for one in components.components:
        parts = tuple(part for part in one.parts if part.module not in idle)
        if parts:
            kept.append(replace(one, parts=parts))
    skipped = {
        f"{path}.{name}": parameter.numel()
        for path in sorted(idle)
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False)
    }
    return replace(components, components=tuple(kept), skipped={**components.skipped, **skipped})
