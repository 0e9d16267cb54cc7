"""Factors of classifiers and regressors made of linear and convolutional layers, from plain `nn.Module`s.

A convolution is a linear layer that is applied at every place of its output: its input there is the patch under the
kernel (Grosse and Martens 2016). Labels are drawn from the model's own distribution: a class from the softmax, or, for
squared loss ½|f - y|², f plus standard normal noise. Then S and Λ are those of the Gauss-Newton matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tdaexp.curvature.labels import draw, uniforms
from tdaexp.curvature.layers import Layer, layers_of
from tdaexp.curvature.source import LayerConsumer
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.factors import LinearFactors, accumulation_dtype
from tdaexp.models.components import Component, ComponentMap, Part, refuse_shared
from tdaexp.models.task import task_components
from tdaexp.runtime.deferred import send
from tdaexp.runtime.errors import UserError, unknown

DISTRIBUTIONS = ("categorical", "gaussian")


def conv_patches(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """Patches [B, places, C kh kw] of images [B, C, H, W], ordered as the rows of `conv.weight.flatten(1)`."""
    settings = {"dilation": conv.dilation, "padding": conv.padding, "stride": conv.stride}
    return nn.functional.unfold(inputs, conv.kernel_size, **settings).transpose(1, 2)  # type: ignore[arg-type]


def module_map(module: nn.Module) -> ComponentMap:
    """A network's components, named as `task_components` names them, with the kind and shape of their layers.

    Linear layers and convolutions with a rule are parts of kind `linear` and `conv2d` and shape (outputs, inputs), the
    inputs of a convolution being those of a patch; of all others only the size is known (kind `other`). Errors
    (UserError): a parameter that two layers share.
    """
    refuse_shared(module)
    layers = dict(module.named_modules())
    found = []
    for name, parameters in task_components(module).members.items():
        paths = dict.fromkeys(parameter.rpartition(".")[0] for parameter in parameters)
        parts = tuple(_part(path, layers[path]) for path in paths)
        found.append(Component(name, parts, sum(part.size for part in parts)))
    return ComponentMap(tuple(found), {}, sum(one.size for one in found), type(module).__name__)


def _part(path: str, layer: nn.Module) -> Part:
    if has_rule(layer):
        weight: Tensor = layer.weight  # type: ignore[assignment]
        kind = "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
        return Part(path, kind, None, layer.bias is not None, (weight.shape[0], weight[0].numel()))
    own = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
    return Part(path, "other", None, False, (own, 0))


def has_rule(module: nn.Module) -> bool:
    """Whether the module is a linear layer, or a convolution without groups and with plain zero padding."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


class ModuleSource:
    """A model over a tensor of inputs [N, ...]; one drawn label per example."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        ids: Sequence[str],
        distribution: str = "categorical",
        batch_size: int = 64,
        layers: tuple[Layer, ...] | None = None,
    ) -> None:
        """`distribution`: `categorical` (the model returns logits [B, classes]) or `gaussian` (means [B, outputs]).

        `layers`: those to fit (null: all that have a rule), named by their paths.
        """
        if distribution not in DISTRIBUTIONS:
            raise unknown("distribution", distribution, DISTRIBUTIONS, "ModuleSource")
        self.model, self.inputs, self.ids, self.distribution = model, inputs, list(ids), distribution
        self.layers = layers_of(module_map(model)).layers if layers is None else layers
        numbers = list(range(len(inputs)))
        self.batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
        self.label_width = 1
        self.dtype = accumulation_dtype(next(model.parameters()).dtype)

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Freeze the model."""
        return frozen(self.model)

    def run(
        self, members: Sequence[int], names: Sequence[str], labels: Tensor | None, seed: int, consume: LayerConsumer
    ) -> Tensor:
        """One pass; returns class labels [B, 1], or zeros for `gaussian`, whose noise follows from seed and ids."""
        ids = [self.ids[index] for index in members]
        found: list[Tensor] = []

        def loss(outputs: Tensor) -> Tensor:
            if self.distribution == "gaussian":
                noise = torch.special.ndtri(uniforms(ids, seed, outputs.shape[1]).clamp(min=1e-300))
                noise = send(noise, outputs.device, outputs.dtype)
                found.append(torch.zeros(len(ids), 1, dtype=torch.int64, device="cpu"))
                return 0.5 * (outputs - (outputs.detach() + noise)).square().sum(1)
            if labels is None:
                drawn = draw(outputs.detach(), send(uniforms(ids, seed, 1)[:, 0], outputs.device))
            else:
                drawn = send(labels[:, 0], outputs.device)
            found.append(drawn[:, None])
            wide = outputs.to(accumulation_dtype(outputs.dtype))
            return nn.functional.cross_entropy(wide, drawn, reduction="none")

        capture_modules(self.model, self.inputs[list(members)], names, loss, consume)
        return found[0]


def capture_modules(model, inputs: Tensor, names: Sequence[str], loss, consume: LayerConsumer) -> Tensor:  # type: ignore[no-untyped-def]
    """One forward and backward pass over frozen weights; hands the factors of the named layers to `consume`.

    `loss` maps outputs [B, ...] to losses [B], which are returned. Errors (UserError): a layer that runs twice.
    """
    seen: set[str] = set()
    roots: list[Tensor] = []

    def receive(path: str, module: nn.Module, arrived: Tensor, delta: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            a, d = conv_patches(arrived, module), delta.flatten(2).transpose(1, 2)
        else:
            a, d = arrived.reshape(len(arrived), -1, arrived.shape[-1]), delta.reshape(len(delta), -1, delta.shape[-1])
        consume([path], [LinearFactors(a, d, module.bias is not None)], None)

    def watch(path: str, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        if path in seen:
            raise UserError(f"layer '{path}' runs more than once in a pass, which has no factor rule; leave it out")
        seen.add(path)
        if not output.requires_grad:
            root = output.detach().requires_grad_()
            roots.append(root)
            output = root.clone()  # a leaf may not be changed in place, as an in-place ReLU would
        output.register_hook(partial(receive, path, module, arguments[0].detach()))
        return output

    with torch.enable_grad(), _hooked(model, names, watch):
        losses = loss(model(send(inputs, next(model.parameters()).device)))
        torch.autograd.grad(losses.sum(), roots)
    return losses.detach()


@contextlib.contextmanager
def _hooked(model: nn.Module, names: Sequence[str], watch) -> Iterator[None]:  # type: ignore[no-untyped-def]
    handles = [model.get_submodule(path).register_forward_hook(partial(watch, path)) for path in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
