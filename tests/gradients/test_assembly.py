"""Layers as matrices: a convolution's patches."""

from __future__ import annotations

import torch
from torch import nn

from tdaexp.gradients.assembly import conv_patches


def test_patches_turn_a_convolution_into_a_matrix_product():
    conv = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 2)).double()
    x = torch.randn(4, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = conv_patches(x, conv) @ conv.weight.flatten(1).T + conv.bias
    torch.testing.assert_close(found.transpose(1, 2).reshape(conv(x).shape), conv(x))
