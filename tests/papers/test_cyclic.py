"""Cyclic structure, against plain loops and against matrices whose structure is known."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp.papers import cyclic

P = 7
RNG = np.random.default_rng(0)
ROWS, COLUMNS = RNG.integers(0, 2 * P - 1, 60), RNG.integers(0, 2 * P - 1, 80)


def wave(cycles: int, rows=ROWS, columns=COLUMNS) -> np.ndarray:
    return np.cos(2 * np.pi * cycles * np.subtract.outer(rows, columns) / P)


def test_means_by_difference_against_loops():
    values = RNG.normal(size=(60, 80))
    values[3, 4] = np.nan
    found = cyclic.by_difference(values, ROWS, COLUMNS, P)
    for gap in range(P):
        mine = [values[i, j] for i, row in enumerate(ROWS) for j, column in enumerate(COLUMNS)
                if (row - column) % P == gap and not np.isnan(values[i, j])]  # fmt: skip
        assert found[gap] == pytest.approx(np.mean(mine))
    assert np.isnan(cyclic.by_difference(np.ones((1, 1)), np.array([1]), np.array([0]), P)[0])


def test_the_cyclic_share_of_waves_noise_and_both():
    noise = RNG.normal(size=(60, 80))
    assert cyclic.cyclic_share(wave(2), ROWS, COLUMNS, P) == pytest.approx(1)
    assert abs(cyclic.cyclic_share(noise, ROWS, COLUMNS, P)) < 0.01
    # a cosine has the variance 1/2: with noise of variance 1 it is a third of the whole
    assert cyclic.cyclic_share(wave(2) + noise, ROWS, COLUMNS, P) == pytest.approx(1 / 3, abs=0.03)
    assert np.isnan(cyclic.cyclic_share(np.ones((60, 80)), ROWS, COLUMNS, P))


def test_bands_are_taken_out():
    column = RNG.normal(size=80)
    values = wave(1) + 3 * column
    assert cyclic.band_share(np.broadcast_to(column, (60, 80))) == pytest.approx(1)
    assert cyclic.cyclic_share(values, ROWS, COLUMNS, P) < 0.2
    assert cyclic.cyclic_share(cyclic.without_bands(values), ROWS, COLUMNS, P) > 0.9
    assert cyclic.band_share(np.where(wave(1) > 0.9, np.nan, np.broadcast_to(column, (60, 80)))) == pytest.approx(1)


def test_pairs_of_one_residue_do_not_count():
    alike = (np.subtract.outer(ROWS, COLUMNS) % P == 0).astype(float)  # what a model that knows no cycle may show
    assert cyclic.cyclic_share(alike, ROWS, COLUMNS, P) == pytest.approx(1)
    others = cyclic.of_other_residues(alike + 0.1 * RNG.normal(size=alike.shape), ROWS, COLUMNS, P)
    assert abs(cyclic.cyclic_share(others, ROWS, COLUMNS, P)) < 0.01
    assert np.isnan(others).sum() == alike.sum() and np.isfinite(cyclic.without_bands(others)[alike == 0]).all()
    assert cyclic.cyclic_share(cyclic.of_other_residues(wave(1), ROWS, COLUMNS, P), ROWS, COLUMNS, P) > 0.999


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_harmonics_name_the_number_of_cycles(cycles):
    power = cyclic.harmonics(wave(cycles), ROWS, COLUMNS, P)
    assert power.sum() == pytest.approx(1) and power.argmax() + 1 == cycles
    assert cyclic.mean_harmonic(power) == pytest.approx(cycles)


def test_the_lasso_finds_the_periods_and_predicts():
    sums = RNG.integers(0, 40, 50)
    gap = np.subtract.outer(sums, sums)
    truth = 0.6 * np.cos(2 * np.pi * gap / 13) + 0.2 * np.sin(2 * np.pi * gap / 5)
    table, r2 = cyclic.lasso(truth, sums, np.arange(2.0, 21), strength=0.01)
    assert r2 > 0.99 and table["period"].iloc[0] == 13 and table["cos"].iloc[0] == pytest.approx(0.6, abs=0.05)
    assert table.set_index("period").loc[5, "sin"] == pytest.approx(0.2, abs=0.05)
    upper = np.triu_indices(50, 1)
    assert np.corrcoef(cyclic.fitted(table, sums)[upper], truth[upper])[0, 1] > 0.99
    nothing, _ = cyclic.lasso(truth, sums, np.arange(2.0, 21), strength=1.0 + 1e-9)
    assert (nothing[["cos", "sin"]] == 0).all().all()  # the strength counts from the least that leaves nothing
