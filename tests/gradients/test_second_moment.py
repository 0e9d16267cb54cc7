"""The mean of squared gradients against autograd, one example at a time, and what is kept of it."""

from __future__ import annotations

import pytest
import torch
from module_oracle import autograd_one_by_one, component_vector, gradients_of_module, odd_module

from tdaexp.gradients import second_moment as tested
from tdaexp.gradients.second_moment import second_moment
from tdaexp.runtime.blockstore import BlockStore


@pytest.mark.parametrize(("tokens", "chunk"), [(4096, 1 << 28), (4, 64)])
def test_it_is_the_mean_of_squares_and_a_pass_is_made_once(tokens, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(tested, "CHUNK_BYTES", chunk)
    module, examples = odd_module("norms")
    side = gradients_of_module(module, examples)
    rows, _ = autograd_one_by_one(module, examples)
    wanted = torch.stack(
        [torch.cat([component_vector(module, one, row) for one in side.components.components]) for row in rows]
    )
    module.requires_grad_(False)
    found = second_moment(side, store=tmp_path / "s", tokens_per_batch=tokens)
    torch.testing.assert_close(found, wanted.square().mean(0), rtol=1e-10, atol=1e-14)
    monkeypatch.setattr(BlockStore, "write", None)  # a block that is written again would fail
    torch.testing.assert_close(
        second_moment(side, store=tmp_path / "s", tokens_per_batch=tokens), found, rtol=0, atol=0
    )
