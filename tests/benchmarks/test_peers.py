"""The comparison with peers, without them: what they are given is what our own methods see, and comes back the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY, Commands

from tdaexp import influence

HERE = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
SCRIPTS = ("work", "export", "with_tdaexp", "with_formula", "comparisons", "page")
OPTIONS = {
    "classes": [
        "model=logistic", "dataset=digits", "dataset.train=60", "dataset.test=20", "dataset.query_limit=6",
        "candidates=all", "trainer.fit.steps=12", "trainer.fit.batch_size=20",
    ],
    "texts": [*TINY[:8], "model=toy_eurollm", "dataset.query_sets=[paraphrased]", "dataset.query_limit=4",
              "candidates=all"],
}  # fmt: skip


@pytest.fixture(scope="module")
def peers() -> Iterator[SimpleNamespace]:
    """The scripts as modules; they import each other from their folder."""
    sys.path.insert(0, str(HERE))
    yield SimpleNamespace(**{name: import_module(name) for name in SCRIPTS})
    sys.path.remove(str(HERE))
    for name in SCRIPTS:
        del sys.modules[name]


@pytest.fixture(scope="module")
def works(peers: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small piece of work of either kind, exported."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in OPTIONS}
    for kind, folder in folders.items():
        peers.export.export(OPTIONS[kind], folder)
    return folders


def gradients(
    work: ModuleType, given: object, side: object, state: dict[str, torch.Tensor] | None = None
) -> np.ndarray:
    """Gradients [N, P] of the loss over the layers that count, one example at a time, from the files alone."""
    model = given.model().double()
    if state is not None:
        model.load_state_dict(state)
    counted = [one for name in given.about["modules"] for one in model.get_submodule(name).parameters()]
    rows = []
    for place in range(len(side)):
        row = slice(place, place + 1)
        inputs = side.inputs[row].double() if side.weights is None else side.inputs[row]
        one = work.Side(side.ids[row], inputs, side.targets[row], None if side.weights is None else side.weights[row])
        loss = work.losses(model, one).sum()
        rows.append(torch.cat([found.flatten() for found in torch.autograd.grad(loss, counted)]))
    return torch.stack(rows).numpy()


@pytest.mark.long
@pytest.mark.parametrize("kind", OPTIONS)
def test_scores_from_the_files_are_those_of_a_direct_run(
    kind: str, peers: SimpleNamespace, works: dict[str, Path], commands: Commands, tmp_path: Path
) -> None:
    """Through `scores=` they have the same table, too."""
    work = peers.work.Work(works[kind])
    sides = (gradients(peers.work, work, side) for side in (work.queries, work.train))
    queries, train = sides
    peers.work.write_scores(tmp_path / "file.npz", queries @ train.T, work.queries.ids, work.train.ids)
    run = ["method=dot", "method.part=blocks", f"cache_dir={works[kind]}/cache", "hydra.run.dir=run"]
    commands.done("attribute", *OPTIONS[kind], *run, "metric.plots=false", "metric.bootstrap=50")
    stored = influence.load(tmp_path / "run" / "influence.zarr")
    read = peers.work.read_scores(tmp_path / "file.npz")
    direct = influence.dense(stored).sel(train=read[2]).values
    assert read[1] == stored["query"].values.tolist()
    np.testing.assert_allclose(read[0], direct, rtol=0, atol=1e-5 * np.abs(direct).max())
    subject = [one for one in OPTIONS[kind] if one.startswith(("model=", "dataset="))]
    judged = ["runs=[run]", "scores=file.npz", "metric.plots=false", "metric.bootstrap=50", "hydra.run.dir=judged"]
    commands.done("evaluate", *subject, *judged)
    metrics = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    tables = {label: {} for label in ("dot (blocks)", "file")}
    for key, value in metrics.items():
        label, name = key.split("/", 1)
        tables.setdefault(label, {})[name] = value
    ours, theirs = (tables[label] for label in ("dot (blocks)", "file"))
    assert theirs and {name: ours[name] for name in theirs if name in ours} == pytest.approx(theirs)


def test_a_comparison_runs_the_method_itself(peers: SimpleNamespace, works: dict[str, Path]) -> None:
    """The job that is timed gives a run's numbers, from an empty cache, in the order of the files."""
    work = peers.work.Work(works["classes"])
    job = peers.with_tdaexp.attribute(work, ["method=tracin", "method.moments=5"])
    scores, costs = peers.work.measured(job)
    assert costs["seconds"] > 0 and costs["megabytes"] >= 0
    wanted = 0.0
    for rate, state in zip(work.about["rates"], work.moments(), strict=True):
        queries, train = (gradients(peers.work, work, side, state) for side in (work.queries, work.train))
        wanted = wanted + rate * queries @ train.T
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    itself = peers.with_tdaexp.itself(work, ["method=dot"])()
    np.testing.assert_allclose(itself, (gradients(peers.work, work, work.train) ** 2).sum(1), rtol=1e-4)


def test_the_formula_is_our_ekfac_on_the_labels_of_the_data(peers: SimpleNamespace, works: dict[str, Path]) -> None:
    """So what it says of a peer's departure from it is about the peer; each departure changes the scores."""
    work = peers.work.Work(works["classes"])
    ours = peers.with_tdaexp.attribute(work, ["method=ekfac", "method.damping=0.01"], labels="data")()
    found = peers.with_formula.ekfac(work, 0.01)()
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4 * np.abs(ours).max())
    for departure in ({"transposed": True}, {"flat": True}):
        other = peers.with_formula.ekfac(work, 0.01, **departure)()
        assert np.corrcoef(other.ravel(), ours.ravel())[0, 1] < 0.999


def test_drawn_labels_are_those_that_ekfac_draws(peers: SimpleNamespace, works: dict[str, Path]) -> None:
    """Handed to the formula in the place of the data's, they give our scores with drawn labels."""
    work = peers.work.Work(works["classes"])
    ours = peers.with_tdaexp.attribute(work, ["method=ekfac", "method.damping=0.01"])()
    fitted = peers.with_formula.factors(work, labels="drawn")
    found = peers.with_formula.ekfac(work, 0.01, labels="drawn")()
    assert fitted and not torch.equal(work.train.drawn, work.train.targets)
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


def test_every_comparison_has_its_script_and_a_name_of_its_own(peers: SimpleNamespace) -> None:
    names = [one.name for one in peers.comparisons.COMPARISONS]
    assert len(set(names)) == len(names)
    for one in peers.comparisons.COMPARISONS:
        assert one.work in peers.export.WORKS
        for run in (one.theirs, one.ours, *((one.check.one, one.check.other) if one.check else ())):
            script = (HERE / f"with_{run.program}.py").read_text(encoding="utf-8")
            assert f'"{run.method}": {run.method}' in script, run


def test_the_page_shows_numbers_causes_and_failures(peers: SimpleNamespace, tmp_path: Path) -> None:
    every = peers.comparisons.COMPARISONS
    explained = next(one for one in every if one.check)
    side = {"seconds": 1.25, "megabytes": 31.0, "version": "1.2"}
    record = {"date": "2026-01-01", "theirs": side, "ours": side, "pearson": {"all": 0.9999999, "lowest": 0.5}}
    records = {explained.name: {**record, "check": {"all": 0.75, "lowest": 0.7}}}
    records[every[0].name] = records.get(every[0].name) or record
    records[every[-1].name] = {"date": "2026-01-02", "failed": "no module named x"}
    peers.page.write_page(tmp_path / "page.md", records)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "2026-01-01 to 2026-01-02" in page
    assert "| > 0.999999 (1) | 0.500 | 1.2 | 1.2 | 31 | 31 |" in page
    assert f"1. {explained.check.cause}. {explained.check.shown}: 0.750." in page
    assert "no module named x" in page and "not run" in page
