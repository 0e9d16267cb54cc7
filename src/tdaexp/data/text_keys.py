"""Which keys of `dataset=text` go together."""

from __future__ import annotations

from typing import Any

from tdaexp.data.token_file import ENDING, TYPES
from tdaexp.runtime.errors import UserError, unknown

NEED_TEXTS = (
    *("held_out", "source_column", "group_column", "paraphrase", "prompt_fraction"),
    *("paraphrase_column", "paraphrase_prompt_column", "paraphrase_completion_column"),
)
"""Keys that a file of tokens has no rows for."""


def check_columns(dataset: Any) -> None:
    """Refuse columns (UserError) that do not go together, or that nothing reads."""
    kinds = [
        key for key in ("messages_column", "text_column", "completion_column") if getattr(dataset, key) is not None
    ]
    if len(kinds) > 1:
        raise UserError(f"dataset=text: name either dataset.{kinds[0]} or dataset.{kinds[1]}; a record is one kind")
    if dataset.prompt_column is not None and kinds not in ([], ["completion_column"]):
        raise UserError(f"dataset.prompt_column: goes with dataset.completion_column, not with dataset.{kinds[0]}")
    if dataset.paraphrase_prompt_column is not None and dataset.paraphrase_completion_column is None:
        raise UserError("dataset.paraphrase_prompt_column: needs dataset.paraphrase_completion_column beside it")
    sources = (dataset.paraphrase_column, dataset.paraphrase_completion_column, dataset.query_path)
    if sum(source is not None for source in sources) > 1:
        raise UserError("dataset=text: give only one of paraphrase_column, paraphrase_completion_column, query_path")
    for key in ("truth_column", "label_column", "rejected_column"):
        if getattr(dataset, key) is not None and dataset.query_path is None:
            raise UserError(f"dataset.{key}: is a column of dataset.query_path=FILE; name the file too")


def check_token_keys(dataset: Any) -> None:
    """Refuse keys (UserError) that only files of tokens read, without one; and, with one, keys that need its texts."""
    given = [name for name in ("offsets", "token_type") if getattr(dataset, name) is not None]
    if not dataset.in_tokens:
        if given:
            raise UserError(f"dataset.{given[0]}: is of a file of tokens; name it too (dataset.path=FILE{ENDING})")
        return
    if dataset.token_type not in (None, *TYPES):
        raise unknown("type", str(dataset.token_type), TYPES, "dataset.token_type")
    for name in NEED_TEXTS:
        if getattr(dataset, name):
            raise UserError(
                f"dataset.{name}: needs rows of text, and {dataset.path} is a file of tokens; leave it out, or "
                "give texts"
            )
