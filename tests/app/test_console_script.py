"""`tdaexp STAGE …`, the commands of a package that is installed without its repository."""

from __future__ import annotations

import re
import tomllib

import pytest
from commands import TINY, only

import tdaexp
from tdaexp.__main__ import main


@pytest.mark.long
def test_a_stage_runs_on_the_configurations_in_the_package(tmp_path, monkeypatch, cache, capfd):
    monkeypatch.chdir(tmp_path)
    code = main(["/bin/tdaexp", "attribute", "method=bm25", "logger=none", f"cache_dir={cache}", *TINY])
    assert code == 0, capfd.readouterr().err
    assert '"command": "tdaexp attribute method=bm25' in (only("outputs/attribute/*") / "row.json").read_text()


def test_it_says_its_stages_its_version_and_the_nearest_stage(capsys):
    assert main(["tdaexp"]) == 0 and "tdaexp attribute " in capsys.readouterr().out
    assert main(["tdaexp", "evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    assert (
        "usage: tdaexp evaluate [" in said and "  tdaexp evaluate over=seed" in said and "python evaluate" not in said
    )
    assert main(["tdaexp", "--version"]) == 0 and capsys.readouterr().out == f"tdaexp {tdaexp.__version__}\n"
    assert main(["tdaexp", "atribute"]) == 2
    assert capsys.readouterr().err.startswith("error: tdaexp: unknown stage 'atribute'; did you mean 'attribute'?")


@pytest.mark.parametrize("file", ["pyproject.toml", "CITATION.cff", "CHANGELOG.md"])
def test_there_is_one_version(file, repository):
    text = (repository / file).read_text(encoding="utf-8")
    found = re.search(r'^(?:version = "|version: |## )([\d.]+)', text, re.MULTILINE)
    assert found and found.group(1) == tdaexp.__version__


def test_what_is_installed_has_the_configurations_and_a_program(repository):
    """The files are found through a link, which a checkout on Windows, or a copy, may lack."""
    stated = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert "conf/**/*.yaml" in stated["tool"]["setuptools"]["package-data"]["tdaexp"]
    assert stated["project"]["scripts"] == {"tdaexp": "tdaexp.__main__:main"}
    inside = {file.name for file in (repository / "src" / "tdaexp" / "conf").rglob("*.yaml")}
    assert inside == {file.name for file in (repository / "conf").rglob("*.yaml")}
