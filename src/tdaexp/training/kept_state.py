"""AdamW's state about a moment of a training, from beside a checkpoint or from a recording."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tdaexp.history import OptimizerState
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint
from tdaexp.training.optimizer_state import FILE, MOMENTS, read_settings
from tdaexp.training.trajectory import Trajectory


def state_of_checkpoint(folder: Path, optimizer: str) -> OptimizerState:
    """What AdamW had when the checkpoint was kept, both averages; tensors are read when they are asked for.

    Errors (UserError): the training's `optimizer` has no such state, none was kept, it is damaged.
    """
    file = folder / FILE
    if optimizer != "adamw":
        raise UserError(
            f"{folder}: was trained by {optimizer}, which has no second moment; train it with "
            "trainer.fit.optimizer=adamw"
        )
    if not file.is_file():
        raise UserError(
            f"{folder}: the checkpoint has no state of its optimiser ({FILE}); train it with trainer.fit.keep=state"
        )
    settings = read_settings(file)
    if settings.step < 1:
        raise UserError(f"{file}: its optimiser has made no update yet, so that it has no averages; take a later one")

    def read(key: str, beta: float, name: str) -> Tensor:
        with safe_open(file, framework="pt") as stored:
            if f"{key}/{name}" not in stored.keys():  # noqa: SIM118
                raise UserError(f"{file}: has no {key} of '{name}'; that parameter was not trained")
            found: Tensor = stored.get_tensor(f"{key}/{name}")
        return found.float() / (1 - beta**settings.step)

    first, second = (functools.partial(read, key, beta) for key, beta in zip(MOMENTS, settings.betas, strict=True))
    return OptimizerState(
        settings.step, settings.betas, settings.eps, second, first, file_fingerprint(file), settings.eps_root
    )


def state_of_recording(trajectory: Trajectory, step: int) -> OptimizerState:
    """The second moment that the update of a recorded step divided by, so after `step` + 1 updates.

    A recording has no first moment after an update. Errors (UserError): it was trained by SGD.
    """
    layout = trajectory.settings
    if layout.optimizer != "adamw":
        raise UserError(
            f"{trajectory.folder}: was trained by {layout.optimizer}, which has no second moment; train it with "
            "trainer.fit.optimizer=adamw"
        )
    correction = 1 - layout.betas[1] ** (step + 1)

    @functools.cache
    def averages() -> dict[str, Tensor]:
        return trajectory.second_moment(step)

    def second(name: str) -> Tensor:
        if name not in layout.shapes:
            raise UserError(f"{trajectory.folder}: has no second moment of '{name}'; that parameter was not trained")
        return averages()[name].to(torch.float32) / correction

    identity, betas = fingerprint(layout.identity, step), (layout.betas[0], layout.betas[1])
    return OptimizerState(step + 1, betas, layout.eps, second, None, identity, layout.eps_root)
