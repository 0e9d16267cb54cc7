"""Every command that README, docs, Makefile and the headers of configurations show is one that the checks accept."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from tdaexp.app.compose import open_composer
from tdaexp.app.plan import plan
from tdaexp.runtime.errors import UserError

COMMAND = re.compile(r"(?:python3?|\$\(BIN\)/python) (train|attribute|evaluate)\.py((?: [^`#\n]*)?)")
VARIABLE = re.compile(r'^([A-Z]+)="([^"]*)"', re.MULTILINE)
OF_THE_READER = ("method=signs", "my_measurements")
"""What a page tells its reader to write first."""


def commands(repository):
    """(stage, arguments) of every command, and where it stands; without those that leave something out (…)."""
    places = [repository / "README.md", repository / "Makefile", *sorted((repository / "docs").rglob("*.md"))]
    found = {}
    for file in [*places, *sorted((repository / "conf").rglob("*.yaml"))]:
        text = re.sub(r"\\\n\s*#?\s*", "", file.read_text(encoding="utf-8")).replace("$(PATHS)", "")
        text = re.sub(r"^tdaexp (train|attribute|evaluate)\b", r"python \1.py", text, flags=re.MULTILINE)
        for match in COMMAND.finditer(text):
            stage, arguments = match[1], _expanded(match[2], text[: match.start()])
            if "…" not in arguments and not any(name in arguments for name in OF_THE_READER):
                found.setdefault((stage, arguments.strip()), file.name)
    return found


def _expanded(arguments, before):
    """The arguments as a shell hands them over, where the page has it put something in; `before` has its variables."""
    if "$" not in arguments or "${" in arguments:  # ${…} is the configuration's own
        return arguments
    known = "".join(f"{name}={shlex.quote(value)};" for name, value in VARIABLE.findall(before))
    return subprocess.run(
        ["bash", "-c", f"{known} printf '%q ' {arguments}"], capture_output=True, text=True, check=True
    ).stdout


def telling(batches):
    """The jobs of a sweep with each value once; of very many the first two and the last."""
    seen, jobs = set(), [job for batch in batches for job in batch]
    new = [job for job in jobs if not seen.issuperset(job) and (seen.update(job) or True)]
    return new if len(new) < 20 else [*new[:2], new[-1]]


@pytest.mark.long
@pytest.mark.parametrize("stage", ["train", "attribute", "evaluate"])
def test_every_documented_command_passes_the_checks(stage, repository, monkeypatch):
    refused, count, split = [], 0, BasicSweeper.split_arguments
    monkeypatch.setattr(BasicSweeper, "split_arguments", lambda *given: [telling(split(*given))])
    with open_composer(stage, repository / "conf") as composer:
        for (name, arguments), file in commands(repository).items():
            if name == stage:
                words = shlex.split(arguments)
                own = [word for word in words if word not in ("-m", "--multirun")]
                stated = ["trainer.precision=float32"] if "model=hub" in own else []  # else the folder is asked
                count += 1
                try:
                    plan(composer, stage, own + stated, len(own) < len(words), ("tdaexp",))
                except UserError as error:
                    refused.append(f"{file}: python {stage}.py {arguments}: {error}")
    assert count >= {"train": 5, "attribute": 70, "evaluate": 20}[stage] and not refused, "\n".join(refused)
