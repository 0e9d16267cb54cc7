"""The four-layer CNN of ExPLAIND E.1: two convolution blocks and two linear layers (108,618 parameters on MNIST)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from tdaexp.models.task import TaskModel, activation, check_images
from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from tdaexp.data.tensors import TensorCorpus


@dataclass
class MnistCnn(TaskModel):
    """Convolution, max pooling, activation, twice; then two linear layers. Components conv1, conv2, fc1, fc2.

    channels: of the two convolutions; kernel: their width; padding: zeros around an image; hidden: width of fc1.
    The paper names none of these four. With 16/32, 3, 0 and 128 the network reaches its accuracy.
    """

    name: str = "mnist_cnn"
    channels: list[int] = field(default_factory=lambda: [16, 32])
    kernel: int = 3
    padding: int = 0
    hidden: int = 128

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        super().__post_init__()
        if len(self.channels) != 2 or min(self.channels) < 1:
            raise UserError(f"model.channels={self.channels}: must be two numbers, the channels of each convolution")
        for key, least in (("kernel", 1), ("padding", 0), ("hidden", 1)):
            if getattr(self, key) < least:
                raise UserError(f"model.{key}={getattr(self, key)}: must be at least {least}")

    def module(self, corpus: TensorCorpus) -> nn.Module:
        """The network for this task's image size and classes."""
        inputs, height, width = check_images(corpus.train.inputs, "mnist_cnn")
        sides = (self._side(height), self._side(width))
        if min(sides) < 1:
            raise UserError(
                f"model.padding={self.padding}: images of {height} x {width} are too small for two blocks of kernel "
                f"{self.kernel}; set model.padding={self.kernel // 2}"
            )
        return Cnn(self, inputs, sides[0] * sides[1], corpus.classes)

    def _side(self, side: int) -> int:
        """Width of an image after both blocks."""
        for _ in self.channels:
            side = (side + 2 * self.padding - self.kernel + 1) // 2
        return side


class Cnn(nn.Module):
    """Images [N, C, H, W] to logits [N, classes]."""

    def __init__(self, config: MnistCnn, inputs: int, area: int, classes: int) -> None:
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(inputs, first, config.kernel, padding=config.padding)
        self.conv2 = nn.Conv2d(first, second, config.kernel, padding=config.padding)
        self.fc1 = nn.Linear(second * area, config.hidden)
        self.fc2 = nn.Linear(config.hidden, classes)
        self.pool, self.activation = nn.MaxPool2d(2), activation(config.activation)

    def forward(self, images: Tensor) -> Tensor:
        """Logits; the softmax belongs to the loss."""
        maps = self.activation(self.pool(self.conv1(images)))  # [N, 16, 13, 13]
        maps = self.activation(self.pool(self.conv2(maps)))  # [N, 32, 5, 5]
        logits: Tensor = self.fc2(self.activation(self.fc1(maps.flatten(1))))
        return logits
