"""traker on a classifier: TRAK with its own projection (normal entries on a CPU) or without one.

`ridge` is a fraction of the mean eigenvalue of ΦᵀΦ, as in tdaexp; traker takes an absolute one, of gradients that it
divides by the square root of their size.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable

import numpy as np
from trak import TRAKer
from trak.projectors import NoOpProjector
from work import Work, main, margin_norms

BATCH = 64


def trak(work: Work, dimensions: int | None = None, ridge: float = 0.01, seed: int = 0) -> Callable[[], np.ndarray]:
    """TRAK of one model; `dimensions` of the projection, null = none."""
    model, (train, queries) = work.model(), (work.train, work.queries)
    size = sum(one.numel() for one in model.parameters())
    # a projection by k normal columns multiplies squared norms by k, and ΦᵀΦ has k eigenvalues
    mean = float(margin_norms(work).sum()) / size * (1 if dimensions else 1 / size)
    folder = tempfile.TemporaryDirectory()
    how = {"proj_dim": dimensions, "projector_seed": seed} if dimensions else {"projector": NoOpProjector(device="cpu")}

    def job() -> np.ndarray:
        with folder:
            traker = TRAKer(
                model, "image_classification", len(train), folder.name, device="cpu", use_half_precision=False,
                lambda_reg=ridge * mean, logging_level=logging.ERROR, **how,
            )  # fmt: skip
            traker.load_checkpoint(model.state_dict(), model_id=0)
            for batch in zip(train.inputs.split(BATCH), train.targets.split(BATCH), strict=True):
                traker.featurize(batch, num_samples=len(batch[0]))
            traker.finalize_features()
            traker.start_scoring_checkpoint("q", model.state_dict(), model_id=0, num_targets=len(queries))
            for batch in zip(queries.inputs.split(BATCH), queries.targets.split(BATCH), strict=True):
                traker.score(batch, num_samples=len(batch[0]))
            return np.array(traker.finalize_scores("q")).T

    return job


if __name__ == "__main__":
    main("traker", {"trak": trak})
