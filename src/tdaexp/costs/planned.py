"""The components that a method will look at, of a model without data."""

from __future__ import annotations

from tdaexp.costs.task_workload import TaskWorkload
from tdaexp.costs.workload import Workload
from tdaexp.models.components import ComponentMap
from tdaexp.selection.parts import chosen


def planned(work: Workload | TaskWorkload, part: str, names: list[str] | None = None) -> ComponentMap:
    """The components named in `names`, else those of a part of the model. Errors (UserError): it has no such part."""
    return chosen(work.parts(None) if isinstance(work, TaskWorkload) else work.every, part, names)
