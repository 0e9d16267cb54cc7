"""The recorded training: a small explicit loop whose every step can be replayed exactly.

    folder/trajectory/         the recording, see `tdaexp.training.trajectory`
    folder/resume/step-*.ckpt  parameters and optimiser of an unfinished run
    folder/model/              `weights.safetensors` and `training.json` (curves, settings); complete or not at all

Lightning is not used here: its loop resumes with other batches and keeps the state in its own order. A step is
θ_{s+1} = torch's optimiser on Σ_k w_k L_k(θ_s), batches being a function of (seed, step). The bits depend on the number
of threads, as sums do; a resumed run must use as many.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path, cached_folder, locked, write_json
from tdaexp.runtime.fingerprint import fingerprint, provenance
from tdaexp.runtime.progress import track
from tdaexp.training.batches import step_batch
from tdaexp.training.checkpoints import newest_readable, prune, resume_path
from tdaexp.training.optimisers import build_optimizer, learning_rate
from tdaexp.training.problem import Problem, check_deterministic
from tdaexp.training.recorder import Recorder, plan
from tdaexp.training.settings import FitSettings
from tdaexp.training.trajectory import Trajectory

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The state of a training between two steps: what a checkpoint holds."""

    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int
    curves: list[dict[str, float]]
    """Measures by step, under `step`; the batch's loss of every step is `loss`."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint atomically and delete old ones."""
        state = {"step": self.step, "curves": self.curves, "optimizer": self.optimizer.state_dict()}
        with atomic_path(resume_path(folder, self.step)) as temporary, temporary.open("wb") as stream:
            torch.save({**state, "parameters": self.parameters}, stream)
        prune(folder)

    def load(self, path: Path) -> None:
        """Take up the state of a checkpoint."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curves = state["step"], state["curves"]


def fit_recorded(problem: Problem, settings: FitSettings, *, folder: Path, seed: int, identity: str) -> Path:
    """Train `problem.module` in place and return `folder/model`; with settings.record, leave `folder/trajectory`.

    Called again after a kill, it goes on to the bit-identical trajectory; a finished one is returned at once. A
    training whose recording was deleted, or lacks steps, is made again.
    `identity` says where the weights started. Errors (UserError): dropout, batch norm in training mode, gradient
    clipping, a trajectory that does not fit the disk, a loss that is not finite.
    """
    _check(problem, settings)
    whole = fingerprint(identity, problem.fingerprint, settings.deciding(), seed)
    result = folder / "model"
    with locked(folder / "fit"):
        if not finished(folder, settings):
            if result.exists():
                log.warning("%s: the recording is not complete; the training is made again", folder)
            run = _train(problem, settings, folder, seed, whole)
            shutil.rmtree(result, ignore_errors=True)  # there is one where only the recording was lost
            _save(result, run, {"fingerprint": whole, "settings": {"seed": seed, **asdict(settings)}})
        shutil.rmtree(folder / "resume", ignore_errors=True)
    return result


def finished(folder: Path, settings: FitSettings) -> bool:
    """Whether a training's result is there and, with settings.record, a recording without missing steps."""
    if not (folder / "model").exists():
        return False
    try:
        return not settings.record or bool(Trajectory(folder / "trajectory"))
    except UserError:
        return False


def _check(problem: Problem, settings: FitSettings) -> None:
    check_deterministic(problem.module, training=True)
    if settings.clip:
        raise UserError(
            f"trainer.fit.clip={settings.clip:g}: clipping makes an example's weight depend on its batch, so that a "
            "recorded training cannot have it; set trainer.fit.clip=0"
        )
    for name, parameter in problem.module.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"trainer.precision: parameter '{name}' is {parameter.dtype}; a trajectory is float32")


def _train(problem: Problem, settings: FitSettings, folder: Path, seed: int, identity: str) -> Run:
    parameters: dict[str, Tensor] = dict(problem.module.requires_grad_().named_parameters())
    run = Run(parameters, build_optimizer(parameters, settings), 0, [])
    recorder = None
    if settings.record:
        batch = settings.batch_size if settings.batches == "stream" else min(settings.batch_size, len(problem))
        layout = plan(parameters, settings, examples=len(problem), batch=batch, identity=identity)
        recorder = Recorder(folder / "trajectory", layout)
    checkpoint = newest_readable(folder / "resume")
    if checkpoint:
        log.info("training: going on from %s", checkpoint)
        run.load(checkpoint)
    steps, saved = range(run.step, settings.steps), run.step
    for step in track(steps, "training", settings.steps, run.step):
        _step(problem, settings, run, recorder, seed, step)
        if run.step - saved >= settings.checkpoint_every and (recorder is None or recorder.empty):
            run.save(folder / "resume")
            saved = run.step
    if not all(torch.isfinite(parameter).all() for parameter in parameters.values()):
        raise UserError("training: the last step left weights that are not finite; lower trainer.fit.lr")
    run.curves.append({"step": settings.steps, **problem.evaluate()})
    if recorder:
        recorder.end(parameters)
    problem.module.requires_grad_(False)
    return run


def _step(problem: Problem, settings: FitSettings, run: Run, recorder: Recorder | None, seed: int, step: int) -> None:
    """One update: θ_s to θ_{s+1}, with what is logged about it."""
    indices = step_batch(step, kind=settings.batches, seed=seed, examples=len(problem), batch_size=settings.batch_size)
    weights = problem.weights(indices)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    measures = problem.evaluate() if step % settings.evaluate_every == 0 else {}
    if recorder:
        recorder.before(step, run.parameters, run.optimizer)
    loss = objective(problem, indices, weights)
    if not torch.isfinite(loss):
        raise UserError(
            f"training: the loss is {loss.item()} at step {step}; lower trainer.fit.lr (now {settings.lr:g}) or raise "
            "trainer.fit.warmup"
        )
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    if recorder:
        recorder.after(step, run.parameters, run.optimizer, (indices, weights))
    run.curves.append({"step": step, "loss": loss.item(), **measures})
    run.step = step + 1


def objective(problem: Problem, indices: Any, weights: Any) -> Tensor:
    """Σ_k w_k L_k over a batch: the scalar whose gradient a step follows."""
    losses = problem.losses(indices)
    return losses @ torch.from_numpy(weights).to(losses)


def _save(result: Path, run: Run, note: dict[str, Any]) -> None:
    def build(temporary: Path) -> None:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in run.parameters.items()},
                  temporary / "weights.safetensors")  # fmt: skip
        write_json(temporary / "training.json", {**note, "curves": run.curves, **provenance()})

    cached_folder(result, build)
