"""What ExPLAIND says about grokking (Eichin et al. 2026, section 5), held against this run's numbers.

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

from collections.abc import Mapping

from tdaexp.papers.grokking_numbers import LAYERS, LEARNED, MIDDLE
from tdaexp.papers.grokking_windows import CYCLIC
from tdaexp.report.findings import Statement

LATE, TOGETHER, DECLINED, STRONGLY, DOUBLED, HELPS, LAG = 0.5, 0.9, 0.8, 0.5, 2.0, 0.15, 0.5
EXACT = 1e-3  # nats
OUTER = ("embed", "lm_head")
Numbers = Mapping[str, float]


def claims(numbers: Numbers) -> list[Statement]:
    """A statement for each claim, in the paper's order; `numbers` are the analysis's metrics."""
    return [
        _complete(numbers),
        _late(numbers),
        _together(numbers),
        _governed(numbers),
        _decoder(numbers),
        _middle(numbers),
        _outer(numbers),
        _embedding(numbers),
        _emergence(numbers),
        _layers(numbers),
        _coarser(numbers),
        _cosine(numbers),
        _harmonics(numbers),
    ]


def _said(claim: str, good: bool, text: str) -> Statement:
    return Statement(claim, text, "good" if good else "bad")


def _complete(n: Numbers) -> Statement:
    claim = "The sums over steps and layers reproduce the trained model."
    text = f"Predicted classes agree for a share of {n['agreement']:.4f}; KL divergence {n['kl']:.2g} nats."
    return _said(claim, n["agreement"] == 1 and n["kl"] < EXACT, text)


def _late(n: Numbers) -> Statement:
    claim = "The model memorises first and generalises late."
    if n["grokked"] != n["grokked"]:
        return _said(claim, False, f"Test accuracy never reached {LEARNED}; it ended at {n['test_at_the_end']:.3f}.")
    text = (
        f"Training accuracy is {LEARNED} at step {n['memorised']:.0f}, where test accuracy is "
        f"{n['test_when_memorised']:.2f}; test accuracy is {LEARNED} at step {n['grokked']:.0f}."
    )
    return _said(claim, n["test_when_memorised"] < LATE and n["grokked"] > n["memorised"], text)


def _together(n: Numbers) -> Statement:
    claim = "Kernel and regularisation influence grow together, peak before the end, and decline."
    text = (
        f"Rank correlation on the way up {n['rise_correlation']:.2f}; peaks at steps {n['kernel_peak']:.0f} and "
        f"{n['regularisation_peak']:.0f}; at the end {n['kernel_end']:.2f} and {n['regularisation_end']:.2f} of them."
    )
    declined = n["kernel_end"] < DECLINED and n["regularisation_end"] < DECLINED
    return _said(claim, n["rise_correlation"] > TOGETHER and declined, text)


def _governed(n: Numbers) -> Statement:
    claim = "Regularisation dominates the final phase."
    text = (
        f"Ψ̄ of regularisation over Ψ̄ of the kernel is {n['balance_memorising']:.2f} until memorised and "
        f"{n['balance_grokked']:.2f} once grokked."
    )
    return _said(claim, n["balance_grokked"] > max(1.0, n["balance_memorising"]), text)


def _decoder(n: Numbers) -> Statement:
    claim = "The decoder is the most influential layer for memorising."
    first, second = _largest(n, "share_memorising")[:2]
    text = (
        f"Until memorised, {_layer(first)} has the largest share of importance, {n[f'share_memorising/{first}']:.2f}; "
    )
    other = second if first == "lm_head" else "lm_head"
    text += f"{_layer(other)} has {n[f'share_memorising/{other}']:.2f}. The largest |D| then is that of "
    text += f"{_layer(_largest(n, 'difference_memorising')[0])}."
    return _said(claim, first == "lm_head", text)


def _middle(n: Numbers) -> Statement:
    claim = "The middle layers peak before the decoder does so a second time."
    steps = {name: n[f"peak/{name}"] for name in MIDDLE if f"peak/{name}" in n}
    told = ", ".join(f"{_layer(name)} {step:.0f}" for name, step in steps.items())
    text = (
        f"Largest importance at steps: {told}. The decoder has {n['decoder_peaks']:.0f} peaks, the last at step "
        f"{n['decoder_last_peak']:.0f}."
    )
    good = n["decoder_peaks"] >= 2 and all(step < n["decoder_last_peak"] for step in steps.values())
    return _said(claim, good and n["decoder_last_peak"] < n["last_step"] * 0.99, text)


def _outer(n: Numbers) -> Statement:
    claim = "Regularisation acts mainly on the embedding and the decoder."
    order = _largest(n, "share_regularisation")
    share = sum(n[f"share_regularisation/{name}"] for name in OUTER)
    told = ", ".join(f"{_layer(name)} {n[f'share_regularisation/{name}']:.2f}" for name in order)
    return _said(claim, set(order[:2]) == set(OUTER), f"They have {share:.2f} of its importance: {told}.")


def _embedding(n: Numbers) -> Statement:
    claim = "The embedding comes late: its share grows, and goes on growing while the other layers decline."
    before, after = n["share_memorising/embed"], n["share_grokked/embed"]
    growth = {name: n[f"growth_grokked/{name}"] for name in _largest(n, "growth_grokked")}
    others = max((value for name, value in growth.items() if name != "embed"), default=float("nan"))
    text = (
        f"Its share of importance is {before:.2f} until memorised and {after:.2f} once grokked; from then to the end "
        f"its importance changes by a factor of {growth.get('embed', float('nan')):.2f}, "
        f"the others' by up to {others:.2f}."
    )
    return _said(claim, after > before and growth.get("embed", 0.0) > 1 > others, text)


def _emergence(n: Numbers) -> Statement:
    claim = "Cyclic patterns emerge in the decoder's train × test influences, and sharpen."
    first, last = (n[f"{place}/influence_cyclic/lm_head"] for place in ("first", "last"))
    text = (
        f"Among pairs of different residues, the difference explains {_two(first)} of the variance in the first window "
        f"and {_two(last)} in the last; what a training example does to all queries alike, "
        f"{_two(n['first/bands/lm_head'])} and {_two(n['last/bands/lm_head'])}."
    )
    return _said(claim, last > CYCLIC and last > DOUBLED * first, text)


def _layers(n: Numbers) -> Statement:
    claim = "In the end the cyclic geometry is that of the layers from the attention decoder on."
    prefix = "last/similarity_cyclic/"
    shares = {key.removeprefix(prefix): value for key, value in n.items() if key.startswith(prefix)}
    below = max(
        v for name, v in shares.items() if name == "embed" or (name.startswith("layers.0.attn.") and name != MIDDLE[0])
    )
    above = min(v for name, v in shares.items() if name in (*MIDDLE, "lm_head"))
    told = ", ".join(f"{_layer(name)} {_two(value)}" for name, value in shares.items())
    text = f"Share of the similarity's variance that the difference of residues explains, last window: {told}."
    return _said(claim, above > below and above > CYCLIC and max(shares.values()) > STRONGLY, text)


def _coarser(n: Numbers) -> Statement:
    claim = "The cycles of the decoder's influences go from high to low frequency."
    first, last = (n[f"{place}/influence_cycles/lm_head"] for place in ("emerged", "last"))
    if first != first:
        return _said(claim, False, "The decoder's influences are cyclic in no window.")
    text = (
        f"Mean cycles within the modulus, weighted by power: {first:.1f} when they first are cyclic, {last:.1f} in the "
    )
    text += "last window."
    upper, end = (n[f"{place}/similarity_cycles/layers.0.mlp.down"] for place in ("emerged", "last"))
    text += f" Of linear 2's similarity: {upper:.1f} and {end:.1f}." if upper == upper else ""
    return _said(claim, last < 0.9 * first, text)


def _cosine(n: Numbers) -> Statement:
    claim = "Similarity is about a cosine with the modulus as its period."
    text = (
        f"A Lasso on periods 2 to {n['lasso_modulus']:.0f} gives the largest coefficient, "
        f"{n['lasso_coefficient']:.3f}, to the period {n['lasso_period']:.0f} (R² {n['lasso_r2']:.2f}); the modulus "
        f"itself has {n['lasso_modulus_coefficient'] + 0.0:.3f}."
    )
    return _said(claim, n["lasso_period"] == n["lasso_modulus"], text)


def _harmonics(n: Numbers) -> Statement:
    claim = "Beside the paper: which waves that close around the modulus make up the similarity."
    text = (
        f"A Lasso on waves of whole numbers of cycles within the modulus needs {n['waves_count']:.0f} of them for an "
        f"R² of {n['waves_r2']:.2f}; the largest has {n['waves_cycles']:.0f} cycles."
    )
    return Statement(claim, text)  # ours, where the paper's Lasso has whole periods: nothing to reproduce


def _largest(n: Numbers, kind: str) -> list[str]:
    """Components by a number, largest first."""
    own = {key.removeprefix(f"{kind}/"): value for key, value in n.items() if key.startswith(f"{kind}/")}
    return sorted((name for name in own if own[name] == own[name]), key=lambda name: -own[name]) or list(own)


def _two(value: float) -> str:
    """Two digits, without a sign before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _layer(name: str) -> str:
    return LAYERS.get(name, name)
