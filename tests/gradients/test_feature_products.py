"""Products of sketches on disk: the bits of the same products in memory, in blocks that the cache bounds."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp.gradients import feature_products as module
from tdaexp.gradients.feature_products import feature_products
from tdaexp.gradients.features import Features, pieces
from tdaexp.runtime.blockstore import BlockStore

DIMS = {"embed": 300, "layers.0.attn.q": 1, "layers.0.mlp.up": 47, "norms": 2}
QUERIES, TRAIN = 17, 23
PAIRS = {
    "every pair": np.tile(np.arange(TRAIN), (QUERIES, 1)),
    "candidates": np.random.default_rng(0).integers(-1, TRAIN, (QUERIES, 4)),
}


def stored(folder, count, seed, dtype):
    """Sketches, and the same in memory by component; the rows on disk are in an order of their own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, sum(DIMS.values()))).astype(dtype)
    place = rng.permutation(count)
    stops = np.cumsum(list(DIMS.values())).tolist()
    columns = {name: slice(stop - dim, stop) for (name, dim), stop in zip(DIMS.items(), stops, strict=True)}
    blocks = BlockStore(
        folder, {"features": (values.shape, dtype)}, [slice(k, min(k + 5, count)) for k in range(0, count, 5)]
    )
    for number, span in enumerate(blocks.blocks):
        blocks.write(number, {"features": values[np.argsort(place)][span]})
    return Features(blocks, place, columns), {name: values[:, column] for name, column in columns.items()}


def products(*sides, **options):
    return {name: rows[:] for name, rows in feature_products(*sides, **options).items()}


@pytest.mark.parametrize("cache_gb", [1.0, 3e-5, 1e-9])
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bits_of_products_in_memory(dtype, pairs, cache_gb, tmp_path, monkeypatch):
    queries, asked = stored(tmp_path / "q", QUERIES, 1, dtype)
    train, known = stored(tmp_path / "t", TRAIN, 2, dtype)
    read, real = [], Features.rows
    monkeypatch.setattr(Features, "rows", lambda self, numbers: read.append(len(numbers)) or real(self, numbers))
    found = products(queries, train, pairs, store=tmp_path / "p", cache_gb=cache_gb)
    for k, name in enumerate(DIMS):
        dot = np.stack([np.einsum("qk,qk->q", asked[name], known[name][column]) for column in pairs.T], axis=1)
        squares = (known[name] ** 2).sum(1)
        there = pairs >= 0
        assert found["dot"][there, k].tobytes() == dot[there].tobytes(), name
        assert found["train_sq"][there, k].tobytes() == squares[pairs][there].tobytes(), name
        assert found["query_sq"][:, k].tobytes() == (asked[name] ** 2).sum(1).tobytes(), name
    assert np.isnan(found["dot"][pairs < 0]).all() and found["dot"].dtype == np.dtype(dtype)
    assert max(read) * queries.row_bytes <= max(cache_gb * 1e9 / 2, queries.row_bytes)  # beside it BESIDE eighths


def test_pairs_and_rows_are_taken_a_few_at_a_time(tmp_path, monkeypatch):
    queries, _ = stored(tmp_path / "q", QUERIES, 1, "float32")
    train, _ = stored(tmp_path / "t", TRAIN, 2, "float32")
    whole = products(queries, train, PAIRS["candidates"], store=tmp_path / "a")
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    few = products(queries, train, PAIRS["candidates"], store=tmp_path / "b")
    assert all(whole[name].tobytes() == few[name].tobytes() for name in whole)


@pytest.mark.parametrize("file_bytes", [1, 3000, 1 << 22])
def test_rows_come_in_the_order_that_was_asked_for(file_bytes, tmp_path, monkeypatch):
    train, known = stored(tmp_path / "t", TRAIN, 2, "float64")
    monkeypatch.setattr("tdaexp.gradients.features.FILE_BYTES", file_bytes)
    wanted = np.array([5, 22, 0, 7, 6, 5])
    np.testing.assert_array_equal(train.rows(train.place[wanted])[:, train.columns["norms"]], known["norms"][wanted])
    numbers, rows = zip(*pieces(train, 3 * train.row_bytes), strict=True)
    assert max(map(len, rows)) == 3 and sorted(np.concatenate(numbers)) == list(range(TRAIN))
    np.testing.assert_array_equal(
        np.concatenate(rows)[:, train.columns["embed"]], known["embed"][np.concatenate(numbers)]
    )
