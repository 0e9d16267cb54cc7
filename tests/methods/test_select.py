"""Selection of components as a method: what it scores, on what, from which names, and what it refuses."""

import re

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, explicit_gradients, join

from tdaexp import influence
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products

SIZES = {"embed": 300 * 16} | {name: 16 * (24 if ".mlp." in name else 16) for name in PARAMETER if name != "embed"}


@pytest.fixture
def problem(make_problem, tmp_path):
    return make_problem(tmp_path / "cache", dtype=torch.float64)


def chosen(dataset):
    """Names of the chosen components by query set."""
    return {
        str(name): [str(c) for c in dataset["component"].values[dataset["weight"].values[row] > 0]]
        for row, name in enumerate(dataset["query_set_name"].values)
    }


@pytest.mark.parametrize("objective", ["accuracy", "fidelity", "single"])
def test_the_whole_budget_is_the_full_gradient(problem, compose, objective):
    full = compose("method=full").attribute(problem)
    whole = compose("method=select", "budget=1", f"method.objective={objective}").attribute(problem)
    np.testing.assert_array_equal(influence.scores(whole).values, influence.scores(full).values)


def test_without_a_budget_it_is_five_per_cent(problem, compose):
    unset, five = compose("method=select"), compose("method=select", "budget=0.05")
    assert unset.label == five.label == "select (accuracy, 5 %)"
    assert unset.attribute(problem).identical(five.attribute(problem))


@pytest.mark.parametrize("objective", ["accuracy", "fidelity", "single"])
@pytest.mark.parametrize("budget", [0.08, 0.3])
def test_scores_are_cosines_of_the_chosen_components_gradients(problem, compose, objective, budget):
    dataset = compose("method=select", f"budget={budget}", f"method.objective={objective}").attribute(problem)
    names, scores = chosen(dataset), influence.scores(dataset).values
    assert set(names) == {"paraphrased", "generated"}
    queries = explicit_gradients(problem.loaded, problem.queries)
    train = explicit_gradients(problem.loaded, problem.train)
    for (q, c), t in np.ndenumerate(problem.pairs):
        subset = names[problem.query_set[q]]
        assert 0 < sum(SIZES[name] for name in subset) <= budget * sum(SIZES.values())
        g, h = join(queries[q], subset), join(train[t], subset)
        assert scores[q, c] == pytest.approx(float(g @ h / (g.norm() * h.norm())), abs=1e-9)


def test_a_component_alone_is_the_best_of_them_by_accuracy(problem, compose):
    """With room for one small component, greedy takes the most accurate one, the first of equals."""
    dataset = compose("method=select", f"budget={384 / sum(SIZES.values())}").attribute(problem)
    queries = explicit_gradients(problem.loaded, problem.queries)
    train = explicit_gradients(problem.loaded, problem.train)
    for name, own in chosen(dataset).items():
        rows = [q for q, one in enumerate(problem.query_set) if one == name]
        hits = {}
        for component in [name for name, size in SIZES.items() if size <= 384]:
            cosine = torch.nn.functional.cosine_similarity
            values = np.array(
                [[float(cosine(queries[q][component], train[t][component], 0)) for t in problem.pairs[q]] for q in rows]
            )
            truth = problem.truth[rows]
            best = np.where(truth, values, -np.inf).max(1) > np.where(truth, -np.inf, values).max(1)
            hits[component] = best.mean()
        assert own == [max(hits, key=hits.get)]


def test_the_order_is_a_ranking_and_the_chosen_are_its_beginning(problem, compose):
    dataset = compose("method=select", "budget=0.3").attribute(problem)
    for row in range(2):
        order, weight = dataset["order"].values[row], dataset["weight"].values[row]
        ranked = order[order >= 0]
        assert sorted(ranked) == list(range(len(ranked)))
        assert (order[weight > 0] < weight.sum()).all() and (order[weight > 0] >= 0).all()
        assert order[0] == -1  # the embedding alone is larger than the budget


def test_nothing_is_computed_again_for_another_budget_or_objective(problem, compose, monkeypatch):
    compose("method=full").attribute(problem)
    monkeypatch.setattr(BlockStore, "write", lambda *_: pytest.fail("computed again"))
    for overrides in (["budget=0.1"], ["budget=0.5"], ["budget=0.1", "method.objective=fidelity"]):
        compose("method=select", *overrides).attribute(problem)


def named(folder, text):
    (folder / "chosen.txt").write_text(text)
    return f"method.selection={folder / 'chosen.txt'}"


def test_components_named_in_a_file(problem, compose, tmp_path):
    text = "# from another problem\nlayers.1.mlp.up\n\nembed\n  layers.0.attn.k  \nembed\n"
    method = compose("method=select", named(tmp_path, text))
    assert method.label.startswith("select (chosen")
    dataset = method.attribute(problem)
    names = ["layers.1.mlp.up", "embed", "layers.0.attn.k"]
    for own in chosen(dataset).values():
        assert sorted(own) == sorted(names)
    ranks = dict(zip(dataset["component"].values, dataset["order"].values[0], strict=True))
    assert [ranks.pop(name) for name in names] == [0, 1, 2] and set(ranks.values()) == {-1}
    alone = compose("method=full", f"method.components=[{','.join(names)}]").attribute(problem)
    np.testing.assert_allclose(influence.scores(dataset), influence.scores(alone), rtol=1e-12)


def test_an_unknown_name_in_a_selection_file(problem, compose, tmp_path):
    message = r"chosen.txt: unknown component 'layers.0.atn.q'; did you mean 'layers.0.attn.q'"
    with pytest.raises(UserError, match=message):
        compose("method=select", named(tmp_path, "embed\nlayers.0.atn.q\n")).attribute(problem)


def test_a_selection_file_is_read_before_anything_runs(compose, tmp_path):
    with pytest.raises(UserError, match=r"method.selection=.*chosen.txt: names no component"):
        compose("method=select", named(tmp_path, "# nothing\n\n"))
    with pytest.raises(UserError, match=r"method.selection=.*none.txt: cannot be read"):
        compose("method=select", f"method.selection={tmp_path}/none.txt")


@pytest.mark.parametrize("objective", ["accuracy", "fidelity", "single"])
def test_a_budget_below_the_smallest_component(problem, compose, objective):
    with pytest.raises(UserError, match=r"budget=0.001 .* smallest component has 256; set budget to 0\.\d+") as error:
        compose("method=select", "budget=0.001", f"method.objective={objective}").attribute(problem)
    least = re.search(r"set budget to (\S+) or more", str(error.value))[1]
    found = compose("method=select", f"budget={least}", f"method.objective={objective}").attribute(problem)
    assert all(len(own) == 1 for own in chosen(found).values())


def test_what_cannot_be_selected_on(problem, compose):
    with pytest.raises(UserError, match=r"method.on: 'repsim' does not tell components apart"):
        compose("method=select", "method@method.on=repsim").attribute(problem)
    with pytest.raises(UserError, match=r"unknown objective 'acuracy'; did you mean 'accuracy'"):
        compose("method=select", "method.objective=acuracy")


@pytest.mark.parametrize("name", ["ekfac", "multistage", "dot"])
def test_selection_on_plain_sums(problem, compose, name):
    """A selection of everything is the method itself; a smaller one sums the chosen components."""
    on = compose(f"method={name}")
    whole = on.attribute(problem)
    everything = compose("method=select", f"method@method.on={name}", "budget=1").attribute(problem)
    np.testing.assert_allclose(influence.scores(everything), influence.scores(whole), rtol=1e-12)
    method = compose("method=select", f"method@method.on={name}", "budget=0.3")
    assert method.label == f"select on {on.label} (accuracy, 30 %)" and method.both_stages == on.both_stages
    found = method.attribute(problem)
    weight = found["weight"].sel(query_set_name=found["query_set"]).values
    assert 0 < weight.sum() < weight.size
    np.testing.assert_allclose(influence.scores(found), (whole["influence"].values * weight[:, None]).sum(-1))


def test_selection_on_projected_gradients(problem, compose):
    on = compose("method=project", "budget=0.5")
    method = compose("method=select", "method@method.on=project", "budget=0.5")
    assert method.label == f"select on {on.label} (accuracy, 50 %)"
    projected, found = on.attribute(problem), method.attribute(problem)
    np.testing.assert_array_equal(found["influence"].values, projected["influence"].values)
    weight = found["weight"].sel(query_set_name=found["query_set"]).values
    dot = (projected["influence"].values * weight[:, None]).sum(-1)
    norms = np.sqrt((projected["query_sq"].values * weight).sum(-1))[:, None] * np.sqrt(
        (projected["train_sq"].values * weight[:, None]).sum(-1)
    )
    assert 0 < weight.sum() < weight.size
    np.testing.assert_allclose(influence.scores(found), dot / norms, rtol=1e-9)


def test_on_stored_products(products_file, compose):
    products = read_products(products_file, "paraphrased")
    found = compose("method=select", "budget=0.5").from_products(products)
    ((own, names),) = chosen(found).items()
    assert own == "paraphrased" and 0 < products.sel(component=names)["size"].sum() <= 0.5 * products["size"].sum()
    part = products.sel(component=names)
    np.testing.assert_allclose(influence.scores(found), influence.scores(part), rtol=1e-12)
    with pytest.raises(UserError, match=r"method 'project' needs a model"):
        compose("method=select", "method@method.on=project").from_products(products)
