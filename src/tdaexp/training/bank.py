"""A bank of models trained again, one for each set of examples left out and each start.

    folder/KEY/weights.safetensors      at the end of one training; sealed, complete or not at all

Whoever judges by retraining asks the same bank: the linear datamodeling score and leave-one-out share its models,
whatever the method, the queries and their measurement are. Its recipe is that of the explained training. A killed run
goes on at the next model; several processes share the models out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tdaexp.models.adapted import is_adapted, is_matrix
from tdaexp.runtime import cache, ranks, seal
from tdaexp.runtime.code import Work
from tdaexp.runtime.device import deterministic
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import cached_folder
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.progress import track
from tdaexp.training.retrain import batches_of_its_own, batches_without, retrain
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Problem

log = logging.getLogger(__name__)
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How the explained model was trained, so that it can be again.

    `start(seed)` makes its training at the first step: from the explained training's own start (None), or from one
    drawn by a seed. `identity` is that of all that decides the weights: start, examples, settings and batches.
    `ids` [N] are those of the examples in the training's order, `classes` [N] theirs, where they have some. `by` is
    whose code makes the start.
    """

    identity: str
    settings: FitSettings
    seed: int
    start: Callable[[int | None], Problem]
    ids: list[str]
    by: tuple[Work, ...]
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class Variant:
    """One training: of the `member`s [N] bool, from the explained start in the explained batches (`seed` None), or with
    its own start and batches.

    `renormalised`: in the explained batches what is left of one is averaged; else it keeps its weights (see
    `retrain.batches_without`).
    """

    member: np.ndarray
    seed: int | None = None
    renormalised: bool = False

    @property
    def key(self) -> str:
        """Its name in the bank."""
        return fingerprint(np.packbits(self.member).tobytes().hex(), self.seed, self.renormalised)


@dataclass(frozen=True)
class Bank:
    """The models of a recipe, in a folder of their own."""

    recipe: Recipe
    folder: Path

    @classmethod
    def of(cls, recipe: Recipe, cache_dir: Path) -> Bank:
        """The bank in a cache."""
        return cls(recipe, cache.entry(cache_dir, "bank", recipe.identity, by=[cls, retrain, *recipe.by]))

    def networks(self, variants: Sequence[Variant]) -> Iterator[nn.Module]:
        """The trained models in order, each valid until the next is asked for. Errors (UserError): a damaged file."""
        model = self.recipe.start(None).module.requires_grad_(False)
        for variant in variants:
            folder = self.folder / variant.key
            seal.require(folder)
            model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
            yield model

    def missing(self, variants: Sequence[Variant]) -> list[Variant]:
        """Those that have not been trained, each once."""
        distinct = {variant.key: variant for variant in variants}
        return [variant for key, variant in distinct.items() if not (self.folder / key).exists()]

    def train(self, variants: Sequence[Variant], what: str) -> None:
        """Train those that are missing, in all processes; each must come here.

        Errors (UserError): members without an example of some class, weights that are not finite. `what` says in
        messages who asks.
        """
        missing = ranks.from_first(self.missing(variants))
        self.check(missing, what)
        total = len({variant.key for variant in variants})
        done = total - len(missing)
        if missing:
            steps = self.recipe.settings.steps
            log.info("%s: %d models are trained again, %d steps each; %d are there", what, len(missing), steps, done)
        me = ranks.current()
        mine = missing[me.rank :: me.world]
        for variant in track(mine, f"{what}: retraining", total, done, each=me.world, stoppable=True):
            cached_folder(self.folder / variant.key, partial(self._write, variant, what))
        ranks.barrier()

    def _write(self, variant: Variant, what: str, folder: Path) -> None:
        """Train one and save what was trained of it."""
        recipe = self.recipe
        problem = recipe.start(variant.seed)
        if variant.seed is None:
            plan = batches_without(problem, recipe.settings, recipe.seed, variant.member, variant.renormalised)
        else:
            plan = batches_of_its_own(problem, recipe.settings, variant.seed, variant.member)
        with deterministic(next(problem.module.parameters()).device):  # as the explained training was
            retrain(problem, recipe.settings, plan)
        adapted = is_adapted(problem.module)
        found = {name: one for name, one in problem.module.named_parameters() if is_matrix(name) or not adapted}
        if not all(torch.isfinite(one).all() for one in found.values()):
            out = int((~variant.member).sum())
            raise UserError(
                f"{what}: a training without {out} of the {len(recipe.ids)} examples diverged (weights that are not "
                "finite); lower trainer.fit.lr, and explain that model"
            )
        save_file({name: one.detach().cpu().contiguous() for name, one in found.items()}, folder / WEIGHTS)

    def check(self, variants: Sequence[Variant], what: str) -> None:
        """Refuse (UserError) members without an example, or without one of some class; nothing is trained."""
        classes = self.recipe.classes
        for variant in variants:
            if not variant.member.any():
                raise UserError(f"{what}: leaves no example to train on; leave fewer out")
            gone = [] if classes is None else np.setdiff1d(classes, classes[variant.member]).tolist()
            if gone:
                raise UserError(f"{what}: leaves no example of class {gone[0]}; leave fewer out, or take more examples")
