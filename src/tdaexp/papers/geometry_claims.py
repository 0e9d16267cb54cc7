"""What ExPLAIND says about cyclic geometry (Eichin et al. 2026, section 5.2), held against a run's numbers.

Thresholds are those of `grokking_claims`.
"""

from __future__ import annotations

from tdaexp.papers.grokking_claims import DOUBLED, STRONGLY, layer, said, two
from tdaexp.papers.grokking_numbers import MIDDLE
from tdaexp.papers.grokking_windows import CYCLIC
from tdaexp.papers.verdicts import Claim, Numbers, Reading, key
from tdaexp.report.findings import Statement

FITS = 0.25  # R² from which on a Lasso says what a similarity is about: below it the largest of its waves is noise
FITS_BETTER = 0.05  # in R², from which on one Lasso explains more than another


def _emergence(n: Numbers) -> Statement:
    claim = "Cyclic patterns emerge in the decoder's train × test influences, and sharpen."
    first, last = (n[f"{place}/influence_cyclic/lm_head"] for place in ("first", "last"))
    text = (
        f"Among pairs of different residues, the difference explains {two(first)} of the variance in the first window "
        f"and {two(last)} in the last; what a training example does to all queries alike, "
        f"{two(n['first/bands/lm_head'])} and {two(n['last/bands/lm_head'])}."
    )
    return said(claim, last > CYCLIC and last > DOUBLED * first, text)


def _layers(n: Numbers) -> Statement:
    claim = "In the end the cyclic geometry is that of the layers from the attention decoder on."
    prefix = "last/similarity_cyclic/"
    shares = {key.removeprefix(prefix): value for key, value in n.items() if key.startswith(prefix)}
    below = max(
        v for name, v in shares.items() if name == "embed" or (name.startswith("layers.0.attn.") and name != MIDDLE[0])
    )
    above = min(v for name, v in shares.items() if name in (*MIDDLE, "lm_head"))
    told = ", ".join(f"{layer(name)} {two(value)}" for name, value in shares.items())
    text = f"Share of the similarity's variance that the difference of residues explains, last window: {told}."
    return said(claim, above > below and above > CYCLIC and max(shares.values()) > STRONGLY, text)


def _coarser(n: Numbers) -> Statement:
    claim = "The cycles of the decoder's influences go from high to low frequency."
    first, last = (n[f"{place}/influence_cycles/lm_head"] for place in ("emerged", "last"))
    if first != first:
        return said(claim, False, "The decoder's influences are cyclic in no window.")
    text = (
        f"Mean cycles within the modulus, weighted by power: {first:.1f} when they first are cyclic, {last:.1f} in the "
    )
    text += "last window."
    upper, end = (n[f"{place}/similarity_cycles/layers.0.mlp.down"] for place in ("emerged", "last"))
    text += f" Of linear 2's similarity: {upper:.1f} and {end:.1f}." if upper == upper else ""
    return said(claim, last < 0.9 * first, text)


def _cosine(n: Numbers) -> Statement:
    claim = "Similarity is about a cosine with the modulus as its period."
    text = (
        f"A Lasso on periods 2 to {n['lasso_modulus']:.0f} gives the largest coefficient, "
        f"{n['lasso_coefficient']:.3f}, to the period {n['lasso_period']:.0f} (R² {n['lasso_r2']:.2f}); the modulus "
        f"itself has {n['lasso_modulus_coefficient'] + 0.0:.3f}."
    )
    return said(claim, n["lasso_period"] == n["lasso_modulus"] and n["lasso_r2"] >= FITS, text)


def _harmonics(n: Numbers) -> Statement:
    claim = "Beside the paper: which waves that close around the modulus make up the similarity."
    text = (
        f"A Lasso on waves of whole numbers of cycles within the modulus needs {n['waves_count']:.0f} of them for an "
        f"R² of {n['waves_r2']:.2f}; the largest has {n['waves_cycles']:.0f} cycles."
    )
    return Statement(claim, text)  # ours, where the paper's Lasso has whole periods: nothing to reproduce


def _coarsening(n: Numbers) -> float:
    return n["last/influence_cycles/lm_head"] / n["emerged/influence_cycles/lm_head"]


CLAIMS = [
    Claim("emergence", "cyclic share of the decoder's influence", key("last/influence_cyclic/lm_head"), _emergence),
    Claim("layers", "cyclic share of linear 2's similarity", key("last/similarity_cyclic/layers.0.mlp.down"), _layers),
    Claim("coarser", "the decoder's mean cycles, last over first cyclic window", _coarsening, _coarser),
    Claim(
        "cosine",
        "the Lasso's coefficient of the modulus",
        key("lasso_modulus_coefficient"),
        _cosine,
        (
            Reading(
                "of waves with whole numbers of cycles within the modulus: of the Lasso's periods the modulus alone "
                "closes around it, so that it sees the nearest ones",
                lambda n: n["waves_r2"] > n["lasso_r2"] + FITS_BETTER,
            ),
        ),
    ),
    Claim("harmonics", "R² of waves within the modulus", key("waves_r2"), _harmonics),
]
