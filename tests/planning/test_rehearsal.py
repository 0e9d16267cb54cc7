"""A rehearsal against an independent count: torch's own counter of FLOP on the real run of the same problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tdaexp.app.compose import open_composer
from tdaexp.app.job import check
from tdaexp.building.language import build_problem
from tdaexp.building.tasks import build_problem as build_task
from tdaexp.building.tasks import load_task
from tdaexp.building.texts import load_model
from tdaexp.planning.plan import NotRehearsed, plan_of, planned, tell_plan
from tdaexp.runtime.fake_device import DEVICE, EIGH_FLOP, FakeDevice
from tdaexp.runtime.rehearsal import Rehearsal, alike, arithmetic, repeated, sampled
from tdaexp.runtime.rehearsed_store import STORE, rehearsing

CONF = Path(__file__).resolve().parents[2] / "conf"
TEXTS = (
    "model=tiny_olmo", "model.config.num_hidden_layers=1", "dataset.people=12", "dataset.query_sets=[paraphrased]",
    "trainer.fit.steps=2", "trainer.fit.batch_size=8", "trainer.fit.checkpoint_every=1",
)  # fmt: skip
TASK = (
    "model=mnist_cnn", "model.padding=1", "dataset=digits", "dataset.train=64", "dataset.query_limit=24",
    "trainer.fit.steps=2",
)  # fmt: skip
NEVER = ("method.tolerance=1e-30", "method.iterations=3")
METHODS = {
    "full": (),
    "ekfac": (),
    "ekfac in 8 bits": ("method.keep_gb=1",),
    "ekfac by token": ("method.per_token=2", "method.query_rank=4"),
    "ekfac by layers": ("method.curvature_blocks=layer", "method.block_samples=40"),
    "project": ("budget=0.5",),
    "project indexed": ("candidates=best", "candidates.k=3", "method.side=8", "method.storage=int8"),
    "project srht": ("budget=0.5", "method.projection=srht"),
    "trak": ("method.dimensions=16",),
    "logra": ("method.dimensions=16",),
    "logra indexed": ("candidates=best", "candidates.k=3", "method.dimensions=16", "method.init=random"),
    "datainf": (),
    "trackstar": ("method.dimensions=16", "method.precondition=gradients"),
    "trackstar indexed": ("candidates=best", "candidates.k=3", "method.dimensions=16", "method.storage=int8"),
    "less": (),
    "tracin": (),
    "repsim": (),
    "cka": ("method.of=states",),
    "cg": (*NEVER, "method.preconditioner=ekfac"),
    "cg after Arnoldi": (*NEVER, "method.preconditioner=arnoldi", "method.arnoldi_steps=3"),
    "astra": ("method.steps=3",),
    "lissa": ("method.depth=3",),
}
LOOSE = {"cka": 0.25, "lissa": 0.15, "astra": 0.15}
"""How far FLOP may be off where they are not in proportion to positions, or batches are drawn; else a twentieth."""
ON_TASKS = ("full", "ekfac", "trak", "cg", "logra", "datainf", "less")
aten = torch.ops.aten


def _left_out() -> dict[Any, Any]:
    """FLOP by the shapes of the operands, of what torch's counter does not know."""

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    def added(total: Any, left: Any, right: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return int(2 * left[0] * left[1] * right[1])

    def eigh(matrix: Any, *_: Any, out_shape: Any, **__: Any) -> float:
        return float(EIGH_FLOP * matrix[-1] ** 3)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        aten.addmm_: added,
        aten._linalg_eigh: eigh,
    }


def configured(folder: Path, *arguments: str) -> Any:
    options = [*arguments, f"cache_dir={folder}", "logger=none"]
    with open_composer("attribute", CONF) as composer:
        opened = composer.opened(options)
        return check(composer, "attribute", opened, composer.compose(opened), ("tdaexp",)).config


@pytest.mark.parametrize("case", [*METHODS, *(f"{name} of a classifier" for name in ON_TASKS)])
@pytest.mark.long
def test_flop_and_disk_are_those_of_the_run(case: str, tmp_path: Path) -> None:
    """Stores as small as these may take less, where many of their numbers are 0; larger ones are in `test_plan`."""
    name, _, task = case.partition(" of a ")
    config = configured(tmp_path, *(TASK if task else TEXTS), f"method={name.split()[0]}", *METHODS[name])
    plan = planned(config)
    if task:
        problem = build_task(config, load_task(config), config.candidates)
    else:
        corpus = config.dataset.load()
        problem = build_problem(config, corpus, load_model(config, corpus.train), None)
    before = set(tmp_path.iterdir())
    with FlopCounterMode(display=False, custom_mapping=_left_out()) as counted:
        config.method.attribute(problem if problem.wanted is None else config.method.found(problem))
    stages = [stage for stage in plan.stages if stage.name != "answer"]
    assert sum(stage.flop for stage in stages) == pytest.approx(counted.get_total_flops(), rel=LOOSE.get(name, 0.05))
    files = [file for folder in set(tmp_path.iterdir()) - before for file in folder.rglob("*") if file.is_file()]
    left, disk = sum(file.stat().st_size for file in files), sum(stage.disk for stage in stages)
    assert 0.6 * (disk - 2 * len(stages) * STORE) <= left <= 1.1 * disk


def test_one_piece_stands_for_all_in_proportion() -> None:
    rehearsal, done = Rehearsal(), []
    with rehearsing(rehearsal):
        for items in sampled([[1], [2, 2], [3, 3, 3]], lambda one: 2.0 * len(one)):
            for _ in repeated(range(5)):
                arithmetic(10.0 * len(items))
            rehearsal.forward += len(items)
            done.append(items)
    assert done == [[3, 3, 3]] and rehearsal.flop == 5 * 30 * 2 and rehearsal.forward == 6
    assert list(sampled([[1], [2]], len)) == [[1], [2]], "outside a rehearsal all are done"


def test_work_like_work_before_is_counted_and_not_done() -> None:
    rehearsal, done = Rehearsal(), []

    def work() -> torch.Tensor:
        done.append(1)
        one = torch.zeros(1000, 1000, device=DEVICE)
        rehearsal.forward += 3
        return one @ one

    with rehearsing(rehearsal):
        rehearsal.begin()
        first = alike("square", work)
        assert rehearsal.device.peak == 8e6 and rehearsal.device.now == 4e6
        second = alike("square", work)
        assert rehearsal.device.peak == 12e6 and rehearsal.device.now == 8e6, (
            "the first result, and what the work takes"
        )
        assert first.shape == second.shape and first.device == second.device == DEVICE
    assert (len(done), rehearsal.flop, rehearsal.forward) == (1, 4e9, 6)
    assert alike("square", lambda: torch.ones(2)).tolist() == [1, 1], "outside a rehearsal all is done"


def test_stages_that_end_within_a_piece_are_counted_as_often() -> None:
    rehearsal = Rehearsal()
    with rehearsing(rehearsal):
        arithmetic(1.0)
        rehearsal.end("before")
        for _ in repeated(range(4)):
            arithmetic(10.0)
            rehearsal.end("inside").spent.disk += 7.0
        arithmetic(100.0)
        rehearsal.end("after")
    assert {name: one.spent.flop for name, one in rehearsal.stages.items()} == {
        "before": 1.0,
        "inside": 40.0,
        "after": 100.0,
    }
    assert rehearsal.stages["inside"].spent.disk == 28.0


def test_peaks_are_those_of_tensors_that_are_alive() -> None:
    rehearsal = Rehearsal()
    with rehearsing(rehearsal):
        rehearsal.begin()
        one = torch.zeros(1000, 1000, device=DEVICE)
        two = one @ one
        del one
        three = two + 1
        assert rehearsal.device.now == 8e6 and float(three.sum()) == 1.0, "numbers that are not there are ones"
        stage = rehearsal.end("stage")
        assert stage.device == 8e6 + 4 and stage.spent.flop == 2e9, "two matrices, and the sum of one"


def test_a_method_that_needs_numbers_runs_without_a_plan(tmp_path, monkeypatch, caplog):
    def attribute(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("tdaexp.methods.full.Full.attribute", attribute)
    config = configured(tmp_path, *TEXTS, "method=full")
    with pytest.raises(NotRehearsed, match=r"plan: none, method=full cannot be run on tensors without .*IndexError"):
        plan_of(config)
    monkeypatch.setattr("tdaexp.planning.plan.SMALL_FLOP", 0.0)
    with caplog.at_level("WARNING"):
        tell_plan(config)
    assert "plan: none, method=full cannot be run" in caplog.text


@pytest.mark.parametrize("data", [TEXTS, TASK], ids=["texts", "task"])
def test_small_work_is_planned_only_where_it_is_asked_for(data, tmp_path, caplog):
    config = configured(tmp_path, *data, "method=full")
    with caplog.at_level("INFO"):
        tell_plan(config)
    assert "plan: none, a pass over all examples takes" in caplog.text
    assert plan_of(config).stages


def test_attention_with_fewer_heads_of_keys_than_of_queries_is_counted() -> None:
    query, key = torch.randn(2, 8, 5, 16, requires_grad=True), torch.randn(2, 2, 7, 16, requires_grad=True)

    def attend(device: torch.device) -> None:
        at = [one.detach().to(device).requires_grad_() for one in (query, key, key)]
        torch.nn.functional.scaled_dot_product_attention(*at, enable_gqa=True).sum().backward()

    with FakeDevice() as fake:
        attend(DEVICE)
    there = sdpa_flop_count(query.shape, key.shape, key.shape)
    assert fake.flop == there + sdpa_backward_flop_count(query.shape, query.shape, key.shape, key.shape)
