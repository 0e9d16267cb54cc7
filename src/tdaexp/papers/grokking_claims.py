"""What ExPLAIND says about how grokking goes (Eichin et al. 2026, section 5.1), held against a run's numbers.

Thresholds, and why:

- The sums reproduce the model when every predicted class agrees and the KL divergence is below 0.001 nats; the paper's
  table has 1.0 and 0.0.
- Learned is an accuracy of 0.99. Generalisation is late when the test accuracy is below one half while the training
  examples are learned: the paper's is near zero then, a model that learns both at once has about as much of either.
- Two series grow together at a rank correlation of 0.9 on the way to their peaks; a series declined when it ends below
  0.8 of its peak, which is more than the wobble of the smoothed series (a few per cent).
- A share is dominant when it is the largest; what is said to grow has to be above 1 times its earlier value.
- A matrix is cyclic when, of pairs with different residues, their difference explains a tenth of its variance (noise:
  0.00 ± 0.01), a layer strongly so at one half; a structure emerged when its share at least doubled.
- A graft helps when it adds 0.15 to a checkpoint's test accuracy, the paper's own number; it harms when it does not
  help on the mean over checkpoints. A training generalises at once when its test accuracy is learned before the
  usual training has memorised, and never lags the training accuracy by one half.
"""

from __future__ import annotations

from collections.abc import Callable

from tdaexp.papers.grokking_numbers import LAYERS, LEARNED, MIDDLE
from tdaexp.papers.verdicts import BAD, GOOD, Claim, Numbers, Reading, key
from tdaexp.report.findings import Statement

LATE, TOGETHER, DECLINED, STRONGLY, DOUBLED, HELPS, LAG = 0.5, 0.9, 0.8, 0.5, 2.0, 0.15, 0.5
EXACT = 1e-3  # nats
OUTER = ("embed", "lm_head")


def said(claim: str, good: bool, text: str) -> Statement:
    """A statement that is good or bad."""
    return Statement(claim, text, GOOD if good else BAD)


def _complete(n: Numbers) -> Statement:
    claim = "The sums over steps and layers reproduce the trained model."
    text = f"Predicted classes agree for a share of {n['agreement']:.4f}; KL divergence {n['kl']:.2g} nats."
    return said(claim, n["agreement"] == 1 and n["kl"] < EXACT, text)


def _late(n: Numbers) -> Statement:
    claim = "The model memorises first and generalises late."
    if n["grokked"] != n["grokked"]:
        return said(claim, False, f"Test accuracy never reached {LEARNED}; it ended at {n['test_at_the_end']:.3f}.")
    text = (
        f"Training accuracy is {LEARNED} at step {n['memorised']:.0f}, where test accuracy is "
        f"{n['test_when_memorised']:.2f}; test accuracy is {LEARNED} at step {n['grokked']:.0f}."
    )
    return said(claim, n["test_when_memorised"] < LATE and n["grokked"] > n["memorised"], text)


def _together(n: Numbers) -> Statement:
    claim = "Kernel and regularisation influence grow together, peak before the end, and decline."
    text = (
        f"Rank correlation on the way up {n['rise_correlation']:.2f}; peaks at steps {n['kernel_peak']:.0f} and "
        f"{n['regularisation_peak']:.0f}; at the end {n['kernel_end']:.2f} and {n['regularisation_end']:.2f} of them."
    )
    declined = n["kernel_end"] < DECLINED and n["regularisation_end"] < DECLINED
    return said(claim, n["rise_correlation"] > TOGETHER and declined, text)


def _governed(n: Numbers) -> Statement:
    claim = "Regularisation dominates the final phase."
    text = (
        f"Ψ̄ of regularisation over Ψ̄ of the kernel is {n['balance_memorising']:.2f} until memorised and "
        f"{n['balance_grokked']:.2f} once grokked."
    )
    return said(claim, n["balance_grokked"] > max(1.0, n["balance_memorising"]), text)


def _decoder(n: Numbers) -> Statement:
    claim = "The decoder is the most influential layer for memorising."
    first, second = largest(n, "share_memorising")[:2]
    text = (
        f"Until memorised, {layer(first)} has the largest share of importance, {n[f'share_memorising/{first}']:.2f}; "
    )
    other = second if first == "lm_head" else "lm_head"
    text += f"{layer(other)} has {n[f'share_memorising/{other}']:.2f}. The largest |D| then is that of "
    text += f"{layer(largest(n, 'difference_memorising')[0])}."
    return said(claim, first == "lm_head", text)


def _middle(n: Numbers) -> Statement:
    claim = "The middle layers peak before the decoder does so a second time."
    steps = {name: n[f"peak/{name}"] for name in MIDDLE if f"peak/{name}" in n}
    told = ", ".join(f"{layer(name)} {step:.0f}" for name, step in steps.items())
    text = (
        f"Largest importance at steps: {told}. The decoder has {n['decoder_peaks']:.0f} peaks, the last at step "
        f"{n['decoder_last_peak']:.0f}."
    )
    good = n["decoder_peaks"] >= 2 and all(step < n["decoder_last_peak"] for step in steps.values())
    return said(claim, good and n["decoder_last_peak"] < n["last_step"] * 0.99, text)


def _outer(n: Numbers) -> Statement:
    claim = "Regularisation acts mainly on the embedding and the decoder."
    order = largest(n, "share_regularisation")
    share = sum(n[f"share_regularisation/{name}"] for name in OUTER)
    told = ", ".join(f"{layer(name)} {n[f'share_regularisation/{name}']:.2f}" for name in order)
    return said(claim, set(order[:2]) == set(OUTER), f"They have {share:.2f} of its importance: {told}.")


def _embedding(n: Numbers) -> Statement:
    claim = "The embedding comes late: its share grows, and goes on growing while the other layers decline."
    before, after = n["share_memorising/embed"], n["share_grokked/embed"]
    growth = {name: n[f"growth_grokked/{name}"] for name in largest(n, "growth_grokked")}
    others = max((value for name, value in growth.items() if name != "embed"), default=float("nan"))
    text = (
        f"Its share of importance is {before:.2f} until memorised and {after:.2f} once grokked; from then to the end "
        f"its importance changes by a factor of {growth.get('embed', float('nan')):.2f}, "
        f"the others' by up to {others:.2f}."
    )
    return said(claim, after > before and growth.get("embed", 0.0) > 1 > others, text)


def largest(n: Numbers, kind: str, size: Callable[[float], float] = float) -> list[str]:
    """Components by a number or its `size`, largest first. Errors (KeyError): the numbers have none of that kind."""
    own = {name.removeprefix(f"{kind}/"): value for name, value in n.items() if name.startswith(f"{kind}/")}
    if not own:
        raise KeyError(kind)
    return sorted((name for name in own if own[name] == own[name]), key=lambda name: -size(own[name])) or list(own)


def two(value: float) -> str:
    """Two digits, without a sign before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def layer(name: str) -> str:
    """The paper's name of a component."""
    return LAYERS.get(name, name)


def _outer_most(kind: str) -> Reading:
    """Regularisation exceeds the kernel most, or is exceeded least, in the outer layers, by the numbers of a plot."""
    words = {
        "plotted_whole": "of Σ(|Ψ| − |Ψ^reg|) over single parameters, which the paper's plot draws in place of D",
        "plotted": (
            "of Σ(|Ψ| − |Ψ^reg|) over the last tensor of each layer alone, as the paper's plot takes it: of linear 1 "
            "and 2 their biases, of the attention its last head"
        ),
    }
    return Reading(words[kind], lambda n: set(largest(n, kind)[-2:]) == set(OUTER))


CLAIMS = [
    Claim("complete", "KL divergence, nats", key("kl"), _complete),
    Claim("late", "test accuracy when memorised", key("test_when_memorised"), _late),
    Claim("together", "kernel's importance in the end, of its peak", key("kernel_end"), _together),
    Claim("governed", "regularisation over kernel, once grokked", key("balance_grokked"), _governed),
    Claim(
        "decoder",
        "the decoder's share of importance until memorised",
        key("share_memorising/lm_head"),
        _decoder,
        (
            Reading(
                "of |Σ(|Ψ| − |Ψ^reg|)| over the last tensor of each layer, as the paper's plot draws D",
                lambda n: largest(n, "plotted_memorising", size=abs)[0] == "lm_head",
            ),
        ),
    ),
    Claim("middle", "peaks of the decoder's importance", key("decoder_peaks"), _middle),
    Claim(
        "outer",
        "share of regularisation's importance in embedding and decoder",
        lambda n: sum(n[f"share_regularisation/{name}"] for name in OUTER),
        _outer,
        (_outer_most("plotted_whole"), _outer_most("plotted")),
    ),
    Claim("embedding", "the embedding's growth once grokked", key("growth_grokked/embed"), _embedding),
]
