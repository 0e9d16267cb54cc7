"""dattri on a classifier: its influence functions, TRAK and TracIn.

Its solvers take the Hessian of the mean loss, its EK-FAC the labels of the data; loaders hold one batch, which its
conjugate gradients need to see the mean over all examples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from dattri.algorithm.influence_function import IFAttributorArnoldi, IFAttributorCG, IFAttributorEKFAC
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset
from work import Side, Work, main, margin_norms, margins

Parameters = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]


def cg(work: Work, damping: float, iterations: int) -> Callable[[], np.ndarray]:
    """Conjugate gradients with H + λI."""
    return _influence(work, IFAttributorCG(_task(work), max_iter=iterations, regularization=damping))


def arnoldi(work: Work, damping: float, rank: int, steps: int) -> Callable[[], np.ndarray]:
    """The dominant eigenvectors of H + λI."""
    how = {"proj_dim": rank, "max_iter": steps, "regularization": damping}
    return _influence(work, IFAttributorArnoldi(_task(work), **how))


def ekfac(work: Work, damping: float) -> Callable[[], np.ndarray]:
    """EK-FAC with an absolute λ."""
    return _influence(work, IFAttributorEKFAC(_task(work), damping=damping))


def _influence(work: Work, attributor: IFAttributorCG | IFAttributorArnoldi | IFAttributorEKFAC):
    train, queries = _loader(work.train), _loader(work.queries)

    def job() -> np.ndarray:
        attributor.cache(train)
        return attributor.attribute(train, queries).detach().numpy().T

    return job


def tracin(work: Work, normalised: bool = False, moments: bool = False) -> Callable[[], np.ndarray]:
    """Dot products, or cosines, of whole gradients, of the model or summed over moments of its training by their rates.

    `proj_type=identity` is how its projection, which is on by default, is left out.
    """
    states, rates = (work.moments(), work.about["rates"]) if moments else (None, [1.0])
    how = {"weight_list": torch.tensor(rates), "normalized_grad": normalised}
    attributor = TracInAttributor(_task(work, states, single=True), projector_kwargs={"proj_type": "identity"}, **how)
    return lambda: attributor.attribute(_loader(work.train), _loader(work.queries)).detach().numpy().T


def trak(work: Work, dimensions: int | None = None, ridge: float = 0.01, seed: int = 0) -> Callable[[], np.ndarray]:
    """TRAK of one model; `dimensions` of the projection, null = none; `ridge` is a fraction, as in tdaexp."""
    model = work.model()
    size = sum(one.numel() for one in model.parameters())
    mean = float(margin_norms(work).sum()) / size / (dimensions or size)  # it divides gradients by √size, as traker

    def margin(parameters: Parameters, pair: Pair) -> Tensor:
        return _margin(model, parameters, pair)

    def probability(parameters: Parameters, pair: Pair) -> Tensor:
        return _margin(model, parameters, pair).sigmoid()

    project = {"proj_dim": dimensions, "proj_seed": seed, "proj_type": "normal"}
    task = AttributionTask(loss_func=margin, model=model, checkpoints=model.state_dict())
    attributor = TRAKAttributor(
        task, probability, projector_kwargs=project if dimensions else {"proj_type": "identity"},
        regularization=ridge * mean,
    )  # fmt: skip

    def job() -> np.ndarray:
        attributor.cache(_loader(work.train))
        return attributor.attribute(_loader(work.queries)).detach().numpy().T

    return job


def _margin(model: nn.Module, parameters: Parameters, pair: Pair) -> Tensor:
    """log(p / (1 - p)) of one example, which comes without a batch axis."""
    inputs, target = pair
    return margins(lambda x: functional_call(model, parameters, x), inputs[None], target[None])[0]


def _task(work: Work, states: list[Parameters] | None = None, single: bool = False) -> AttributionTask:
    """The mean loss; examples come with a batch axis, or `single`."""
    model = work.model()

    def loss(parameters: Parameters, pair: Pair) -> Tensor:
        inputs, targets = (one[None] for one in pair) if single else pair
        return nn.functional.cross_entropy(functional_call(model, parameters, inputs), targets)

    return AttributionTask(loss_func=loss, model=model, checkpoints=states or model.state_dict())


def _loader(side: Side) -> DataLoader:
    return DataLoader(TensorDataset(side.inputs, side.targets), batch_size=len(side), shuffle=False)


if __name__ == "__main__":
    main("dattri", {"cg": cg, "arnoldi": arnoldi, "ekfac": ekfac, "tracin": tracin, "trak": trak})
