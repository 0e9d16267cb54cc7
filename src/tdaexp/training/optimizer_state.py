"""AdamW's state beside a checkpoint in hub format: what a simulated update starts from.

The file `optimizer.safetensors` holds `exp_avg/NAME` and `exp_avg_sq/NAME` for every parameter NAME, raw running
averages, and in its metadata the key `adamw`, JSON of `Hyperparameters`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdaexp.models.source import STATE
from tdaexp.runtime.errors import UserError
from tdaexp.training.optimisers import decays, learning_rate
from tdaexp.training.settings import FitSettings

FILE = STATE
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Hyperparameters:
    """AdamW as it goes on from a checkpoint: `step` updates made, `lr` of the next update, weight decay by parameter;
    `clip` the gradient's norm that it is cut to, 0 = never; `eps` outside the root, `eps_root` inside it.
    """

    step: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: dict[str, float]
    clip: float = 0.0
    eps_root: float = 0.0


@dataclass(frozen=True)
class AdamState:
    """`moments(NAME)`: running averages of gradient and squared gradient of one parameter, before the next update."""

    settings: Hyperparameters
    moments: Callable[[str], tuple[Tensor, Tensor]]


def next_update(parameters: Mapping[str, Tensor], settings: FitSettings, step: int) -> Hyperparameters:
    """What the configured training would do after `step` updates."""
    betas = (settings.betas[0], settings.betas[1])
    rate, decay = learning_rate(step, settings), decays(parameters.items(), settings)
    return Hyperparameters(step, rate, betas, settings.eps, decay, settings.clip, settings.eps_root)


def fresh_state(parameters: Mapping[str, Tensor], settings: FitSettings, step: int) -> AdamState:
    """The assumption where nothing is stored: an optimiser that begins here, both averages zero, no update made."""
    own = next_update(parameters, settings, step)

    def zeros(name: str) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(parameters[name]), torch.zeros_like(parameters[name])

    return AdamState(Hyperparameters(**{**asdict(own), "step": 0}), zeros)


def save_state(
    folder: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, settings: FitSettings, step: int
) -> None:
    """Write the state of torch's AdamW after `step` updates into an existing folder."""
    tensors = {
        f"{key}/{name}": optimizer.state[parameter][key].detach().float().cpu().contiguous()
        for name, parameter in parameters.items()
        for key in MOMENTS
    }
    own = json.dumps(asdict(next_update(parameters, settings, step)))
    save_file(tensors, folder / FILE, metadata={"adamw": own})


def read_settings(file: Path) -> Hyperparameters:
    """The hyper-parameters alone. Errors (UserError): a damaged file, or one of another program."""
    try:
        with safe_open(file, framework="pt") as stored:
            found = json.loads(stored.metadata()["adamw"])
        return Hyperparameters(**{**found, "betas": (float(found["betas"][0]), float(found["betas"][1]))})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: no readable state of AdamW ({error!r}); it needs exp_avg/NAME, exp_avg_sq/NAME and the metadata "
            "'adamw' (see docs/checkpoints.md)"
        ) from error


def read_state(file: Path, parameters: Mapping[str, Tensor]) -> AdamState:
    """The stored state; tensors are read one by one when they are asked for.

    Errors (UserError): a damaged file, or a state of other parameters than these.
    """
    settings = read_settings(file)
    with safe_open(file, framework="pt") as stored:
        shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
    for name, parameter in parameters.items():
        for key in MOMENTS:
            found = shapes.get(f"{key}/{name}")
            if found != tuple(parameter.shape):
                has = "nothing" if found is None else f"the shape {list(found)}"
                raise UserError(
                    f"{file}: has {has} for {key} of '{name}', the model {list(parameter.shape)}; it is the state of "
                    "another model"
                )
        if name not in settings.weight_decay:
            raise UserError(f"{file}: its metadata name no weight_decay for '{name}'; give one for each parameter")

    def moments(name: str) -> tuple[Tensor, Tensor]:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(f"{MOMENTS[0]}/{name}"), opened.get_tensor(f"{MOMENTS[1]}/{name}")

    return AdamState(settings, moments)
