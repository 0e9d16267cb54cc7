"""Which stores `evaluate.py` finds, and what it says of jobs without a result: with the stand-in program."""

import json
from pathlib import Path

import pytest

from tdaexp.app.found import find_stores
from tdaexp.runtime.errors import UserError


def test_a_sweep_with_failed_and_waiting_jobs_gives_what_is_there_and_names_the_rest(program):
    assert program("-m", "method=full", "+method.do=work,mistake,bug")[0] == 1
    (sweep,) = program.folder.glob("multirun/*")
    jobs = json.loads((sweep / "jobs.json").read_text())
    assert [job["overrides"][-2:] for job in jobs] == [
        ["method=full", f"+method.do={do}"] for do in ("work", "mistake", "bug")
    ]
    (sweep / "jobs.json").write_text(
        json.dumps(
            [
                *jobs,
                {**jobs[0], "fingerprint": "other", "overrides": ["logger=none", "method=full", "+method.do=later"]},
            ]
        )
    )
    found = find_stores([str(sweep)], "")
    assert len(found.stores) == 1 and found.missing == [
        "+method.do=mistake: failed (data.jsonl: line 3: no column 'prompt')",
        "+method.do=bug: failed (ZeroDivisionError: a fault)",
        "+method.do=later: not started",
    ]
    assert find_stores([str(found.stores[0])], "").missing == []


def test_a_sweep_that_has_nothing_yet_is_said_in_one_line(program):
    assert program("-m", "method=full", "+method.do=mistake,bug")[0] == 1
    (sweep,) = program.folder.glob("multirun/*")
    with pytest.raises(UserError, match=r"has no finished run yet: \+method.do=mistake: failed \(data.jsonl: line 3"):
        find_stores([str(sweep)], "")


def test_a_job_that_ended_elsewhere_has_a_result(program):
    assert program("-m", "budget=0.1,0.2")[0] == 0
    (sweep,) = program.folder.glob("multirun/*")
    second = json.loads((sweep / "1-budget=0.2" / "row.json").read_text())
    (sweep / "1-budget=0.2" / "row.json").write_text(json.dumps({**second, "status": "running"}))
    found = find_stores([str(sweep)], "")
    assert len(found.stores) == 1 and found.missing == ["budget=0.2: running"]
    (alone,) = (store for store in find_stores([], second["subject"]).stores)
    assert find_stores([], second["subject"]).missing == ["budget=0.2: running"]
    assert program("budget=0.2")[0] == 0
    again = find_stores([], second["subject"])
    assert again.missing == [] and len(again.stores) == 2 and alone in again.stores


def test_failed_runs_of_one_s_own_do_not_make_a_table_partial(program):
    assert program("budget=0.1")[0] == 0
    assert program("method=full", "+method.do=bug")[0] == 1
    subject = json.loads(next(program.folder.glob("outputs/attribute/*select*/row.json")).read_text())["subject"]
    assert find_stores([], subject).missing == []


def test_jobs_that_cannot_be_read_are_said(program):
    assert program("-m", "budget=0.1,0.2")[0] == 0
    (sweep,) = program.folder.glob("multirun/*")
    (sweep / "jobs.json").write_text("{")
    program.capfd.readouterr()
    assert len(find_stores([str(sweep)], "").stores) == 2
    assert "jobs.json: cannot be read" in program.capfd.readouterr().err


def test_the_nearest_subjects_are_named_where_nothing_matches(program):
    assert program("model=wide")[0] == 0
    assert program("model=wide", "method=full")[0] == 0
    assert program("dataset.people=5")[0] == 0
    code, err = program(stage="evaluate")
    assert code == 2 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert line.endswith(
        "or name finished runs, by runs=[FOLDER,…] or the options that they had: "
        "model=toy_gpt dataset=biographies (with other keys): select; "
        "model=wide dataset=biographies: full, select"
    )


def test_without_any_run_there_is_none_to_name(program):
    code, err = program(stage="evaluate")
    assert code == 2 and err.rstrip().endswith("under outputs/ or multirun/; run attribute.py")
    assert not list(Path("multirun").glob("*"))
