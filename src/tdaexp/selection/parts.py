"""Which components a method of curvature looks at, and what its label tells of its settings."""

from __future__ import annotations

from collections.abc import Iterable

from tdaexp.models.components import ComponentMap
from tdaexp.objectives.base import REDUCTIONS
from tdaexp.objectives.measurements import named
from tdaexp.runtime.errors import UserError, unknown

PARTS = {"blocks": "layers.", "attention": ".attn.", "mlp": ".mlp."}
"""Choices of `part`, and what the names of their components contain."""


def names_of(components: ComponentMap, part: str, names: list[str] | None = None) -> list[str]:
    """The components named in `names`, else those of a part of the model, in the model's order.

    A model without named blocks counts as one. Errors (UserError): it has no such part.
    """
    chosen = names or [name for name in components.names if PARTS[part] in name]
    if not chosen and part != "blocks":
        raise UserError(f"method.part={part}: this model has no components of that name; take method.part=blocks")
    return chosen or components.names


def check_choices(part: str, measurement: str, reduction: str) -> None:
    """Refuse an unknown part, measurement or reduction."""
    named(measurement)
    for key, value, choices in (("part", part, PARTS), ("reduction", reduction, REDUCTIONS)):
        if value not in choices:
            raise unknown(key, value, choices, f"method.{key}")


def with_notes(name: str, notes: Iterable[str]) -> str:
    """A label: the name, and in brackets what is not usual; empty notes are left out."""
    told = ", ".join(note for note in notes if note)
    return f"{name} ({told})" if told else name


def part_note(part: str, components: list[str] | None) -> str:
    """What a label tells of the components: nothing where they are those of all blocks."""
    return f"{len(components)} components" if components else "" if part == "blocks" else part


def choice_notes(part: str, components: list[str] | None, measurement: str, reduction: str) -> list[str]:
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
