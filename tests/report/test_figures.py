import numpy as np
import pandas as pd
import pytest

from tdaexp.metrics.compare import CHANCE, compare
from tdaexp.metrics.selection import study
from tdaexp.report import component_plots, curve_plots
from tdaexp.report.figures import count_label, percent, render


@pytest.fixture(scope="module")
def table(stores, quick):
    return compare(stores, quick)


@pytest.fixture(scope="module")
def studies(full_store, quick):
    return study(full_store, quick)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_accuracy_curve_shows_the_study(studies, table):
    figure = curve_plots.accuracy_curve(studies, table)
    assert [axes.get_title("left") for axes in figure.axes] == ["paraphrased queries", "generated queries"]
    for axes, found in zip(figure.axes, studies.values(), strict=True):
        shown = lines(axes)
        np.testing.assert_array_equal(
            shown["greedy, queries used to select"].get_xydata().T,
            [found.curves["accuracy"].share, found.curves["accuracy"].accuracy],
        )
        held_out = shown["greedy, held-out queries"]
        np.testing.assert_array_equal(held_out.get_ydata(), found.curves["accuracy"].held_out)
        assert shown["project"].get_xdata() == [0.05]
        own = table[(table["method"] == "select") & (table["query_set"] == axes.get_title("left").split()[0])].iloc[0]
        (point,) = shown["select, held out"].get_xydata()
        assert point.tolist() == [own["share"], own["heldout"]] and own["heldout"] != own["accuracy"]
        assert axes.get_ylim()[0] < own["heldout"] < axes.get_ylim()[1]
        assert axes.get_xlim()[0] < 0.05
        assert any(name.startswith(f"full gradient {found.full:.3f}") for name in shown)
        assert any("BM25" in name for name in shown)
        assert any("random 0.333" in name for name in shown)


def test_fidelity_curve_shows_selection_and_projection(studies, table):
    for axes, name in zip(curve_plots.fidelity_curve(studies, table).axes, studies, strict=True):
        for method in ("project", "select"):
            row = table[(table["method"] == method) & (table["query_set"] == name)].iloc[0]
            assert lines(axes)[method].get_xydata().tolist() == [[row["share"], row["fidelity"]]]
            assert axes.get_ylim()[0] < row["fidelity"] < axes.get_ylim()[1]
        assert lines(axes)["greedy by similarity, held-out queries"].get_linestyle() == "--"
        assert lines(axes)["greedy by similarity"].get_linestyle() == "-"


def test_several_selections_have_marks_of_their_own(studies, table):
    again = table[table["method"] == "select"].assign(method="select again", share=0.5)
    for axes in curve_plots.accuracy_curve(studies, pd.concat([table, again])).axes:
        marks = [lines(axes)[f"{name}, held out"].get_marker() for name in ("select", "select again")]
        assert len(set(marks)) == 2


def test_a_projection_that_was_selected_on_is_marked_once(studies, table):
    both = table.assign(projected=table["projected"] | table["selected"].astype(bool))
    for axes in curve_plots.accuracy_curve(studies, both).axes:
        assert "select" not in lines(axes) and "select, held out" in lines(axes)


def test_bars_are_held_out_and_marks_in_sample(table):
    figure = curve_plots.accuracies(table)
    for axes, name in zip(figure.axes, ["paraphrased", "generated"], strict=True):
        mine = table[table["query_set"] == name]
        mine = mine.assign(last=mine["control"] != "").sort_values(["last", "heldout"], ascending=[True, False])
        assert [bar.get_width() for bar in axes.patches] == mine["heldout"].tolist()
        assert [label.get_text() for label in axes.get_yticklabels()] == mine["method"].tolist()
        assert [text.get_text() for text in axes.texts] == [f"{value:.3f}" for value in mine["heldout"]]
        marks = next(part for part in axes.collections if part.get_label() == "on the queries used to select")
        assert marks.get_offsets()[:, 0].tolist() == mine.loc[mine["selected"], "accuracy"].tolist()
        greys = [bar.get_facecolor() for bar in axes.patches][-2:]
        assert greys[0] == greys[1]
        assert set(mine["method"].tolist()[-2:]) == {"BM25", CHANCE}


def test_component_map_has_every_component(studies):
    figure = component_plots.every_component(studies)
    for axes, found in zip([a for a in figure.axes if a.images], studies.values(), strict=True):
        cells = axes.images[0].get_array().filled(np.nan)
        accuracy = found.table["accuracy"]
        np.testing.assert_array_equal(cells[:, :2], accuracy[[1, 3, 2, 4]].to_numpy().reshape(2, 2))
        assert np.isnan(cells[:, 2]).all()
        np.testing.assert_array_equal(cells[:, 3], accuracy[[0, 5]])
        words = [text.get_text() for text in axes.texts]
        assert [word for word in words if word.isalpha()] == ["embed", "norms"]
        assert sorted(words)[:6] == sorted(f"{value:.2f}" for value in accuracy)


def test_component_maps_share_one_scale(studies):
    figure = component_plots.every_component(studies)
    every = pd.concat([found.table["accuracy"] for found in studies.values()])
    maps = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in maps] == [(every.min(), every.max())] * 2
    assert [axes.get_ylabel() for axes in figure.axes].count("retrieval accuracy") == 1


def test_depth_lines_leave_out_what_has_no_depth(studies):
    axes = component_plots.by_depth(studies).axes[0]
    accuracy = studies["paraphrased"].table["accuracy"]
    assert axes.lines[0].get_ydata().tolist() == accuracy[[1, 3]].tolist()
    assert axes.lines[1].get_ydata().tolist() == accuracy[[2, 4]].tolist()


def test_sizes_are_in_order(studies):
    axes = component_plots.by_size(studies).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "20", "40"]
    dots = np.concatenate([part.get_offsets()[:, 1] for part in axes.collections])
    assert sorted(dots.tolist()) == sorted(studies["paraphrased"].table["accuracy"].tolist())


def test_rendering_is_repeatable_and_of_its_kind(studies):
    first, again = (render(component_plots.by_depth(studies), "svg") for _ in range(2))
    assert first == again
    assert b"<svg" in first
    assert render(component_plots.by_depth(studies), "png").startswith(b"\x89PNG")


def test_labels_for_people():
    assert [count_label(value) for value in (640, 4194304, 103022592, 1.18e9)] == [
        "640",
        "4.19 M",
        "103 M",
        "1.18 B",
    ]
    assert [percent(value) for value in (1.0, 0.01426, 0.00356)] == ["100 %", "1.43 %", "0.356 %"]


def test_a_model_without_layers_can_be_drawn(full_store, quick, table):
    flat = full_store.assign_coords(component=np.array(["a", "b", "c", "d", "e", "f"], dtype=object))
    found = study(flat, quick)
    figure = component_plots.every_component(found)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [word for word in words if word.isalpha()] == ["a", "b", "c", "d", "e", "f"]
    assert render(figure, "png")
    assert render(component_plots.by_size(found), "png")
