"""dattri-llm on a language model: dot products, cosines, and EK-FAC, which takes the labels of the data."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from dattri_llm import AttributionArguments, AttributionTask, EKFACAttributor, HookManagerConfig, TracInAttributor
from torch import Tensor, nn
from torch.utils.data import Dataset
from work import Side, Work, losses, main

BATCH = 32


class Rows(Dataset):
    """Texts as dicts of tensors, padded to the longest or each as long as it is."""

    def __init__(self, side: Side, padded: bool) -> None:
        self.side, self.lengths = side, None if padded else side.lengths.tolist()

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        side, real = self.side, slice(None if self.lengths is None else self.lengths[index])
        every = {"inputs": side.inputs, "targets": side.targets, "weights": side.weights}
        return {name: tensor[index, real] for name, tensor in every.items()}


def tracin(work: Work, normalised: bool = False) -> Callable[[], np.ndarray]:
    """Dot products, or cosines, of the gradients."""
    return _scores(work, TracInAttributor, normalized_grad=normalised)


def ekfac(work: Work, damping: float, reduction: str = "mean", padded: bool = True) -> Callable[[], np.ndarray]:
    """EK-FAC with λ = `damping` times each matrix's mean Λ; `reduction` over tokens is that of curvature too."""
    return _scores(work, EKFACAttributor, reduction, padded, damping=damping, relative_damping=True)


def _scores(
    work: Work, kind: Any, reduction: str = "mean", padded: bool = True, **settings: Any
) -> Callable[[], np.ndarray]:
    """The attributor's scores; without padding a batch is one text."""
    model = work.model()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The sum over a batch of each text's loss."""
        side = Side([], batch["inputs"], batch["targets"], batch["weights"])
        every = losses(model, side)
        return (every if reduction == "mean" else every * side.weights.sum(1)).sum()

    folder = tempfile.TemporaryDirectory()
    size = BATCH if padded else 1
    sizes = {"per_device_train_batch_size": size, "per_device_eval_batch_size": size}
    given = AttributionArguments(output_dir=folder.name, use_cpu=True, max_grad_norm=None, **sizes)
    attributor = kind(given, task=AttributionTask(loss, model))
    hooks = HookManagerConfig(linear_io=[f"^{re.escape(one)}$" for one in work.about["modules"]])

    rows = (Rows(side, padded) for side in (work.train, work.queries))

    def job() -> np.ndarray:
        with folder:
            found = attributor.attribute(*rows, hook_config=hooks, **settings)
        assert found.scores.shape == (len(work.train), len(work.queries))
        return found.scores.detach().numpy().T

    return job


if __name__ == "__main__":
    main("dattri-llm", {"tracin": tracin, "ekfac": ekfac})
