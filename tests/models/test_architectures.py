"""Any decoder: captured gradients of tiny models against autograd's; the table of docs/models.md is made here.

UPDATE_DOCS=1 python -m pytest tests/models/test_architectures.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, UNUSUAL, gradients, texts, tiny
from gradient_oracle import gradients_of

from tdaexp.building.covered import running
from tdaexp.building.self_check import check_language_model
from tdaexp.data.examples import Examples
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import component_map
from tdaexp.objectives.tokens import NextToken

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
EXACT, CLOSE = 1e-9, 1e-5
PLAIN = ["embed", "layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v", "layers.0.attn.o", "norms"]


def captured(model, examples, components, together=True):
    """The gradients of all examples [N, size], in one batch or one by one."""
    rows = []
    side = gradients_of(model, examples, components)
    with side.ready():
        for batch in [list(range(len(examples)))] if together else [[k] for k in range(len(examples))]:
            found = {}

            def keep(arrived, factors, found=found):
                found.update({one.name: own.materialise() for one, own in zip(arrived, factors, strict=True)})

            side.capture(batch, keep)
            rows.append(torch.cat([found[name] for name in components.names], dim=1))
    return torch.cat(rows)


def errors(model, examples, components, together=True):
    """The relative error of each component's gradients; of one that is rounding alone, relative to the largest."""
    space = VectorSpace(model, components)
    mine, wanted = captured(model, examples, components, together), gradients(model, examples)
    assert set(space.parameters()) == set(wanted)
    whole = space.vectors(wanted)
    norms = [float(whole[:, place].norm()) for place in space.slices]
    return {
        name: float((mine[:, place] - whole[:, place]).norm()) / max(norm, 1e-3 * max(norms))
        for name, place, norm in zip(components.names, space.slices, norms, strict=True)
    }


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_gradients_in_double_precision(family, double):
    model, examples = tiny(family, torch.float64), texts(3)
    found = errors(model, examples, component_map(model))
    worst = max(found, key=found.__getitem__)
    assert found[worst] < EXACT, worst


FORMED = {
    "router in float32, by float": {"layers.1.mlp.gate.moe_statics"},
    "model that is its own base": {"layers.0.mlp.experts", "layers.1.mlp.experts"},
    "layers that run more than once": {
        "norms",
        *(f"layers.{k}.altup{word}" for k in range(4) for word in ("", ".modality_router")),
    },
    "operation that knows plain autograd alone": {
        f"layers.{k}.temporal_block.{word}" for k in (0, 1) for word in ("conv_1d", "rg_lru")
    },
}
"""Components without a rule."""


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's vmap
@pytest.mark.parametrize("family", UNUSUAL)
def test_what_a_model_does_in_a_way_of_its_own_is_captured_or_formed(family):
    model, examples = tiny(family, torch.float64), texts(2)
    components = running(model, component_map(model))
    assert components.covered == components.total
    assert {one.name for one in components.components if not one.captured} == FORMED.get(family, set())
    found = errors(model, examples, components)
    worst = max(found, key=found.__getitem__)
    assert found[worst] < 1e-6, worst  # some compute parts in float32


@pytest.mark.parametrize("family", [family for family in UNUSUAL if "router" in family])
def test_a_router_s_gradient_is_of_the_model_s_type(family):
    model = tiny(family, torch.bfloat16)
    components = running(model, component_map(model))
    check_language_model(model, components, NextToken(), family)
    (name,) = [name for name in components.names if name.endswith("1.mlp.router")]
    side, kinds = gradients_of(model, texts(2), components.select([name])), set()
    with side.ready():
        side.capture([0, 1], lambda _, factors: kinds.update({factors[0].inputs.dtype, factors[0].deltas.dtype}))
    assert kinds == {torch.bfloat16}


def covered(family):
    """The share of the parameters that the map covers, checked in float32 in a padded batch."""
    model, examples = tiny(family), texts()
    components = running(model, component_map(model))
    found = errors(model, examples, components)
    assert max(found.values()) < CLOSE, max(found, key=found.__getitem__)
    return len(components), components.covered / components.total


def test_the_table():
    """Every family is checked, and the page says so."""
    rows = ["| family | `model_type` | components of the tiny model | gradients | parameters covered |",
            "|---|---|---|---|---|"]  # fmt: skip
    for family, (kind, _) in ARCHITECTURES.items():
        count, share = covered(family)
        rows.append(f"| {family} | `{kind}` | {count} | autograd's | {100 * share:.4g} % |")
    start, end = "<!-- made by tests/models/test_architectures.py -->", "<!-- end -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(start)
    made = f"{before}{start}\n\n" + "\n".join(rows) + f"\n\n{end}{rest.partition(end)[2]}"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == page or os.environ.get("UPDATE_DOCS"), "run this file with UPDATE_DOCS=1"


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_names_are_the_same_everywhere(family):
    """Attention's four matrices and the feed-forward layer's have their names, fused or not."""
    names = component_map(tiny(family)).names
    blocks = [name for name in names if name.startswith("layers.")]
    assert set(PLAIN) - {"norms"} <= set(names) and not any(".self_attn" in name or "proj" in name for name in blocks)
    assert any(name.startswith("layers.1.mlp.") and name.endswith("up") for name in names)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen 2, experts"])
def test_a_layer_of_experts_is_one_component_where_asked(family):
    model, examples = tiny(family), texts()
    each, whole = component_map(model), component_map(model, "layer")
    assert [name for name in whole.names if "experts" in name] == [f"layers.{k}.mlp.experts" for k in range(2)]
    assert whole.covered == each.covered == each.total
    assert max(errors(model, examples, whole).values()) < CLOSE
    dots = [side @ side.T for side in (captured(model, examples, one) for one in (each, whole))]
    torch.testing.assert_close(*dots)
    assert {f"layers.0.mlp.experts.{k}.{word}" for k in range(4) for word in ("gate", "up", "down")} <= set(each.names)
    assert "layers.0.mlp.router" in each.names


def test_rows_of_fused_matrices_are_what_the_model_calls_them():
    """The rows of k and v, changed, leave q as it is, seen from the model's own split."""
    model = tiny("Falcon, grouped heads")
    attention = model.transformer.h[0].self_attention
    parts = {one.name: one.parts[0] for one in component_map(model).components}
    marks = torch.zeros(attention.query_key_value.weight.shape[0])
    for value, name in enumerate("qkv"):
        marks[torch.from_numpy(parts[f"layers.0.attn.{name}"].rows)] = value + 1.0
    assert [one.unique().tolist() for one in attention._split_heads(marks[None, None])] == [[1.0], [2.0], [3.0]]
    rows = {one.name: one.parts[0].rows for one in component_map(tiny("Phi 3")).components}
    assert [rows[f"layers.0.attn.{name}"].tolist() for name in "qkv"] == [
        list(range(16)), list(range(16, 24)), list(range(24, 32))
    ]  # fmt: skip
    assert rows["layers.0.mlp.gate"].tolist() == list(range(24)) and rows["layers.0.mlp.up"][0] == 24


def test_what_no_text_runs_is_skipped_and_named():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 4, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", add_cross_attention=True, **sizes)).eval()
    whole = component_map(model)
    assert "layers.0.crossattention.q_attn" in whole.names
    components = running(model, whole)
    assert not any("crossattention" in name for name in components.names)
    assert "skipped: transformer.h.0.crossattention.c_attn.weight (" in components.coverage_line()
    assert components.covered + sum(components.skipped.values()) == components.total
    captured(model, Examples(list(texts(2))).select([0]), components)
