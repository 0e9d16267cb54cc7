"""Candidates kept on disk: a sweep's jobs share them, and a lexical index of a large corpus takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path, locked
from tdaexp.runtime.fingerprint import CACHE_VERSION, fingerprint

if TYPE_CHECKING:
    from tdaexp.data.candidates import Candidates, Lexical


def cached_candidates(selector: Lexical, queries: list[Record], train: list[Record], folder: Path) -> Candidates:
    """Return `selector.select(queries, train)`, computed once per settings, texts and content and kept in `folder`.

    Raises:
        UserError: the file in the cache is damaged.
    """
    from tdaexp.data.candidates import Candidates

    texts = [[[r.id, r.prompt, r.completion, list(r.truth)] for r in records] for records in (queries, train)]
    path = folder / f"{fingerprint(CACHE_VERSION, selector, selector.content(), texts)}.npz"
    with locked(path):
        if not path.exists():
            found = selector.select(queries, train)
            with atomic_path(path) as temporary, temporary.open("wb") as target:
                np.savez(target, indices=found.indices, bm25=found.bm25)
    try:
        with path.open("rb") as stream, np.load(stream) as arrays:
            return Candidates(arrays["indices"], arrays["bm25"])
    except Exception as error:
        raise UserError(f"{path}: damaged cache ({error}); delete this file and run again") from error
