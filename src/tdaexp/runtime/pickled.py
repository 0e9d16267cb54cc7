"""Digest of an object by its pickle, in which nothing of somebody's own stands for itself by its name alone."""

from __future__ import annotations

import copyreg
import hashlib
import io
import pickle
import types
from collections.abc import Callable
from pickle import whichmodule  # type: ignore[attr-defined]
from typing import Any

from tdaexp.runtime.installed import installed

PROTOCOL = 3
BY_NAME = (type, types.FunctionType, types.BuiltinFunctionType)


def pickled(value: Any, told: Callable[[Any], str | None]) -> str:
    """Digest (32 hex digits) of the object's state.

    `told(part)` gives what stands for a part of it, or None where its own pickle does. Errors: whatever pickling
    raises; PicklingError for an object that is kept by its name in a module of somebody's own.
    """

    class Apart(pickle.Pickler):
        def persistent_id(self, part: Any) -> str | None:
            return None if part is value else told(part)

        def reducer_override(self, part: Any) -> Any:
            if isinstance(part, BY_NAME) or type(part) in copyreg.dispatch_table:
                return NotImplemented
            reduced = part.__reduce_ex__(PROTOCOL)
            if isinstance(reduced, str) and installed(whichmodule(part, reduced)) is None:
                raise pickle.PicklingError(f"{reduced}: what stands under this name is not in its pickle")
            return reduced

    written = io.BytesIO()
    Apart(written, PROTOCOL).dump(value)
    return hashlib.blake2b(written.getvalue(), digest_size=16).hexdigest()
