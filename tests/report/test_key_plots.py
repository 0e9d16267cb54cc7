"""Figures against a key show the table's numbers, a line for each other combination."""

import numpy as np
import pytest

from tdaexp.metrics.axes import axes_of
from tdaexp.metrics.compare import compare
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report import key_plots
from tdaexp.report.figures import render


@pytest.fixture(scope="module")
def damped(full_store):
    """Two methods at three dampings, and one without any."""

    def store(method, damping, sign):
        config = {"method": {"damping": damping}} if damping else {"method": {}}
        changed = full_store.assign(influence=sign * full_store["influence"] + damping)
        return changed.assign_attrs(method=method, label=method, config=config)

    found = {f"{m} {d}": store(m, d, s) for m, s in (("ekfac", 1), ("cg", -1)) for d in (1e-6, 1e-2, 1e-4)}
    return {**found, "dot": store("dot", 0, 1)}


def drawn(stores, **settings):
    table = compare(stores, MetricSettings(bootstrap=50, top_k=2, **settings))
    (axis,) = axes_of(stores, {label: [label] for label in stores})
    return table, key_plots.against(table, axis)


def test_each_line_has_its_rows_in_order_of_the_key(damped):
    table, figure = drawn(damped)
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["retrieval accuracy", "MRR", "recall@2"]
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["paraphrased queries", "generated queries"]
    assert {axes.get_xlabel() for axes in figure.axes[-2:]} == {"method.damping"}
    for row, metric in enumerate(("heldout", "mrr", "recall")):
        for axes, name in zip(figure.axes[2 * row : 2 * row + 2], ("paraphrased", "generated"), strict=True):
            rows = table[table["query_set"] == name].set_index("method")
            shown = {one.get_label(): one for one in axes.containers}
            assert list(shown) == ["ekfac", "cg"]
            for method, container in shown.items():
                line, _, (bars,) = container
                mine = rows.loc[[f"{method} {d}" for d in (1e-6, 1e-4, 1e-2)]]
                aside = np.log10(line.get_xdata()) - [-6, -4, -2]
                assert np.allclose(aside, 0.25 if method == "cg" else -0.25)  # 2 decades apart: a quarter between them
                np.testing.assert_allclose(line.get_ydata(), mine[metric])
                ends = np.array([one[:, 1] for one in bars.get_segments()])
                bounds = mine[[f"{metric}_low", f"{metric}_high"]].to_numpy(float)
                np.testing.assert_allclose(ends, bounds, atol=1e-9)
            low, high = axes.get_ylim()
            assert low < min(rows.loc[list(damped)[:6], metric]) and max(rows.loc[list(damped)[:6], metric]) < high
    assert figure.axes[-1].get_xscale() == "log"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ekfac", "cg", "BM25", "random", "dot"]
    assert render(figure, "svg") == render(drawn(damped)[1], "svg")


def test_methods_without_the_key_are_levels_where_they_are_few(damped, full_store):
    table, figure = drawn(damped)
    for row, metric in enumerate(("heldout", "mrr", "recall")):
        (level,) = (line for line in figure.axes[2 * row].lines if line.get_label() == "dot")
        rows = table[table["query_set"] == "paraphrased"].set_index("method")
        assert set(level.get_ydata()) == {rows.loc["dot", metric]}
    many = {**damped, **{f"dot {k}": full_store.assign_attrs(method=f"dot {k}", label=f"dot {k}") for k in range(4)}}
    _, figure = drawn(many)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ekfac", "cg", "BM25", "random"]


def test_with_a_named_reference_the_figure_is_about_ranking(damped):
    _, figure = drawn(damped, reference="dot")
    assert [axes.get_ylabel() for axes in figure.axes] == ["rank correlation", ""]


def test_rows_that_do_not_compare_are_left_out(damped):
    (axis,) = axes_of(damped, {label: [label] for label in damped})
    table = compare(damped, MetricSettings(bootstrap=50))
    alone = table[~table["method"].isin(["cg 1e-06", "cg 0.01"])]
    assert [one.get_label() for one in key_plots.against(alone, axis).axes[0].containers] == ["ekfac"]
    assert key_plots.against(alone[~alone["method"].str.startswith("ekfac")], axis) is None
