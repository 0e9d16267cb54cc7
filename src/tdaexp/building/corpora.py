"""A language model's corpus, and its training records as it reads them, in memory or in stores; whose each one is."""

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
from tdaexp.data.records import Corpus, Record
from tdaexp.data.text import Text
from tdaexp.data.token_examples import token_examples
from tdaexp.data.token_records import TokenRecords
from tdaexp.models.loaded import LoadedModel, check_tokens
from tdaexp.runtime.cache import entry
from tdaexp.runtime.errors import UserError


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


def corpus_of(config: Named) -> Corpus:
    """All records of the data set."""
    data = config.dataset
    if not isinstance(data, Text):
        found: Corpus = data.load()
        return found
    return token_corpus(config) if data.in_tokens else data.load_kept(Path(config.cache_dir))


def token_corpus(config: Named) -> Corpus:
    """The corpus of a file of tokens, which the model's tokenizer tells apart.

    Errors (UserError): the model is not there yet, or its tokenizer is not on this disk.
    """
    data: Text = config.dataset
    model = config.model
    if model.needs_training:
        raise UserError(
            f"dataset.path={data.path}: holds tokens, and a model that is trained here is trained on texts; name one "
            "that has weights (model=hub model.pretrained=FOLDER), or give the texts"
        )
    shape, tokenizer = model.planned([]) if model.stated else (None, None)
    if shape is None or tokenizer is None:
        raise UserError(
            f"dataset.path={data.path}: holds tokens, which the model's tokenizer must tell apart before the model is "
            "loaded; name a folder that has it (model.pretrained=FOLDER or model.tokenizer=FOLDER)"
        )
    return data.load_tokens(Path(config.cache_dir), tokenizer, int(shape.get_text_config().vocab_size))


def trained_on(config: Named, records: list[Record] | RecordStore | TokenRecords, loaded: LoadedModel) -> TrainedOn:
    """The training records as a model reads them; those of a store are tokenised once, and read from a store then."""
    if isinstance(records, TokenRecords):
        return _in_store(_of_tokens(config, records, loaded))
    if isinstance(records, RecordStore) and loaded.classes is None:
        return _in_store(_stored(config, records, loaded))
    listed = list(records)
    examples = tokenised(config, listed, loaded, loaded.classes)
    belongs, places = labels_of(listed, examples), {one.id: row for row, one in enumerate(listed)}
    names = belongs.get(DOCUMENT)
    documents = np.arange(len(examples)) if names is None else np.array([places[name] for name in names])
    return TrainedOn(examples, documents, belongs, places.get)


def _in_store(stored: StoredExamples) -> TrainedOn:
    return TrainedOn(stored, stored.store.documents, _labels(stored), stored.store.records.names.place)


def _stored(config: Named, records: RecordStore, loaded: LoadedModel) -> StoredExamples:
    how = replace(tokenisation(config), max_length=min(config.dataset.max_length, loaded.max_length))
    parts = [records.path.name, loaded.fingerprint, how]
    path = entry(Path(config.cache_dir), "tokens", *parts, by=[kept_examples])
    check = partial(check_tokens, loaded.model)
    return kept_examples(path, records, loaded.tokenizer, _known(loaded), check, **asdict(how))


def _of_tokens(config: Named, records: TokenRecords, loaded: LoadedModel) -> StoredExamples:
    if loaded.classes is not None:
        raise UserError(
            f"dataset.path={config.dataset.path}: holds tokens, and this model classifies texts; give those"
        )
    longest = min(config.dataset.max_length, loaded.max_length)
    cache, chunk = Path(config.cache_dir), config.dataset.chunk
    return token_examples(cache, records, _known(loaded), max_length=longest, chunk=chunk)


def _known(loaded: LoadedModel) -> int:
    """How many tokens the model embeds."""
    embeddings: Any = loaded.model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


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
