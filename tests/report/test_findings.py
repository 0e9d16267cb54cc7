"""The page of an analysis: every number, figure and statement is in it and beside it."""

import json

import pandas as pd

from tdaexp.report.figures import panels
from tdaexp.report.findings import Drawing, Findings, Statement, write_findings


def _found() -> Findings:
    with panels(1) as (figure, (axes,)):
        axes.plot([0, 1], [1, 0])
    return Findings(
        "Pruning by influence",
        {"pruning/accuracy": 0.75},
        {"curves": pd.DataFrame({"sparsity": [0.7, 0.9], "kl": [3.25e-7, 0.5], "by": ["<Ψ>", "size"]})},
        [Drawing("curves", "Accuracy against sparsity.", figure)],
        [Statement("Ψ keeps more", "0.75 against 0.50.", "good")],
    )


def test_numbers_figures_and_text_are_written(tmp_path):
    assert write_findings(tmp_path, _found(), {}) == {"pruning/accuracy": 0.75}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"pruning/accuracy": 0.75}
    assert pd.read_csv(tmp_path / "curves.csv")["kl"].tolist() == [3.25e-7, 0.5]
    assert (tmp_path / "plots" / "curves.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Pruning by influence", "reproduced", "0.75 against 0.50.", "3.25e-07", "Accuracy against sparsity."):
        assert text in page
    assert "&lt;Ψ&gt;" in page and "<Ψ>" not in page, "names are text, not markup"
    assert "data:image/svg+xml;base64" in page
