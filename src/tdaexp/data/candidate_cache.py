"""Candidates kept on disk: a sweep's jobs share them, and a lexical index of a large corpus takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tdaexp.data.records import Record
from tdaexp.runtime import seal
from tdaexp.runtime.cache import entry
from tdaexp.runtime.files import cached_folder

if TYPE_CHECKING:
    from tdaexp.data.candidates import Candidates, Lexical


def cached_candidates(selector: Lexical, queries: list[Record], train: list[Record], folder: Path) -> Candidates:
    """Return `selector.select(queries, train)`, computed once per settings, texts and content and kept in `folder`.

    Raises:
        UserError: what is in the cache is damaged.
    """
    from tdaexp.data.candidates import Candidates

    texts = [[[r.id, r.prompt, r.completion, list(r.truth)] for r in records] for records in (queries, train)]
    path = entry(folder, ".", selector, selector.content(), texts, by=[type(selector)])

    def build(temporary: Path) -> None:
        found = selector.select(queries, train)
        np.savez(temporary / "candidates.npz", indices=found.indices, bm25=found.bm25)

    seal.require(cached_folder(path, build))
    with np.load(path / "candidates.npz") as arrays:
        return Candidates(arrays["indices"], arrays["bm25"])
