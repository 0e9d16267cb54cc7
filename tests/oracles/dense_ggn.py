"""The GGN as a matrix, from Jacobians by plain autograd, and small systems with known solutions."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from tdaexp.data.examples import Examples
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import ComponentMap


def dense_ggn(model: PreTrainedModel, components: ComponentMap, examples: Examples) -> torch.Tensor:
    """1/N Σ_i Σ_t Jᵀ (diag(p) - p pᵀ) J over the tokens with loss, one token at a time."""
    space = VectorSpace(model, components)
    names = list(space.parameters())
    values = [dict(model.named_parameters())[name] for name in names]
    total = torch.zeros(space.size, space.size, dtype=model.dtype)
    for value in values:
        value.requires_grad_(True)
    for example in examples:
        logits = model(torch.from_numpy(example.tokens)[None], use_cache=False).logits[0]
        for t in range(1, example.length):
            if not example.loss_mask[t]:
                continue
            each = torch.eye(logits.shape[1], dtype=logits.dtype)
            rows = torch.autograd.grad(logits[t - 1], values, each, retain_graph=True, is_grads_batched=True)
            jacobian = space.vectors(dict(zip(names, rows, strict=True)))
            p = torch.softmax(logits[t - 1].detach(), dim=0)
            total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    for value in values:
        value.requires_grad_(False)
    return total / len(examples)


def spd(size: int, low: float = 0.0, high: float = 3.0, seed: int = 0) -> torch.Tensor:
    """A random positive semi-definite float64 matrix with eigenvalues from `low` to `high`."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    return (basis * torch.linspace(low, high, size, dtype=torch.float64)) @ basis.T
