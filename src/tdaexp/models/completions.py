"""The file in which completions are kept while they are generated: JSON lines, one settings line first."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_text, writing
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.reading import parse_json


class CompletionCache:
    """Completions by prompt number, appended batch by batch; what a kill cut short is dropped on opening."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open or create the file; `settings` is its first line, for people and against mix-ups."""
        self.path = path
        self.texts: dict[int, str] = {}
        head = _line(settings)
        if not path.exists():
            write_text(path, head)
            return
        raw = path.read_bytes()
        # Lines are only ever appended, so only the last one can be incomplete. (str.splitlines would also cut
        # at the line separators of Unicode, which a completion may hold.)
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            first, *lines = [_checked(line) for line in whole.decode("utf-8").split("\n")[:-1]]
            theirs = first["fingerprint"]
            self.texts = {int(line["prompt"]): str(line["completion"]) for line in lines}
        except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged completions ({error}); delete this file and run again") from error
        if theirs != settings["fingerprint"]:
            raise UserError(f"{path}: completions of another run; delete this file and run again")
        if len(whole) < len(raw):
            write_text(path, whole.decode("utf-8"))

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, settings: dict[str, Any]) -> Iterator[CompletionCache]:
        """Open the cache in all processes of the run, and keep other jobs out until the block ends."""
        with ranks.locked_for_all(path):
            with ranks.first_alone():
                cache = cls(path, settings)
            yield cache

    def __contains__(self, prompt: int) -> bool:
        return prompt in self.texts

    def __getitem__(self, prompt: int) -> str:
        return self.texts[prompt]

    def append(self, texts: dict[int, str]) -> None:
        """Add a batch to the file and to memory; of several processes the first one writes."""
        self.texts.update(texts)
        if not ranks.current().first:
            return
        lines = [_line({"prompt": prompt, "completion": text}) for prompt, text in texts.items()]
        try:
            with writing(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error}); make room or mend it and run again") from error


def _line(values: dict[str, Any]) -> str:
    """Values and their checksum as a line of the file."""
    return json.dumps({**values, "checksum": fingerprint(values)}, ensure_ascii=False, sort_keys=True) + "\n"


def _checked(line: str) -> dict[str, Any]:
    values: dict[str, Any] = parse_json(line, "a line")
    if values.pop("checksum") != fingerprint(values):
        raise ValueError("the checksum of a line is wrong")
    return values
