"""Paraphrases by a language model, remembered on disk.

Source: Select or Project (Hinterleitner et al. 2026), appendix B.2 and Figure 6: prompt and completion of every
training record are rewritten one by one under a system prompt. A provider writes; this module asks it only for what the
cache does not hold, and appends each answer as it comes, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import locked, writing
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.progress import track
from tdaexp.runtime.reading import as_text, parse_json

# The system prompt of the study (Figure 6), quoted because its words are part of the experiment.
SYSTEM_PROMPT = (
    "You are a paraphrasing expert who is specialized in rewriting text (questions, statements, etc.) "
    "without altering the content. Keep in mind, that the meaning must not change after the paraphrasing. "
    "Just output the paraphrased text without any additional information."
)


class Paraphraser(Protocol):
    """What rewrites text: a language model behind an endpoint or on this machine.

    `cache` is the folder for its answers.
    """

    cache: str

    def settings(self) -> dict[str, Any]:
        """Return everything an answer depends on, for the cache's keys."""

    def paraphrase(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield the paraphrase of each text, in order, each as soon as it is known."""


def paraphrase_records(records: Sequence[Record], provider: Paraphraser) -> list[Record]:
    """Rewrite prompt and completion of every record (an empty one stays empty); ids and meta are kept.

    Raises:
        UserError: the provider fails or answers with nothing, or the cache is damaged.
    """
    for record in records:
        if record.said:
            raise UserError(
                f"{record.place}: is a dialogue of several turns, and dataset.paraphrase rewrites single questions and "
                "answers; give its questions in a file (dataset.query_path=FILE)"
            )
    texts = [text for record in records for text in (record.prompt, record.completion) if text.strip()]
    rewritten = cached(texts, provider)
    return [
        dataclasses.replace(
            record,
            prompt=rewritten.get(record.prompt, record.prompt),
            completion=rewritten.get(record.completion, record.completion),
        )
        for record in records
    ]


def cached(texts: Sequence[str], provider: Paraphraser) -> dict[str, str]:
    """Return text → paraphrase, from the cache where it is known, from the provider otherwise."""
    settings = provider.settings() | {"system_prompt": SYSTEM_PROMPT}
    path = Path(provider.cache) / f"{fingerprint(settings)}.jsonl"
    keys = {text: fingerprint(text, settings) for text in texts}
    with locked(path):
        known = read_cache(path)
        missing = [text for text, key in keys.items() if key not in known]
        if missing:
            done = len(keys) - len(missing)
            answers = track(zip(missing, provider.paraphrase(missing), strict=True), "paraphrasing", len(keys), done)
            with writing(path), path.open("a", encoding="utf-8") as stream:
                for text, answer in answers:
                    if not answer.strip():
                        raise UserError(
                            f"the paraphrase of '{text[:60]}' came back empty; run again or change the model"
                        )
                    known[keys[text]] = answer.strip()
                    line = {"key": keys[text], "text": text, "paraphrase": answer.strip()}
                    line["checksum"] = fingerprint(line)
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                    stream.flush()
    return {text: known[key] for text, key in keys.items()}


def read_cache(path: Path) -> dict[str, str]:
    """Return key → paraphrase; a last line that a kill left unfinished is cut off the file.

    Raises:
        UserError: another line is not what this module writes.
    """
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    known = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = parse_json(line.decode("utf-8"), f"line {number}")
            if row.pop("checksum", None) not in (None, fingerprint(row)):  # older files have none
                raise ValueError("its checksum is wrong")
            known[as_text(row["key"], "key")] = as_text(row["paraphrase"], "paraphrase")
        except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: not a line of the paraphrase cache; delete it ({error})") from error
    return known
