"""Problems on a tiny random model, and methods as the command line composes them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_problem import (
    FINETUNE,
    GENERATED,
    PARAPHRASED,
    TINY,
    TRAIN,
    keep_checkpoints,
    moved_a_little,
    stage,
    tokens,
    with_type,
)

from tdaexp.app.compose import open_composer
from tdaexp.app.plan import plan
from tdaexp.data.candidates import BM25
from tdaexp.data.records import Record
from tdaexp.methods.base import Method
from tdaexp.models.components import component_map
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.scratch import Scratch
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Compute, Problem
from tdaexp.training.history import SavedCheckpoints

CONF = Path(__file__).resolve().parents[2] / "conf"
SHORTER = {
    "cg": [
        *("method.relative_damping=300", "method.queries=null", "method.iterations=30", "method.tolerance=1e-6"),
        *("method.preconditioner=ekfac", "method.examples=8"),
    ],
    "astra": ["method.relative_damping=300", "method.queries=null", "method.steps=5", "method.batch_size=5"],
    "lissa": ["method.relative_damping=300", "method.queries=null", "method.depth=5", "method.batch_size=5"],
    "arnoldi": ["method.relative_damping=300", "method.steps=16", "method.rank=12"],
    "source": ["method.segments=2"],
    "trackstar": ["method.mix=1"],  # else other queries change an answer, as they should
}  # keys that keep iterations on the tiny model few, segments no more than its checkpoints, and answers apart


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random model of OLMo's layout: `embed` (tied) and two layers of seven components, float32.

    Beside its folder lie two checkpoints, as if it had been trained for 20 steps.
    """
    found = Scratch("olmo", TINY, vocab_size=300, context=128).start([record.text for record in TRAIN])
    folder = tmp_path_factory.mktemp("training")
    keep_checkpoints(found, folder)
    found.model.name_or_path = found.model.config.name_or_path = str(folder / "model")
    return found


@pytest.fixture(scope="session")
def make_problem(loaded: LoadedModel) -> Callable[..., Problem]:
    """Build a problem of any records on the tiny model and a fine-tuned one beside it; BM25 chooses the pairs."""

    def make(
        cache: Path,
        train: Sequence[Record] = TRAIN,
        queries: dict[str, Sequence[Record]] | None = None,
        candidates: int = 4,
        dtype: torch.dtype = torch.float32,
        tokens_per_batch: int = 256,
        cache_gb: float = 1e-5,
        seed: int = 0,
    ) -> Problem:
        sets = {"paraphrased": PARAPHRASED, "generated": GENERATED} if queries is None else queries
        asked = [record for records in sets.values() for record in records]
        pairs = BM25(b=candidates).select(asked, list(train))
        sources = [[[r.id for r in train].index(source) for source in record.truth] for record in asked]
        truth = [np.isin(row, own) for row, own in zip(pairs.indices, sources, strict=True)]
        model = loaded if dtype == torch.float32 else with_type(loaded, dtype)
        device = torch.device("cpu")
        return Problem(
            model=model.model,
            identity=model.fingerprint,
            map=component_map(model.model),
            objective=NextToken(),
            train=tokens(train, model),
            queries=tokens(asked, model),
            query_set=[name for name, records in sets.items() for _ in records],
            candidates=pairs,
            truth=np.stack(truth),
            loaded=model,
            history=SavedCheckpoints(model, device, dtype),
            compute=Compute(device, dtype, tokens_per_batch, cache_gb),
            cache=cache,
            seed=seed,
            finetuned=stage(moved_a_little(model), tokens(FINETUNE, model)),
        )

    return make


@pytest.fixture
def problem(make_problem: Callable[..., Problem], tmp_path: Path) -> Problem:
    """The common problem, with a cache of its own."""
    return make_problem(tmp_path / "cache")


@pytest.fixture
def products_file(tmp_path: Path) -> Path:
    """Stored products of random gradients: 5 queries, 3 candidates, 4 components."""
    rng = np.random.default_rng(0)
    sizes = [40, 10, 20, 30]
    queries, train = ([rng.normal(size=(*shape, size)) for size in sizes] for shape in ((5,), (5, 3)))
    path = tmp_path / "products.npz"
    np.savez(
        path,
        dot=np.stack([np.einsum("qd,qcd->qc", q, t) for q, t in zip(queries, train, strict=True)], -1),
        query_sq=np.stack([(q**2).sum(-1) for q in queries], -1),
        train_sq=np.stack([(t**2).sum(-1) for t in train], -1),
        target=np.array([0, 1, 2, 0, 1]),
        component=np.array(["model.embed_tokens.weight", "a", "b", "c"]),
        size=np.array(sizes),
        query=np.array(list("vwxyz")),
    )
    return path


@pytest.fixture(scope="session")
def compose() -> Callable[..., Method]:
    """Make a method of its YAML and overrides, through the checks of the command line."""

    def make(*overrides: str) -> Method:
        return copy.deepcopy(_composed(overrides))

    return make


@pytest.fixture(scope="session")
def configured(compose: Callable[..., Method]) -> Callable[..., Method]:
    """Make a method of its YAML, with a budget of 0.3 where it reads one, and less work where it is long."""

    def make(name: str, *overrides: str) -> Method:
        budget = ["budget=0.3"] if _reads_budget(name) else []
        return compose(f"method={name}", *budget, *SHORTER.get(name, []), *overrides)

    return make


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Method:
    with open_composer("attribute", CONF) as composer:
        (job,) = plan(composer, "attribute", overrides, False, ("tdaexp",)).jobs
    method = job.config.method
    assert isinstance(method, Method)
    return method


@functools.cache
def _reads_budget(name: str) -> bool:
    with open_composer("attribute", CONF) as composer:
        config = composer.compose([f"method={name}"])
    return "${budget}" in OmegaConf.to_yaml(config.method, resolve=False)
