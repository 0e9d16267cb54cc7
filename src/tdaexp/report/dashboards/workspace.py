"""The workspace of a sweep: its runs side by side, by what they differ in, what they cost, and whom they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tdaexp.report.dashboards.library import expressions, reports, these_runs, workspaces
from tdaexp.report.dashboards.swept import COST, Key, curve, headlines, judged_metrics, swept_keys
from tdaexp.report.mirrored import Mirrored

SERIES = "wandb/lineseries/v0"
"""wandb's own chart of several lines from one table."""
TEXTS, METHODS, RETRAINED = "compared_texts", "compared_methods", "retrained"
"""Tables of a comparison: each method's helpful and harmful rows, the methods with their numbers, and with those that
models give which were trained again.
"""


def curves(runs: Sequence[Mirrored]) -> dict[str, pd.DataFrame]:
    """The curves of every metric with bounds against every numeric key, by the name of their table; columns `x`,
    `series` and `y` (`swept.curve`).
    """
    keys = swept_keys(runs)
    return {
        _curve_name(key, metric): pd.DataFrame(curve(runs, keys, key, metric), columns=["x", "series", "y"])
        for key in keys
        if key.numeric and not key.repeats
        for metric in judged_metrics(runs)
    }


def _curve_name(key: Key, metric: str) -> str:
    return f"{metric} by {key.name}".replace("/", " ")


def workspace(runs: Sequence[Mirrored], own: Mirrored) -> Any:
    """The workspace of some runs and of the run that compares them (`own`), which has their tables and pictures.

    It names only what one of them has in wandb.
    """
    ws = workspaces()
    keys, metrics = swept_keys(runs), judged_metrics(runs)
    sections = [
        ("The sweep", _overview(keys, metrics, _costs(runs))),
        *((f"By {key.name}", _by_key(key, metrics, own)) for key in keys if not key.repeats),
        ("Against cost", _by_cost(runs, metrics)),
        ("Helpful and harmful texts", _tables([TEXTS], own)),
        ("The methods compared", [*_tables([METHODS, RETRAINED], own), *_pictures(own)]),
    ]
    return ws.Workspace(
        entity=own.entity or "",
        project=own.project,
        name=_name(runs),
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, layout_settings=_layout(panels))
            for name, panels in sections
            if panels
        ],
        settings=ws.WorkspaceSettings(max_runs=max(10, len(runs))),
        runset_settings=ws.RunsetSettings(
            filters=these_runs([*runs, own]),
            order=[expressions().Ordering(expressions().Metric("Name"), ascending=True)],
            pinned_columns=[
                *(f"config:{_value_path(key.path)}" for key in keys),
                *(f"summary:{name}" for name in [*headlines(metrics), *_costs(runs)]),
            ],
        ),
    )


def _overview(keys: Sequence[Key], metrics: Sequence[str], costs: Sequence[str]) -> list[Any]:
    """Each run a line through its keys, its first metrics, and its cost; then what the runs differ in, in words."""
    wr = reports()
    column = wr.ParallelCoordinatesPlotColumn
    axes = [
        *(column(wr.Config(key.path), display_name=key.name) for key in keys if key.everywhere),
        *(column(wr.SummaryMetric(name), display_name=name) for name in headlines(metrics)),
        *(column(wr.SummaryMetric(cost), display_name="seconds", log=True) for cost in costs),
    ]
    return [
        wr.ParallelCoordinatesPlot(title="What was swept, and what came of it", columns=axes),
        wr.RunComparer(diff_only="split"),
    ]


def _by_key(key: Key, metrics: Sequence[str], own: Mirrored) -> list[Any]:
    """Every metric against a key: against numbers as lines with their bounds, of words as bars over the runs."""
    wr = reports()
    if key.numeric:
        return [
            wr.CustomChart(
                query={"summaryTable": {"tableKey": _curve_name(key, metric)}},
                chart_name=SERIES,
                chart_fields={"step": "x", "lineKey": "series", "lineVal": "y"},
                chart_strings={"title": f"{metric} by {key.name}, with intervals", "xname": key.name},
            )
            for metric in metrics
            if _curve_name(key, metric) in own.tables
        ]
    return [
        wr.BarPlot(
            title=f"{metric} by {key.name}: mean and range of its runs",
            metrics=[metric],
            groupby=wr.Config(key.path),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=1000,
        )
        for metric in metrics
    ]


def _by_cost(runs: Sequence[Mirrored], metrics: Sequence[str]) -> list[Any]:
    wr = reports()
    return [
        wr.ScatterPlot(title=f"{name} against seconds", x=wr.SummaryMetric(cost), y=wr.SummaryMetric(name), log_x=True)
        for cost in _costs(runs)
        for name in metrics
    ]


def _tables(names: Sequence[str], own: Mirrored) -> list[Any]:
    return [reports().WeavePanelSummaryTable(table_name=name) for name in names if name in own.tables]


def _pictures(own: Mirrored) -> list[Any]:
    if not own.images:
        return []
    return [reports().MediaBrowser(title="Figures of the comparison", media_keys=list(own.images), num_columns=2)]


def _costs(runs: Sequence[Mirrored]) -> list[str]:
    """The cost, if the runs know it."""
    return [COST] if all(COST in run.metrics for run in runs) else []


def _layout(panels: Sequence[Any]) -> Any:
    """One wide panel, or three beside each other."""
    wide = len(panels) <= 2
    return workspaces().SectionLayoutSettings(columns=1 if wide else 3, rows=len(panels) if wide else 2)


def _value_path(path: str) -> str:
    """A path in the configuration as wandb's columns have it: `method.value.damping`."""
    first, *rest = path.split(".")
    return ".".join([first, "value", *rest])


def _name(runs: Sequence[Mirrored]) -> str:
    """The sweeps' names, without the signs that wandb refuses in a workspace's name."""
    groups = list(dict.fromkeys(run.group or run.name for run in runs))
    return f"tdaexp: {'; '.join(groups)}".replace("=", " ")[:128]
