"""The training records of a language model as it reads them, in memory or in stores, and which record each is of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.building.settings import Named
from tdaexp.building.texts import tokenisation, tokenised
from tdaexp.data.example_store import StoredExamples
from tdaexp.data.examples import Examples
from tdaexp.data.kept_examples import kept_examples
from tdaexp.data.pieces import DOCUMENT, SOURCE, labels_of
from tdaexp.data.record_store import RecordStore
from tdaexp.data.records import Record
from tdaexp.models.loaded import LoadedModel, check_tokens
from tdaexp.runtime.cache import entry


@dataclass(frozen=True)
class TrainedOn:
    """Training examples [N], the number of each one's record (`documents` [N]), and what it `belongs` to (`pieces`).

    `place` gives the number of the record of an id.
    """

    examples: Examples
    documents: np.ndarray
    belongs: dict[str, list[str]]
    place: Callable[[str], int | None]

    def of(self, names: Iterable[str]) -> np.ndarray:
        """Numbers of the examples that are of some records, by these records' ids."""
        places = [place for name in names if (place := self.place(name)) is not None]
        return np.flatnonzero(np.isin(self.documents, places))


def trained_on(config: Named, records: list[Record] | RecordStore, loaded: LoadedModel) -> TrainedOn:
    """The training records as a model reads them; those of a store are tokenised once, and read from a store then."""
    if isinstance(records, RecordStore) and loaded.classes is None:
        stored = _stored(config, records, loaded)
        return TrainedOn(stored, stored.store.documents, _labels(stored), records.names.place)
    listed = list(records)
    examples = tokenised(config, listed, loaded, loaded.classes)
    belongs, places = labels_of(listed, examples), {one.id: row for row, one in enumerate(listed)}
    names = belongs.get(DOCUMENT)
    documents = np.arange(len(examples)) if names is None else np.array([places[name] for name in names])
    return TrainedOn(examples, documents, belongs, places.get)


def _stored(config: Named, records: RecordStore, loaded: LoadedModel) -> StoredExamples:
    how = replace(tokenisation(config), max_length=min(config.dataset.max_length, loaded.max_length))
    parts = [records.path.name, loaded.fingerprint, how]
    path = entry(Path(config.cache_dir), "tokens", *parts, by=[kept_examples])
    embeddings: Any = loaded.model.get_input_embeddings()
    known = int(embeddings.weight.shape[0])
    return kept_examples(path, records, loaded.tokenizer, known, partial(check_tokens, loaded.model), **asdict(how))


def _labels(stored: StoredExamples) -> dict[str, list[str]]:
    """As `labels_of`."""
    store, found = stored.store, {}
    if store.cut:
        names = list(store.records.ids)
        found[DOCUMENT] = [names[number] for number in store.documents]
    if store.records.sourced:
        sources = [sys.intern(str(one.meta.get(SOURCE, ""))) for one in store.records]
        found[SOURCE] = [sources[number] for number in store.documents]
    return found
