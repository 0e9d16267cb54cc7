"""The tables of what is judged beyond retrieval: the best first, small numbers readable, every metric with a name."""

import math

import pytest

from tdaexp.metrics.best_first import LOWER
from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.retrained import CEILING, Judged
from tdaexp.report.retrained import cells, flat_retrained, frame, parts, print_retrained, retrained_figure
from tdaexp.report.retrained_words import EXPLAINED, TITLES


def judged(metric: str, **values: float) -> list[Judged]:
    return [Judged(label, "test", metric, Interval(one, one - 0.1, one + 0.1), 4) for label, one in values.items()]


@pytest.mark.parametrize("metric", TITLES)
def test_the_best_stands_first(metric):
    table = frame(judged(metric, middle=0.5, low=0.2, high=0.8))
    order = ["low", "middle", "high"] if metric in LOWER else ["high", "middle", "low"]
    assert table["method"].tolist() == order
    ((title, explained, part),) = parts(table)
    assert title == f"{TITLES[metric]} · test" and explained == EXPLAINED[metric] and len(part) == 3


def test_numbers_of_any_size():
    values = {
        "whole": (0.5, 0.4, 0.6),
        "small": (2e-4, -1e-5, 3e-4),
        "none": (0.0, 0.0, 0.0),
        "alone": (0.91, math.nan, math.nan),
    }
    table = frame([Judged(label, "test", "tail_patch", Interval(*one), 4) for label, one in values.items()])
    shown = {row[0]: row[1] for row in cells(table)}
    assert shown == {
        "whole": "0.500 [0.400, 0.600]",
        "small": "2.00e-04 [-1.00e-05, 3.00e-04]",
        "none": "0.000 [0.000, 0.000]",
        "alone": "0.910",
    }
    flat = flat_retrained(table)
    assert flat["small/test/tail_patch_low"] == -1e-5 and "alone/test/tail_patch_low" not in flat


def test_a_table_and_a_figure_of_several_metrics(capsys):
    ceiling = Judged(CEILING, "test", "lds_own", Interval(0.9, math.nan, math.nan), 4)
    table = frame([*judged("lds_own", ekfac=0.7, dot=0.4), ceiling, *judged("brittleness_same", ekfac=0.01, dot=0.05)])
    print_retrained(table)
    shown = capsys.readouterr().out
    assert shown.index("noise ceiling") < shown.index("0.700 [0.600, 0.800]") < shown.index("smallest share that flips")
    beside = Judged("few", "test", "lds_own", Interval(0.5, 0.6, 0.7), 4)  # as of few resamples
    assert retrained_figure(frame([beside])).axes
    figure = retrained_figure(table)
    assert [one.get_title(loc="left") for one in figure.axes] == [title for title, _, _ in parts(table)]
