"""Any text: a plain, JSONL, TSV or CSV file, or a hub data set, with named columns."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tdaexp.data.dataset import Dataset, query_id
from tdaexp.data.groups import groups_of, stratified
from tdaexp.data.limits import check_limits
from tdaexp.data.records import Record
from tdaexp.data.tables import Row, hub_rows, read_rows, second_stage
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.reading import as_name, parse_json

log = logging.getLogger(__name__)
UNITS = ("line", "paragraph")


@dataclass
class Text(Dataset):
    """Records from a file or from the hub.

    path: a `.txt`, `.jsonl`, `.tsv` or `.csv` file; or
    hub: a hub data set, with `hub_config` (null: its only one) and `split`.
    unit: what a record of a `.txt` file is, `line` or `paragraph`.
    limit: take the first N records (null: all).
    held_out: so many of them, drawn at random, no model is trained on; each group (see group_column) has its share.
    id_column: unique ids (null: the row's number, from 0).
    group_column: what a record belongs to, e.g. its language, by which results are told apart (null: nothing).
    text_column: the whole text; or prompt_column and completion_column (a prompt alone is not enough).
    prompt_fraction: with text_column, the share of the words that becomes the prompt; 0: all is completion.
    paraphrase_column: the text in other words; or paraphrase_prompt_column and paraphrase_completion_column.
    query_path: a second file whose rows are the queries, in the columns named for the training records.
    truth_column: in query_path, the training id(s) that a query comes from, several as a JSON list, `[]` where no
        source is known (null: no query's source is known, and nothing is counted right or wrong). Where a query has
        the id of its source, it is the column of the ids.
    label_column: in query_path, the class of a query, where model.finetuned classifies; its text is then all prompt.
    finetune_path: a file with the columns `prompt` and `completion` (a text and its class, where model.finetuned
        classifies), the records of a second training stage; the first `finetune_limit` of them (null: all).
    """

    path: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    split: str = "train"
    unit: str = "line"
    limit: int | None = None
    held_out: int = 0
    id_column: str | None = None
    group_column: str | None = None
    text_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    prompt_fraction: float = 0.0
    paraphrase_column: str | None = None
    paraphrase_prompt_column: str | None = None
    paraphrase_completion_column: str | None = None
    query_path: str | None = None
    truth_column: str | None = None
    label_column: str | None = None
    finetune_path: str | None = None
    finetune_limit: int | None = None

    PARAPHRASE_KEYS: ClassVar[str] = "dataset.paraphrase_column=NAME or dataset.query_path=FILE"

    def __post_init__(self) -> None:
        """Check that the keys fit together.

        Raises:
            UserError: no source or two, no completion or two, two sources of paraphrases, or a value out of range.
        """
        super().__post_init__()
        if self.truth_column is not None and self.query_path is None:
            raise UserError("dataset.truth_column: is a column of dataset.query_path=FILE; name the file too")
        if (self.path is None) == (self.hub is None):
            raise UserError("dataset=text: give either dataset.path=FILE or dataset.hub=NAME")
        if self.path is not None and Path(self.path).suffix == ".txt" and self.completion_column is None:
            self.text_column = self.text_column or "text"
        if (self.text_column is None) == (self.completion_column is None):
            raise UserError("dataset=text: name either dataset.text_column or dataset.completion_column (and prompt)")
        if self.text_column is not None and self.prompt_column is not None:
            raise UserError("dataset.prompt_column: goes with dataset.completion_column, not with dataset.text_column")
        if self.paraphrase_prompt_column is not None and self.paraphrase_completion_column is None:
            raise UserError("dataset.paraphrase_prompt_column: needs dataset.paraphrase_completion_column beside it")
        sources = (self.paraphrase_column, self.paraphrase_completion_column, self.query_path)
        if sum(source is not None for source in sources) > 1:
            raise UserError(
                "dataset=text: give only one of paraphrase_column, paraphrase_completion_column, query_path"
            )
        if self.label_column is not None and self.query_path is None:
            raise UserError("dataset.label_column: is a column of dataset.query_path=FILE; name the file too")
        if self.unit not in UNITS:
            raise unknown("unit", self.unit, UNITS, "dataset.unit")
        if not 0 <= self.prompt_fraction < 1:
            raise UserError(f"dataset.prompt_fraction={self.prompt_fraction}: must lie in [0, 1)")
        if self.held_out < 0:
            raise UserError(f"dataset.held_out={self.held_out}: must be at least 0")
        check_limits(self, "limit", "finetune_limit")

    @property
    def at_hand(self) -> bool:
        """Whether the text is in a file."""
        return self.path is not None

    def train_records(self) -> list[Record]:
        """Return the first `limit` records of the file or hub data set, less those that are held out."""
        return [self._record(row, number) for number, row in self._split()[0]]

    def held_out_records(self) -> list[Record]:
        """Return the records that are held out."""
        return [self._record(row, number) for number, row in self._split()[1]]

    def finetune_records(self) -> list[Record]:
        """Return the rows of `finetune_path`; ids are `ft-N`."""
        return second_stage(self.finetune_path, self.finetune_limit)

    def own_paraphrases(self, train: Sequence[Record]) -> list[Record] | None:
        """Return the queries of the paraphrase columns or of `query_path`; None where neither is named."""
        if self.query_path is not None:
            return self._separate_queries(train)
        if self.paraphrase_column is None and self.paraphrase_completion_column is None:
            return None
        queries = []
        for (_, row), source in zip(self._split()[0], train, strict=True):
            text = self._parts(
                row, self.paraphrase_column, self.paraphrase_prompt_column, self.paraphrase_completion_column
            )
            queries.append(Record(query_id(source.id, "paraphrased"), *text, truth=(source.id,), where=row.where))
        return queries

    def _sources(self, row: Row) -> tuple[str, ...]:
        """The training ids that a row of `query_path` names; none where no column says so."""
        if self.truth_column is None:
            return ()
        return several(row.value(self.truth_column), f"{row.where}: column '{self.truth_column}'")

    def _rows(self) -> list[Row]:
        if self.path is not None:
            return read_rows(Path(self.path), self.unit)
        return hub_rows(str(self.hub), self.hub_config, self.split)

    def _query_rows(self) -> list[Row]:
        return read_rows(Path(str(self.query_path)), self.unit)

    def _split(self) -> tuple[list[tuple[int, Row]], list[tuple[int, Row]]]:
        """Rows with their numbers: those to train on, and those held out."""
        rows = list(enumerate(self._rows()[: self.limit]))
        if not self.held_out:
            return rows, []
        groups = groups_of([self._record(row, number) for number, row in rows])
        chosen = set(stratified(groups, self.held_out, [0], "dataset.held_out").tolist())
        return [one for one in rows if one[0] not in chosen], [one for one in rows if one[0] in chosen]

    def _record(self, row: Row, number: int) -> Record:
        name = row.name(self.id_column) if self.id_column else str(number)
        meta = {"group": row.name(self.group_column)} if self.group_column else {}
        parts = self._parts(row, self.text_column, self.prompt_column, self.completion_column)
        return Record(name, *parts, meta=meta, where=row.where)

    def _parts(self, row: Row, text: str | None, prompt: str | None, completion: str | None) -> tuple[str, str]:
        if text is not None:
            return split_words(row.text(text), self.prompt_fraction)
        given = row.value(prompt) if prompt is not None else None
        return ("" if given in (None, "") else row.text(str(prompt))), row.text(str(completion))

    def _labelled(self, row: Row, number: int) -> Record:
        """A query with its class as completion."""
        name = row.name(self.id_column) if self.id_column else str(number)
        text = row.text(str(self.text_column or self.prompt_column))
        return Record(name, text, row.name(str(self.label_column)), where=row.where)

    def _separate_queries(self, train: Sequence[Record]) -> list[Record]:
        """Read `query_path`; queries whose sources all lie beyond `limit` are left out and counted."""
        known = {record.id for record in train}
        every = known if self.limit is None else {self._record(row, n).id for n, row in enumerate(self._rows())}
        queries, left_out = [], 0
        for number, row in enumerate(self._query_rows()):
            record = self._record(row, number) if self.label_column is None else self._labelled(row, number)
            sources = self._sources(row)
            for source in sources:
                if source not in every:
                    raise unknown("training id", source, every, row.where)
            kept = tuple(source for source in sources if source in known)
            left_out += bool(sources) and not kept
            if kept or not sources:
                name = query_id(record.id, "paraphrased")
                queries.append(Record(name, record.prompt, record.completion, kept, where=row.where))
        if left_out:
            log.info("%s: left out %d queries whose sources lie beyond dataset.limit", self.query_path, left_out)
        return queries


def several(value: Any, where: str) -> tuple[str, ...]:
    """Read one training id or several: a list, a JSON list written as text, or a plain id; each counts once.

    Raises:
        UserError: an id is neither a text nor a whole number.
    """
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(UserError):  # an id may begin with a bracket
            value = parse_json(value, where)
    items = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(as_name(item, where) for item in items))


def split_words(text: str, fraction: float) -> tuple[str, str]:
    """Cut a text after the first `fraction` of its words, rounded down: at least one word is completion."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    cut = starts[int(fraction * len(starts))]
    return text[:cut].rstrip(), text[cut:]
