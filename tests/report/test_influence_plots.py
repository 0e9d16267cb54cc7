"""Figures of influence functions show the numbers of their tables."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tdaexp.metrics.compare import compare
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report import influence_plots
from tdaexp.report.figures import render
from tdaexp.report.tables import headings, print_table, rows_of, times, title


@pytest.fixture
def ranked(stores):
    """Three methods compared with `full` by name, with an overhead for one of them."""
    projected = stores["project"].assign_attrs(cost={"overhead": 40.0, "gradients": 4.0, "scoring": 6.0})
    return compare({**stores, "project": projected}, MetricSettings(bootstrap=50, reference="full", top_k=2))


def test_times_tell_overhead_from_the_cost_of_a_query(ranked):
    found = ranked.join(times(ranked)).set_index(["method", "query_set"])
    assert found.loc[("project", "generated"), "overhead"] == 40.0
    assert found.loc[("project", "generated"), "pairwise"] == pytest.approx(10.0 / 20)  # queries of both sets
    assert np.isnan(found.loc[("full", "generated"), "overhead"])
    assert found.loc[("full", "generated"), "pairwise"] == pytest.approx(132.0 / 20)


def test_accuracy_against_time_has_hollow_and_solid_marks(ranked):
    assert influence_plots.has_times(ranked)
    figure = influence_plots.accuracy_time(ranked)
    axes = figure.axes[1]
    mine = ranked[(ranked["query_set"] == "generated") & (ranked["method"] == "project")].iloc[0]
    solid = next(line for line in axes.lines if line.get_label() == "project")
    assert solid.get_xydata().tolist() == [[pytest.approx(40.5), mine["rank_correlation"]]]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert sorted(float(line.get_xdata()[0]) for line in hollow) == pytest.approx([0.5, 6.6, 6.6])
    assert render(figure, "svg")


def test_without_a_reference_there_is_no_such_figure(stores):
    assert not influence_plots.has_times(compare(stores, MetricSettings(bootstrap=50)))


def test_nearness_has_a_line_per_type():
    table = pd.DataFrame(
        {
            "component": ["layers.0.attn.q", "layers.1.attn.q", "layers.0.mlp.up"],
            "type": ["attn.q", "attn.q", "mlp.up"],
            "depth": [0.0, 1.0, 0.0],
            "distance": [1.0, 2.0, 3.0],
            "relative": [0.01, 0.02, 0.05],
        }
    )
    absolute, relative = influence_plots.nearness(table).axes
    assert [line.get_label() for line in absolute.lines] == ["attn.q", "mlp.up"]
    assert relative.lines[0].get_ydata().tolist() == [0.01, 0.02]


def test_the_table_of_a_reference_is_about_ranking_and_cost(ranked):
    stream = io.StringIO()
    print_table(ranked, Console(file=stream, width=40))
    text = stream.getvalue()
    assert "rank corr. with full" in text and "40 s" in text and "0.5 s" in text and "accuracy" not in text
    assert headings(ranked)["recall"] == "recall@2"
    first = rows_of(ranked, "paraphrased")[0]
    assert first["method"] == "full" and first["rank_correlation"].startswith("1.000")


def test_a_title_tells_how_many_queries_the_model_answers(stores):
    answered = stores["full"].assign(answered=("query", np.arange(20) % 4 > 0))
    table = compare({"full": answered}, MetricSettings(bootstrap=50))
    assert title(table, "paraphrased") == "paraphrased (10 queries, 70 % answered by the model itself)"
    assert title(compare(stores, MetricSettings(bootstrap=50)), "paraphrased") == "paraphrased (10 queries)"
