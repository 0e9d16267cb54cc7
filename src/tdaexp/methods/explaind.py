"""ExPLAIND: an exact account of predictions over training steps, components and training examples.

Source: Eichin et al. 2026, theorem 3.1 and corollaries, over steps s and training examples k:

    f(θ_N) = f(θ_0) − Σ_s Σ_k φ_test(s) φ_train(s, k) − Σ_s φ_test(s) r_s

Sign: values are contributions to f, the paper's ψ and ψ^reg with the opposite sign; for the output `loss` f is the
negative loss. So a positive value means that the query became more likely. Additive over steps, components, parts and
training examples. Fills those of step, component, part, train, query and output that `keep` names. Cost: without the
train axis K (1 + 2P) forward passes over the queries a node and step, K (3 + 2P) by the rule secant, P the directions
an update is split into (with the axis part one more for each part); with it, the queries' Jacobian a node (of their
sum, for axes that are summed), the gradients of each step's batch, and their products.

Variables, over the axes in `keep` (an axis that is not kept is summed): `influence`, of training examples;
`regularisation`; `first_moment` where not every step was recorded; `rest`, of the training examples beyond `single`;
with `step`, `importance` and `importance_regularisation` [step, part, component], their absolute values summed over
queries and outputs. Always: `start`, `change`, `explained`, `residual` [query, output] with change = explained +
residual; `residual_norm`, `change_norm`, `nodes` [step]. With train or part `replay_error`: what the examples' replayed
gradients differ from the recorded updates by.

The residual is of sums. The attribute `entry_error` is what single entries of `influence` are off by, as a share of
them (Euclidean norms): the difference from a finer rule on 1 of 32 queries, 8 to 16 of them, over all steps (of sums
over queries it is estimated from theirs); with step also `entry_error` [step]. It costs an eighth of the queries'
passes where there are 256 or more (secant: a sixteenth), as much as they do where there are 32 (16).

Scale: that of the output f (logits, nats, probabilities); all parts and the residual add up to its change. Limits:
needs every step recorded, or stands on simulated updates between checkpoints; sums are exact where single entries are
off by `entry_error`; a contribution is what happened on this way, not what would have been without the example.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import xarray as xr

from tdaexp.methods.base import Method
from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import activation, of_model, output
from tdaexp.pathkernel.parameters import Batch, Function, Parameters
from tdaexp.pathkernel.quadrature import AUTO, Quadrature
from tdaexp.paths.checkpoint_walk import decompose_checkpoints
from tdaexp.paths.decomposition import PathJob, chosen_rule
from tdaexp.paths.entry_error import tell_entry_error
from tdaexp.paths.forward import forward_run
from tdaexp.paths.partition import KINDS, Partition
from tdaexp.paths.reverse import sweep_run
from tdaexp.paths.steps import chosen_steps, steps_between
from tdaexp.paths.store import AXES, labelled, tell_size
from tdaexp.problem import Problem
from tdaexp.runtime.device import deterministic
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.training.history import ListedCheckpoints, RecordedSteps
from tdaexp.training.task_problem import check_deterministic

ACTIVATION = "activation:"
SUBSAMPLES = ("loss_change", "uniform")
FORM = 4  # of what lies in the cache; raise it when that changes
NO_TRAJECTORY = (
    "method={}: needs a recorded training, which there is none of here; set trainer.fit.record=1 trainer.fit.clip=0, "
    "or choose model=grokking dataset=modular_addition, or model=mnist_cnn dataset=mnist"
)


@dataclass
class Explaind(Method):
    """Keys: `keep`, axes that are not summed; `output` to decompose; `steps` [first, last] to count, null = all;
    `subsample`, the share of them that counts, chosen by `subsample_by` loss_change | uniform, null = all;
    `partition` of the training examples for the axis part; `single`, with the axis train, of how many examples, the
    first ones, influences are taken one by one, null = all; `mode` auto | forward | reverse; `quadrature` with `rule`,
    `nodes`, `tolerance`, `most`; the rule `auto` is secant where the network is made of products, ReLUs and maxima
    alone, else gauss.
    """

    keep: list[str] = field(default_factory=lambda: ["step", "component"])
    output: str = "logits"
    steps: list[int] | None = field(default=None, metadata={"distinct": True})
    subsample: float | None = None
    subsample_by: str = "loss_change"
    partition: str | None = None
    single: int | None = None
    mode: str = "auto"
    quadrature: Quadrature = field(default_factory=lambda: Quadrature(AUTO))

    def __post_init__(self) -> None:
        """Refuse unknown axes, outputs and rules, a partition without its axis, and shares that are none."""
        for axis in self.keep:
            if axis not in AXES:
                raise unknown("axis", axis, AXES, "method.keep")
        if ("part" in self.keep) != (self.partition is not None):
            raise UserError(f"method.partition={self.partition}: goes with the axis part in method.keep, of {KINDS}")
        if {"part", "train"} <= set(self.keep):
            raise UserError("method.keep: part and train are the same axis; keep one of them")
        if self.subsample is not None and not 0 < self.subsample <= 1:
            raise UserError(f"method.subsample={self.subsample}: must be a share above 0, at most 1, or null for all")
        if self.subsample_by not in SUBSAMPLES:
            raise unknown("value", self.subsample_by, SUBSAMPLES, "method.subsample_by")
        if not self.output.startswith(ACTIVATION):
            output(self.output)

    @property
    def decomposes(self) -> bool:
        """Yes."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Decompose outputs of the queries. Errors (UserError): no recorded training and no list of checkpoints."""
        history = problem.history
        if isinstance(history, ListedCheckpoints):
            return self._of_checkpoints(problem, history)
        if {"step", "train"} <= set(self.keep):
            raise UserError("method.keep: step and train together need a sweep for each step; keep train, and count a "
                            "range by method.steps=[first,last]")  # fmt: skip
        if not isinstance(history, RecordedSteps):
            raise UserError(NO_TRAJECTORY.format(self.name))
        check_deterministic(problem.model)
        self._check_single(problem, history)
        with deterministic(problem.compute.device):
            return self._of_steps(problem, history)

    def _of_steps(self, problem: Problem, history: RecordedSteps) -> xr.Dataset:
        """Of recorded updates."""
        trajectory = history.trajectory
        steps = steps_between(trajectory, self.steps)
        counted = chosen_steps(problem, history, steps, self.subsample, self.subsample_by)
        partition = None if self.partition is None else Partition.of(self.partition, problem.train)
        function, keep = self._function(problem), frozenset(self.keep)
        quadrature = chosen_rule(self.quadrature, function, problem)
        job = PathJob(problem, trajectory, function, quadrature, keep, counted, self.mode, self.single, partition)
        values = Decomposer(job.function, job.layout, job.queries).value(job.replay(counted[0]).start)
        start = values.double().cpu().numpy()
        tell_size(job, (start.shape[0], start.shape[1]), problem.cache)
        codes = None if partition is None else (partition.labels, partition.codes.numpy())
        settings = (sorted(self.keep), self.output, quadrature, counted, self.mode, self.single, codes)
        decided = (FORM, trajectory.settings.every, problem.map.members(problem.model), *settings)
        store = problem.store("explaind", *decided, by=type(self))
        run = sweep_run if "train" in self.keep else forward_run
        found = labelled(job, start, run(job, store), self.output)
        tell_entry_error(found, quadrature)
        return found

    def _of_checkpoints(self, problem: Problem, history: ListedCheckpoints) -> xr.Dataset:
        """Simulated updates: of the loss alone, and every checkpoint counts."""
        for key, value, only in (("output", self.output, "loss"), ("steps", self.steps, None)):
            if value != only:
                said = "null" if only is None else only
                raise UserError(f"method.{key}={value}: on a list of checkpoints only method.{key}={said} is known")
        if "output" in self.keep or self.mode == "forward":
            raise UserError("method: a list of checkpoints has one output, the loss, by reverse mode; leave output out "
                            "of method.keep and method.mode=auto")  # fmt: skip
        if self.quadrature.rule == "secant":
            raise UserError("method.quadrature.rule=secant: a list of checkpoints has no such rule; choose gauss")
        quadrature = self.quadrature.chosen(secant=False)
        found = decompose_checkpoints(problem, history, frozenset(self.keep), quadrature)
        tell_entry_error(found, quadrature)
        return found

    def _function(self, problem: Problem) -> Function:
        if self.output.startswith(ACTIVATION):
            return activation(problem.model, self.output.removeprefix(ACTIVATION))
        chosen = output(self.output)
        plain = of_model(problem.model, chosen.read)

        def function(parameters: Parameters, batch: Batch) -> torch.Tensor:
            return chosen.sign * plain(parameters, batch)

        return function

    def _check_single(self, problem: Problem, history: RecordedSteps) -> None:
        if self.single is None:
            return
        if not 0 < self.single <= len(problem.train):
            raise UserError(
                f"method.single={self.single}: must be from 1 to {len(problem.train)}, the training examples"
            )
        if "train" not in self.keep or history.trajectory.settings.every > 1:
            raise UserError(
                f"method.single={self.single}: is of the axis train, where every step was recorded; add train to "
                "method.keep and train with trainer.fit.record=1, or leave it null"
            )
