"""Lay the site's pages out in one folder, made ones beside written ones: `python website/assemble.py build/docs`.

Written pages are docs/; made are those of the methods (docstrings and YAML), of the keys, of the papers (docs/papers with
sections of docs/results.md), of the notebooks, and the changelog. What builds the site from that folder is mkdocs.yml's
business alone.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import keys
import notebooks

import links
import methods
import papers


def assemble(target: Path, root: Path = ROOT) -> None:
    """Write all pages to the folder `target`, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "docs", target, ignore=shutil.ignore_patterns("*.ipynb", "results.md", "papers"))
    made = {**_methods(root), **{f"reference/keys/{name}": text for name, text in keys.pages(root / "conf").items()}}
    found, places = papers.pages(
        {file.stem: file.read_text(encoding="utf-8") for file in sorted((root / "docs" / "papers").glob("*.md"))},
        (root / "docs" / "results.md").read_text(encoding="utf-8"),
    )
    made.update({f"papers/{name}.md": text for name, text in found.items()})
    made["changelog.md"] = links.moved(
        (root / "CHANGELOG.md").read_text(encoding="utf-8"), "CHANGELOG.md", "docs/changelog.md"
    )
    for notebook in sorted((root / "docs" / "notebooks").glob("*.ipynb")):
        folder = target / "notebooks"
        (folder / "download").mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, folder / "download")
        made[f"notebooks/{notebook.stem}.md"] = notebooks.page(notebook, folder)
    for name, text in made.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    for file in target.rglob("*.md"):
        name = file.relative_to(target).as_posix()
        file.write_text(_led(file.read_text(encoding="utf-8"), name, places), encoding="utf-8")
    shutil.copytree(HERE / "assets", target / "assets")


def _methods(root: Path) -> dict[str, str]:
    found = methods.described(root / "conf")
    kinds = methods.kinds_of((root / "docs" / "methods.md").read_text(encoding="utf-8"))
    made = {f"methods/{one.name}.md": methods.page(one, kinds) for one in found}
    return {**made, "methods/index.md": methods.overview(found)}


def _led(text: str, page: str, places: dict[str, str]) -> str:
    """The page's links to docs/results.md and to notebooks lead to the pages that stand for them."""

    def change(link: str) -> str:
        path, _, anchor = link.partition("#")
        to_top = "../" * (len(PurePosixPath(page).parts) - 1)
        if PurePosixPath(path).name == "results.md":
            if anchor and anchor not in places:
                raise SystemExit(f"docs/{page}: {link}: docs/results.md has no such section")
            return f"{to_top}papers/{places[anchor]}.md#{anchor}" if anchor else f"{to_top}papers/more.md"
        if path.endswith(".ipynb") and "download/" not in path:
            return re.sub(r"\.ipynb$", ".md", path)
        return link

    return links.changed(text, change)


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
