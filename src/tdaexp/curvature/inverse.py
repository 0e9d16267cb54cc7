"""Influence by an iterative inverse (`cg`, `astra`, `lissa`, `arnoldi`): I(z, q) = −∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z).

G is the GGN of the training loss, summed over an example's tokens and averaged over the training examples or a stated
number of them, over all chosen components together: no block structure is assumed. Each query is multiplied by the
inverse once; training gradients are dotted with the result component by component. Sign: m is larger where the answer
is more likely, so positive = helps. Fills query, train and component.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from tdaexp.curvature.arnoldi import Eigenpairs, dominant_eigenpairs
from tdaexp.curvature.cg import Product
from tdaexp.curvature.chosen_examples import by_hash, some_queries
from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factored_inverse import factored_inverse
from tdaexp.curvature.fit import FactorSettings, problem_factors
from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.inverse_settings import InverseSettings
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.lissa import BatchProduct
from tdaexp.gradients.passes import fitted_gradients, query_gradients, train_gradients
from tdaexp.gradients.vector_products import Vectors, gradient_vectors, vector_products
from tdaexp.models.components import ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.selection.parts import chosen
from tdaexp.training.batches import batch_indices

Notes = dict[str, tuple[str, np.ndarray]]
"""Arrays [Q] to add to the answer: name to (dimension, values)."""

log = logging.getLogger(__name__)
PROBES = 8  # random vectors that estimate the trace
PRODUCT_TOKENS = 512  # of a batch in a GGN product, at most: the vectors multiply it


class IHVP:
    """Inverse-Hessian-vector products of a problem: components, curvature and damping, each made when it is needed.

    `by` is the method that asks, whose name and settings its stores are named after.
    """

    def __init__(self, settings: InverseSettings, problem: Problem, by: type) -> None:
        self.settings, self.by = settings, by
        self.problem = problem = some_queries(problem, settings.queries, settings.seed)
        every, name = problem.components(), by.__module__.rpartition(".")[2]
        self.layers = layers_of(chosen(every, settings.part, settings.components))
        self.components: ComponentMap = self.layers.components
        log.info("%s: %s", name, self.components.coverage_line())
        examples = problem.curvature_examples
        chosen_examples = examples.select(by_hash(examples.ids, settings.examples, settings.seed))
        gradients = replace(fitted_gradients(problem, self.components), examples=chosen_examples)
        self.ggn = TrainingGGN(gradients, min(PRODUCT_TOKENS, problem.compute.tokens_per_batch))
        self.curvature = [self.components.names, chosen_examples.fingerprint()]
        self.identity = settings.identity(name)

    @cached_property
    def mean_eigenvalue(self) -> float:
        """Trace of G over its size, from random vectors of signs (Hutchinson): exact on average."""
        store = self.problem.training_store("trace", *self.curvature, self.settings.seed, by=IHVP)
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
        if self.settings.damping is not None:
            return self.settings.damping
        value = self.settings.relative_damping * self.mean_eigenvalue
        if not value > 0:
            raise UserError("the curvature is zero, so that relative damping is too; set method.damping=1e-4")
        log.info("damping: λ = %.4g (%g of the mean eigenvalue)", value, self.settings.relative_damping)
        return value

    def random(self, purpose: str) -> Tensor:
        """A normal vector [size], the same on every device."""
        generator = torch.Generator().manual_seed(int(fingerprint(self.settings.seed, purpose), 16) >> 1)
        kind, device = self.ggn.gradients.dtype, self.ggn.gradients.device
        return torch.randn(self.ggn.size, generator=generator, dtype=kind, device="cpu").to(device)

    def batch_product(self, batch_size: int) -> BatchProduct:
        """Products with the GGN of the batch of a step: a stream of epochs, each in an order of its own."""
        examples, seed = len(self.ggn.examples), self.settings.seed
        size = min(batch_size, examples)

        def multiply(step: int, vectors: Tensor) -> Tensor:
            members = batch_indices(step, seed=seed, examples=examples, batch_size=size)
            return self.ggn.multiply_some(vectors, members.tolist())

        return multiply

    def eigenpairs(self, steps: int, rank: int) -> Eigenpairs:
        """The `rank` dominant eigenpairs of G after `steps` products, from the cache where they are there."""
        settings = [*self.curvature, self.settings.seed, steps]
        store = self.problem.training_store("arnoldi", *settings, by=self.by)
        return dominant_eigenpairs(self.ggn.multiply, self.random("start"), steps=steps, rank=rank, store=store)

    def factored(self) -> Product:
        """EK-FAC's damped inverse over the same examples; the factors come from the cache where they are there."""
        settings = FactorSettings(seed=self.settings.seed)
        every = len(self.ggn.examples) == len(self.problem.curvature_examples)
        factors = problem_factors(self.problem, self.layers, settings, None if every else self.ggn.examples)
        space, device, damping = self.ggn.space, self.ggn.gradients.device, Damping(self.damping)
        damped = [(layer, factors[layer.name].to(device), damping) for layer in self.layers.layers]
        return factored_inverse(damped, dict(zip(space.components.names, space.slices, strict=True)))

    def gradients(self, queries: Iterable[int]) -> Tensor:
        """Gradients of minus the measurement [n, size] of some queries."""
        chosen = self.settings
        side = query_gradients(self.problem, self.components, chosen.reduction, chosen.measurement)
        return gradient_vectors(side, list(queries), self.problem.compute.tokens_per_batch)

    def in_blocks(
        self, at_once: int, notes: dict[str, str], solver: Callable[[Tensor], dict[str, Tensor]]
    ) -> tuple[Vectors, Notes]:
        """Solve for `at_once` queries at a time and keep the solutions, so that a killed run goes on at the next block.

        `solver` takes gradients [n, size] and returns `vectors` [n, size] and what `notes` names (with its dtype), [n].
        """
        count = len(self.problem.queries)
        slices = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
        arrays: dict[str, tuple[tuple[int, ...], str]] = {name: ((count,), own) for name, own in notes.items()}
        arrays["vectors"] = (count, self.ggn.size), self.ggn.gradients.kind
        store = self.problem.store("solutions", *self.curvature, *self.identity, by=self.by)
        blocks = BlockStore(store, arrays, slices)
        with blocks.pending() as missing:
            for number in blocks.each(missing, "solutions"):
                log.info("queries %d to %d of %d", slices[number].start + 1, slices[number].stop, count)
                found = solver(self.gradients(range(count)[slices[number]]))
                blocks.write(number, {name: value.cpu().numpy() for name, value in found.items()})

        solved = blocks.rows()["vectors"]

        def vectors(queries: list[int]) -> Tensor:
            return torch.from_numpy(solved[queries])

        return vectors, {name: ("query", blocks.group[name][:]) for name in notes}

    def answer(self, vectors: Vectors, notes: Notes) -> xr.Dataset:
        """Training gradients against the queries' `vectors`, with what is to be told of each query."""
        problem = self.problem
        values = vector_products(
            train_gradients(problem, self.components, self.settings.reduction),
            problem.pairs,
            vectors,
            store=problem.store("inverse", *self.curvature, *self.identity, by=self.by),
            tokens_per_batch=problem.compute.tokens_per_batch,
            cache_gb=problem.compute.cache_gb,
        )
        dataset = problem.label(values, self.components).assign(notes)
        return dataset.assign_attrs(damping=self.damping, curvature_examples=len(self.ggn.examples))
