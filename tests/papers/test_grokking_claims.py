"""What is said follows from the numbers: each number turned turns its statement, and no other."""

from __future__ import annotations

import pytest

from tdaexp.papers import geometry_claims, graft_claims, grokking_claims
from tdaexp.papers.grokking_numbers import MIDDLE
from tdaexp.papers.verdicts import stated

REST = {"pipeline": "outer", "attention": "outer + linear 1", "outer": "pipeline", "outer + linear 1": "attention"}
CLAIMS = [
    *grokking_claims.CLAIMS,
    *geometry_claims.CLAIMS,
    *graft_claims.claims_of("outer", ["pipeline", "attention"], [2000, 1500], REST),
]
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
              f"share_regularisation/{name}": 0.3 if outer else 0.1, f"difference_memorising/{name}": 1.0,
              f"plotted/{name}": 1.0, f"plotted_whole/{name}": 1.0, f"plotted_memorising/{name}": 1.0}  # fmt: skip
        for place, factor in (("first", 0.1), ("emerged", 0.2), ("last", 1.0)):
            n |= {f"{place}/influence_cyclic/{name}": 0.6 * factor, f"{place}/bands/{name}": 0.1,
                  f"{place}/influence_cycles/{name}": 30 - 20 * factor,
                  f"{place}/similarity_cycles/{name}": 30 - 20 * factor,
                  f"{place}/similarity_cyclic/{name}": factor * (0.8 if upper else 0.05)}  # fmt: skip
    n |= {"plotted/layers.0.mlp.up": -2.0, "plotted_whole/layers.0.mlp.up": -2.0,
          "plotted_memorising/layers.0.mlp.up": -2.0}  # fmt: skip
    for graft, end in (("pipeline", 1.0), ("attention", 1.0), ("outer", 0.1), ("outer + linear 1", 0.1)):
        n |= {f"swap_best/{graft}": 0.2 if graft == "outer" else 0.0, f"swap_step/{graft}": 1500.0,
              f"swap_mean/{graft}": 0.05 if graft == "outer" else -0.1}  # fmt: skip
        for donor, less in ((2000, 0.0), (1500, 0.05)):
            n |= {f"retrained_end/{graft}/{donor}": end - less,
                  f"retrained_step/{graft}/{donor}": 150.0 if end == 1 else float("nan"),
                  f"retrained_lag/{graft}/{donor}": 0.1}  # fmt: skip
    return n


def tones(n: dict[str, float]) -> dict[str, str]:
    found = stated(CLAIMS, n)
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
        ({"lasso_r2": 0.04, "waves_r2": 0.05}, "modulus as its period"),
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
    (found,) = [one for one in stated(CLAIMS, paper() | {"emerged/influence_cycles/lm_head": float("nan")})
                if "high to low" in one.claim]  # fmt: skip
    assert found.tone == "bad" and "cyclic in no window" in found.text


def test_a_model_that_never_generalised_is_said_to_have_not():
    n = paper() | {"grokked": float("nan"), "test_at_the_end": 0.3}
    (found,) = [one for one in stated(CLAIMS, n) if "generalises late" in one.claim]
    assert found.tone == "bad" and "never reached 0.99; it ended at 0.300" in found.text


@pytest.mark.parametrize(
    ("changed", "claim", "cause"),
    [
        # the pipeline brings nothing, what its training drew anew does
        ({"retrained_step/pipeline/2000": float("nan"), "retrained_step/outer/2000": 100.0},
         "around the final pipeline", "of outer: with the labels exchanged"),
        ({"retrained_step/attention/2000": float("nan"), "retrained_step/outer + linear 1/2000": 100.0},
         "around the final attention", "of outer + linear 1"),
        ({"retrained_end/outer/2000": 1.0, "retrained_end/pipeline/2000": 0.1, "retrained_end/pipeline/1500": 0.05},
         "outer layers alone", "of pipeline: with the labels exchanged"),
        # over whole layers linear 1 has most of the regularisation, in the plot's last tensors the outer ones do
        ({"share_regularisation/layers.0.mlp.up": 0.4, "plotted/layers.0.mlp.up": 2.0, "plotted/embed": -1.0,
          "plotted/lm_head": -1.0}, "mainly on the embedding", "over the last tensor of each layer alone"),
        ({"share_regularisation/layers.0.mlp.up": 0.4, "plotted_whole/layers.0.mlp.up": 2.0,
          "plotted_whole/embed": -1.0, "plotted_whole/lm_head": -1.0}, "mainly on the embedding",
         "over single parameters"),
        ({"share_memorising/layers.0.mlp.up": 0.6, "plotted_memorising/lm_head": -3.0}, "most influential layer",
         "over the last tensor of each layer"),
        ({"lasso_period": 19.0, "lasso_r2": 0.5}, "modulus as its period", "of waves with whole numbers of cycles"),
    ],
    ids=str,
)  # fmt: skip
def test_a_finding_that_holds_in_another_reading_is_contradicted_with_its_cause(changed, claim, cause):
    (found,) = [one for one in stated(CLAIMS, paper() | changed) if claim in one.claim and one.tone != "good"]
    assert found.tone == "cause" and cause in found.text and " It holds of " in found.text


def test_a_run_without_a_claim_s_numbers_says_nothing_of_it():
    without = {name: value for name, value in paper().items() if not name.startswith(("lasso", "retrained", "plotted"))}
    found = stated(CLAIMS, without)
    assert len(found) == 19 - 5 and all(one.tone in ("good", "open") for one in found)
    turned = stated(CLAIMS, without | {"share_regularisation/layers.0.mlp.up": 0.4})
    assert [one.tone for one in turned if "mainly" in one.claim] == ["bad"]  # no plot to find the cause in
