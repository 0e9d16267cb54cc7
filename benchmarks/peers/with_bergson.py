"""bergson on a language model: dot products and cosines, of whole gradients or projected ones, and EK-FAC."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bergson.build import build
from bergson.config.config import (
    DataConfig,
    HessianConfig,
    HessianPipelineConfig,
    IndexConfig,
    InversionConfig,
    PreprocessConfig,
    QuerySetConfig,
    ScoreConfig,
)
from bergson.data import load_scores
from bergson.hessians.pipeline import hessian_pipeline
from bergson.score.score import score_dataset
from datasets import Dataset
from work import Work, main


def similarity(work: Work, cosine: bool = False, side: int = 0, seed: int | None = None) -> Callable[[], np.ndarray]:
    """Dot products, or cosines; `side` x `side` dimensions for each matrix, 0 = whole gradients."""
    folder = tempfile.TemporaryDirectory()
    index = _index(work, folder.name, loss_reduction="mean", projection_dim=side, projection_seed=seed)

    def run() -> Path:
        root, how = Path(folder.name), PreprocessConfig(unit_normalize=cosine)
        build(index("queries", root / "query"), how)
        score_dataset(index("train", root / "scores"), ScoreConfig(query_path=str(root / "query")), how)
        return root / "scores"

    return _job(folder, run)


def ekfac(work: Work, damping: float, labels: str = "own", reduction: str = "mean") -> Callable[[], np.ndarray]:
    """EK-FAC with λ = `damping` times each matrix's mean Λ; labels are drawn ("own"), or those of the "data".

    `reduction` over tokens is that of curvature too.
    """
    folder = tempfile.TemporaryDirectory()
    index = _index(work, folder.name, loss_reduction=reduction)

    def run() -> Path:
        root = Path(folder.name)
        hessian_pipeline(
            index("train", root / "run"),
            HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=labels == "data"),
            ScoreConfig(),
            PreprocessConfig(),
            HessianPipelineConfig(
                query=QuerySetConfig(dataset=str(root / "queries")),
                inversion_cfg=InversionConfig(damping_factor=damping),
            ),
        )
        return root / "run" / "scores"

    return _job(folder, run)


def _index(work: Work, folder: str, **settings: Any) -> Callable[[str, Path], IndexConfig]:
    """From a side's name and a folder to the configuration of an index; writes both sides as data sets."""
    for name, examples in (("train", work.train), ("queries", work.queries)):
        tokens, labels = zip(*examples.rows(), strict=True)
        Dataset.from_dict({"input_ids": tokens, "labels": labels}).save_to_disk(str(Path(folder) / name))

    def made(name: str, place: Path) -> IndexConfig:
        data = DataConfig(dataset=str(Path(folder) / name))
        return IndexConfig(run_path=str(place), model=str(work.folder / "model"), data=data, **settings)

    return made


def _job(folder: tempfile.TemporaryDirectory[str], run: Callable[[], Path]) -> Callable[[], np.ndarray]:
    """Its reports are left out."""

    def job() -> np.ndarray:
        with folder, open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            found = load_scores(run())
            return np.array(found[:], dtype=np.float64).T

    return job


if __name__ == "__main__":
    main("bergson", {"similarity": similarity, "ekfac": ekfac})
