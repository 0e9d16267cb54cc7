"""The answer on a terminal: a few rows of the first questions, and where the rest is."""

from __future__ import annotations

import itertools
from pathlib import Path

import xarray as xr
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tdaexp.report.answer_files import FILES
from tdaexp.report.answers import Entry, questions
from tdaexp.report.texts import Passage, Texts

QUESTIONS = 3
SHOWN = {"helpful": 3, "harmful": 1}
PLAIN_WIDTH = 140


def of_width(console: Console | None) -> Console:
    """The console, by default the terminal, at its own width; one that is wide enough where there is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def print_answer(folder: Path, dataset: xr.Dataset, texts: Texts | None, console: Console | None = None) -> None:
    """Print the three most helpful and the most harmful row of the first questions, and the paths of page and files."""
    console = of_width(console)
    first = itertools.islice(questions(dataset.isel(query=slice(QUESTIONS)), texts, max(SHOWN.values())), QUESTIONS)
    for one in first:
        console.print(Text(line(one.text, console.width), style="bold"), no_wrap=True, overflow="ellipsis")
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(justify="right", no_wrap=True)
        widest = max(console.width // 6, 8)
        table.add_column(max_width=widest, no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for side, entries in one.sides.items():
            for entry in entries[: SHOWN[side]]:
                score = Text(f"{entry.score:+#.3g}", style="green" if entry.score > 0 else "red")
                table.add_row(score, Text(printable(entry.row)), _told(entry, console.width - widest - 13))
        console.print(Padding(table, (0, 0, 1, 2)))
    left = dataset.sizes["query"] - QUESTIONS
    if left > 0:
        console.print(Text(f"and {left} more question{'s' if left > 1 else ''}"))
    for name in ("report.html", *FILES):
        console.print(Text(_shown(folder / name)), soft_wrap=True)


def _shown(path: Path) -> str:
    """A path as it is typed from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _told(entry: Entry, width: int) -> Text:
    copies = f"(+ {len(entry.near)} near-identical) " if entry.near else ""
    return Text.assemble((copies, "dim"), line(entry.text, width - len(copies)))


def line(text: Passage, width: int) -> str:
    """A text on one line, prompt and completion with an arrow between; a long prompt leaves room for the completion."""
    prompt, completion = printable(text.prompt), printable(text.answer)
    if not prompt:
        return completion
    room = max(width - 4 - len(completion), width // 3)
    return f"{prompt if len(prompt) <= room else prompt[: room - 1] + '…'} → {completion}"


def printable(text: str) -> str:
    """A text without what a terminal would act on, on one line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
