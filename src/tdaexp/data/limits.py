"""How many of a data set's records or queries are taken."""

from __future__ import annotations

from typing import Any

from tdaexp.runtime.errors import UserError


def check_limits(dataset: Any, *keys: str) -> None:
    """Refuse (UserError) a number below 1 in those of a data set's `keys` that are given."""
    for key in keys:
        value = getattr(dataset, key)
        if value is not None and value < 1:
            raise UserError(f"dataset.{key}={value}: must be at least 1 (or null for all)")
