"""Numbers of the grokking study, from series and tables whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from tdaexp.papers import grokking_numbers as grokking
from tdaexp.papers import grokking_swaps
from tdaexp.papers.grokking_windows import window_numbers, window_table, windows

CURVES = [{"step": 0, "loss": 1.0, "train/accuracy": 0.1, "test/accuracy": 0.0}, {"step": 5, "loss": 0.5},
          {"step": 10, "train/accuracy": 0.99, "test/accuracy": 0.2},
          {"step": 20, "train/accuracy": 1.0, "test/accuracy": 0.995}]  # fmt: skip


def test_phases():
    table = grokking.accuracies(CURVES)
    assert list(table["step"]) == [0, 10, 20]
    found = grokking.phase_numbers(table)
    assert found == {"memorised": 10, "grokked": 20, "test_when_memorised": 0.2, "test_at_the_end": 0.995}
    never = grokking.phase_numbers(table.assign(test=0.1))
    assert np.isnan(never["grokked"]) and never["memorised"] == 10


def test_smoothing_keeps_constants_and_averages_neighbours():
    assert grokking.smooth(np.full(40, 3.0), 5) == pytest.approx(np.full(40, 3.0))
    values = np.arange(40.0)[None]
    assert grokking.smooth(values, 5)[0, 10] == 10 and grokking.smooth(values, 5)[0, 0] == pytest.approx(1.0)
    assert grokking.smooth(np.arange(3.0), 25) == pytest.approx([0.5, 1.0, 1.5])


def test_peaks():
    steps = np.arange(400)
    two = np.exp(-(((steps - 100) / 30) ** 2)) + 0.8 * np.exp(-(((steps - 300) / 30) ** 2))
    assert list(grokking.peaks(two)) == pytest.approx([100, 300], abs=2)
    low = np.exp(-(((steps - 100) / 30) ** 2)) + 0.05 * np.exp(-(((steps - 300) / 30) ** 2))
    assert list(grokking.peaks(low)) == pytest.approx([100], abs=2)
    assert grokking.peaks(steps.astype(float))[-1] >= 380  # a series that rises to its end peaks there


def test_balance_of_kernel_and_regularisation():
    steps = np.arange(300)
    bump = 1 + 9 * np.exp(-(((steps - 150) / 50) ** 2))
    store = xr.Dataset({"importance": ("step", bump), "importance_regularisation": ("step", 2 * bump)}, {"step": steps})
    found = grokking.balance_numbers(store, {"memorised": 100.0, "grokked": 200.0})
    assert found["kernel_peak"] == pytest.approx(150, abs=1) and found["rise_correlation"] == pytest.approx(1)
    assert found["balance_memorising"] == pytest.approx(2) and found["balance_grokked"] == pytest.approx(2)
    assert found["kernel_end"] == pytest.approx(0.1, abs=0.03)
    late = grokking.balance_numbers(store, {"memorised": 100.0, "grokked": float("nan")})
    assert np.isnan(late["balance_grokked"])


def test_shares_of_layers():
    steps, ones = np.arange(100), np.ones(100)
    values = np.stack([np.where(steps < 50, 1.0, 3.0), ones])
    data = {"importance": values, "importance_regularisation": np.stack([3 * ones, ones])}
    data |= {"influence": -values, "regularisation": values}
    store = xr.Dataset(
        {name: (("component", "step"), array) for name, array in data.items()},
        {"component": ["embed", "lm_head"], "step": steps},
    )
    found = grokking.layer_numbers(store, {"memorised": 30.0, "grokked": 70.0})
    assert found["share_memorising/embed"] == pytest.approx(0.5) and found["share_grokked/embed"] == pytest.approx(0.75)
    assert found["share_regularisation/embed"] == pytest.approx(0.75)
    assert found["growth_grokked/embed"] == pytest.approx(1) and "decoder_peaks" in found
    assert found["difference_memorising/embed"] == pytest.approx(2)  # Ψ − Ψ^reg in the paper's sign: 1 + 1


def test_gains_of_swaps_and_their_best_hosts():
    table = pd.DataFrame({"step": [0, 0, 50, 50, 100, 100], "graft": ["none", "outer"] * 3,
                          "accuracy": [0.1, 0.2, 0.3, 0.6, 0.9, 0.8]})  # fmt: skip
    assert list(grokking_swaps.gains(table)["gain"].round(3)) == [0.1, 0.3, -0.1]
    found = grokking_swaps.swap_numbers(table)
    assert found == pytest.approx({"swap_best/outer": 0.3, "swap_mean/outer": 0.1, "swap_step/outer": 50})
    assert grokking_swaps.best_hosts(table, "outer", 2, apart=50) == [0, 50]
    assert grokking_swaps.best_hosts(table, "outer", 2, apart=60) == [50]


def test_systematic_errors_are_those_of_one_difference():
    counts = 5 * np.eye(4, dtype=int)
    assert grokking_swaps.systematic_error(counts) == 0
    counts += 3 * np.roll(np.eye(4, dtype=int), 1, axis=1)
    counts[0, 2] += 1
    assert grokking_swaps.systematic_error(counts) == pytest.approx(12 / 33)


def test_retrainings_are_means_over_seeds():
    rows = [(seed, step, train, test) for seed, last in ((1, 0.99), (2, 0.995))
            for step, train, test in ((0, 0.0, 0.0), (10, 0.9, 0.5), (20, 1.0, last))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["seed", "step", "train", "test"]).assign(graft="attention", donor=100)
    found = grokking_swaps.retraining_numbers(table)
    assert found["retrained_end/attention/100"] == pytest.approx(0.9925)
    assert found["retrained_step/attention/100"] == 20 and found["retrained_lag/attention/100"] == pytest.approx(0.4)
    never = grokking_swaps.retraining_numbers(table.assign(test=0.5))
    assert np.isnan(never["retrained_step/attention/100"])


def test_windows_are_told_apart_by_their_cycles():
    rng, modulus = np.random.default_rng(1), 11
    sums = {f"{kind}{k}": int(rng.integers(0, 21)) for kind in "qt" for k in range(40)}

    def store(first: int, cycles: int, noise: float) -> xr.Dataset:
        asked, trained = (np.array([sums[f"{kind}{k}"] for k in range(40)]) for kind in "qt")
        values = np.cos(2 * np.pi * cycles * np.subtract.outer(asked, trained) / modulus)
        values = values + noise * rng.normal(size=(40, 40))
        return xr.Dataset(
            {"influence": (("component", "query", "train"), values[None])},
            {"component": ["lm_head"], "query": [f"q{k}" for k in range(40)], "train": [f"t{k}" for k in range(40)],
             "query_set": ("query", ["test"] * 30 + ["train"] * 10), "step": np.arange(first, first + 5)},
            {"keep": ["component", "query", "train"]},
        )  # fmt: skip

    found = windows([store(50, 1, 0.1), xr.Dataset(attrs={"keep": ["step"]}), store(0, 4, 3.0)])
    assert list(found) == ["steps 0–4", "steps 50–54"]
    table = window_table(found, sums, modulus)
    numbers = window_numbers(table)
    assert numbers["windows"] == 2 and numbers["last/influence_cyclic/lm_head"] > 0.9
    assert numbers["first/influence_cyclic/lm_head"] < 0.3
    # the difference 0 does not count, so that a pure wave has some power elsewhere
    assert numbers["last/influence_cycles/lm_head"] < 2 < numbers["first/influence_cycles/lm_head"]
    assert (
        numbers["emerged/influence_cycles/lm_head"]
        == numbers[
            ("first" if numbers["first/influence_cyclic/lm_head"] >= 0.1 else "last") + "/influence_cycles/lm_head"
        ]
    )
    never = window_numbers(table.assign(influence_cyclic=0.05))
    assert np.isnan(never["emerged/influence_cycles/lm_head"])
    assert numbers["last/similarity_cyclic/lm_head"] > 0.9 and numbers["last/main_cycles/lm_head"] == 1


def test_a_series_of_some_steps_is_smoothed_over_as_many_steps():
    assert grokking.width_of(np.arange(100)) == 25 and grokking.width_of(np.arange(0, 1000, 10)) == 2
    assert grokking.width_of(np.arange(0, 1000, 50)) == 1 == grokking.width_of(np.array([3])) // 25
