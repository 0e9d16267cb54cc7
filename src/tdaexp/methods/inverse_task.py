"""One run of an iterative inverse (`inverse`): its study, curvature and damping, and solutions that survive a kill."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.layers import layers_of
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.gradients.against import Vectors, gradient_vectors
from tdaexp.gradients.factors import accumulation_dtype
from tdaexp.gradients.measurements import as_loss, named
from tdaexp.methods.parts import names_of
from tdaexp.methods.study import Study
from tdaexp.models.components import ComponentMap
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

if TYPE_CHECKING:
    from tdaexp.methods.inverse import Inverse

Notes = dict[str, tuple[str, np.ndarray]]
"""Arrays [Q] to add to the answer: name to (dimension, values)."""

log = logging.getLogger(__name__)
PROBES = 8  # random vectors that estimate the trace
PRODUCT_TOKENS = 512  # of a batch in a GGN product, at most: the vectors multiply it


class Task:
    """A method at work on a study: components, curvature and damping, each made when it is first needed."""

    def __init__(self, method: Inverse, study: Study) -> None:
        self.method, self.study = method, study
        every = study.components()
        self.layers = layers_of(every.select(names_of(every, method.part, method.components)))
        self.components: ComponentMap = self.layers.components
        log.info("%s: %s", method.name, self.components.coverage_line())
        pad = study.loaded.tokenizer.pad_token_id
        chosen = by_hash(study.curvature_examples.ids, method.examples, method.seed)
        self.ggn = TrainingGGN(
            study.loaded.model,
            self.components,
            Examples([study.curvature_examples[index] for index in chosen]),
            tokens_per_batch=min(PRODUCT_TOKENS, study.compute.tokens_per_batch),
            pad_id=0 if pad is None else int(pad),
        )
        self.curvature = [self.components.names, self.ggn.examples.fingerprint()]

    @cached_property
    def mean_eigenvalue(self) -> float:
        """Trace of G over its size, from random vectors of signs (Hutchinson): exact on average."""
        store = self.study.training_store("trace", *self.curvature, self.method.seed, by=Task)
        kept = BlockStore(store, {"mean": ((1,), "float64")}, [slice(0, 1)])
        with kept.pending() as missing:
            if missing:
                probes = torch.stack([self.random(f"probe {k}").sign() for k in range(PROBES)])
                total = (probes.double() * self.ggn.multiply(probes).double()).sum()
                kept.write(0, {"mean": np.array([float(total) / (PROBES * self.ggn.size)])})
        return float(kept.read()["mean"][0])

    @cached_property
    def damping(self) -> float:
        """λ."""
        if self.method.damping is not None:
            return self.method.damping
        value = self.method.relative_damping * self.mean_eigenvalue
        if not value > 0:
            raise UserError("the curvature is zero, so that relative damping is too; set method.damping=1e-4")
        log.info("damping: λ = %.4g (%g of the mean eigenvalue)", value, self.method.relative_damping)
        return value

    @property
    def kind(self) -> torch.dtype:
        """The type of vectors."""
        return accumulation_dtype(self.study.loaded.model.dtype)

    def random(self, purpose: str) -> Tensor:
        """A normal vector [size], the same on every device."""
        generator = torch.Generator().manual_seed(int(fingerprint(self.method.seed, purpose), 16) >> 1)
        model = self.study.loaded.model
        return torch.randn(self.ggn.size, generator=generator, dtype=self.kind, device="cpu").to(model.device)

    def gradients(self, queries: Iterable[int]) -> Tensor:
        """Gradients of minus the measurement [n, size] of some queries."""
        return gradient_vectors(
            self.study.loaded.model,
            self.components,
            Examples([self.study.queries[query] for query in queries]),
            loss=as_loss(named(self.method.measurement)),
            reduction=self.method.reduction,
            tokens_per_batch=self.study.compute.tokens_per_batch,
        )


def solve_in_blocks(
    task: Task, at_once: int, notes: dict[str, str], solver: Callable[[Tensor], dict[str, Tensor]]
) -> tuple[Vectors, Notes]:
    """Solve for `at_once` queries at a time and keep the solutions, so that a killed run goes on at the next block.

    `solver` takes gradients [n, size] and returns `vectors` [n, size] and what `notes` names (with its dtype), [n].
    """
    count = len(task.study.queries)
    slices = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    kind = str(task.kind).removeprefix("torch.")
    arrays: dict[str, tuple[tuple[int, ...], str]] = {name: ((count,), own) for name, own in notes.items()}
    arrays["vectors"] = (count, task.ggn.size), kind
    store = task.study.store("solutions", *task.curvature, *task.method.settings(), by=type(task.method))
    blocks = BlockStore(store, arrays, slices)
    with blocks.pending() as missing:
        for number in blocks.each(missing, "solutions"):
            log.info("queries %d to %d of %d", slices[number].start + 1, slices[number].stop, count)
            found = solver(task.gradients(range(count)[slices[number]]))
            blocks.write(number, {name: value.cpu().numpy() for name, value in found.items()})

    def vectors(queries: list[int]) -> Tensor:
        return torch.from_numpy(np.stack([blocks.group["vectors"][query] for query in queries]))

    return vectors, {name: ("query", blocks.group[name][:]) for name in notes}


def by_hash(ids: list[str], count: int | None, seed: int) -> list[int]:
    """Places of `count` of the ids (null = all), chosen and ordered by a hash of seed and id."""
    order = sorted(range(len(ids)), key=lambda place: fingerprint(seed, ids[place]))
    return order[:count]


def some_queries(study: Study, count: int | None, seed: int) -> Study:
    """The study with `count` queries of each query set (null = all), in the study's order."""
    if count is None:
        return study
    kept: list[int] = []
    for name in dict.fromkeys(study.query_set):
        places = [place for place, own in enumerate(study.query_set) if own == name]
        kept += [places[k] for k in by_hash([study.queries[place].id for place in places], count, seed)]
    if len(kept) == len(study.queries):
        return study
    rows = sorted(kept)
    log.info("%d of %d queries are answered (method.queries=%d of each set)", len(rows), len(study.queries), count)
    return replace(
        study,
        queries=Examples([study.queries[row] for row in rows]),
        query_set=[study.query_set[row] for row in rows],
        candidates=Candidates(study.candidates.indices[rows], study.candidates.bm25[rows]),
        truth=study.truth[rows],
        truth_known=None if study.truth_known is None else study.truth_known[rows],
    )
