"""What is said follows from the numbers: each number turned turns its statement, and no other."""

from __future__ import annotations

import pytest

from tdaexp.papers import graft_claims, grokking_claims
from tdaexp.papers.grokking_numbers import MIDDLE

LAYERS = ("embed", "layers.0.attn.qkv", *MIDDLE, "lm_head")


def paper() -> dict[str, float]:
    """Numbers under which every claim holds."""
    n = {"agreement": 1.0, "kl": 1e-6, "memorised": 800.0, "grokked": 1900.0, "test_when_memorised": 0.05,
         "test_at_the_end": 1.0, "rise_correlation": 0.98, "kernel_peak": 1700.0, "regularisation_peak": 1710.0,
         "kernel_end": 0.5, "regularisation_end": 0.6, "balance_memorising": 0.8, "balance_grokked": 1.3,
         "decoder_peaks": 2.0, "decoder_last_peak": 1700.0, "last_step": 2000.0, "lasso_modulus": 113.0,
         "lasso_period": 113.0, "lasso_coefficient": 0.11, "lasso_modulus_coefficient": 0.11, "lasso_r2": 0.7,
         "waves_count": 4.0, "waves_r2": 0.7, "waves_cycles": 1.0, "systematic": 0.05, "systematic_swapped": 0.01,
         "retrain_steps": 200.0, "usual_test": 0.0}  # fmt: skip
    for name in LAYERS:
        outer, upper = name in ("embed", "lm_head"), name in (*MIDDLE, "lm_head")
        n |= {f"peak/{name}": 1500.0, f"share_memorising/{name}": 0.5 if name == "lm_head" else 0.1,
              f"share_grokked/{name}": 0.3, f"growth_grokked/{name}": 1.1 if name == "embed" else 0.9,
              f"share_regularisation/{name}": 0.3 if outer else 0.1, f"difference_memorising/{name}": 1.0}  # fmt: skip
        for place, factor in (("first", 0.1), ("emerged", 0.2), ("last", 1.0)):
            n |= {f"{place}/influence_cyclic/{name}": 0.6 * factor, f"{place}/bands/{name}": 0.1,
                  f"{place}/influence_cycles/{name}": 30 - 20 * factor,
                  f"{place}/similarity_cycles/{name}": 30 - 20 * factor,
                  f"{place}/similarity_cyclic/{name}": factor * (0.8 if upper else 0.05)}  # fmt: skip
    for graft, end in (("pipeline", 1.0), ("attention", 1.0), ("outer", 0.1)):
        n |= {f"swap_best/{graft}": 0.2 if graft == "outer" else 0.0, f"swap_step/{graft}": 1500.0,
              f"swap_mean/{graft}": 0.05 if graft == "outer" else -0.1}  # fmt: skip
        for donor, less in ((2000, 0.0), (1500, 0.05)):
            n |= {f"retrained_end/{graft}/{donor}": end - less, f"retrained_step/{graft}/{donor}": 150.0,
                  f"retrained_lag/{graft}/{donor}": 0.1}  # fmt: skip
    return n


def tones(n: dict[str, float]) -> dict[str, str]:
    found = [*grokking_claims.claims(n), *graft_claims.claims(n, "outer", ["pipeline", "attention"], [2000, 1500])]
    assert all(one.claim and one.text and "nan" not in one.text.replace("dominant", "") for one in found)
    return {one.claim: one.tone for one in found}


def test_the_paper_s_numbers_reproduce_every_claim():
    found = tones(paper())
    assert len(found) == 19 and [name for name, tone in found.items() if tone != "good"] == [
        name for name in found if "Beside the paper" in name
    ]


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ({"kl": 0.01}, "reproduce the trained model"),
        ({"agreement": 0.999}, "reproduce the trained model"),
        ({"test_when_memorised": 0.9}, "generalises late"),
        ({"kernel_end": 0.95}, "grow together"),
        ({"rise_correlation": 0.2}, "grow together"),
        ({"balance_grokked": 0.9}, "dominates the final phase"),
        ({"share_memorising/layers.0.mlp.up": 0.6}, "most influential layer"),
        ({"peak/layers.0.mlp.up": 1900.0}, "middle layers peak"),
        ({"decoder_peaks": 1.0}, "middle layers peak"),
        ({"share_regularisation/layers.0.mlp.up": 0.4}, "mainly on the embedding"),
        ({"growth_grokked/embed": 0.9}, "embedding comes late"),
        ({"last/influence_cyclic/lm_head": 0.1}, "patterns emerge"),
        ({"last/similarity_cyclic/embed": 0.9}, "from the attention decoder on"),
        ({"last/influence_cycles/lm_head": 30.0}, "high to low frequency"),
        ({"lasso_period": 76.0}, "modulus as its period"),
        ({"swap_best/outer": 0.1}, "outer layers improve"),
        ({"swap_mean/attention": 0.1}, "outer layers improve"),
        ({"systematic_swapped": 0.06}, "systematic"),
        ({"retrained_lag/attention/2000": 0.7}, "around the final attention"),
        ({"retrained_step/pipeline/2000": float("inf")}, "around the final pipeline"),
        ({"retrained_end/pipeline/1500": 0.2}, "of earlier checkpoints"),
        ({"retrained_end/outer/2000": 0.9}, "outer layers alone"),
    ],
    ids=str,
)
def test_a_number_turned_turns_its_statement(changed, claim):
    found = tones(paper() | changed)
    assert [name for name, tone in found.items() if tone == "bad"] == [name for name in found if claim in name]


def test_cycles_that_never_emerged_are_said_to_have_not():
    (found,) = [one for one in grokking_claims.claims(paper() | {"emerged/influence_cycles/lm_head": float("nan")})
                if "high to low" in one.claim]  # fmt: skip
    assert found.tone == "bad" and "cyclic in no window" in found.text


def test_a_model_that_never_generalised_is_said_to_have_not():
    n = paper() | {"grokked": float("nan"), "test_at_the_end": 0.3}
    (found,) = [one for one in grokking_claims.claims(n) if "generalises late" in one.claim]
    assert found.tone == "bad" and "never reached 0.99; it ended at 0.300" in found.text
