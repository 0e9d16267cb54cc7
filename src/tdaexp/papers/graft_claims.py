"""What ExPLAIND says about layers put into other models (Eichin et al. 2026, Figures 3b, 10 and 11), held against
this run's numbers. Thresholds are those of `grokking_claims`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tdaexp.papers.grokking_claims import HELPS, LAG, LATE, Numbers
from tdaexp.papers.grokking_numbers import LEARNED
from tdaexp.report.findings import Statement


def claims(n: Numbers, outer: str, pipelines: Sequence[str], donors: Sequence[int]) -> list[Statement]:
    """Statements on the swap of the `outer` layers, and on new trainings around the `pipelines`, the first the main."""
    last, earlier = donors[0], donors[1:]
    found = [_swap(n, outer, pipelines), _errors(n, outer)]
    found += [_at_once(n, graft, last) for graft in pipelines]
    if earlier:
        found.append(_earlier(n, pipelines[0], last, earlier))
    return [*found, _contrast(n, outer, last)]


def _said(claim: str, good: bool, text: str) -> Statement:
    return Statement(claim, text, "good" if good else "bad")


def _swap(n: Numbers, outer: str, others: Sequence[str]) -> Statement:
    claim = "The final model's outer layers improve earlier checkpoints, other layers harm them."
    told = ", ".join(
        f"{graft} {n[f'swap_best/{graft}']:+.2f} (mean {n[f'swap_mean/{graft}']:+.2f})" for graft in others
    )
    text = (
        f"Final {outer}: up to {n[f'swap_best/{outer}']:+.2f} test accuracy, at step {n[f'swap_step/{outer}']:.0f} "
        f"(mean over checkpoints {n[f'swap_mean/{outer}']:+.2f}). {told[:1].upper()}{told[1:]}."
    )
    harmed = all(n[f"swap_mean/{graft}"] <= 0 for graft in others)
    return _said(claim, n[f"swap_best/{outer}"] >= HELPS and harmed, text)


def _errors(n: Numbers, outer: str) -> Statement:
    claim = "The swap removes systematic, cyclic errors."
    text = (
        f"At step {n[f'swap_step/{outer}']:.0f} the commonest wrong difference of residues takes {n['systematic']:.3f} "
        f"of the answers, with the final {outer} {n['systematic_swapped']:.3f}."
    )
    return _said(claim, n["systematic_swapped"] < n["systematic"], text)


def _at_once(n: Numbers, graft: str, donor: int) -> Statement:
    claim = f"A new model around the final {graft} generalises at once."
    end, lag, step = (n[f"retrained_{key}/{graft}/{donor}"] for key in ("end", "lag", "step"))
    when = f"is {LEARNED} at step {step:.0f}" if step == step else f"does not reach {LEARNED}"
    text = (
        f"Its test accuracy {when} and ends at {end:.3f} after {n['retrain_steps']:.0f} steps; it lags the training "
        f"accuracy by {lag:.2f} at most. Without a graft the test accuracy is {n['usual_test']:.3f} by then."
    )
    return _said(claim, step < n["memorised"] and lag < LAG, text)


def _earlier(n: Numbers, graft: str, last: int, earlier: Sequence[int]) -> Statement:
    claim = f"{graft[:1].upper()}{graft[1:]} of earlier checkpoints also speed generalisation up, to a lower accuracy."
    told = ", ".join(f"step {donor}: {n[f'retrained_end/{graft}/{donor}']:.3f}" for donor in (last, *earlier))
    ends = [n[f"retrained_end/{graft}/{donor}"] for donor in (last, *earlier)]
    # the checkpoint next to the last has to be well above what a training from nothing has by then
    good = ends[1] > n["usual_test"] + LAG and all(one >= other for one, other in pairwise(ends))
    return _said(claim, good, f"Test accuracy in the end, by donor: {told}; without a graft {n['usual_test']:.3f}.")


def _contrast(n: Numbers, outer: str, donor: int) -> Statement:
    claim = "The outer layers alone do not bring generalisation: the pipeline is in the middle."
    end = n[f"retrained_end/{outer}/{donor}"]
    steps = f"{n['retrain_steps']:.0f} steps"
    text = f"A new model around the final {outer} ends at a test accuracy of {end:.3f} after {steps}."
    return _said(claim, end < LATE, text)
