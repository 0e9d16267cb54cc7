"""Which components a method looks at, and what its label tells of its settings."""

from __future__ import annotations

from collections.abc import Iterable

import xarray as xr

from tdaexp.models.components import ComponentMap
from tdaexp.objectives.base import REDUCTIONS
from tdaexp.objectives.measurements import named
from tdaexp.runtime.errors import UserError, unknown

PARTS = {"all": "", "blocks": "layers.", "attention": ".attn.", "mlp": ".mlp.", "adapter": ".lora_"}
"""Choices of `part`, and what the names of their components contain."""


def part_of(names: Iterable[str], part: str | None, usual: str) -> str:
    """The part, and where none is asked for: the adapter, as that is what was trained, else the `usual` one."""
    return part or ("adapter" if any(PARTS["adapter"] in name for name in names) else usual)


def names_of(
    components: ComponentMap, part: str | None, names: list[str] | None = None, usual: str = "blocks"
) -> list[str]:
    """The components named in `names`, else those of a part of the model (None: `part_of`), in the model's order.

    A model without named blocks counts as one. Errors (UserError): it has no such part.
    """
    part = part_of(components.names, part, usual)
    chosen = names or [name for name in components.names if PARTS[part] in name]
    if not chosen and part == "adapter":
        raise UserError("method.part=adapter: this model has no adapter; name one (model.adapter=FOLDER)")
    if not chosen and part != "blocks":
        raise UserError(f"method.part={part}: this model has no components of that name; take method.part=blocks")
    return chosen or components.names


def chosen(
    every: ComponentMap, part: str | None, names: list[str] | None = None, usual: str = "blocks"
) -> ComponentMap:
    """The components that `names_of` names."""
    return every.select(names_of(every, part, names, usual))


def restricted(products: xr.Dataset, part: str | None, names: list[str] | None, usual: str) -> xr.Dataset:
    """The same of stored products, whose components have names alone."""
    every = [str(name) for name in products["component"].values]
    part = part_of(every, part, usual)
    wanted = names or [name for name in every if PARTS[part] in name]
    for name in wanted:
        if name not in every:
            raise unknown("component", name, every, "method.components")
    if not wanted:
        raise UserError(f"method.part={part}: the stored products have no such component; they have {', '.join(every)}")
    return products if wanted == every else products.isel(component=[every.index(name) for name in wanted])


def check_part(part: str | None, reduction: str = "mean") -> None:
    """Refuse an unknown part or reduction."""
    if part is not None and part not in PARTS:
        raise unknown("part", part, PARTS, "method.part")
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS, "method.reduction")


def check_choices(part: str | None, measurement: str, reduction: str) -> None:
    """Refuse an unknown part, measurement or reduction."""
    named(measurement)
    check_part(part, reduction)


def with_notes(name: str, notes: Iterable[str]) -> str:
    """A label: the name, and in brackets what is not usual; empty notes are left out."""
    told = ", ".join(note for note in notes if note)
    return f"{name} ({told})" if told else name


def part_note(part: str | None, components: list[str] | None, usual: str = "blocks") -> str:
    """What a label tells of the components: nothing where they are those of the usual part."""
    return f"{len(components)} components" if components else "" if part in (None, usual) else str(part)


def choice_notes(part: str | None, components: list[str] | None, measurement: str, reduction: str) -> list[str]:
    """What a label tells of these choices; nothing of the usual ones."""
    return [
        part_note(part, components),
        "" if measurement == "log_likelihood" else measurement,
        "" if reduction == "mean" else reduction,
    ]


def damping_note(value: float | None, relative: float, usual: float) -> str:
    """What a label tells of a damping: λ, or the share of the mean eigenvalue if it is not the usual one."""
    if value is not None:
        return f"λ {value:g}"
    return "" if relative == usual else f"λ {relative:g} × mean"


def metric_note(precondition: str) -> str:
    """What a label tells of the metric of products: nothing of the plain one."""
    return "" if precondition == "none" else f"{precondition} metric"
