"""Figures of the grokking study (ExPLAIND, Figures 3 to 5 and 9 to 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from tdaexp.metrics.explaind import relative_regularisation
from tdaexp.papers.grokking_numbers import LAYERS, smooth, width_of
from tdaexp.report.figures import GREY, HELD_OUT, INK, PALETTE, SELECT, grid, legend_below
from tdaexp.report.path_plots import colours, series

DIVERGING = "RdBu_r"
Matrix = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values [A, B], and the labels of rows [A] and columns [B], each in rising order."""


def training(curves: pd.DataFrame, layers: xr.Dataset, whole: xr.Dataset, marks: Mapping[str, float]) -> Figure:
    """Accuracy, importance of kernel and regularisation, and both by layer (Figure 3a); `marks` are steps by name."""
    names = [str(name) for name in layers["component"].values]
    width = width_of(layers["step"].values)
    importance = smooth(layers["importance"].transpose("component", "step").values, width)
    summed: list[str] = [axis for axis in ("query", "output") if axis in layers["influence"].dims]
    difference = smooth(relative_regularisation(layers, summed).transpose("component", "step").values, width)
    colour = colours(names, importance.sum(1))
    with grid(2, 2, 5.4, 3.3) as (figure, axes):
        for part, own in (("train", INK), ("test", HELD_OUT)):
            axes[0, 0].plot(curves["step"], curves[part], color=own, linewidth=1.4, label=part)
        axes[0, 0].set(title="Accuracy", ylim=(-0.02, 1.04))
        for name, label, own in (
            ("importance", r"kernel $\bar{\Psi}(\Theta)$", SELECT),
            ("importance_regularisation", r"regularisation $\bar{\Psi}^{reg}(\Theta)$", HELD_OUT),
        ):
            axes[1, 0].plot(whole["step"], smooth(whole[name].values, width), color=own, linewidth=1.4, label=label)
        axes[1, 0].set(title="Importance of kernel and regularisation", xlabel="step", ylim=(0, None))
        for place, values, title in (
            (0, importance, r"Importance $\bar{\Psi}$ of the layers"),
            (1, difference, "Relative regularisation D of the layers"),
        ):
            lines = dict(zip(names, values, strict=True))
            series(axes[place, 1], layers["step"].values, lines, colour, LAYERS)
            axes[place, 1].set(title=title)
        axes[1, 1].set_xlabel("step")
        for one in (axes[0, 0], axes[1, 0]):
            one.legend(loc="center right" if one is axes[0, 0] else "upper left")
        for one in axes.ravel():
            _mark(one, marks, named=one is axes[0, 0])
        figure.legend(*axes[1, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
        return figure


def matrices(table: Mapping[tuple[str, str], Matrix], *, modulus: int, title: str, cosine: bool) -> Figure:
    """A grid of matrices by (row, column) title: influences in a symmetric logarithm, or cosines.

    Axes are labelled with what rows and columns are sorted by.
    """
    rows, columns = (list(dict.fromkeys(key[place] for key in table)) for place in (0, 1))
    with grid(len(rows), len(columns), 2.6, 2.35 if cosine else 2.1) as (figure, axes):
        image: Any = None
        for place, one in np.ndenumerate(axes):
            key = (rows[place[0]], columns[place[1]])
            values, down, across = table[key]
            image = one.imshow(values, aspect="auto", cmap=DIVERGING, interpolation="nearest", **_scale(values, cosine))
            one.grid(False)
            below = place[0] == len(rows) - 1 or table[rows[place[0] + 1], key[1]][2].max() != across.max()
            _ticks(one, down, across, modulus, below, place[1] == 0)
            if place[0] == 0:
                one.set_title(key[1], fontsize=9.5)
            if place[1] == 0:
                one.set_ylabel(key[0], fontweight="bold")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
        if cosine:
            figure.colorbar(image, ax=list(axes[:, -1]), label="cosine", shrink=0.6)
        return figure


def swaps(table: pd.DataFrame, confusions: Mapping[str, np.ndarray]) -> Figure:
    """Test accuracy of checkpoints with layers of the final model, the gain, and confusion matrices (Figure 10).

    `confusions` are pairs, as they are and swapped, of two checkpoints at most.
    """
    with grid(2, 3, 3.9, 3.3) as (figure, axes):
        first, second = axes[:, 0]
        plain = table[table["graft"] == "none"].set_index("step")["accuracy"]
        for number, (graft, part) in enumerate(table.groupby("graft", sort=False)):
            if graft == "none":
                first.plot(part["step"], part["accuracy"], color=INK, linewidth=2.0, label="checkpoint itself")
                continue
            own = PALETTE[(number - 1) % len(PALETTE)]
            first.plot(part["step"], part["accuracy"], color=own, linewidth=1.2, label=f"final {graft}")
            gain = part["accuracy"] - plain.loc[part["step"]].to_numpy()
            second.plot(part["step"], gain, color=own, linewidth=1.2)
        first.set(title="Test accuracy", ylim=(-0.02, 1.04))
        first.legend(loc="upper left", fontsize=7.5)
        second.axhline(0, color=INK, linewidth=1.4)
        second.set(title="Gain over the checkpoint", xlabel="step of the checkpoint")
        places = axes[:, 1:].ravel()
        for unused in places[len(confusions) :]:
            unused.set_axis_off()
        for one, (name, counts) in zip(places, confusions.items(), strict=False):
            one.imshow(np.log1p(counts), cmap="Blues", interpolation="nearest")
            one.set(title=name, xlabel="answer", ylabel="right residue")
            one.grid(False)
        return figure


def retrainings(table: pd.DataFrame, usual: pd.DataFrame) -> Figure:
    """Accuracy of trainings that start from grafts (Figures 3b and 11): a row for each donor, a column for each graft.

    Lines are means over seeds, bands their standard deviation; `usual` is the training without a graft.
    """
    donors, grafts = (list(dict.fromkeys(table[key])) for key in ("donor", "graft"))
    last = int(table["step"].max())
    usual = usual[usual["step"] <= last]
    with grid(len(donors), len(grafts), 3.9, 2.2, sharex=True, sharey=True) as (figure, axes):
        for (row, column), one in np.ndenumerate(axes):
            part = table[(table["donor"] == donors[row]) & (table["graft"] == grafts[column])]
            for name, own in (("train", INK), ("test", HELD_OUT)):
                spread = part.groupby("step")[name].agg(["mean", "std"]).fillna(0)
                one.plot(spread.index, spread["mean"], color=own, linewidth=1.4, label=name)
                low, high = spread["mean"] - spread["std"], spread["mean"] + spread["std"]
                one.fill_between(spread.index, low, high, color=own, alpha=0.15, linewidth=0)
            one.plot(usual["step"], usual["train"], color=GREY, linewidth=1.0, linestyle=":", label="train, no graft")
            one.set_ylim(-0.03, 1.05)
            if row == 0:
                one.set_title(str(grafts[column]))
            if column == 0:
                one.set_ylabel(f"from step {donors[row]}", fontweight="bold")
            if row == len(donors) - 1:
                one.set_xlabel("step of the new training")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure


def lasso(found: np.ndarray, model: np.ndarray, sums: np.ndarray, table: pd.DataFrame, modulus: int) -> Figure:
    """A similarity matrix, what the Lasso makes of it, and the coefficients by period (Figure 12)."""
    with grid(1, 3, 4.2, 3.6) as (figure, axes):
        top = float(np.abs(model).max()) or 1.0
        for one, values, limit, title in (
            (axes[0, 0], found, 1.0, "Similarity"),
            (axes[0, 1], model, top, "Lasso's prediction"),
        ):
            image = one.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
            one.grid(False)
            one.set_title(title)
            _ticks(one, sums, sums, modulus, True, True)
            figure.colorbar(image, ax=one, shrink=0.8)
        for name, own, width in (("cos", SELECT, 3.0), ("sin", HELD_OUT, 1.2)):
            axes[0, 2].vlines(table["period"], 0, table[name], color=own, linewidth=width, label=name)
        axes[0, 2].axhline(0, color=GREY, linewidth=0.8)
        axes[0, 2].set(title="Coefficients", xlabel="period of the sums' difference")
        legend_below(axes[0, 2])
        return figure


def ordered(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, modulus: int | None) -> Matrix:
    """Sort rows and columns by their sums, or by their sums' residues where `modulus` is given (then by the sums)."""

    def key(sums: np.ndarray) -> np.ndarray:
        return np.lexsort((sums, sums if modulus is None else sums % modulus))

    down, across = key(rows), key(columns)
    shown = [sums if modulus is None else sums % modulus for sums in (rows, columns)]
    return values[np.ix_(down, across)], shown[0][down], shown[1][across]


def _scale(values: np.ndarray, cosine: bool) -> dict[str, Any]:
    if cosine:
        return {"vmin": -1, "vmax": 1}
    top = float(np.quantile(np.abs(values), 0.995)) or 1.0
    return {"norm": SymLogNorm(linthresh=top / 30, vmin=-top, vmax=top)}


def _ticks(axes: Axes, down: np.ndarray, across: np.ndarray, modulus: int, below: bool, left: bool) -> None:
    """Where the labels first reach the quarters of the modulus."""
    for labels, axis, shown in ((across, axes.xaxis, below), (down, axes.yaxis, left)):
        wanted = np.arange(0, labels.max() + 1, modulus // 2 if labels.max() < modulus else modulus)
        places = np.searchsorted(labels, wanted)
        axis.set_ticks(places.tolist(), [str(value) if shown else "" for value in wanted], fontsize=7.5)


def _mark(axes: Axes, marks: Mapping[str, float], named: bool) -> None:
    for name, step in marks.items():
        if step == step:
            axes.axvline(step, color=GREY, linestyle="--", linewidth=0.9, zorder=1)
            if named:
                axes.annotate(name, (step, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=7.5, color=INK)


def selected(names: Sequence[str]) -> list[str]:
    """The layers of Figure 5 that there are."""
    wanted = ("layers.0.attn.qkv", "layers.0.attn.v", "layers.0.attn.o", "layers.0.mlp.down", "lm_head")
    return [name for name in names if name in wanted]
