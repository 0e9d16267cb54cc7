"""Training-data attribution: which training examples, components and training steps are behind a model's behaviour.

    import tdaexp

    answer = tdaexp.attribute(model, train, queries, method="ekfac", tokenizer=tokenizer)
    answer.top(5)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdaexp.api import Answer, SelfInfluence, attribute, load, self_influence
    from tdaexp.loops.keep import KeepCheckpoints
    from tdaexp.loops.lightning import LightningCallback
    from tdaexp.loops.loop import Loop
    from tdaexp.loops.record import Record
    from tdaexp.loops.shapley import InRunShapley
    from tdaexp.loops.transformers import TransformersCallback
    from tdaexp.runtime.errors import UserError

__version__ = "0.2.0"
_PLACES = {
    "Answer": "api",
    "InRunShapley": "loops.shapley",
    "KeepCheckpoints": "loops.keep",
    "LightningCallback": "loops.lightning",
    "Loop": "loops.loop",
    "Record": "loops.record",
    "SelfInfluence": "api",
    "TransformersCallback": "loops.transformers",
    "UserError": "runtime.errors",
    "attribute": "api",
    "load": "api",
    "self_influence": "api",
}
__all__ = [
    "Answer",
    "InRunShapley",
    "KeepCheckpoints",
    "LightningCallback",
    "Loop",
    "Record",
    "SelfInfluence",
    "TransformersCallback",
    "UserError",
    "attribute",
    "load",
    "self_influence",
]


def __getattr__(name: str) -> Any:
    """What the package offers, from where it is written."""
    if name not in _PLACES:
        raise AttributeError(f"module 'tdaexp' has no attribute '{name}'")
    return getattr(importlib.import_module(f"tdaexp.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
