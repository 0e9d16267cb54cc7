"""LIMA's single-turn pairs (Zhou et al. 2023), the data of the Select-or-Project study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tdaexp.data.dataset import Dataset, as_query
from tdaexp.data.limits import check_limits
from tdaexp.data.records import Record
from tdaexp.data.tables import Row, first_line, read_rows
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.quiet import quiet
from tdaexp.runtime.reading import as_text

HUB_ID = "GAIR/lima"
HUB_FILE = "train.jsonl"


@dataclass
class Lima(Dataset):
    """LIMA from a local JSONL file or from the hub.

    path: a JSONL file with `id`, `prompt` and `completion`; null downloads GAIR/lima (accept its licence on
        the hub first) and keeps its 1,000 single-turn conversations. The study's 988 pairs are a subset of
        them that its authors chose; for theirs, give a file.
    paraphrases: a JSONL file with the `id` of a training record, `prompt` and `completion` in other words;
        null where `paraphrase` names a provider.
    limit: take the first N records (null: all).
    """

    path: str | None = None
    paraphrases: str | None = None
    limit: int | None = None
    max_length: int = 2048

    PARAPHRASE_KEYS: ClassVar[str] = "dataset.paraphrases=FILE"

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            UserError: a limit below 1.
        """
        super().__post_init__()
        check_limits(self, "limit")

    @property
    def at_hand(self) -> bool:
        """Whether the pairs and their paraphrases are in files."""
        return self.path is not None and (self.paraphrases is not None or self.paraphrase is not None)

    def train_records(self) -> list[Record]:
        """Return the pairs in the file's order."""
        if self.path is not None:
            return [pair(row) for row in read_rows(Path(self.path))[: self.limit]]
        return single_turns(read_rows(download()))[: self.limit]

    def own_paraphrases(self, train: Sequence[Record]) -> list[Record] | None:
        """Return the pairs of `paraphrases` in training order, or None where no file is named.

        Raises:
            UserError: a paraphrase of an unknown record, or a record without one.
        """
        if self.paraphrases is None:
            return None
        path = Path(self.paraphrases)
        rows: dict[str, Row] = {}
        for row in read_rows(path):
            name = row.name("id")
            if rows.setdefault(name, row) is not row:
                raise UserError(f"{row.where}: the id '{name}' stands in {rows[name].where} too; keep one paraphrase")
        every = {record.id for record in train}
        if self.limit is None:
            for name, row in rows.items():
                if name not in every:
                    raise unknown("training id", name, every, str(row.where))
        for record in train:
            if record.id not in rows:
                raise UserError(f"{path}: no paraphrase of '{record.id}'; add a row, or leave it to a provider")
        return [as_query(pair(rows[record.id]), record) for record in train]


def pair(row: Row) -> Record:
    """Read one row with the columns `id`, `prompt` and `completion`."""
    return Record(row.name("id"), row.text("prompt"), row.text("completion"), where=row.where)


def single_turns(rows: Sequence[Row]) -> list[Record]:
    """Keep conversations of exactly one question and one answer; ids are `lima_N`, N the row in the hub's file.

    Raises:
        UserError: a row without a list of conversations.
    """
    records = []
    for number, row in enumerate(rows):
        turns = row.value("conversations")
        if not isinstance(turns, list):
            raise UserError(f"{row.where}: column 'conversations' is not a list; is this LIMA's {HUB_FILE}?")
        if len(turns) == 2:
            asked, answered = (as_text(turn, f"{row.where}: column 'conversations'") for turn in turns)
            meta = {"source": row.values.get("source")}
            records.append(Record(f"lima_{number}", asked, answered, meta=meta, where=row.where))
    return records


def download() -> Path:
    """Fetch LIMA's training file (or take it from the hub's cache) and return its path.

    Raises:
        UserError: the hub cannot be reached, or the licence was not accepted.
    """
    from huggingface_hub import hf_hub_download

    try:
        with quiet("huggingface_hub"):  # it announces each of its retries
            return Path(hf_hub_download(HUB_ID, HUB_FILE, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"dataset=lima: cannot download {HUB_ID} ({first_line(error)}); accept its licence there and run "
            "`hf auth login`, or give dataset.path=FILE.jsonl"
        ) from error
