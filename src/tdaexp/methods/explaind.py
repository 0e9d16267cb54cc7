"""ExPLAIND: an exact account of predictions over training steps, components and training examples.

Source: Eichin et al. 2026, theorem 3.1 and corollaries: f(θ_N) = f(θ_0) − ΣΣ φ_test φ_train − Σ φ_test r. Sign: values
are contributions to f, the paper's ψ and ψ^reg with the opposite sign; for the output `loss` f is the negative loss. So
a positive value means that the query became more likely. Additive over steps, components, parts and training examples.
Cost: without the train axis K (1 + 2P) forward passes over the queries a node and step; with it, the queries'
Jacobian a node, the gradients of each step's batch, and their products.

Variables, over the axes in `keep` (an axis that is not kept is summed): `influence`, of training examples;
`regularisation`; `first_moment` where not every step was recorded; with `step`, `importance` and
`importance_regularisation` [step, component], their absolute values summed over queries and outputs. Always: `start`,
`change`, `explained`, `residual` [query, output] with change = explained + residual; `residual_norm`, `change_norm`,
`nodes` [step].
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr

from tdaexp import influence
from tdaexp.methods.base import Method
from tdaexp.methods.path_costs import checkpoint_costs, path_costs
from tdaexp.methods.path_run import PathJob, forward_run, kept_outputs
from tdaexp.methods.path_sweep import sweep_run
from tdaexp.methods.study import Study
from tdaexp.methods.task_study import TaskStudy
from tdaexp.methods.task_workload import TaskWorkload
from tdaexp.methods.workload import Workload
from tdaexp.pathkernel.outputs import activation, check_deterministic, of_model, output
from tdaexp.pathkernel.parameters import Batch, Function, Parameters
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.errors import UserError, nearest, unknown

log = logging.getLogger(__name__)
AXES = ("query", "train", "component", "step", "output")
ACTIVATION = "activation:"
NO_TRAJECTORY = (
    "method={}: needs a recorded training, which texts have none of here; choose "
    "model=grokking dataset=modular_addition, or model=mnist_cnn dataset=mnist"
)


@dataclass
class Explaind(Method):
    """Keys: `keep`, axes that are not summed; `output` to decompose; `steps` [first, last] to count, null = all; `mode`
    auto | forward | reverse; `quadrature` with `rule`, `nodes`, `tolerance`, `most`.
    """

    keep: list[str] = field(default_factory=lambda: ["step", "component"])
    output: str = "logits"
    steps: list[int] | None = None
    mode: str = "auto"
    quadrature: Quadrature = field(default_factory=Quadrature)

    def __post_init__(self) -> None:
        """Refuse unknown axes, outputs and rules, and step × train."""
        for axis in self.keep:
            if axis not in AXES:
                raise unknown("axis", axis, AXES, "method.keep")
        if {"step", "train"} <= set(self.keep):
            raise UserError("method.keep: step and train together need a sweep for each step; keep train, and count a "
                            "range by method.steps=[first,last]")  # fmt: skip
        if not self.output.startswith(ACTIVATION):
            output(self.output)

    def attribute(self, study: TaskStudy | Study) -> xr.Dataset:
        """Decompose the outputs of the study's queries. Errors (UserError): a study of texts, without a trajectory."""
        if not isinstance(study, TaskStudy):
            raise UserError(NO_TRAJECTORY.format(self.name))
        check_deterministic(study.module)
        keep = frozenset(self.keep)
        job = PathJob(study, self._function(study), self.quadrature, keep, self._counted(study), self.mode)
        with torch.no_grad():
            first = job.replay(job.counted[0]).start
            start = job.function(first, job.queries).double()
        self._tell_size(job, start)
        store = study.store("explaind", sorted(keep), self.output, self.quadrature, job.counted, self.mode)
        if "train" in keep:
            return self._label(job, start, self._of_examples(job, sweep_run(job, store)))
        return self._label(job, start, self._of_steps(job, forward_run(job, store)))

    def plan(self, work: Workload | TaskWorkload) -> list[StageCost]:
        """Of a recorded training, or of the checkpoints of a language model, each with one simulated update."""
        if isinstance(work, TaskWorkload):
            plural = self.output in ("logits", "log_probabilities") or self.output.startswith(ACTIVATION)
            outputs = work.classes if plural else 1
            return path_costs(work, frozenset(self.keep), outputs, self._planned_steps(work), self.quadrature.nodes)
        if not work.simulated:
            raise UserError(NO_TRAJECTORY.format(self.name))
        return checkpoint_costs(work, self.quadrature.nodes)

    def _planned_steps(self, work: TaskWorkload) -> int:
        if work.layout is None:
            raise UserError("trainer.fit.record=0: explaind needs a recorded training; set trainer.fit.record=1")
        known = work.layout.steps
        return len(known) if self.steps is None else sum(self.steps[0] <= step <= self.steps[-1] for step in known)

    def _function(self, study: TaskStudy) -> Function:
        if self.output.startswith(ACTIVATION):
            return activation(study.module, self.output.removeprefix(ACTIVATION))
        chosen = output(self.output)
        plain = of_model(study.module, chosen.read)

        def function(parameters: Parameters, batch: Batch) -> torch.Tensor:
            return chosen.sign * plain(parameters, batch)

        return function

    def _counted(self, study: TaskStudy) -> list[int]:
        known = study.trajectory.steps
        if self.steps is None:
            return known
        if len(self.steps) != 2 or self.steps[0] > self.steps[1]:
            raise UserError(f"method.steps={self.steps}: must be [first, last], or null for all steps")
        for step in self.steps:
            if step not in known:
                near = nearest(str(step), map(str, known))
                raise UserError(f"method.steps={self.steps}: step {step} was not recorded; the nearest is {near}")
        return [step for step in known if self.steps[0] <= step <= self.steps[1]]

    def _tell_size(self, job: PathJob, start: torch.Tensor) -> None:
        sizes = dict(zip(("query", "output"), start.shape, strict=True))
        sizes |= {"component": len(job.layout.components), "step": len(job.counted), "train": len(job.study.train)}
        shape = {axis: sizes[axis] for axis in AXES if axis in job.keep}
        size = 8 * int(np.prod(list(shape.values()))) * (1 if "train" in job.keep else 2)
        log.info("explaind: %s, %.3g GB", " × ".join(f"{n} {axis}" for axis, n in shape.items()) or "sums", size / 1e9)

    def _of_steps(self, job: PathJob, found: dict[str, np.ndarray]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Variables from the parts of updates: [S?, K, Q?, O?] each."""
        dims = tuple(axis for axis in ("step", "component", "query", "output") if axis in job.keep)
        result = {}
        for part, name in (("kernel", "influence"), ("regularisation",) * 2, ("first_moment",) * 2):
            if part not in found:
                continue
            values = torch.from_numpy(found[part])
            values = values if "step" in job.keep else kept_outputs(values, job.keep)
            axis = 1 if "step" in job.keep else 0
            kept = values if "component" in job.keep else values.squeeze(axis)
            result[name] = (dims, kept.numpy())
            if "step" in job.keep:
                label = "importance" if part == "kernel" else f"importance_{part}"
                own = found[f"importance_{part}"]
                component = "component" in job.keep
                result[label] = (("step", "component") if component else ("step",), own if component else own[:, 0])
        return result | self._completeness(found)

    def _of_examples(self, job: PathJob, found: dict[str, np.ndarray]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Variables from the sweep: [K, N, Q, O]."""
        kernel = torch.from_numpy(found["kernel"])
        rest = torch.from_numpy(found["regularisation"])
        parts = {"influence": kernel, "regularisation": rest}
        gap = torch.from_numpy(found["whole"]) - kernel.sum(1) - rest
        if job.study.trajectory.settings.every > 1:
            parts["first_moment"] = gap
        result = {}
        for name, values in parts.items():
            axes = ("component", "train") if name == "influence" else ("component",)
            kept = kept_outputs(values if "component" in job.keep else values.sum(0, keepdim=True), job.keep)
            kept = kept if "component" in job.keep else kept.squeeze(0)
            dims = tuple(axis for axis in (*axes, "query", "output") if axis in job.keep)
            result[name] = (dims, kept.numpy())
        if job.study.trajectory.settings.every == 1:
            result["replay_error"] = (("query", "output"), gap.sum(0).numpy())
        return result | self._completeness(found)

    def _completeness(self, found: dict[str, np.ndarray]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        pair = {name: (("query", "output"), found[name]) for name in ("change", "residual")}
        pair["explained"] = (("query", "output"), found["change"] - found["residual"])
        return pair | {name: (("step",), found[name]) for name in ("residual_norm", "change_norm", "nodes")}

    def _label(
        self, job: PathJob, start: torch.Tensor, data: dict[str, tuple[tuple[str, ...], np.ndarray]]
    ) -> xr.Dataset:
        study, keep = job.study, job.keep
        coords: dict[str, object] = {
            "query": np.array(study.queries.ids, dtype=object),
            "query_set": ("query", np.array(study.query_set, dtype=object)),
            "step": np.array(job.counted, dtype=np.int64),
            "output": np.arange(start.shape[1]),
        }
        if "component" in keep:
            sizes = [place.stop - place.start for place in job.layout.slices]
            coords |= {"component": np.array(list(study.components), dtype=object), "size": ("component", sizes)}
        if "train" in keep:
            coords["train"] = np.array(study.train.ids, dtype=object)
        dataset = xr.Dataset({**data, "start": (("query", "output"), start.numpy())}, coords)  # type: ignore[arg-type]
        order = [axis for axis in AXES if axis in dataset.dims]
        return dataset.transpose(*order).assign_attrs(
            format_version=influence.FORMAT_VERSION, normalise="none", output=self.output, keep=sorted(keep)
        )
