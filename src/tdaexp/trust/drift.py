"""Do the same pairs keep their products in other batches, and in a wider floating-point type?"""

from __future__ import annotations

import copy

import torch
from torch import nn

from tdaexp.runtime.oom_split import out_of_memory
from tdaexp.trust.check import Bounds, Check, NotMeasured, judged
from tdaexp.trust.probe import Allowance, Found, Probe, drift

BOUNDS = {
    torch.float64: Bounds(1e-6, 1e-2),
    torch.float32: Bounds(1e-4, 1e-2),
    torch.bfloat16: Bounds(3e-2, 0.3),
}
"""Of a drift, by the type that the passes are run in."""
MOVED = {
    "good": "",
    "open": ": more than rounding usually is",
    "bad": ": an example's gradient depends on which others share its batch (a layer that mixes the batch, padding "
    "that is read), so its scores do too",
}
WIDER = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
SHORT = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


def type_of(probe: Probe) -> torch.dtype:
    """What passes are run in. Errors (NotMeasured): another type than the three that are known."""
    found: torch.dtype = next(probe.train.model.parameters()).dtype
    if found not in BOUNDS:
        raise NotMeasured(f"there are no bounds for {str(found).removeprefix('torch.')}")
    return found


def batch_drift(probe: Probe, allowance: Allowance) -> Check:
    """The pairs' products of gradients, each example alone in its batch, against all of them together."""
    train, queries = (side.batches(probe.tokens_per_batch) for side in (probe.train, probe.queries))
    if max(map(len, [*train, *queries])) < 2:
        raise NotMeasured("no two of the examples fit a batch (trainer.tokens_per_batch), so none had companions")
    bounds = BOUNDS[type_of(probe)]
    allowance.spend(2 * probe.positions)
    value, place = drift(probe.products(alone=False), probe.alone, probe.train.components.names)
    moved = MOVED[bounds.verdict(value)]
    says = f"In other batches the same pairs' products change by {value:.2g} of their norms at most, in {place}{moved}."
    return judged("batch_drift", value, bounds, says, f"{_pairs(probe)}: one example a batch, against several together")


def precision_drift(probe: Probe, allowance: Allowance, cache_gb: float) -> Check:
    """The pairs' products of gradients in the run's type, against a copy of the model in the next wider one.

    The copy may take `cache_gb`, which holds nothing else by now.
    """
    own = type_of(probe)
    if own not in WIDER:
        raise NotMeasured("float64 is the widest type there is")
    wide, models = WIDER[own], list(dict.fromkeys([probe.train.model, probe.queries.model]))
    room = sum(one.numel() for model in models for one in model.parameters()) * wide.itemsize
    if room > cache_gb * 1e9:
        raise NotMeasured(
            f"a copy of the model in {SHORT[wide]} takes {room / 1e9:.2g} GB, more than trainer.cache_gb={cache_gb:g}"
        )
    allowance.spend((2 if wide == torch.float64 else 1) * probe.positions)
    value, place = drift(probe.alone, _widened(probe, models, wide), probe.train.components.names)
    moved = "" if BOUNDS[own].verdict(value) == "good" else f"; try trainer.precision={SHORT[wide]}"
    says = (
        f"{SHORT[own]} moves the same pairs' products by {value:.2g} of their norms at most, in {place}, against "
        f"{SHORT[wide]}{moved}."
    )
    how = f"{_pairs(probe)} in {SHORT[own]}, against a copy of the model in {SHORT[wide]}; curvature is not looked at"
    return judged("precision_drift", value, BOUNDS[own], says, how)


def _widened(probe: Probe, models: list[nn.Module], wide: torch.dtype) -> Found:
    """The products on copies of the models. Errors (NotMeasured): the module cannot be copied, or run in that type."""
    try:
        copies = {model: copy.deepcopy(model).to(wide) for model in models}
        return probe.on(copies).products()
    except (RuntimeError, TypeError) as error:  # a module's own code may know one type alone, or hold what has no copy
        if out_of_memory(error):
            raise
        told = " ".join(str(error).split())[:200]
        raise NotMeasured(f"the model does not run as a copy in {SHORT[wide]} ({told})") from error


def _pairs(probe: Probe) -> str:
    return f"{len(probe.queries) * len(probe.train)} pairs of gradients ({len(probe.queries)} queries × " + (
        f"{len(probe.train)} of their candidates, short and long)"
    )
