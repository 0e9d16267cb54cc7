"""Any text: a file of any usual kind, a folder of `datasets`, or a hub data set; columns are named, or found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from tdaexp.data.columnar import hub_values
from tdaexp.data.columns import Columns
from tdaexp.data.dataset import GENERATED, Dataset
from tdaexp.data.files import all_files, files_of, large
from tdaexp.data.limits import check_limits
from tdaexp.data.question_file import Asking, questions
from tdaexp.data.record_store import RecordStore, StoredCorpus, kept_records
from tdaexp.data.records import Corpus, Record, Skipped
from tdaexp.data.tables import Row, hub_rows, rows_in, scan, second_stage
from tdaexp.data.text_keys import check_columns, check_token_keys
from tdaexp.data.token_file import ENDING, documents_of
from tdaexp.data.token_records import TokenRecords
from tdaexp.data.training_file import Pair, ids_of, records_in, training_pairs, without_held_out
from tdaexp.runtime.errors import UserError, unknown

UNITS = ("line", "paragraph")


@dataclass
class Text(Dataset):
    """Records from a file or from the hub, and questions about them (docs/data.md).

    path: a `.txt`, `.jsonl`, `.json`, `.tsv`, `.csv`, `.parquet` or `.arrow` file, a folder saved by `datasets`, or a
        folder or pattern (`rows/*.jsonl.zst`) of several files of a kind; lines also as `.gz` and `.zst`; or a file of
        tokens, `.bin`, uint16 or uint32 (`data.token_file`), which are then read as they are; or
    hub: a hub data set, with `hub_config` (null: its only one).
    offsets: of a `.bin` file, a `.npy` file of where its documents end [N] int64, counted in tokens (null: NAME.idx.npy
        beside NAME.bin, or else each ends with the end-of-text token).
    token_type: of a `.bin` file, `uint16` or `uint32` (null: uint16 where the model's vocabulary fits).
    split: of a hub data set or a folder.
    unit: what a record of a `.txt` file is, `line` or `paragraph`.
    limit: take the first N records (null: all).
    skip_bad: leave rows out that cannot be read, and list them, instead of stopping.
    held_out: so many of them, drawn at random, no model is trained on; each group (see group_column) has its share.
    id_column: unique ids; `row`: the row's number, from 0. Of this and the next keys, null: look for the usual names.
    messages_column: a dialogue; or
    text_column: the whole text; or
    completion_column and prompt_column (a prompt alone is not enough).
    rejected_column: of questions, an answer that the completion is compared with.
    source_column: where a training record comes from, by which scores are summed (sources.csv).
    group_column: what a record belongs to, e.g. its language, by which results are told apart (null: nothing).
    prompt_fraction: with text_column, the share of the words that becomes the prompt; 0: all is completion.
    paraphrase_column: the text in other words; or paraphrase_prompt_column and paraphrase_completion_column.
    query_path: a second file whose rows are the questions, a query set that is called what the file is called. Columns
        that are named for the training records hold for it where it has them.
    query_sets: null is the set of `query_path`, or `[paraphrased, generated]`. `paraphrased` is the other name of the
        set of `query_path`.
    truth_column: in query_path, the training id(s) that a query comes from, several as a JSON list, `[]` where no
        source is known (null: no query's source is known, and nothing is counted right or wrong). Where a query has
        the id of its source, it is the column of the ids.
    label_column: in query_path, the class of a query, where model.finetuned classifies; its text is then all prompt.
    finetune_path: a file with the columns `prompt` and `completion` (a text and its class, where model.finetuned
        classifies), the records of a second training stage; the first `finetune_limit` of them (null: all).
    """

    path: str | None = None
    offsets: str | None = None
    token_type: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    split: str = "train"
    unit: str = "line"
    limit: int | None = None
    skip_bad: bool = False
    held_out: int = 0
    id_column: str | None = None
    messages_column: str | None = None
    text_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    rejected_column: str | None = None
    source_column: str | None = None
    group_column: str | None = None
    prompt_fraction: float = 0.0
    paraphrase_column: str | None = None
    paraphrase_prompt_column: str | None = None
    paraphrase_completion_column: str | None = None
    query_path: str | None = None
    query_sets: list[str] | None = None  # type: ignore[assignment]
    truth_column: str | None = None
    label_column: str | None = None
    finetune_path: str | None = None
    finetune_limit: int | None = None

    PARAPHRASE_KEYS: ClassVar[str] = "dataset.paraphrase_column=NAME or dataset.query_path=FILE"

    def __post_init__(self) -> None:
        """Check that the keys fit together.

        Raises:
            UserError: no source or two, two kinds of record, two sources of questions, or a value out of range.
        """
        if self.query_sets is None:
            self.query_sets = list(self.QUERY_SETS) if self.query_path is None else [self.own_set]
        super().__post_init__()
        self._store: RecordStore | TokenRecords | None = None
        if self.own_set != "paraphrased" and {self.own_set, "paraphrased"} <= set(self.query_sets):
            raise UserError(
                f"dataset.query_sets={self.query_sets}: '{self.own_set}' and 'paraphrased' are both the questions of "
                "dataset.query_path; name one"
            )
        if (self.path is None) == (self.hub is None):
            raise UserError("dataset=text: give either dataset.path=FILE or dataset.hub=NAME")
        check_columns(self)
        if self.unit not in UNITS:
            raise unknown("unit", self.unit, UNITS, "dataset.unit")
        if not 0 <= self.prompt_fraction < 1:
            raise UserError(f"dataset.prompt_fraction={self.prompt_fraction}: must lie in [0, 1)")
        if self.held_out < 0:
            raise UserError(f"dataset.held_out={self.held_out}: must be at least 0")
        check_limits(self, "limit", "finetune_limit")
        check_token_keys(self)

    @property
    def at_hand(self) -> bool:
        """Whether the text is in a file."""
        return self.path is not None

    @property
    def in_tokens(self) -> bool:
        """Whether the training records are in a file of tokens (`load_tokens`)."""
        return Path(str(self.path)).suffix == ENDING

    @property
    def own_set(self) -> str:
        """The name of the query set of `query_path`: the file's, without its ending where it is not `generated`."""
        file = Path(str(self.query_path))
        return file.name if file.stem == GENERATED else file.stem

    @property
    def known_sets(self) -> tuple[str, ...]:
        """Also the set of `query_path`."""
        return self.QUERY_SETS if self.query_path is None else (self.own_set, *self.QUERY_SETS)

    @property
    def generated_from(self) -> str:
        """The questions of `query_path` by the name that the configuration gives them, or the paraphrases."""
        named = self.query_path is None or "paraphrased" in (self.query_sets or ())
        return "paraphrased" if named else self.own_set

    def load_kept(self, cache: Path) -> Corpus:
        """As `load`; the training records of large files are kept in a cache, and read from there a few at a time.

        Where something is asked of all of them together (`held_out`, paraphrases in columns), they lie in memory.
        """
        files = self.kept_files()
        if not files:
            return self.load()
        named = replace(self._columns, rejected=None)
        store = kept_records(
            cache,
            files,
            [str(self.hub)] if self.path is None else [str(file) for file in files_of(Path(self.path))],
            lambda: records_in(lambda: islice(self._rows(), self.limit), named, self.prompt_fraction),
            self.skip_bad,
            [self.unit, self.split, self.limit, self.prompt_fraction, named],
            by=type(self),
        )
        return self._stored(store)

    def load_tokens(self, cache: Path, tokenizer: Any, known: int) -> Corpus:
        """The corpus of a file of tokens, for a model that knows so many and this tokenizer."""
        offsets = None if self.offsets is None else Path(self.offsets)
        eos = None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        documents = documents_of(cache, Path(str(self.path)), offsets, self.token_type, known, eos)
        self._total = len(documents)
        return self._stored(TokenRecords(documents.first(self.limit), tokenizer))

    def _stored(self, store: RecordStore | TokenRecords) -> Corpus:
        self._store = store
        asked = {self.generated_from, GENERATED} & set(self.query_sets or ())
        queries = {self.generated_from: self._paraphrased(store)} if asked else {}  # type: ignore[arg-type]
        return StoredCorpus(store, queries, self.finetune_records(), self.skipped_rows())  # type: ignore[arg-type]

    def kept_files(self) -> list[Path]:
        """The files whose records are kept in a store: none where these lie in memory."""
        columns = (self.paraphrase_column, self.paraphrase_completion_column, self.paraphrase)
        if self.held_out or self.in_tokens or any(one is not None for one in columns):
            return []
        files = self._files()
        return files if large(files) else []

    def _files(self) -> list[Path]:
        """The files that hold the training rows, none where that is not known."""
        if self.path is not None:
            return all_files(Path(self.path))
        rows = hub_values(str(self.hub), self.hub_config, self.split)
        return [Path(one["filename"]) for one in getattr(rows, "cache_files", ())]

    def train_records(self) -> list[Record]:
        """Return the first `limit` records of the file or hub data set, less those that are held out."""
        return [record for record, _ in self._split[0]]

    def held_out_records(self) -> list[Record]:
        """Return the records that are held out."""
        return [record for record, _ in self._split[1]]

    def finetune_records(self) -> list[Record]:
        """Return the rows of `finetune_path`; ids are `ft-N`."""
        return second_stage(self.finetune_path, self.finetune_limit)

    def skipped_rows(self) -> list[Skipped]:
        """Return the rows of both files that could not be read."""
        asked = self.query_path is not None and {self.generated_from, GENERATED} & set(self.query_sets or ())
        own = self._read[1] if self._store is None else self._store.skipped
        return [*own, *(self._asked[1] if asked else [])]

    def own_paraphrases(self, train: Sequence[Record]) -> list[Record] | None:
        """Return the queries of the paraphrase columns or of `query_path`; None where neither is named."""
        if self.query_path is not None:
            return self._asked[0]
        if self._store is not None:
            return None
        return [query for _, query in self._split[0] if query is not None] or None

    @property
    def _columns(self) -> Columns:
        """The columns that are named."""
        return Columns(
            dialogue=self.messages_column,
            text=self.text_column,
            prompt=() if self.prompt_column is None else (self.prompt_column,),
            completion=self.completion_column,
            rejected=self.rejected_column,
            id=self.id_column,
            group=self.group_column,
            source=self.source_column,
        )

    def _rows(self) -> Iterable[Row | Skipped]:
        """All rows, whatever the limit."""
        if self.in_tokens:
            raise UserError(
                f"{self.path}: holds tokens, and this reads its training texts without a model at hand, or as rows; "
                "give the texts themselves"
            )
        if self.path is not None:
            return rows_in(Path(self.path), self.unit, self.split)
        return hub_rows(str(self.hub), self.hub_config, self.split)

    def _query_rows(self) -> list[Row | Skipped]:
        """All rows of `query_path`."""
        return scan(Path(str(self.query_path)), self.unit, self.split)

    @cached_property
    def _read(self) -> tuple[list[Pair], list[Skipped]]:
        """Records with their paraphrases, and rows that are left out."""
        own = self.paraphrase_prompt_column
        paraphrase = Columns(
            text=self.paraphrase_column,
            prompt=() if own is None else (own,),
            completion=self.paraphrase_completion_column,
        )
        rows, named = list(islice(self._rows(), self.limit)), replace(self._columns, rejected=None)
        return training_pairs(rows, named, paraphrase, self.prompt_fraction, self.skip_bad)

    @cached_property
    def _split(self) -> tuple[list[Pair], list[Pair]]:
        """Records to train on, and those held out."""
        return without_held_out(self._read[0], self.held_out)

    def _every_id(self) -> set[str]:
        """The training ids, whatever the limit."""
        if isinstance(self._store, TokenRecords):
            return set(map(str, range(self._total)))
        return ids_of(list(self._rows()), replace(self._columns, rejected=None))

    @cached_property
    def _asked(self) -> tuple[list[Record], list[Skipped]]:
        """The questions of `query_path`, and rows that are left out."""
        known: Collection[str] = (
            {record.id for record, _ in self._split[0]} if self._store is None else self._store.names
        )
        beyond: set[str] = set()
        if self.limit is not None and self.truth_column is not None:
            beyond = self._every_id().difference(known)
        answered = self.query_sets != [GENERATED]
        asking = Asking(self._columns, self.truth_column, self.label_column, self.generated_from, answered)
        return questions(self._query_rows(), asking, known, beyond, self.prompt_fraction, self.skip_bad)
