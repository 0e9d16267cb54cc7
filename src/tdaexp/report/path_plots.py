"""Figures of a path decomposition: by component over the steps of a training, and how complete its sums are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdaexp.report.figures import GREY, INK, PALETTE, SELECT, panels

SHOWN = 8  # components with a colour of their own; the smaller ones are drawn in grey


def colours(names: Sequence[str], weights: np.ndarray) -> dict[str, str]:
    """A colour for each name, in their order; beyond `SHOWN` the least in weight are grey."""
    chosen = set(np.argsort(-np.asarray(weights), kind="stable")[:SHOWN].tolist())
    own = iter([*PALETTE[:5], *PALETTE[6:], PALETTE[5]])  # two blues side by side are hard to tell
    return {name: next(own) if place in chosen else GREY for place, name in enumerate(names)}


def by_component(store: xr.Dataset, titles: Mapping[str, str], labels: Mapping[str, str] | None = None) -> Figure:
    """One panel for each variable [component, step] in `titles`, a line for each component."""
    names = [str(name) for name in store["component"].values]
    first = store[next(iter(titles))].transpose("component", "step").values
    colour = colours(names, np.abs(first).sum(1))
    with panels(len(titles), width=4.9) as (figure, row):
        for axes, (variable, title) in zip(row, titles.items(), strict=True):
            values = store[variable].transpose("component", "step").values
            series(axes, store["step"].values, dict(zip(names, values, strict=True)), colour, labels or {})
            axes.set(title=title, xlabel="step")
        figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(names)))
        return figure


def series(
    axes: Axes, steps: np.ndarray, lines: Mapping[str, np.ndarray], colour: Mapping[str, str], labels: Mapping[str, str]
) -> None:
    """Lines over steps; one point alone is drawn as a dot. Grey ones share a label."""
    mark = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
    others = False
    for name, values in lines.items():
        small = colour[name] == GREY
        label = "others" if small and not others else ("_" if small else labels.get(name, name))
        others |= small
        axes.plot(steps, values, color=colour[name], linewidth=0.8 if small else 1.3, label=label, **mark)  # type: ignore[arg-type]
    if all((values >= 0).all() for values in lines.values()):
        axes.set_ylim(bottom=0)
    else:
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)


def completeness(store: xr.Dataset) -> Figure:
    """The residual over the change of every step, what entries are off by, and the nodes that the steps took."""
    steps, change, residual = (store[name].values for name in ("step", "change_norm", "residual_norm"))
    share = np.divide(residual, change, out=np.full_like(residual, np.nan), where=change > 0)
    with panels(2, height=3.0, width=5.6) as (figure, (left, right)):
        for values, name, colour in ((change, "change", INK), (residual, "residual", SELECT)):
            left.plot(steps, np.where(values > 0, values, np.nan), color=colour, linewidth=1.1, label=name)
        left.set_yscale("log")
        left.set(title="‖change of the outputs‖ and what the sums leave", xlabel="step")
        left.legend()
        right.plot(steps, np.where(share > 0, share, np.nan), color=SELECT, linewidth=1.1, label="residual / change")
        title = "residual / change, and nodes"
        if "entry_error" in store:
            errors = store["entry_error"].values
            known = errors > 0  # of a list of checkpoints some were looked at
            right.plot(
                steps[known], errors[known], color=PALETTE[0], linewidth=1.1, marker=".", label="error / entries"
            )
            right.legend()
            title = "sums: residual / change; entries: error / size; nodes"
        right.set_yscale("log")
        other = right.twinx()
        other.plot(steps, store["nodes"].values, color=GREY, linewidth=1.0, label="nodes")
        other.set_ylim(bottom=0)
        other.grid(False)
        other.spines["right"].set_visible(True)
        other.set_ylabel("nodes (grey)")
        right.set(title=title, xlabel="step", ylabel="share")
        return figure


def totals(shares: xr.DataArray) -> Figure:
    """Bars of what each component contributed [part_of_update, component], one colour for each part."""
    names = [str(name) for name in shares["component"].values]
    parts = [str(name) for name in shares["part_of_update"].values]
    with panels(1, height=max(2.4, 0.34 * len(names) + 1.2), width=6.4) as (figure, (axes,)):
        places, height = np.arange(len(names)), 0.8 / len(parts)
        for number, part in enumerate(parts):
            values = shares.sel(part_of_update=part).values
            label = part.replace("_", " ")
            axes.barh(places + (number + 0.5) * height - 0.4, values, height, color=PALETTE[number], label=label)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(title="Contribution by component", xlabel="sum over queries and outputs")
        figure.legend(loc="outside lower center", ncols=len(parts))
        return figure
