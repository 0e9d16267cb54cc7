"""Candidates that another run found: its pairs, so that a dearer method scores a cheaper one's best again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.data.candidates import Candidates
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
STORE, TEXTS = "influence.zarr", "texts.json"


@dataclass
class Found:
    """run: folder of a run of attribute.py about the same questions and training examples, whose pairs are taken."""

    run: str | None = None

    def __post_init__(self) -> None:
        """Refuse no folder. Errors (UserError)."""
        if self.run is None:
            raise UserError("candidates=found: takes the pairs of a run; name its folder, candidates.run=FOLDER")

    def size(self, train: Sequence[Any]) -> int:
        """How many candidates a query gets."""
        return min(self._store.sizes["candidate"], len(train))

    def select(self, queries: Sequence[Record], train: Sequence[Record]) -> Candidates:
        """As `pairs`, of records."""
        return self.pairs({one.id: one.text for one in queries}, {one.id: one.text for one in train})

    def pairs(self, queries: Mapping[str, str], train: Mapping[str, str]) -> Candidates:
        """The run's pairs, each query's in the run's order; `queries` and `train` are texts by their ids.

        Errors (UserError): the run knows nothing of a query, or its examples are others than these.
        """
        rows = {name: row for row, name in enumerate(self._store["query"].values.tolist())}
        unknown = [name for name in queries if name not in rows]
        if unknown:
            raise UserError(
                f"candidates.run={self.run}: has no pair of the question '{unknown[0]}' ({len(unknown)} of "
                f"{len(queries)} are not in it); ask the same query sets of the same data in both runs"
            )
        self._check("query", queries, queries)
        place = {name: number for number, name in enumerate(train)} | {"": -1}
        wanted = influence.of_queries(self._store, np.array([rows[name] for name in queries], dtype=np.int64))
        found: list[np.ndarray] = [np.zeros((0, self._store.sizes["candidate"]), dtype=np.int64)]
        for part in influence.blocks(wanted):
            names = part["train"].values
            strange = next((name for name in names.ravel() if name not in place), None)
            if strange is not None:
                raise UserError(
                    f"candidates.run={self.run}: has a pair with '{strange}', which is none of these {len(train)} "
                    "training examples; take the same data in both runs"
                )
            self._check("train", set(names.ravel()) - {""}, train)
            found.append(np.array([place[name] for name in names.ravel()], dtype=np.int64).reshape(names.shape))
        indices = np.concatenate(found)
        log.info("candidates: %d for each query, the pairs of %s", indices.shape[1], self.run)
        return Candidates(indices, np.full(indices.shape, np.nan))

    @cached_property
    def _store(self) -> xr.Dataset:
        store = influence.load(Path(str(self.run)) / STORE)
        if "candidate" not in store.dims:
            raise UserError(f"candidates.run={self.run}: decomposes a training, and has no pairs")
        return store

    @cached_property
    def _texts(self) -> Mapping[str, Any]:
        """The run's texts by role and id; none where they are not beside its store."""
        file = Path(str(self.run)) / TEXTS
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
        except ValueError as error:
            raise UserError(f"{file}: damaged; run attribute.py again") from error

    def _check(self, role: str, ids: Any, texts: Mapping[str, str]) -> None:
        """Refuse ids that mean another text there than here."""
        theirs = self._texts.get(role, {})
        for name in ids:
            if name in theirs and _letters(theirs[name]) != _letters(texts[name]):
                raise UserError(
                    f"candidates.run={self.run}: has another text as '{name}' than this data; take the same data in "
                    "both runs"
                )


def texts_by_id(examples: Any) -> dict[str, str]:
    """Texts of a list of examples (`ids`, `texts`)."""
    return dict(zip(examples.ids, examples.texts, strict=True))


def _letters(text: str | list[str]) -> str:
    """A text without its blanks; a list is its prompt, its completion, and perhaps what it is compared with."""
    return "".join("".join(text if isinstance(text, str) else text[:2]).split())
