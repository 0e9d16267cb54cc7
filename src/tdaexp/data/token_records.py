"""The documents of a file of tokens as training records: numbered, and decoded for people when they are looked at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from tdaexp.data.examples import Example
from tdaexp.data.lazy import Lazy
from tdaexp.data.records import Place, Record, Skipped
from tdaexp.data.token_file import Documents


class Decoded(Record):
    """A document whose text (its completion) is decoded when it is asked for."""

    def __init__(self, name: str, where: Place, decode: Callable[[], str]) -> None:
        super().__init__(name, "", "", where=where)
        del self.__dict__["completion"]  # there once it is asked for
        self.__dict__["_decode"] = decode

    @cached_property
    def completion(self) -> str:
        """The document's text."""
        return str(self.__dict__["_decode"]())


class DecodedExample(Example):
    """An example whose text is decoded when it is asked for."""

    def __init__(
        self, name: str, tokens: np.ndarray, mask: np.ndarray, decode: Callable[[], str], document: str | None
    ) -> None:
        super().__init__(name, tokens, mask, "", document)
        del self.__dict__["text"]
        self.__dict__["_decode"] = decode

    @cached_property
    def text(self) -> str:
        """The text of the whole document, or of a piece of it."""
        return str(self.__dict__["_decode"]()).strip()


class Numbers(Lazy[str]):
    """The ids of N documents: their numbers, from 0."""

    def __init__(self, count: int) -> None:
        self._rows = range(count)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.place(name) is not None

    def one(self, row: int) -> str:
        """The id of a number."""
        return str(row)

    def place(self, name: str) -> int | None:
        """The number of the document of this id; None where there is none."""
        row = int(name) if name.isascii() and name.isdecimal() else -1
        return row if row in self._rows and str(row) == name else None


class TokenRecords(Lazy[Record]):
    """Documents [N] as records; `tokenizer` is the model's, by which they are decoded."""

    sourced = False
    """No document says where it comes from."""

    def __init__(self, documents: Documents, tokenizer: Any) -> None:
        self.documents, self.tokenizer = documents, tokenizer
        self.ids = self.names = Numbers(len(documents))
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(self.documents)

    def one(self, row: int) -> Record:
        """The record of a number."""
        return Decoded(str(row), Place(str(self.documents.path), row + 1), lambda: self.text(row))

    def text(self, row: int, start: int = 0, stop: int | None = None) -> str:
        """A document as a person would read it, from token `start` to `stop`."""
        return str(self.tokenizer.decode(self.documents.read(row, start, stop), skip_special_tokens=True))
