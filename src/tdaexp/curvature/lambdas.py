"""Λ: the mean over examples of the squared per-example gradient in the Kronecker eigenbasis.

Source: Bao et al. 2025, equation 6 (George et al. 2018). Per example G = Σ_t δ_t a_tᵀ is summed over the example's
tokens first, then G' = Q_Sᵀ G Q_A is squared. A side is rotated before or after G is formed, whichever is fewer
operations: the T vectors of one side, or G itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdaexp.runtime.accumulation import accumulation_dtype, wide_bmm
from tdaexp.runtime.rehearsal import repeated, sampled

CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Explicit gradients at a time: what a CPU's cache holds, what fills a GPU."""


def add_rotated_squares(
    total: Tensor, inputs: Tensor, deltas: Tensor, bias: bool, q_in: Tensor | None, q_out: Tensor | None
) -> None:
    """Add Σ_i (Q_Sᵀ G_i Q_A)² to `total` [O, I] for B examples with T positions each.

    `inputs` [B, T, I] without the bias's constant (with `bias`, I of `total` and q_in is one larger), `deltas` [B, T,
    O]; all of one dtype. `q_in` [I, I] and `q_out` [O, O] have eigenvectors as columns; None is the identity.
    """
    examples, positions = deltas.shape[:2]
    outputs, width = total.shape
    early_out, early_in = positions < width, positions < outputs
    if q_out is not None and early_out:
        deltas = (deltas.flatten(0, 1) @ q_out).view(examples, positions, outputs)
    if q_in is not None and early_in:
        inputs, bias = rotate_inputs(inputs, bias, q_in), False
    step = max(1, CHUNK_BYTES.get(total.device.type, CHUNK_BYTES["cpu"]) // (total.element_size() * total.numel()))
    for start in sampled(range(0, examples, step), lambda start: min(step, examples - start), lambda _: 1):
        part = slice(start, start + step)
        gradient = form(inputs[part], deltas[part], bias)
        if q_in is not None and not early_in:
            gradient = gradient @ q_in
        if q_out is not None and not early_out:
            gradient = q_out.T @ gradient
        for one in repeated(gradient.unbind()):
            total.addcmul_(one, one)


def rotate_inputs(inputs: Tensor, bias: bool, q_in: Tensor) -> Tensor:
    """Inputs [B, T, I] (without the constant) in the eigenbasis, [B, T, I + bias]."""
    flat = inputs.flatten(0, 1)
    rotated = torch.addmm(q_in[-1], flat, q_in[:-1]) if bias else flat @ q_in
    return rotated.view(*inputs.shape[:2], -1)


def form(inputs: Tensor, deltas: Tensor, bias: bool) -> Tensor:
    """Explicit gradients [B, O, I + bias] of B examples, Σ_t δ_t a_tᵀ with the bias's column last; float32 at least."""
    if not bias:
        return wide_bmm(deltas.transpose(1, 2), inputs)
    examples, _, width = inputs.shape
    wide = accumulation_dtype(deltas.dtype)
    gradient = inputs.new_empty(examples, deltas.shape[2], width + 1, dtype=wide)
    wide_bmm(deltas.transpose(1, 2), inputs, out=gradient[..., :width])
    gradient[..., width] = deltas.to(wide).sum(1)
    return gradient
