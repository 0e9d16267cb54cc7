"""The balance as the authors' plot draws it, against each parameter's own derivative and update."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tdaexp.data.modular_addition import ModularAddition
from tdaexp.models.grokking import Grokking
from tdaexp.papers.plotted_balance import plotted_balance, plotted_numbers
from tdaexp.training.settings import FitSettings
from tdaexp.training.task import trained_task

FIT = FitSettings(steps=6, batch_size=40, lr=1e-2, warmup=0, schedule="constant", clip=0.0, batches="epochs",
                  weight_decay=4.0, decay="all", record=1)  # fmt: skip
LAST = {"embed": "embed.weight", "layers.0.mlp.up": "layers.0.mlp.up.bias",
        "layers.0.mlp.down": "layers.0.mlp.down.bias", "lm_head": "lm_head.weight"}  # fmt: skip


@pytest.mark.parametrize("bias", ["mlp", "all"])
def test_values_are_those_of_single_parameters(tmp_path, bias):
    corpus = ModularAddition(train=40, test=20, modulus=11).load()
    model = Grokking(hidden=8, heads=2, inner=16, tied_heads=True, bias=bias)
    task = trained_task(model, corpus, FIT, cache_dir=tmp_path, seed=0)
    queries = corpus.test.select(range(3))
    table = plotted_balance(task, queries, [1, 4], heads=2).set_index(["step", "component"])
    for number in (1, 4):
        start, end = task.trajectory.parameters(number), task.trajectory.parameters(number + 1)
        sums: dict[str, dict[str, torch.Tensor]] = {}
        for row in range(3):
            module = model.build(corpus)
            module.load_state_dict({name: (start[name] + end[name]) / 2 for name in start})
            module(queries.inputs[row : row + 1]).log_softmax(-1).sum().backward()
            for name, parameter in module.named_parameters():
                decay = -FIT.lr * FIT.weight_decay * start[name]
                kernel = end[name] - start[name] - decay
                gap = (parameter.grad * kernel).abs() - (parameter.grad * decay).abs()
                sums[name] = sums.get(name, 0) + gap
        for component in ("embed", "layers.0.attn.qkv", "layers.0.attn.o", *list(LAST)[1:]):
            whole = sum(float(value.sum()) for name, value in sums.items() if name.startswith(component))
            if component in LAST:
                last = sums[LAST[component]]
            else:  # the second of two heads
                weight = sums[f"{component}.weight"]
                last = weight[:, 4:] if component.endswith(".o") else weight[4:]
            found = table.loc[(number, component)]
            assert found["whole"] == pytest.approx(whole, rel=1e-3, abs=1e-5)
            assert found["plotted"] == pytest.approx(float(last.sum()), rel=1e-3, abs=1e-5)


def test_numbers_are_means_over_steps():
    table = pd.DataFrame({"step": [0, 50], "component": "embed", "plotted": [1.0, -5.0], "whole": [2.0, 4.0]})
    found = plotted_numbers(table, memorised=20)
    assert found == {"plotted/embed": -2, "plotted_whole/embed": 3, "plotted_memorising/embed": 1}
    assert np.isnan(plotted_numbers(table, memorised=float("nan"))["plotted_memorising/embed"])
