"""Plans without any download: exact counts, plans against what runs really took, and devices that are too small."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from nursery import GIVING_BACK, run
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.app import main
from tdaexp.models.components import component_map
from tdaexp.models.empty import empty_model
from tdaexp.models.stated import stated_config
from tdaexp.runtime.costs import CostPlan, Machine, StageCost
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.live_bytes import LiveBytes

REPOSITORY = Path(__file__).resolve().parents[2]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main("attribute", REPOSITORY / "conf", ["attribute.py", "plan=true", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def stages(text: str) -> dict[str, list[float]]:
    """Numbers of the table's rows by stage, without the times."""
    found = {}
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) == 8 and cells[0] != "stage":
            numbers = [float("nan") if cell == "-" else float(cell.replace(",", "")) for cell in cells[1:7]]
            found[cells[0]] = numbers
    return found


@pytest.mark.parametrize(
    ("model", "parameters", "components"),
    [
        ("olmo1b", 1_176_764_416, 113),
        ("eurollm1b7", 1_656_850_432, 171),
        ("bloomz560m", 559_214_592, 146),
        ("pythia2b8", 2_775_208_960, 195),
    ],
)
def test_stated_shapes_are_those_of_the_published_models(model: str, parameters: int, components: int) -> None:
    """The numbers of parameters on the models' pages; OLMo's 113 components are the paper's."""
    import yaml

    shape = yaml.safe_load((REPOSITORY / f"conf/model/{model}.yaml").read_text(encoding="utf-8"))["shape"]
    built = empty_model(stated_config(shape, "model.shape"), torch.bfloat16, FakeTensorMode())
    assert component_map(built).total == parameters
    assert len(component_map(built)) == components


def test_shape_refuses_unknown_words() -> None:
    with pytest.raises(UserError, match=r"model.shape: unknown key 'hiden_size'; did you mean 'hidden_size'"):
        stated_config({"architecture": "llama", "hiden_size": 3}, "model.shape")
    with pytest.raises(UserError, match=r"unknown architecture 'lama'; did you mean 'llama'"):
        stated_config({"architecture": "lama"}, "model.shape")


def test_live_bytes_count_what_is_alive() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)  # shares its storage
        assert (live.now, live.peak) == (4000, 8000)
        del b, c
    assert live.now == 0


@pytest.mark.long
def test_one_rule_for_flop(capsys: pytest.CaptureFixture[str]) -> None:
    """OLMo-1B over LIMA-shaped text: 2 FLOP per parameter and token forward, and 2 backward, where capture forms no
    gradients of weights; and the products.
    """
    out = planned(capsys, "model=olmo1b", "dataset=lima", "method=select", "trainer.precision=bfloat16",
                  "trainer.accelerator=cuda", "trainer.device_gb=80", "trainer.rate_tflops=400")  # fmt: skip
    forward, backward, tflop, _, device, _ = stages(out)["gradient products"]
    assert forward == backward >= 1976
    assert 1 <= tflop * 1e12 / (forward * 725 * 4 * 1.18e9) <= 3
    assert 2.4 < device < 80 and "too small" not in out
    assert "assumed: 988 training examples" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("model=eurollm1b7", "method=explaind", "method.quadrature.nodes=4"),
        (
            "model=bloomz560m",
            "model.shape.n_layer=2",
            "dataset=trex",
            "method=multistage",
            "dataset.limit=2000",
            "dataset.query_limit=20",
        ),
        ("method=cg",),
        ("method=lissa",),
        ("method=trak", "method.checkpoints=all"),
        ("method=cka", "method.of=states"),
        ("method=random",),
        ("method=project",),
        ("method=project", "method.side=8", "candidates=best", "model=olmo1b", "dataset=lima"),
        ("model=resnet9", "dataset=cifar2", "method=explaind"),
        ("experiment=explaind_eurollm",),
        (
            "model=grokking",
            "dataset=modular_addition",
            "method=explaind",
            "method.keep=[query,part]",
            "method.partition=target",
            "method.subsample=0.1",
        ),
        (
            "model=grokking",
            "dataset=modular_addition",
            "method=explaind",
            "method.keep=[query,train]",
            "method.single=100",
        ),
    ],
)
@pytest.mark.long
def test_plans_need_no_download(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found = stages(planned(capsys, *arguments))
    assert found["total"][2] == pytest.approx(sum(row[2] for name, row in found.items() if name != "total"), rel=0.01)
    assert not list(tmp_path.iterdir()), "a plan leaves no file"


def test_scores_of_a_classifier_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a network of 2 x 16 and 2 x 32 maps of 8 x 8 pixels and two linear layers; all candidates, one block."""
    task = ("model=mnist_cnn", "model.padding=1", "dataset=digits", "dataset.train=300", "dataset.query_limit=40")
    found = stages(planned(capsys, *task, "method=full"))
    assert found["gradient products"][:2] == [340, 340]
    more = stages(
        planned(capsys, *task, "method=full", "trainer.cache_gb=0.0019", "candidates=sample", "candidates.b=50")
    )
    assert more["gradient products"][:2] == [40 + 2 * 50] * 2  # 21 queries of 22,602 numbers at a time
    out = stages(planned(capsys, *task, "method=ekfac"))
    assert list(out) == ["training", "covariances", "eigenbases", "Λ", "influence", "answer", "total"]
    assert out["covariances"][:2] == [300, 300] and out["influence"][:2] == [340, 340]


def test_going_back_over_a_training_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """40 steps of 50 examples: once for its states, twice for a trial; three times for each group of 16 queries."""
    fit = ("trainer.fit.steps=40", "trainer.fit.batch_size=50")
    out = stages(planned(capsys, "model=mlp", "dataset=digits", "dataset.query_limit=20", "method=magic", *fit))
    assert out["the training again"][:2] == [2000 * 3, 2000 * 3]
    assert out["metagradients"][:2] == [2000 * (2 * 3 + 20), 2000 * (2 * 3 + 20)]
    arithmetic = 6 * 17_024  # of a training pass: weights of three matrices, without the first one's input gradient
    once = 2000 * (arithmetic - 2 * 64 * 128)
    assert out["the training again"][2] == pytest.approx(3 * once / 1e12, rel=0.01)
    texts = stages(planned(capsys, "method=magic", "dataset.people=30", "dataset.query_limit=4", *fit))
    assert texts["metagradients"][:2] == [2000 * (3 + 8), 2000 * (3 + 8)]


def test_a_recorded_language_model_is_planned_by_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("method=explaind", "trainer.fit.record=1", "dataset.people=20", "trainer.fit.batch_size=8")
    one, two = (stages(planned(capsys, *few, f"trainer.fit.steps={steps}")) for steps in (50, 100))
    assert list(one) == ["training", "decomposition", "answer", "total"]
    assert one["training"][1] == 8 * 50 and two["decomposition"][0] == 2 * one["decomposition"][0]


def test_a_run_goes_on_where_its_plan_lacks_what_it_will_fetch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["model=bloomz560m", "method=explaind", "trainer.fit.record=1", "logger=none"]
    assert main("attribute", REPOSITORY / "conf", ["attribute.py", *keys]) == 2
    err = capsys.readouterr().err
    assert "plan: none, the tokenizer of bigscience/bloomz-560m is not at hand" in err
    assert "the hub cannot be reached" in err.splitlines()[-1]
    assert main("attribute", REPOSITORY / "conf", ["attribute.py", *keys, "plan=true"]) == 2
    assert "of a recorded training the tokenizer is needed" in capsys.readouterr().err


@pytest.mark.long
def test_checkpoints_and_batches_are_those_of_the_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By hand: each checkpoint's batch once; the held-out records at every node, and before and after the update; at
    one of them the same again by four times the nodes.
    """
    toy = stages(planned(capsys, "experiment=explaind_eurollm"))
    assert toy["simulated updates"][:2] == [20 * 48, 20 * 48]
    assert toy["decomposition"][:2] == [20 * 96 * 6 + 96 * 18, 20 * 96 * 4 + 96 * 16]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text" for number in range(40)), encoding="utf-8")
    paper = (
        "experiment=explaind_eurollm",
        "scale=paper",
        f"dataset.path={text}",
        "dataset.held_out=8",
        "dataset.group_column=null",
    )
    one = planned(capsys, *paper, "trainer.fit.batch_size=16")
    assert "model.checkpoints names none; these are the costs of one" in one
    many = planned(capsys, *paper, "trainer.fit.batch_size=16", "model.checkpoints=[step-1,step-2,step-3]")
    assert "3 checkpoints" in many and "names none" not in many
    assert stages(one)["simulated updates"][0] == 16 and stages(many)["simulated updates"][0] == 48


@pytest.mark.long
def test_a_model_that_is_shared_out_takes_less_of_each_device(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, of OLMo-1B with 4 layers: an eighth, the tied embedding whole, and three blocks while gathered."""
    asked = (
        "model=olmo1b",
        "model.shape.num_hidden_layers=4",
        "dataset=lima",
        "method=ekfac",
        "trainer.precision=bfloat16",
        "trainer.accelerator=cuda",
    )
    many = ("trainer.devices=8", "trainer.device_gb=80")
    whole, shared = (stages(planned(capsys, *asked, f"trainer={kind}", *many)) for kind in ("ddp", "fsdp"))
    embedding, block = 50_304 * 2_048, 4 * 2_048**2 + 3 * 2_048 * 8_192
    total = embedding + 4 * block
    weights = 2 * (total / 8 + embedding + 3 * block)
    assert shared["answer"][4] == pytest.approx(weights / 1e9, rel=0.01)
    for stage in ("completions", "covariances", "Λ", "influence"):
        assert whole[stage][4] - shared[stage][4] == pytest.approx((2 * total - weights) / 1e9, rel=0.05)
    assert shared["loading"][5] > 2 * total / 1e9 and "loading" not in whole


@pytest.mark.long
def test_factors_of_bloomz_take_the_stated_disk(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, per layer with biases: inputs 1025, 1025, 1025, 4097; outputs 3072, 1024, 4096, 1024; 4 partial sums."""
    out = stages(planned(capsys, "model=bloomz560m", "model.shape.n_layer=4", "method=ekfac",
                         "dataset.query_sets=[paraphrased]"))  # fmt: skip
    squares = 4 * (3 * 1025**2 + 4097**2 + 3072**2 + 2 * 1024**2 + 4096**2) * 4
    entries = 4 * (3072 * 1025 + 1024 * 1025 + 4096 * 1025 + 1024 * 4097) * 4
    assert out["covariances"][3] == pytest.approx(4 * squares / 1e9, rel=0.01)
    assert out["eigenbases"][3] == pytest.approx(squares / 1e9, rel=0.01)
    assert out["Λ"][3] == pytest.approx(4 * entries / 1e9, rel=0.01)


def test_a_device_that_is_too_small_is_named() -> None:
    machine = Machine("toy", True, 1.0, device_bytes=1e9, host_bytes=64e9)
    plan = CostPlan("", [StageCost("fits", device=9e8), StageCost("does not", device=2e9)], machine, [])
    (problem,) = plan.problems
    assert problem.startswith("stage 'does not' needs about 2 GB of device memory, toy has 1 GB")


CASES = {
    "select": ("model.config.num_hidden_layers=4", "dataset.people=60", "trainer.tokens_per_batch=8192"),
    "project": ("model.config.num_hidden_layers=4", "dataset.people=200", "method=project", "budget=0.5",
                "trainer.cache_gb=0.2"),
    "ekfac": ("model=tiny_olmo", "model.config.hidden_size=96", "model.config.intermediate_size=384",
              "model.config.num_hidden_layers=4", "dataset.people=20", "method=ekfac"),
    "classifier": ("model=mnist_cnn", "model.padding=1", "dataset=digits", "method=full", "trainer.fit.steps=20"),
    "factors of a classifier": ("model=mnist_cnn", "model.padding=1", "dataset=digits", "method=ekfac",
                                "trainer.fit.steps=20"),
    "magic": ("model=mlp", "dataset=digits", "dataset.query_limit=16", "method=magic", "trainer.fit.steps=40"),
    "recorded texts": ("method=explaind", "trainer.fit.record=1", "trainer.fit.clip=0", "dataset.people=40"),
    "explaind": ("model=mnist_cnn", "model.padding=1", "dataset=digits", "dataset.train=320", "dataset.test=100",
                 "method=explaind", "trainer.fit.steps=20"),
}  # fmt: skip
FEW = ("dataset.query_sets=[paraphrased]", "trainer.fit.steps=2", "trainer.fit.batch_size=8", "metric.bootstrap=20")
EXECUTED = "select"
"""The case that begins by its own imports; the others are forked from a process that has imported more."""


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_memory_and_disk_within_a_quarter(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The peak resident size of a process of its own, and the sizes of the files that it leaves.

    The peak is VmHWM, which begins anew with a program; ru_maxrss is at least that of the process that starts it. What
    is freed goes back at once: how much of it malloc would keep depends on the machine and on what else runs there.
    """
    arguments = [*CASES[case], *(() if "dataset=digits" in CASES[case] else FEW), "logger=none", "metric.plots=false"]
    disk, _, main_memory = stages(planned(capsys, *arguments))["total"][3:6]
    script = (
        "import pathlib, sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print('PEAK', status.split('VmHWM:')[1].split()[0]); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY / "attribute.py"), *arguments]
    if case == EXECUTED:
        monkeypatch.setenv("TDAEXP_NURSERY", "0")
    ran = run(command, cwd=tmp_path, env={**os.environ, **GIVING_BACK})
    assert ran.returncode == 0, ran.stderr
    peak = 1024 * int(ran.stdout.split("PEAK")[1])
    stores = [*tmp_path.glob("cache/*"), *tmp_path.glob("outputs/*/*/influence.zarr")]
    left = sum(file.stat().st_size for store in stores for file in store.rglob("*") if file.is_file())
    assert "plan:" in ran.stderr
    assert main_memory * 1e9 == pytest.approx(peak, rel=0.25)
    assert disk * 1e9 == pytest.approx(left, rel=0.25)
