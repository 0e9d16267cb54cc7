"""What ExPLAIND says about layers put into other models (Eichin et al. 2026, Figures 3b, 10 and 11), held against
this run's numbers. Thresholds are those of `grokking_claims`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from tdaexp.papers.grokking_claims import HELPS, LAG, LATE, said
from tdaexp.papers.grokking_numbers import LEARNED
from tdaexp.papers.verdicts import GOOD, Claim, Numbers, Reading, key
from tdaexp.report.findings import Statement


def claims_of(outer: str, pipelines: Sequence[str], donors: Sequence[int], rest: Mapping[str, str]) -> list[Claim]:
    """Claims on the swap of the `outer` layers, and on new trainings around the `pipelines`, the first the main one.

    Grafts are named by the layers that are kept from the trained model. `rest` names to a graft the one of all other
    layers: the authors' program (experiments/retrain_pipeline) keeps the layers that its function is told to ignore,
    and its plot names a training by the others, so that a finding may hold with the labels exchanged.
    """
    last, earlier = donors[0], donors[1:]
    found = [
        Claim(
            "swap", "best gain of the final outer layers", key(f"swap_best/{outer}"), partial(_swap, outer, pipelines)
        ),
        Claim("errors", "change of the commonest error's share", _less_systematic, partial(_errors, outer)),
    ]
    for graft in pipelines:
        about = f"test accuracy around the final {graft}"
        end, states = key(f"retrained_end/{graft}/{last}"), partial(_at_once, graft, last)
        found.append(Claim(f"at_once/{graft}", about, end, states, _exchanged(rest, graft, last, _at_once)))
    if earlier:
        main, about = pipelines[0], f"test accuracy around {pipelines[0]} of step {earlier[0]}"
        end, states = key(f"retrained_end/{main}/{earlier[0]}"), partial(_earlier, main, last, earlier)
        found.append(Claim("earlier", about, end, states))
    about, end = "test accuracy around the final outer layers", key(f"retrained_end/{outer}/{last}")
    readings = _exchanged(rest, outer, last, _contrast)
    return [*found, Claim("contrast", about, end, partial(_contrast, outer, last), readings)]


def _less_systematic(n: Numbers) -> float:
    return n["systematic_swapped"] - n["systematic"]


def _exchanged(
    rest: Mapping[str, str], graft: str, donor: int, states: Callable[[str, int, Numbers], Statement]
) -> tuple[Reading, ...]:
    """The claim of the graft of all other layers."""
    if graft not in rest:
        return ()
    words = f"of {rest[graft]}: with the labels exchanged"
    return (Reading(words, lambda n: states(rest[graft], donor, n).tone == GOOD),)


def _swap(outer: str, others: Sequence[str], n: Numbers) -> Statement:
    claim = "The final model's outer layers improve earlier checkpoints, other layers harm them."
    told = ", ".join(
        f"{graft} {n[f'swap_best/{graft}']:+.2f} (mean {n[f'swap_mean/{graft}']:+.2f})" for graft in others
    )
    text = (
        f"Final {outer}: up to {n[f'swap_best/{outer}']:+.2f} test accuracy, at step {n[f'swap_step/{outer}']:.0f} "
        f"(mean over checkpoints {n[f'swap_mean/{outer}']:+.2f}). {told[:1].upper()}{told[1:]}."
    )
    harmed = all(n[f"swap_mean/{graft}"] <= 0 for graft in others)
    return said(claim, n[f"swap_best/{outer}"] >= HELPS and harmed, text)


def _errors(outer: str, n: Numbers) -> Statement:
    claim = "The swap removes systematic, cyclic errors."
    text = (
        f"At step {n[f'swap_step/{outer}']:.0f} the commonest wrong difference of residues takes {n['systematic']:.3f} "
        f"of the answers, with the final {outer} {n['systematic_swapped']:.3f}."
    )
    return said(claim, n["systematic_swapped"] < n["systematic"], text)


def _at_once(graft: str, donor: int, n: Numbers) -> Statement:
    claim = f"A new model around the final {graft} generalises at once."
    end, lag, step = (n[f"retrained_{key}/{graft}/{donor}"] for key in ("end", "lag", "step"))
    when = f"is {LEARNED} at step {step:.0f}" if step == step else f"does not reach {LEARNED}"
    text = (
        f"Its test accuracy {when} and ends at {end:.3f} after {n['retrain_steps']:.0f} steps; it lags the training "
        f"accuracy by {lag:.2f} at most. Without a graft the test accuracy is {n['usual_test']:.3f} by then."
    )
    return said(claim, step < n["memorised"] and lag < LAG, text)


def _earlier(graft: str, last: int, earlier: Sequence[int], n: Numbers) -> Statement:
    claim = f"{graft[:1].upper()}{graft[1:]} of earlier checkpoints also speed generalisation up, to a lower accuracy."
    told = ", ".join(f"step {donor}: {n[f'retrained_end/{graft}/{donor}']:.3f}" for donor in (last, *earlier))
    ends = [n[f"retrained_end/{graft}/{donor}"] for donor in (last, *earlier)]
    # the checkpoint next to the last has to be well above what a training from nothing has by then
    good = ends[1] > n["usual_test"] + LAG and all(one >= other for one, other in pairwise(ends))
    return said(claim, good, f"Test accuracy in the end, by donor: {told}; without a graft {n['usual_test']:.3f}.")


def _contrast(outer: str, donor: int, n: Numbers) -> Statement:
    claim = "The outer layers alone do not bring generalisation: the pipeline is in the middle."
    end = n[f"retrained_end/{outer}/{donor}"]
    steps = f"{n['retrain_steps']:.0f} steps"
    text = f"A new model around the final {outer} ends at a test accuracy of {end:.3f} after {steps}."
    return said(claim, end < LATE, text)
