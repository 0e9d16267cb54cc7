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
    from tdaexp.runtime.errors import UserError

__version__ = "0.1.0"
__all__ = ["Answer", "SelfInfluence", "UserError", "attribute", "load", "self_influence"]


def __getattr__(name: str) -> Any:
    """What the package offers, from where it is written."""
    if name not in __all__:
        raise AttributeError(f"module 'tdaexp' has no attribute '{name}'")
    return getattr(importlib.import_module("tdaexp.runtime.errors" if name == "UserError" else "tdaexp.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
