"""The panel of trust on a page: what was measured, what was not, and several runs in one table."""

from __future__ import annotations

import pytest
from test_report import Page

from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.report import write_report
from tdaexp.report.trust_panel import LISTED, panel
from tdaexp.trust.check import Bounds, absent, judged

CHECKS = [
    judged("batch_drift", 0.25, Bounds(1e-4, 1e-2), "It moves <b>.", "alone, and together"),
    judged("rank_stability", 0.9, Bounds(0.8, 0.5), "It stays.", "draws", {f"q{n}": n / 100 for n in range(50)}),
    absent("damping_stability", "the method has no damping"),
]


@pytest.fixture
def quiet():
    return MetricSettings(bootstrap=50, plots=False)


def written(folder, stores, settings, trust):
    write_report(folder, stores, None, settings, trust=trust)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_one_run_has_a_card_for_each_check(tmp_path, full_store, quiet):
    page = written(tmp_path, {"full": full_store}, quiet, {"full": CHECKS})
    assert not page.open and "#trust" in page.links and "trust" in page.ids
    assert "1 good, 1 bad, 1 not measured" in page.text
    assert "bad batch drift 0.25 It moves <b>." in page.text
    assert "Not measured here: damping stability" in page.text and "the method has no damping" in page.text
    assert "Alone, and together. Good up to 0.0001, bad above 0.01." in page.text
    assert (
        "q0 0 q1 0.01" in page.text and "q40" not in page.text and f"and {50 - LISTED} more in trust.json" in page.text
    )


def test_several_runs_have_a_row_each(tmp_path, stores, quiet):
    page = written(tmp_path, stores, quiet, {"full": CHECKS[:1], "select": CHECKS[1:], "project": []})
    assert not page.open
    assert "method batch drift rank stability full bad 0.25 – select – good 0.9 project – –" in page.text


def test_without_checks_there_is_no_panel(tmp_path, full_store, quiet):
    page = written(tmp_path, {"full": full_store}, quiet, {"full": []})
    assert "trust" not in page.ids and "#trust" not in page.links and panel({}) is None
