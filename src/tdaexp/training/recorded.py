"""The recorded training: a small explicit loop whose every step can be replayed exactly.

    folder/trajectory/         the recording, see `tdaexp.training.trajectory`
    folder/resume/step-*.ckpt  parameters and optimiser of an unfinished run
    folder/model/              `weights.safetensors` and `training.json` (curves, settings); complete or not at all

Lightning is not used here: its loop resumes with other batches and keeps the state in its own order. A step is
θ_{s+1} = torch's optimiser on Σ_k w_k L_k(θ_s), batches being a function of (seed, step). The bits depend on the number
of threads, as sums do; a resumed run must use as many. Several processes share out each batch and add their gradients:
the same trajectory up to rounding.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tdaexp.runtime import ranks, stop
from tdaexp.runtime.code import code_identity
from tdaexp.runtime.device import deterministic
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import cached_folder, write_json
from tdaexp.runtime.fingerprint import fingerprint, provenance
from tdaexp.runtime.limits import refuse_beyond
from tdaexp.runtime.progress import track
from tdaexp.training.batches import step_batch
from tdaexp.training.checkpoints import newest_readable, prune, resume_path, save
from tdaexp.training.optimisers import build_optimizer, learning_rate
from tdaexp.training.recorder import Recorder, plan
from tdaexp.training.room import INDEX_BYTES
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Problem, check_deterministic
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
    ending: bool = False
    """Whether a process was asked to end: it does once the steps that belong together are on disk."""
    saved_to_end: bool = False

    def shared(self, own: Tensor | None) -> Tensor:
        """The whole batch's loss from this process's part of it; the processes agree whether to end here."""
        if ranks.current().world == 1:
            self.ending = stop.requested() is not None
            return torch.zeros(()) if own is None else own
        asked = float(stop.requested() is not None)
        part = 0.0 if own is None else own.detach().item()
        loss: Tensor
        loss, wish, end = ranks.together(torch.tensor([part, asked, float(self.saved_to_end)]).double(), leave=False)
        self.ending = bool(wish)
        if end:  # process 0 has saved everything
            stop.check()
            raise stop.Stopped()
        return loss

    def save(self, folder: Path) -> None:
        """Write a checkpoint atomically and delete old ones."""
        state = {"step": self.step, "curves": self.curves, "optimizer": self.optimizer.state_dict()}
        save({**state, "parameters": self.parameters}, resume_path(folder, self.step))
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
    whole = fingerprint(code_identity(fit_recorded), identity, problem.fingerprint, settings.deciding(), seed)
    result = folder / "model"
    with stop.finishing(), ranks.locked_for_all(folder / "fit"):
        first = ranks.current().first
        if not ranks.from_first(finished(folder, settings)):
            if first and result.exists():
                log.warning("%s: the recording is not complete; the training is made again", folder)
            with deterministic(next(problem.module.parameters()).device):
                run = _train(problem, settings, folder, seed, whole)
            if first:
                shutil.rmtree(result, ignore_errors=True)  # there is one where only the recording was lost
                _save(result, run, {"fingerprint": whole, "settings": {"seed": seed, **asdict(settings)}})
        if first:
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
    if settings.batches == "stream":
        refuse_beyond(
            INDEX_BYTES * float(settings.batch_size), f"trainer.fit.batch_size={settings.batch_size}", "lower it"
        )
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
    recorder, first = None, ranks.current().first
    if settings.record and first:
        batch = settings.batch_size if settings.batches == "stream" else min(settings.batch_size, len(problem))
        layout = plan(parameters, settings, examples=len(problem), batch=batch, identity=identity)
        recorder = Recorder(folder / "trajectory", layout)
    checkpoint = ranks.from_first(newest_readable(folder / "resume") if first else None)
    if checkpoint:
        log.info("training: going on from %s", checkpoint)
        run.load(checkpoint)
    steps, saved = range(run.step, settings.steps), run.step
    for step in track(steps, "training", settings.steps, run.step):
        _step(problem, settings, run, recorder, seed, step)
        due = run.step - saved >= settings.checkpoint_every or run.ending
        if first and due and (recorder is None or recorder.empty):
            run.save(folder / "resume")
            saved, run.saved_to_end = run.step, run.ending
        if ranks.current().world == 1 and run.saved_to_end:
            stop.check()
    if not all(torch.isfinite(parameter).all() for parameter in parameters.values()):
        raise UserError("training: the last step left weights that are not finite; lower trainer.fit.lr")
    if first:
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
    measures = problem.evaluate() if step % settings.evaluate_every == 0 and ranks.current().first else {}
    if recorder:
        recorder.before(step, run.parameters, run.optimizer)
    mine = slice(ranks.current().rank, None, ranks.current().world)
    own = objective(problem, indices[mine], weights[mine]) if len(indices[mine]) else None
    loss = run.shared(own)
    if not torch.isfinite(loss):
        raise UserError(
            f"training: the loss is {loss.item()} at step {step}; lower trainer.fit.lr (now {settings.lr:g}) or raise "
            "trainer.fit.warmup"
        )
    run.optimizer.zero_grad()
    if own is not None:
        own.backward()
    add_gradients(run.parameters.values())
    run.optimizer.step()
    if recorder:
        recorder.after(step, run.parameters, run.optimizer, (indices, weights))
    run.curves.append({"step": step, "loss": loss.item(), **measures})
    run.step = step + 1


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of all processes' gradients: that of the whole batch, whose weights sum to one."""
    if ranks.current().world == 1:
        return
    parameters = list(parameters)
    found = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    total = ranks.together(torch.cat([one.flatten() for one in found]), leave=False)
    for one, part in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
        one.grad = part.view_as(one)


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
