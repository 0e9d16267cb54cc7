"""Train × test influences and similarities, window by window of steps (ExPLAIND, Figures 4, 5, 9 and 13)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from tdaexp.papers.grokking_numbers import LAYERS
from tdaexp.papers.grokking_plots import Matrix, matrices, ordered, selected
from tdaexp.papers.grokking_windows import influence_of, of_queries, similarity_of
from tdaexp.report.findings import Drawing

DECODER = "lm_head"
Sums = Mapping[str, int]


def influence_drawings(windows: Mapping[str, xr.Dataset], sums: Sums, modulus: int) -> list[Drawing]:
    """The decoder's influences on each query set, sorted by sum and by residue (Figure 4); all layers (Figure 9)."""
    first = next(iter(windows.values()))
    sets = list(dict.fromkeys(map(str, first["query_set"].values)))
    names = [str(name) for name in first["component"].values]
    own = DECODER if DECODER in names else names[-1]
    decoder: dict[tuple[str, str], Matrix] = {}
    for title, by in (("sum", None), ("residue", modulus)):
        for asked in sets:
            for window, store in windows.items():
                decoder[f"{asked}, by {title}", window] = _influence(of_queries(store, asked), own, sums, by)
    layers = {
        (LAYERS.get(name, name), window): _influence(of_queries(store, sets[0]), name, sums, modulus)
        for name in names
        for window, store in windows.items()
    }
    shown = f"{first.sizes['train']} training examples across, queries down"
    kind = "red: made the right answer's logit larger" if first.attrs.get("output") == "target_logit" else "red: larger"
    note = f"{shown}; symmetric logarithm of each panel's own scale, {kind}."
    return [
        Drawing(
            "influence_decoder",
            f"Figure 4: influences through the {LAYERS.get(own, own)}, on each query set; rows and columns sorted by "
            f"a + b (above) and by (a + b) mod {modulus} (below). {note}",
            matrices(decoder, modulus=modulus, title="Influence through the decoder", cosine=False),
            wide=True,
        ),
        Drawing(
            "influence_layers",
            f"Figure 9: influences through every layer on {sets[0]} queries, sorted by (a + b) mod {modulus}. {note}",
            matrices(layers, modulus=modulus, title="Influence by layer", cosine=False),
            wide=True,
        ),
    ]


def similarity_drawings(windows: Mapping[str, xr.Dataset], sums: Sums, modulus: int) -> list[Drawing]:
    """Sim of the queries: the layers of Figure 5 in the last two windows, and all layers and windows (Figure 13)."""
    first = next(iter(windows.values()))
    asked = str(first["query_set"].values[0])
    names = [str(name) for name in first["component"].values]
    every = {
        (window, LAYERS.get(name, name)): _similarity(of_queries(store, asked), name, sums, modulus)
        for window, store in windows.items()
        for name in names
    }
    late, chosen = list(windows)[-2:], [LAYERS.get(name, name) for name in selected(names)]
    found = []
    if chosen:
        some = {key: matrix for key, matrix in every.items() if key[0] in late and key[1] in chosen}
        found.append(
            Drawing(
                "similarity",
                f"Figure 5: similarity of {asked} queries, cosine of their influences over training examples, sorted "
                f"by (a + b) mod {modulus}.",
                matrices(some, modulus=modulus, title="Similarity of queries, late windows", cosine=True),
                wide=True,
            )
        )
    whole = {(layer, window): matrix for (window, layer), matrix in every.items()}
    whole = {key: whole[key] for key in sorted(whole, key=lambda key: [LAYERS.get(n, n) for n in names].index(key[0]))}
    caption = f"Figure 13: similarity of {asked} queries in every layer and window, sorted by (a + b) mod {modulus}."
    figure = matrices(whole, modulus=modulus, title="Similarity of queries by layer and window", cosine=True)
    return [*found, Drawing("similarity_layers", caption, figure, wide=True)]


def _influence(store: xr.Dataset, component: str, sums: Sums, by: int | None) -> Matrix:
    return ordered(influence_of(store, component), _sums(store, "query", sums), _sums(store, "train", sums), by)


def _similarity(store: xr.Dataset, component: str, sums: Sums, by: int) -> Matrix:
    own = _sums(store, "query", sums)
    return ordered(similarity_of(store, component), own, own, by)


def _sums(store: xr.Dataset, axis: str, sums: Sums) -> np.ndarray:
    return np.array([sums[str(one)] for one in store[axis].values])
