"""Run folders, rows and tables of sweeps, resuming, exit codes: with the stand-in program."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tdaexp.app import found, sweep
from tdaexp.report.mirrored import read_mirrored
from tdaexp.runtime.errors import UserError


def _table(program):
    (file,) = program.folder.glob("multirun/*/sweep.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_run_leaves_its_folder_named_by_what_was_run(program):
    code, err = program("budget=0.2", "seed=3")
    assert code == 0, err
    (folder,) = (program.folder / "outputs" / "attribute").iterdir()
    assert folder.name.startswith("toy_gpt-biographies-select-")
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.budget, config.method.budget, config.seed) == (0.2, 0.2, 3)
    assert {"config.yaml", "run.log", "row.json", "influence.zarr"} <= {f.name for f in folder.iterdir()}
    assert "toy_gpt-biographies-select" in (folder / "run.log").read_text()
    assert json.loads((folder / "metrics.json").read_text()) == {"accuracy": 0.2, "queries": 3.0}


def test_the_folder_depends_on_what_is_computed_and_on_nothing_else(program):
    for arguments in (
        ["budget=0.2"],
        ["logger=csv", "budget=0.2"],
        ["budget=0.2", "resume=true"],
        ["budget=0.3"],
    ):
        assert program(*arguments)[0] == 0
    first, second, third = program.calls()
    assert first == second != third  # the run with resume=true was skipped


def test_chosen_folders_win(program):
    assert program("hydra.run.dir=mine/run")[0] == 0
    assert program("-m", "seed=1,2", "hydra.sweep.dir=mine/sweep")[0] == 0
    assert [c.split("mine/")[1] for c in program.calls()] == ["run", "sweep/0-seed=1", "sweep/1-seed=2"]
    assert (program.folder / "mine" / "sweep" / "sweep.csv").exists()


@pytest.mark.long
def test_every_job_ends_in_a_row_with_the_command_that_runs_it_again(program):
    code, err = program("method=select,project", "-m", "budget=0.01,0.05", "trainer.threads=1")
    assert code == 0, err
    table = _table(program)
    assert [row["job"] for row in table] == ["0", "1", "2", "3"]
    assert {row["status"] for row in table} == {"done"}
    assert [float(row["accuracy"]) for row in table] == [0.01, 0.05, 0.01, 0.05]
    assert table[2]["folder"].endswith("/2-budget=0.01_method=project")
    python, script, *overrides = shlex.split(table[2]["command"])
    assert (python, script) == ("python", "attribute.py")
    assert "method=project" in overrides and "budget=0.01" in overrides and "trainer.threads=1" in overrides
    assert program(*overrides)[0] == 0
    again = OmegaConf.load(f"{program.calls()[-1]}/config.yaml")
    assert again == OmegaConf.load(f"{table[2]['folder']}/config.yaml")


def test_a_sweep_from_an_experiment(program):
    code, err = program("experiment=sweep", "seed=4")
    assert code == 0, err
    assert [row["overrides"].split()[0] for row in _table(program)] == ["budget=0.1", "budget=0.2"]


def test_failed_jobs_have_rows_and_do_not_stop_the_others(program):
    code, err = program("-m", "method=full", "+method.do=mistake,bug,disk,work")
    assert code == 1
    table = _table(program)
    assert [row["status"] for row in table] == ["failed", "failed", "failed", "done"]
    assert table[0]["error"] == "data.jsonl: line 3: no column 'prompt'"
    assert table[1]["error"] == "ZeroDivisionError: a fault"
    assert "error: data.jsonl: line 3: no column 'prompt'\n" in err
    assert err.count("Traceback") == 1 and "1 of 4 jobs done" in err


@pytest.mark.parametrize(
    ("do", "code", "lines", "message"),
    [
        ("mistake", 2, 1, "error: data.jsonl: line 3: no column 'prompt'"),
        ("disk", 1, 1, "no space left on the device; nothing computed so far is lost"),
        ("interrupt", 130, 1, "interrupted"),
    ],
)
def test_a_stage_that_fails_says_so_in_one_line(program, do, code, lines, message):
    got, err = program("method=full", f"method.do={do}", "hydra.job_logging.root.level=ERROR")
    assert got == code
    assert message in err and err.count("\n") == lines and "Traceback" not in err
    (row,) = sweep.rows(program.folder / "outputs")
    assert row.status == ("stopped" if do == "interrupt" else "failed") and row.error


def test_a_fault_of_the_program_shows_its_traceback_in_the_log_too(program):
    code, err = program("method=full", "method.do=bug")
    assert code == 1
    assert "Traceback" in err and "ZeroDivisionError: a fault" in err
    (log,) = program.folder.glob("outputs/**/run.log")
    assert "ZeroDivisionError: a fault" in log.read_text()


@pytest.mark.long
def test_a_killed_sweep_resumes_where_it_stopped(program):
    arguments = [
        "-m",
        "method=full",
        f"method.marker={program.folder}/killed",
        "method.do=work,kill",
        "seed=1,2",
    ]
    killed = program.process(*arguments, "logger=none")
    assert killed.returncode == -9
    assert [row["status"] for row in _table(program)] == ["done", "done", "running"]
    before = program.calls()
    code, err = program(*arguments, "resume=true")
    assert code == 0, err
    assert [row["status"] for row in _table(program)] == ["done"] * 4
    after = program.calls()
    assert after[: len(before)] == before and len(after) == 4 == len(set(after))


@pytest.mark.parametrize("harm", ["deleted", "damaged", "metrics", "report", "code"])
def test_resume_looks_at_what_lies_there_and_not_at_the_row(program, harm):
    assert program("-m", "budget=0.1,0.2")[0] == 0
    first, second = (Path(call) for call in program.calls())
    if harm == "deleted":
        shutil.rmtree(first / "influence.zarr")
    elif harm == "damaged":
        (chunk,) = (first / "influence.zarr" / "influence").glob("[0-9]*")
        chunk.write_bytes(b"\0" + chunk.read_bytes()[1:])
    elif harm == "code":  # a row of another version of what computes
        row = json.loads((first / "row.json").read_text())
        (first / "row.json").write_text(json.dumps({**row, "code": "0" * 16}))
    else:
        (first / ("metrics.json" if harm == "metrics" else "report.html")).unlink()
    row = json.loads((second / "row.json").read_text())
    (second / "row.json").write_text(json.dumps({**row, "status": "running", "metrics": {}}))
    assert program("-m", "budget=0.1,0.2", "resume=true")[0] == 0
    assert [Path(call).name for call in program.calls()[2:]] == [first.name]
    assert [(row.status, row.metrics["accuracy"]) for row in sweep.rows(program.folder)] == [
        ("done", 0.1),
        ("done", 0.2),
    ]


def test_without_resume_everything_runs_again(program):
    for _ in range(2):
        assert program("-m", "seed=1,2")[0] == 0
    assert len(program.calls()) == 4


@pytest.mark.long
def test_jobs_side_by_side_with_joblib(program):
    done = program.process(
        "-m",
        "seed=1,2",
        "method=full",
        "+method.do=work,mistake",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "logger=none",
    )
    assert done.returncode == 1, done.stderr
    table = _table(program)
    assert [row["status"] for row in table].count("done") == 2 and len(table) == 4
    assert {row["error"] for row in table} == {"", "data.jsonl: line 3: no column 'prompt'"}
    assert "2 of 4 jobs done" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long
def test_a_worker_that_dies_is_a_failed_row(program):
    marker = program.folder / "killed"
    done = program.process(
        "-m",
        "seed=1,2",
        "method=full",
        "method.do=kill",
        f"method.marker={marker}",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "logger=none",
    )
    assert done.returncode == 1
    assert "failed" in {row["status"] for row in _table(program)}
    assert "running" not in {row["status"] for row in _table(program)}


def test_evaluate_finds_the_finished_runs_of_its_subject(program):
    assert program("-m", "budget=0.1,0.2")[0] == 0
    assert program("budget=0.1")[0] == 0  # the same run in outputs/: counts once
    assert program("model=wide")[0] == 0
    assert program("method=full", "method.do=bug")[0] == 1
    code, err = program(stage="evaluate")
    assert code == 0, err
    (file,) = program.folder.glob("outputs/evaluate/*/metrics.json")
    assert json.loads(file.read_text()) == {"runs": 2.0}


def test_patterns_name_runs_sweeps_and_stores(program):
    assert program("-m", "budget=0.1,0.2")[0] == 0
    (folder,) = program.folder.glob("multirun/*")
    name = f"multirun/{folder.name}"
    assert len(found.find_stores([name], "").stores) == 2
    assert len(found.find_stores([f"{name}/0-*", f"{name}/0-*/influence.zarr"], "").stores) == 1
    with pytest.raises(UserError, match="leads to no influence"):
        found.find_stores(["nowhere/*"], "")
    with pytest.raises(UserError, match="no finished run"):
        found.find_stores([], "another subject")


def test_the_other_stages_run(program):
    assert program("trainer.fit.steps=4", stage="train")[0] == 0
    (file,) = program.folder.glob("outputs/train/toy_gpt-biographies-*/metrics.json")
    assert json.loads(file.read_text()) == {"loss": 0.25}


def test_the_configuration_can_be_shown_without_running(program, executed):
    argv = ["seed=5", "--cfg", "job"]
    done = program.process(*argv)
    assert done.returncode == 0 and "seed: 5" in done.stdout
    assert not (program.folder / "outputs").exists()


def test_a_row_that_cannot_be_read_counts_as_not_done(tmp_path):
    row = sweep.Row("attribute", "n", "f", "s", "c", str(tmp_path / "0"), job=0, status="done", metrics={"a": 1.0})
    row.write(tmp_path)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "row.json").write_text("{")
    assert [r.job for r in sweep.rows(tmp_path)] == [0]
    assert sweep.close_sweep(tmp_path, 2) == 1


@pytest.mark.long
def test_a_sweep_is_one_group_of_offline_wandb_runs(program):
    done = program.process("method=project", "-m", "budget=0.01,0.05")
    assert done.returncode == 0, done.stderr
    runs = sorted(program.folder.glob("multirun/*/*/wandb/offline-run-*/*.wandb"))
    assert len(runs) == 2 and len({run.parents[2] for run in runs}) == 2
    told = [read_mirrored(run.parents[2]) for run in runs]
    assert {one.group for one in told} == {"attribute budget=0.01,0.05 method=project"}
    assert [one.name for one in told] == ["project budget=0.01", "project budget=0.05"]
    assert not (program.folder / "wandb").exists()


def test_jobs_are_announced_as_typed(program):
    code, err = program("-m", "budget=0.1,0.2", "+method.order=single", "seed=3")
    assert code == 0, err
    assert "#1 : logger=none budget=0.2 +method.order=single seed=3" in err and "++" not in err
