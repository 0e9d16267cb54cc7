"""Several runs of the grokking study together, from made-up metrics whose verdicts are known."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from tdaexp.papers.base import Evidence
from tdaexp.papers.grokking_seeds import GrokkingSeeds
from tdaexp.runtime.errors import UserError

GRAFTS = {"attention + linear 1": ["attn", "up"], "outer": ["embed", "down"]}
ANALYSIS = {"grafts": GRAFTS, "pipelines": ["attention + linear 1"], "outer": "outer", "donors": [2000]}
LATE = {"memorised": 500.0, "grokked": 900.0, "test_when_memorised": 0.1, "test_at_the_end": 1.0}
AT_ONCE = {"memorised": 500.0, "grokked": 500.0, "test_when_memorised": 0.9, "test_at_the_end": 1.0}
BALANCE = {"rise_correlation": 1.0, "kernel_peak": 900.0, "regularisation_peak": 900.0, "regularisation_end": 0.5,
           "balance_memorising": 0.7}  # fmt: skip
EVIDENCE = Evidence(SimpleNamespace())


def write(
    folder, model: str, betas: list[float], seed: int, numbers: dict[str, float], draw: str = "generator"
) -> None:
    folder.mkdir(parents=True)
    config = {"model": {"name": model, "seed": seed}, "trainer": {"fit": {"betas": betas}}, "analysis": ANALYSIS,
              "dataset": {"draw": draw, "seed": seed}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.json").write_text(json.dumps(numbers))
    pd.DataFrame({"step": [0, 10], "train": [0, 1.0], "test": [0, 0.5]}).to_csv(folder / "accuracy.csv", index=False)
    steps = pd.DataFrame({"step": [0, 5, 10], "kernel": [1.0, 2, 1], "regularisation": [1.0, 3, 2]})
    steps.to_csv(folder / "importance.csv", index=False)


def grafts(pipeline: float, outer: float) -> dict[str, float]:
    """Test accuracies in the end; 1.0 is there at step 100."""
    found = {"retrain_steps": 200.0, "usual_test": 0.0}
    for name, end in (("attention + linear 1", pipeline), ("outer", outer)):
        found |= {f"retrained_end/{name}/2000": end, f"retrained_lag/{name}/2000": 0.1,
                  f"retrained_step/{name}/2000": 100.0 if end == 1 else math.nan}  # fmt: skip
    return found


@pytest.fixture
def studies(tmp_path):
    """Five seeds of the reference, three with the text's betas, and one of the text's model."""
    for seed in range(5):
        own = {"kernel_end": 0.95 + 0.01 * seed, "balance_grokked": 1.2 if seed < 3 else 0.9}
        write(tmp_path / f"code-{seed}", "grokking_code", [0.9, 0.98], seed, LATE | BALANCE | own | grafts(0.2, 1.0))
    for seed in range(3):
        own = {"kernel_end": 0.6, "balance_grokked": 1.2 if seed else math.nan}
        write(tmp_path / f"betas-{seed}", "grokking_code", [0.98, 0.99], seed, LATE | BALANCE | own)
    write(
        tmp_path / "text", "grokking", [0.98, 0.99], 0, AT_ONCE | BALANCE | {"kernel_end": 0.5, "balance_grokked": 0.5}
    )
    return tmp_path


def test_verdicts_from_seeds_and_settings(studies):
    findings = GrokkingSeeds([str(studies / "*")]).run(EVIDENCE)
    table = findings.tables["claims"].set_index(["claim", "setting"])
    code, betas, text = "grokking_code 0.9 0.98", "grokking_code 0.98 0.99", "grokking 0.98 0.99"
    assert list(table.loc["late"].index) == [text, code, betas]
    assert table.loc[("late", code), "held"] == table.loc[("late", code), "seeds"] == 5
    assert table.loc[("late", code), "verdict"] == "reproduced" and table.loc[("late", text), "held"] == 0
    # in no seed of the reference, in all with the other betas; the text's model differs in two things
    assert table.loc[("together", code), "held"] == 0 and table.loc[("together", betas), "held"] == 3
    assert table.loc[("together", code), "verdict"] == "contradicted, cause found"
    assert table.loc[("together", code), "cause"] == "with betas 0.98, 0.99 (3 of 3 seeds)"
    # in three of five: not reproduced, whatever other settings say; a seed without a final phase does not count
    assert table.loc[("governed", code), ["held", "seeds", "verdict"]].tolist() == [3, 5, "not reproduced"]
    assert table.loc[("governed", betas), ["held", "seeds"]].tolist() == [2, 2]
    # another reading of the same runs
    assert "of outer: with the labels exchanged" in table.loc[("at_once/attention + linear 1", code), "cause"]
    assert table.loc[("contrast", code), "verdict"] == "contradicted, cause found"
    assert "swap" not in table.index and "cosine" not in table.index  # no run has their numbers
    tones = {one.claim: one.tone for one in findings.statements}
    assert tones["Kernel and regularisation influence grow together, peak before the end, and decline."] == "cause"
    assert findings.metrics[f"held/governed/{code}"] == pytest.approx(0.6)
    assert {one.name for one in findings.drawings} == {"courses"} and len(findings.tables["seeds"]) == 9


def test_intervals_are_student_s_over_seeds(studies):
    row = GrokkingSeeds([str(studies / "code-*")]).run(EVIDENCE).tables["claims"].set_index("claim").loc["together"]
    half = 2.7764451 * (0.01 * math.sqrt(2.5)) / math.sqrt(5)  # t of 4 degrees of freedom, of 0.95 … 0.99
    assert row["mean"] == pytest.approx(0.97) and row["high"] - row["mean"] == pytest.approx(half)
    alone = GrokkingSeeds([str(studies / "text")], reference="grokking 0.98 0.99").run(EVIDENCE).tables["claims"]
    assert math.isnan(alone["low"][0]) and "nan" not in "".join(map(str, alone["cause"]))


def test_runs_of_a_setting_that_were_trained_in_another_way_are_not_counted_with_it(studies):
    write(studies / "other", "grokking", [0.98, 0.99], 1, AT_ONCE, draw="explaind")
    with pytest.raises(UserError, match=r"'grokking 0.98 0.99' differ in more than seeds, dataset\.draw; give those"):
        GrokkingSeeds([str(studies / "*")]).run(EVIDENCE)


def test_what_is_no_study_is_told_in_one_line(studies, tmp_path):
    with pytest.raises(UserError, match=r"analysis\.studies: nothing has no finished run; make some with"):
        GrokkingSeeds([]).run(EVIDENCE)
    with pytest.raises(UserError, match=r"unknown setting 'grokking_code 0.9 0.99'"):
        GrokkingSeeds([str(studies / "*")], reference="grokking_code 0.9 0.99").run(EVIDENCE)
    write(studies / "again", "grokking", [0.98, 0.99], 0, AT_ONCE)
    with pytest.raises(UserError, match=r"model\.seed=0 of 'grokking 0.98 0.99' is there twice"):
        GrokkingSeeds([str(studies / "*")]).run(EVIDENCE)
    (studies / "again" / "config.yaml").write_text("model: {}")
    with pytest.raises(UserError, match="again is no run of analysis=grokking") as error:
        GrokkingSeeds([str(studies / "*")]).run(EVIDENCE)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"analysis\.agreed=0\.5"):
        GrokkingSeeds(agreed=0.5)
