"""Lay the site's pages out in one folder, made ones beside written ones: `python website/assemble.py build/docs`.

Written pages are docs/; made are those of the methods (docstrings and YAML), of the keys, of the papers (docs/papers
with sections of docs/results.md), of the notebooks, and the changelog. What builds the site from that folder is
mkdocs.yml's business alone.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path, PurePosixPath

import key_pages
import links
import method_pages
import notebook_pages
import paper_pages

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NOTEBOOKS, PAPERS, RESULTS = "notebooks", "papers", "results.md"


def assemble(target: Path, root: Path = ROOT) -> None:
    """Write all pages to the folder `target`, which is made anew. Errors (SystemExit): a link to no section."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "docs", target, ignore=shutil.ignore_patterns("*.ipynb", RESULTS, PAPERS))
    written = {file.stem: _read(file) for file in sorted((root / "docs" / PAPERS).glob("*.md"))}
    papers, places = paper_pages.pages(written, _read(root / "docs" / RESULTS))
    made = {
        **_methods(root),
        **{f"reference/keys/{name}": text for name, text in key_pages.pages(root / "conf").items()},
        **{f"{PAPERS}/{name}.md": text for name, text in papers.items()},
        **_notebooks(root / "docs" / NOTEBOOKS, target / NOTEBOOKS),
        "changelog.md": links.moved(_read(root / "CHANGELOG.md"), "CHANGELOG.md", "docs/changelog.md"),
    }
    for name, text in made.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    for file in target.rglob("*.md"):
        file.write_text(_led(_read(file), file.relative_to(target).as_posix(), places), encoding="utf-8")
    shutil.copytree(HERE / "assets", target / "assets")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _methods(root: Path) -> dict[str, str]:
    found = method_pages.described(root / "conf")
    tables = _read(root / "docs" / "methods.md")
    kinds, costs = method_pages.kinds_of(tables), method_pages.costs_of(tables)
    made = {f"methods/{one.name}.md": method_pages.page(one, kinds, costs) for one in found}
    return {**made, "methods/index.md": method_pages.overview(found)}


def _notebooks(source: Path, target: Path) -> dict[str, str]:
    """The notebooks' pages; pictures, and the notebooks themselves, go beside them."""
    (target / "download").mkdir(parents=True)
    made = {}
    for notebook in sorted(source.glob("*.ipynb")):
        shutil.copy(notebook, target / "download")
        made[f"{NOTEBOOKS}/{notebook.stem}.md"] = notebook_pages.page(notebook, target)
    return made


def _led(text: str, page: str, places: dict[str, str]) -> str:
    """The page's links to docs/results.md and to notebooks lead to the pages that stand for them."""

    def change(link: str) -> str:
        path, _, anchor = link.partition("#")
        to_top = "../" * (len(PurePosixPath(page).parts) - 1)
        if PurePosixPath(path).name == RESULTS:
            if anchor and anchor not in places:
                raise SystemExit(f"docs/{page}: {link}: docs/{RESULTS} has no such section")
            return f"{to_top}{PAPERS}/{places[anchor]}.md#{anchor}" if anchor else f"{to_top}{PAPERS}/more.md"
        return path if "download/" in path else re.sub(r"\.ipynb$", ".md", path) + link.removeprefix(path)

    return links.changed(text, change)


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
