"""The help text, and how little it takes to print it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "lightning", "wandb", "xarray", "pandas", "numpy", "hydra", "matplotlib")


@pytest.mark.parametrize("stage", ["train", "attribute", "evaluate"])
def test_help_shows_examples_and_choices_from_anywhere(stage, tmp_path):
    command = [sys.executable, str(REPOSITORY / f"{stage}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    examples = [line for line in done.stdout.splitlines() if line.startswith("  python ")]
    assert 3 <= len(examples) <= 4 and all(f"python {stage}.py" in line for line in examples)
    for group in ("model", "dataset", "trainer", "logger", "experiment"):
        choices = {file.stem for file in (REPOSITORY / "conf" / group).glob("*.yaml")}
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {group} ")]
        assert choices == set(line.split(maxsplit=1)[1].replace("null", "").strip(", ").split(", "))


def test_help_and_the_command_lines_own_module_import_nothing_heavy():
    script = (
        "import sys, json, pathlib, tdaexp.app as cli\n"
        f"cli.main('attribute', pathlib.Path({str(REPOSITORY / 'conf')!r}), ['attribute.py', '--help'])\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stderr))
