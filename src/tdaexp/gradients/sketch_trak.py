"""The projection of the Select-or-Project paper (section 3.4): traker's projectors, one per component.

On CUDA with the package `fast_jl` this is traker's `CudaProjector`, elsewhere its `BasicProjector`. Both
leave out the factor 1/sqrt(k), which is put in here. Cost O(k numel) per example, plus drawing the whole k
x numel matrix again for every batch, which on a CPU is most of the time. traker draws on the device, so
that this sketch, unlike the others, differs between CPU and CUDA.

Around traker 0.3.2's faults: a projector of one block (100 dimensions or fewer) cannot be used again after it has freed
its matrix, so none is kept between calls; seeds of neighbouring model ids overlap, so the id stays 0 and the seed
carries the component; the CUDA kernel computes in float16, so each gradient is scaled to a largest entry of 1 first.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math

import torch
from torch import Tensor

from tdaexp.gradients.sketch import Sketch, working_dtype
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
SEED_RANGE = 2**31  # the CUDA kernel takes 32 bits, and BasicProjector adds 1,000 per block
BLOCK_COLUMNS = 100  # BasicProjector's own default
BLOCK_ENTRIES = 2**28  # the most entries of a block: 1 GiB in float32
CUDA_MULTIPLE = 512  # fast_jl's tile: other widths are refused or written out of bounds
CUDA_BATCH = 32


class TrakSketch(Sketch):
    """traker's projection of a gradient of any shape; the entries are "rademacher" or "normal".

    On CUDA with fast_jl, `dim` must be a multiple of 512 (UserError at the first projection otherwise).
    """

    def __init__(self, shape: tuple[int, int], dim: int, seed: int, distribution: str = "rademacher"):
        super().__init__(shape, dim)
        self.seed = seed % SEED_RANGE
        self.distribution = distribution
        self.block_columns = min(BLOCK_COLUMNS, max(1, BLOCK_ENTRIES // self.numel))

    def _project(self, gradient: Tensor) -> Tensor:
        if gradient.is_cuda and has_fast_jl():
            return self._project_cuda(gradient)
        from trak.projectors import BasicProjector, ProjectionType

        dtype = working_dtype(gradient)
        projector = BasicProjector(
            grad_dim=self.numel,
            proj_dim=self.dim,
            seed=self.seed,
            proj_type=ProjectionType(self.distribution),
            device=gradient.device,
            block_size=self.block_columns,
            dtype=dtype,
        )
        sketch: Tensor = projector.project(gradient.to(dtype), model_id=0) / math.sqrt(self.dim)
        return sketch

    def _project_cuda(self, gradient: Tensor) -> Tensor:
        from trak.projectors import CudaProjector, ProjectionType

        if self.dim % CUDA_MULTIPLE:
            raise UserError(
                f"projection=trak: {self.dim} dimensions for a component, but traker's CUDA kernel needs "
                f"a multiple of {CUDA_MULTIPLE}; use the dimension rule 'paper', or projection=srht"
            )
        kind = ProjectionType(self.distribution)
        projector = CudaProjector(self.numel, self.dim, self.seed, kind, gradient.device, CUDA_BATCH)
        largest = gradient.abs().amax(1, keepdim=True).float()
        # A gradient of zeros stays one: dividing by 1 instead of 0.
        largest = torch.where(largest > 0, largest, 1.0)
        scaled = (gradient.float() / largest).contiguous()
        sketch: Tensor = projector.project(scaled, model_id=0) * (largest / math.sqrt(self.dim))
        return sketch


@functools.cache
def has_fast_jl() -> bool:
    """Tell whether traker's CUDA kernel is installed, and say once what happens when it is not."""
    if importlib.util.find_spec("fast_jl"):
        return True
    log.warning("projection=trak: fast_jl is not installed; using traker's BasicProjector on the GPU (slower)")
    return False
