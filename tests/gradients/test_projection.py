"""How dimensions are shared out, and that run seed, component name and kind alone make the sketch."""

import subprocess
import sys

import pytest
import torch

from tdaexp.gradients.projection import KINDS, dimensions, drawn_by, make_sketch
from tdaexp.gradients.sketch import component_seed
from tdaexp.runtime.errors import UserError

OLMO = {"embed": 103_022_592} | {
    f"layers.{layer}.{name}": size
    for layer in range(16)
    for name, size in (
        *((f"attn.{x}", 4_194_304) for x in "qkvo"),
        *((f"mlp.{x}", 16_777_216) for x in ("gate", "up", "down")),
    )
}


@pytest.mark.parametrize(("budget", "total"), [(0.01, 11_767_808), (0.05, 58_838_016)])
def test_paper_totals_of_olmo(budget, total):
    dims = dimensions(OLMO, budget)
    assert len(dims) == 113
    assert sum(dims.values()) == total
    assert all(dim % 512 == 0 and dim >= 512 for dim in dims.values())
    for name, dim in dims.items():  # within one multiple of the exact share
        assert abs(dim - budget * OLMO[name]) < 512


def test_paper_rule_gives_small_components_512_and_keeps_the_total():
    dims = dimensions({"big": 1_000_000, "tiny": 10, "mid": 100_000, "norms": 3}, 0.01)
    # 1,100,013 x 1 % is 21.48 multiples: 21, two of them for the tiny ones, 19 for 10 : 1.
    assert dims == {"big": 17 * 512, "tiny": 512, "mid": 2 * 512, "norms": 512}


def test_paper_rule_bumps_repeatedly():
    # Six units: a gets one for its share of 0.06; then b's share of the other five is 0.98: one too.
    sizes = {"a": 1_000, "b": 19_500, "c": 80_000}
    assert dimensions(sizes, 6 * 512 / 100_500) == {"a": 512, "b": 512, "c": 4 * 512}


def test_paper_rule_breaks_ties_by_order():
    assert dimensions({"a": 1024, "b": 1024}, 0.75) == {"a": 1024, "b": 512}
    assert dimensions({"b": 1024, "a": 1024}, 0.75) == {"b": 1024, "a": 512}


def test_paper_rule_exceeds_the_budget_only_by_the_minimum():
    assert dimensions({"a": 100, "b": 900}, 0.01) == {"a": 512, "b": 512}


def test_proportional_rule():
    assert dimensions({"a": 1000, "b": 249, "c": 3}, 0.01, "proportional") == {"a": 10, "b": 2, "c": 1}
    assert dimensions({"a": 7, "b": 2}, 1.0, "proportional") == {"a": 7, "b": 2}


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, float("nan")])
def test_bad_budget(budget):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        dimensions({"a": 100}, budget)


def test_bad_choices_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'proportional'"):
        dimensions({"a": 100}, 0.5, "proportionel")
    with pytest.raises(UserError, match="did you mean 'srht'"):
        make_sketch("shrt", "a", (3, 4), 2, 0)
    with pytest.raises(UserError, match="did you mean 'normal'"):
        make_sketch("factorised", "a", (3, 4), 2, 0, "nromal")
    with pytest.raises(UserError, match=r"use method\.distribution=rademacher"):
        make_sketch("sjlt", "a", (3, 4), 2, 0, "normal")
    with pytest.raises(UserError, match=r"component 'a'.*at least 1"):
        make_sketch("factorised", "a", (3, 4), 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_result_and_nothing_else_the_same(kind):
    gradient = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))

    def project(name, seed):
        return make_sketch(kind, name, (6, 10), 20, seed).project_gradient(gradient)

    reference = project("layers.0.attn.q", 7)
    torch.manual_seed(99)  # the global generator is nobody's business
    assert torch.equal(project("layers.0.attn.q", 7), reference)
    assert not torch.allclose(project("layers.0.attn.k", 7), reference)
    assert not torch.allclose(project("layers.0.attn.q", 8), reference)


@pytest.mark.parametrize("kind", KINDS)
def test_global_generator_is_left_alone(kind):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    make_sketch(kind, "a", (6, 10), 20, 0).project_gradient(torch.ones(2, 60))
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_is_the_same_in_another_process():
    code = "from tdaexp.gradients.sketch import component_seed; print(component_seed(3, 'embed', 'srht'))"
    environment = {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) == component_seed(3, "embed", "srht")
    assert component_seed(3, "embed", "srht") != component_seed(3, "embed", "sjlt")


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_does_not_depend_on_its_batch(kind):
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(7, 600, generator=generator, dtype=torch.float64)
    sketch = make_sketch(kind, "a", (20, 30), 24, 0)
    together = sketch.project_gradient(batch)
    alone = torch.cat([sketch.project_gradient(row[None]) for row in batch])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(sketch.project_gradient(batch[order]), together[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_linear(kind):
    x, y = torch.randn(2, 1, 600, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sketch = make_sketch(kind, "a", (20, 30), 24, 0)
    joint = sketch.project_gradient(2 * x - 3 * y)
    apart = 2 * sketch.project_gradient(x) - 3 * sketch.project_gradient(y)
    torch.testing.assert_close(joint, apart, rtol=1e-12, atol=1e-12)
    assert joint.abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_the_same_matrix(kind, dtype):
    """Low precision is a matter of the gradient alone: the projection computes in float32 at least."""
    gradient = torch.randn(3, 600, generator=torch.Generator().manual_seed(3)).to(dtype)
    sketch = make_sketch(kind, "a", (20, 30), 24, 0)
    result = sketch.project_gradient(gradient)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    fresh = make_sketch(kind, "a", (20, 30), 24, 0)
    torch.testing.assert_close(result.double(), fresh.project_gradient(gradient.double()), rtol=1e-5, atol=1e-5)
    # The same object, used in another precision before: no trace of it.
    assert torch.equal(sketch.project_gradient(gradient.double()), fresh.project_gradient(gradient.double()))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_size_is_refused(kind):
    sketch = make_sketch(kind, "a", (20, 30), 24, 0)
    with pytest.raises(ValueError, match=r"expected gradients \[batch, 600\]"):
        sketch.project_gradient(torch.ones(2, 601))
    with pytest.raises(ValueError, match="expected gradients"):
        sketch.project_gradient(torch.ones(2, 20, 30))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 100, 101, 700])
def test_any_number_of_dimensions(kind, dim):
    """Also one, a hundred (traker's own limit of a single block), and more than there are entries."""
    sketch = make_sketch(kind, "norms", (300, 1), dim, 0)
    assert sketch.dim == (min(dim, 300) if kind == "factorised" else dim)
    gradient = torch.randn(2, 300, generator=torch.Generator().manual_seed(4))
    first = sketch.project_gradient(gradient)
    assert first.shape == (2, sketch.dim)
    assert torch.equal(sketch.project_gradient(gradient), first)
    assert sketch.project_gradient(torch.empty(0, 300)).shape == (0, sketch.dim)


def test_only_trakers_numbers_depend_on_the_device(monkeypatch):
    """Sketches of one kind that are kept on one device must not meet those of another."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [kind for kind in KINDS if drawn_by(kind, cpu) != drawn_by(kind, cuda)] == ["trak"]
    plain = drawn_by("trak", cuda)
    monkeypatch.setattr("tdaexp.gradients.projection.has_fast_jl", lambda: True)
    assert drawn_by("trak", cuda) != plain
