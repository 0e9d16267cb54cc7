"""Kernel against regularisation as ExPLAIND's plot draws it, beside what the text defines (Figure 3a, bottom right).

The text's D is Ψ − Ψ^reg of a whole layer, signed. The authors' program (experiments/plots/plot_kernel_reg_balance.py)
draws Σ_{x, i} (|Ψ_s(θ_i, x)| − |Ψ^reg_s(θ_i, x)|) at every 50th step, over queries x and single parameters i, outputs
(log-probabilities) summed before; and i runs over the last tensor of each layer alone, since its loop over a layer's
tensors leaves the last one's value: the last head of the attention, the biases of linear 1 and 2. Derivatives are taken
in the middle of the step. Where the value is below zero, regularisation acts more than the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from tdaexp.data.tensors import TensorExamples
from tdaexp.models.discovery import discovered
from tdaexp.pathkernel.parameters import Layout, between
from tdaexp.paths.replay import Parts, step_of
from tdaexp.runtime.progress import track
from tdaexp.training.task import TrainedTask


def plotted_balance(task: TrainedTask, queries: TensorExamples, steps: Sequence[int], heads: int) -> pd.DataFrame:
    """Rows of `step`, `component`: `plotted`, of the last tensor alone, and `whole`, of all of the component's.

    `heads` of the attention: its last tensor is the last head's rows (q, k, v) or columns (o).
    """
    module, trajectory = task.module.to("cpu"), task.trajectory
    members = discovered(module).members(module)
    layout = Layout.of(dict(module.named_parameters()), {name: tuple(own) for name, own in members.items()})
    parts, rows = Parts(trajectory, layout), []

    def summed(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        logits = functional_call(module, dict(parameters), (inputs[None],))
        total: Tensor = logits.log_softmax(-1).sum()
        return total

    slopes = vmap(grad(summed), in_dims=(None, 0))
    for number in track(steps, "kernel and regularisation by parameter", len(steps)):
        step = step_of(trajectory, number, torch.float32, torch.device("cpu"))
        split = {name: layout.named(direction) for name, direction in parts.split(step).items()}
        found = slopes(between(step, 0.5), queries.inputs)
        for component, names in members.items():
            tensors = [
                (found[name] * split["kernel"][name]).abs() - (found[name] * split["regularisation"][name]).abs()
                for name in names
            ]
            rows.append(
                {
                    "step": number,
                    "component": component,
                    "plotted": float(_last(component, names, tensors, heads).sum()),
                    "whole": float(sum(tensor.sum() for tensor in tensors)),
                }
            )
    return pd.DataFrame(rows)


def _last(component: str, names: Sequence[str], tensors: Sequence[Tensor], heads: int) -> Tensor:
    """Of values [Q, *shape] of a component's tensors those of the one that the program's loop ends at."""
    if ".attn." not in component:
        biases = [tensor for name, tensor in zip(names, tensors, strict=True) if name.endswith("bias")]
        return biases[-1] if biases and ".mlp." in component else tensors[0]
    weight = tensors[0]  # where there is a bias: their program has none in the attention
    axis = 2 if component.endswith(".o") else 1
    return weight.narrow(axis, weight.shape[axis] - weight.shape[axis] // heads, weight.shape[axis] // heads)


def plotted_numbers(table: pd.DataFrame, memorised: float) -> dict[str, float]:
    """By component, means over steps: `plotted/…` and `plotted_whole/…`, and until memorised `plotted_memorising/…`."""
    found: dict[str, float] = {}
    for component, part in table.groupby("component", sort=False):
        found[f"plotted/{component}"] = float(part["plotted"].mean())
        found[f"plotted_whole/{component}"] = float(part["whole"].mean())
        found[f"plotted_memorising/{component}"] = float(part["plotted"][part["step"] <= memorised].mean())
    return found
