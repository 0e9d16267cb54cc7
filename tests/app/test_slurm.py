"""The job script that a sweep on a Slurm cluster would submit; needs the extra `cluster`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("submitit")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

from tdaexp.app import main
from tdaexp.app.slurm import job_script

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ("dataset.people=6", "model.config.hidden_size=16", "model.config.intermediate_size=24", "model.vocab_size=300")


@pytest.mark.long
def test_a_dry_run_prints_the_script_of_a_job_array(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["plan=true", "-m", "budget=0.1,0.2", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", *TINY,
                 "hydra.launcher.timeout_min=90", "hydra.launcher.array_parallelism=2",
                 "+hydra.launcher.additional_parameters={mail-type: FAIL}"]  # fmt: skip
    code = main("attribute", REPOSITORY / "conf", ["attribute.py", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    script = out[out.index("#!/bin/bash") :]
    for line in ("--array=0-1%2", "--partition=gpu", "--time=90", "--mem=64GB", "--gpus-per-node=1", "--nodes=1",
                 "--signal=USR2@120", "--mail-type=FAIL", "--requeue"):  # fmt: skip
        assert f"#SBATCH {line}" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert not list(tmp_path.iterdir()), "nothing was submitted and no folder made"


def test_other_launchers_have_no_script() -> None:
    assert job_script({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 2) is None
