"""The site's made pages: every key of every file with its value, every method's parts, every section of the results."""

from __future__ import annotations

import inspect
import json
import re

import pytest
import yaml

from links import moved
from method_pages import costs_of, described, key_table, kinds_of, overview, page
from notebook_pages import page as notebook_page
from paper_pages import anchor, pages, sections
from prose import PARTS, is_formula, markdown, paragraphs, parts
from yaml_keys import header, keys

ROW = re.compile(r"^\| `([\w.]+)` \|.*\| (.*) \|$", re.MULTILINE)
TOLD_ELSEWHERE = {"seed"}
"""Keys whose meaning is every method's."""


@pytest.fixture(scope="module")
def methods(repository):
    return described(repository / "conf")


def flat(values, above=""):
    """Dotted names and values of a configuration, without what `keys` leaves out."""
    for name, value in values.items():
        if not above and name in ("_target_", "defaults"):
            continue
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def test_keys_are_those_of_the_files_with_their_values(repository):
    count = 0
    for file in sorted((repository / "conf").rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        found = {one.name: one.value for one in keys(text) if one.value}
        whole = dict(flat(yaml.safe_load(text) or {}))
        for name in [name for name in found if name not in whole]:  # a mapping in one line
            whole[name] = yaml.safe_load(found[name])
            whole = {key: value for key, value in whole.items() if not key.startswith(f"{name}.")}
        assert {name: yaml.safe_load(value) for name, value in found.items()} == whole, file
        count += len(found)
    assert count > 500


def test_a_comment_stands_with_its_key_and_goes_on_after_a_comma():
    text = "# What it is.\n\na: [1, 2] # first,\n# and more\nb:\n  c: '#' # inner\n# of the next\nd: 2\n"
    assert header(text) == "What it is."
    assert [(one.name, one.value, one.meaning) for one in keys(text)] == [
        ("a", "[1, 2]", "first, and more"),
        ("b.c", "'#'", "inner"),
        ("d", "2", ""),
    ]


def test_every_method_says_each_part_and_has_a_formula(methods):
    assert len(methods) > 20
    for method in methods:
        assert set(parts(method.document)) == set(PARTS), method.name
        assert any(is_formula(one) for one in paragraphs(method.document)), method.name


def test_every_key_of_a_method_is_explained(methods):
    """By the comment beside it, or in the docstring of its class or a base."""
    for method in methods:
        said = " ".join(inspect.getdoc(one) or "" for one in type(method.made).__mro__)
        rows = ROW.findall(key_table(method.text, type(method.made)))
        for name, told in rows:
            assert told or f"`{name.rpartition('.')[2]}`" in said or name in TOLD_ELSEWHERE, f"{method.name}.{name}"


def test_a_method_has_its_parts_its_keys_and_its_variants(methods, repository):
    tables = (repository / "docs" / "methods.md").read_text(encoding="utf-8")
    found = {method.name: page(method, kinds_of(tables), costs_of(tables)) for method in methods}
    ekfac = found["ekfac"]
    assert '<div class="formula" markdown="0">I(z, q) = −∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z)</div>' in ekfac
    assert all(f"**{part}:**" in ekfac for part in PARTS)
    assert "| `relative_damping` | <code>0.1</code> |" in ekfac
    assert "`method=ekfac_mlp` is the same with `method.part=mlp`" in ekfac
    assert "| a module and loss of your own | no: a loss of your own" in ekfac
    assert "| self-influence (`self_influence=true`) | no |" in found["select"]
    assert "](../curvature.md#cg-and-its-preconditioner)" in found["cg"].partition("**Measured:**")[2]
    assert all(f"]({method.name}.md)" in overview(methods) for method in methods)


def test_signs_of_markdown_in_a_docstring_stay_what_they_are():
    assert markdown("Source: x_i * y_j, `a_b`. Sign: <0.") == "**Source:** x\\_i \\* y\\_j, `a_b`.\n\n**Sign:** \\<0."

    display = '<div class="formula" markdown="0">Σ<sub>i+1</sub> x<sub>i</sub> V<sup>−½</sup></div>'
    assert markdown("    Σ_{i+1} x_i V^(−½)") == display


def test_each_section_of_the_results_is_on_one_page(repository):
    results = (repository / "docs" / "results.md").read_text(encoding="utf-8")
    papers = {file.stem: file.read_text(encoding="utf-8") for file in (repository / "docs" / "papers").glob("*.md")}
    made, places = pages(papers, results)
    _, found = sections(results)
    for heading in found:
        assert [name for name, text in made.items() if f"## {heading}\n" in text] == [places[anchor(heading)]]
    assert "](../images/" in made["multi-stage"] and "](images/" not in made["multi-stage"]
    with pytest.raises(SystemExit, match="has no section 'Gone'"):
        pages({"one": "<!-- results: Gone -->"}, results)


def test_links_lead_where_they_led():
    text = "[a](x.md#y) ![b](images/p.png) [c](https://z) [d](#e)\n\n```\n[f](g.md)\n```\n"
    there = "[a](../x.md#y) ![b](../images/p.png) [c](https://z) [d](#e)\n\n```\n[f](g.md)\n```\n"
    assert moved(text, "results.md", "papers/one.md") == there
    assert moved("[a](docs/x.md)", "CHANGELOG.md", "docs/changelog.md") == "[a](x.md)"


def test_a_notebook_shows_its_code_and_what_it_gave(tmp_path):
    outputs = [
        {"output_type": "stream", "text": ["a < b\n"]},
        {"output_type": "display_data", "data": {"image/png": "aGVsbG8=", "text/plain": "figure"}},
        {"output_type": "execute_result", "data": {"text/html": "<style>x</style><table>\n <tr></tr></table>"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Said."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": outputs},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    made = notebook_page(tmp_path / "one.ipynb", tmp_path)
    assert made.startswith("# Title\n\n*A notebook: [one.ipynb](download/one.ipynb), as it ran.*\n\nSaid.")
    assert '```python\nprint(1)\n```\n\n<pre class="output">a &lt; b</pre>' in made
    assert "![what the cell drew](one-1-1.png)" in made and (tmp_path / "one-1-1.png").read_bytes() == b"hello"
    assert '<div class="output" markdown="0"><table><tr></tr></table></div>' in made
