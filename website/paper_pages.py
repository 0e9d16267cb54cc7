"""A page for each paper: what docs/papers says of it, and the sections of docs/results.md that it names."""

from __future__ import annotations

import re

from links import moved

SHOWN = re.compile(r"^<!-- results: (.+) -->$", re.MULTILINE)
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


def sections(results: str) -> tuple[str, dict[str, str]]:
    """What stands above the first section of docs/results.md, and each section by its heading."""
    pieces = _HEADING.split(results)
    above = pieces[0].split("\n", 1)[1].strip()
    return above, {name: said.strip() for name, said in zip(pieces[1::2], pieces[2::2], strict=True)}


def anchor(heading: str) -> str:
    """The anchor that a heading has on GitHub and on the site."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def pages(papers: dict[str, str], results: str) -> tuple[dict[str, str], dict[str, str]]:
    """The pages by their names, and for each anchor of docs/results.md the name of the page that has it.

    `papers` are the files of docs/papers by their names. A section that none names is on the page `more`.
    """
    above, found = sections(results)
    left, made, places = dict(found), {}, {}

    def section(heading: str, page: str) -> str:
        if heading not in found:
            raise SystemExit(f"docs/papers/{page}.md: docs/results.md has no section '{heading}': {', '.join(found)}")
        left.pop(heading, None)
        places.update({anchor(name): page for name in [heading, *re.findall(r"^###+ (.+)$", found[heading], re.M)]})
        return f"## {heading}\n\n{moved(found[heading], 'results.md', f'papers/{page}.md')}"

    for name, text in papers.items():
        made[name] = SHOWN.sub(lambda match, name=name: section(match.group(1), name), text)
    rest = "\n\n".join(section(heading, "more") for heading in list(left))
    made["more"] = f"# Other results\n\n{above}\n\n{rest}\n"
    return made, places
