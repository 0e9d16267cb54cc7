"""Sweeps whose jobs are several processes, or run side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import TINY, only, rows

from tdaexp import influence

QUICK = (*TINY, "metric.plots=false", "metric.bootstrap=10", "trainer.cache_gb=0.0005")
SWEEP = (*QUICK, "-m", "budget=0.1,0.3", "hydra.sweep.dir=sweep")


def stores(folder: Path) -> list[np.ndarray]:
    found = sorted(folder.glob("*/influence.zarr"))
    return [influence.scores(influence.load(store)).values for store in found]


@pytest.mark.long
def test_the_second_budget_computes_no_product_again(commands):
    for budget in (0.1, 0.3):
        commands.done("attribute", *QUICK, f"budget={budget}", f"hydra.run.dir=alone/{budget}", "cache_dir=other")
    err = commands.done("attribute", *SWEEP, "trainer=ddp", "trainer.devices=2", "cache_dir=cache")
    assert err.count("2 processes") == 2 and "Traceback" not in err
    assert [row["status"] for row in rows(Path("sweep"))] == ["done", "done"]
    first, second = err.split("#1 :")
    assert first.count("training: 5 steps") == 1 and first.count("completing prompts") == 1
    assert "training:" not in second and "completing prompts" not in second
    products = only("products/[!.]*/zarr.json", Path("cache")).parent  # one store for both
    begun = only("sweep/1-*/config.yaml").stat().st_mtime
    assert max(file.stat().st_mtime for file in products.rglob("c/*") if file.is_file()) < begun
    for one, other in zip(stores(Path("sweep")), stores(Path("alone")), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_jobs_side_by_side_share_a_cache(commands, executed):
    """With joblib: both want the same model and products, which are made once."""
    code, err = commands.process("attribute", *SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "cache_dir=c")
    assert code == 0 and "Traceback" not in err, err
    assert [row["status"] for row in rows(Path("sweep"))] == ["done", "done"]
    assert len(list(Path("c/models").glob("*/model"))) == len(list(Path("c/products").glob("[!.]*/zarr.json"))) == 1
