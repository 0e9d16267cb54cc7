"""Models of classification tasks: plain torch modules from inputs [N, ...] to logits [N, classes]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.names import check_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tdaexp.data.tensors import TensorCorpus

ACTIVATIONS = ("relu", "gelu")


@dataclass
class TaskModel(ABC):
    """Keys that every task model reads.

    name: a short label. seed: of the initial weights. activation: `relu` or `gelu`. start: a safetensors file whose
    tensors replace initial weights of the same name (a trained layer in a new model); null leaves them as drawn.
    """

    name: str = "task"
    seed: int = 0
    activation: str = "relu"
    start: str | None = None

    NOT_DECIDING: ClassVar[tuple[str, ...]] = ("name", "start")

    def __post_init__(self) -> None:
        """Refuse an unknown activation."""
        check_name("model.name", self.name)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS, "model.activation")

    @abstractmethod
    def module(self, corpus: TensorCorpus) -> nn.Module:
        """The network for this task's inputs and classes; random weights come from torch's global generator.

        Its layers are named as components are named everywhere: `embed`, `layers.0.attn.q`, `conv1`, `lm_head`.
        """

    def build(self, corpus: TensorCorpus) -> nn.Module:
        """The network in float32 and evaluation mode, its weights drawn from `seed`.

        The global random state is left alone. Raises UserError: `start` does not fit.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            built = self.module(corpus).eval()
        if self.start is not None:
            _replace(built, Path(self.start))
        return built

    def start_fingerprint(self) -> str:
        """Identity of all, beside the data, that decides the initial weights."""
        from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint

        keys = {key: value for key, value in vars(self).items() if key not in self.NOT_DECIDING}
        return fingerprint(type(self).__name__, keys, self.start and file_fingerprint(Path(self.start)))


def activation(name: str) -> nn.Module:
    """The activation layer that a config names."""
    from torch import nn

    layer: nn.Module = {"relu": nn.ReLU, "gelu": nn.GELU}[name]()
    return layer


def check_images(inputs: Tensor, model: str) -> tuple[int, int, int]:
    """Channels, height and width of images [N, C, H, W]; other inputs are refused."""
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise UserError(f"model={model}: needs images; choose dataset=mnist, digits or cifar2")
    return tuple(inputs.shape[1:])  # type: ignore[return-value]


def _replace(module: nn.Module, file: Path) -> None:
    """Put the tensors of a safetensors file in the place of the module's parameters of the same name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.start={file}: not a readable safetensors file ({error})") from error
    own = module.state_dict()
    for name, tensor in found.items():
        if name not in own:
            raise unknown("parameter", name, own, f"model.start={file}")
        if tensor.shape != own[name].shape:
            raise UserError(
                f"model.start={file}: '{name}' has the shape {list(tensor.shape)}, the model's is "
                f"{list(own[name].shape)}; take a file of the same architecture"
            )
    module.load_state_dict({**own, **found})
