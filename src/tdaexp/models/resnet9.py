"""ResNet-9 of ExPLAIND E.1: four convolutions, two residual blocks of two more, one linear layer.

Batch norm makes an example's output depend on the other examples of its batch, and its running averages move outside
the optimiser: an account of the training by examples and parameters could not be exact. So `norm=frozen` takes each
layer's mean and variance once, from the whole training set at the initial weights, and keeps them: the layer is then
a fixed affine map with its trained scale and shift. `norm=group` normalises each example by itself. `norm=none` leaves
the layers out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tdaexp.models.task import TaskModel, activation, check_images
from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from tdaexp.data.tensors import TensorCorpus

NORMS = ("frozen", "group", "none")
GROUPS = 8
CHUNK = 1000  # images per pass; it does not change the averages, all chunks but the last being of one size


@dataclass
class ResNet9(TaskModel):
    """width: channels of the first convolution, then 2, 4 and 8 times as many; norm: frozen | group | none."""

    name: str = "resnet9"
    width: int = 64
    norm: str = "frozen"

    def __post_init__(self) -> None:
        """Refuse an unknown normalisation, and a width that its groups do not divide."""
        super().__post_init__()
        if self.norm not in NORMS:
            raise unknown("value", self.norm, NORMS, "model.norm")
        if self.width < 1 or (self.norm == "group" and self.width % GROUPS):
            raise UserError(f"model.width={self.width}: must be positive, and a multiple of {GROUPS} for norm=group")

    def module(self, corpus: TensorCorpus) -> nn.Module:
        """The network, its frozen averages taken from the training images."""
        channels, height, width = check_images(corpus.train.inputs, "resnet9")
        if min(height, width) < 8:
            raise UserError(f"model=resnet9: images of {height} x {width} are too small; it halves them three times")
        network = Network(self, channels, corpus.classes)
        if self.norm == "frozen":
            freeze_averages(network, corpus.train.inputs)
        return network


def freeze_averages(network: nn.Module, images: Tensor) -> None:
    """Set every batch norm's mean and variance to those over `images` [N, C, H, W], and put it in evaluation mode.

    Layer after layer in order of depth, each over the inputs that the layers before it give once they are frozen.
    """
    network.eval()
    for layer in [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]:
        moments = _moments(network, layer, images)
        mean, square = moments[0], moments[1]
        layer.running_mean, layer.running_var = mean.float(), (square - mean**2).clamp_min(0).float()


@torch.no_grad()
def _moments(network: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square [channels] float64 of what a layer reads."""
    sums: list[Tensor] = []

    def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maps = inputs[0].double()
        sums.append(torch.stack([maps.sum((0, 2, 3)), (maps**2).sum((0, 2, 3)), _count(maps)]))

    handle = layer.register_forward_pre_hook(read)
    try:
        for chunk in images.split(CHUNK):
            network(chunk)
    finally:
        handle.remove()
    total, square, count = torch.stack(sums).sum(0)
    return total / count, square / count


def _count(maps: Tensor) -> Tensor:
    return torch.full((maps.shape[1],), float(maps.numel() // maps.shape[1]), dtype=torch.float64, device=maps.device)


class Network(nn.Module):
    """Images [N, C, H, W] to logits [N, classes]."""

    def __init__(self, config: ResNet9, channels: int, classes: int) -> None:
        super().__init__()
        w = config.width
        self.conv1 = Block(channels, w, config)
        self.conv2 = Block(w, 2 * w, config, pool=True)
        self.res1 = nn.ModuleDict({"conv1": Block(2 * w, 2 * w, config), "conv2": Block(2 * w, 2 * w, config)})
        self.conv3 = Block(2 * w, 4 * w, config, pool=True)
        self.conv4 = Block(4 * w, 8 * w, config, pool=True)
        self.res2 = nn.ModuleDict({"conv1": Block(8 * w, 8 * w, config), "conv2": Block(8 * w, 8 * w, config)})
        self.fc = nn.Linear(8 * w, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits; the logarithmic softmax belongs to the loss."""
        maps = self.conv2(self.conv1(images))
        maps = maps + self.res1["conv2"](self.res1["conv1"](maps))
        maps = self.conv4(self.conv3(maps))
        maps = maps + self.res2["conv2"](self.res2["conv1"](maps))
        logits: Tensor = self.fc(maps.amax((2, 3)))
        return logits


class Block(nn.Module):
    """3 x 3 convolution, normalisation, activation, max pooling: [N, C, H, W] to [N, C', H, W] or half of it."""

    def __init__(self, inputs: int, outputs: int, config: ResNet9, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=config.norm == "none")
        self.norm = _norm(config.norm, outputs)
        self.activation = activation(config.activation)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """The block's maps."""
        out: Tensor = self.pool(self.activation(self.norm(self.conv(maps))))
        return out


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return nn.BatchNorm2d(channels) if kind == "frozen" else nn.GroupNorm(GROUPS, channels)
