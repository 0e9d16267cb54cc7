"""Docstrings as pages: paragraphs, formulas and the words that begin a part (Source, Sign, Scale, …)."""

from __future__ import annotations

import html
import re

PARTS = ("Source", "Sign", "Fills", "Scale", "Cost", "Limits")
"""What the docstring of every method says, in its own order."""
_PART = re.compile(rf"(?:(?<=[.)] )|^)({'|'.join(PARTS)})(?=: | )(?::)?", re.MULTILINE)
_CODE = re.compile(r"(`[^`]*`)")


def paragraphs(text: str) -> list[str]:
    """What stands between empty lines; an indented block keeps its indentation."""
    return [part.rstrip() for part in re.split(r"\n\s*\n", text.strip("\n")) if part.strip()]


def is_formula(paragraph: str) -> bool:
    """Whether a paragraph of a docstring is an indented block, which is a formula there."""
    return paragraph.startswith("    ")


def parts(text: str) -> dict[str, str]:
    """Each part of a method's docstring by its name, from its first word to the next part or formula."""
    found: dict[str, str] = {}
    for paragraph in paragraphs(text):
        if not is_formula(paragraph):
            pieces = _PART.split(" ".join(paragraph.split()))
            found.update((name, said.strip()) for name, said in zip(pieces[1::2], pieces[2::2], strict=True))
    return found


def markdown(text: str) -> str:
    """A docstring's body in Markdown: its parts begin paragraphs, its indented blocks are formulas."""
    written = []
    for paragraph in paragraphs(text):
        if is_formula(paragraph):
            written.append(formula(paragraph))
        elif paragraph.startswith("* "):
            written.append(escaped(paragraph))
        else:
            pieces = _PART.split(" ".join(paragraph.split()))
            written += [escaped(pieces[0].strip())] if pieces[0].strip() else []
            for name, said in zip(pieces[1::2], pieces[2::2], strict=True):
                written.append(f"**{name}:** {escaped(said.strip())}")
    return "\n\n".join(written)


def formula(block: str) -> str:
    """An indented block as a display: its lines as they stand, in a face for formulas."""
    wide = "\u2003\u2003"  # what stands far apart stays so
    lines = [html.escape(re.sub(r" {3,}", wide, line.strip())) for line in block.splitlines()]
    shown = re.sub(r"_(?:\{([^}]*)\}|(\w+))", lambda match: f"<sub>{match[1] or match[2]}</sub>", "<br>".join(lines))
    shown = re.sub(r"\^\(([^)]*)\)", r"<sup>\1</sup>", shown)
    return f'<div class="formula" markdown="0">{shown}</div>'


def escaped(text: str) -> str:
    """Plain text whose code stands in backticks, safe from Markdown's own signs."""
    pieces = _CODE.split(text)
    return "".join(one if one.startswith("`") else re.sub(r"([_*<>|\[\]])", r"\\\1", one) for one in pieces)


def cell(text: str) -> str:
    """Text for a cell of a table; in code a bar cannot be escaped, so that it stands as an entity."""
    pieces = _CODE.split(" ".join(text.split()))
    shown = (f"<code>{html.escape(one[1:-1])}</code>" if one.startswith("`") else escaped(one) for one in pieces)
    return "".join(shown).replace("|", "&#124;") if "`" in text else escaped(" ".join(text.split()))
