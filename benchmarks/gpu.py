"""Full-size models on a GPU: minutes, share of the matrix-product ceiling, peak memory. Weights and tokens are random.

    select         products and search: OLMo-1B, LIMA's lengths, both query sets of 988, 5 candidates each, bfloat16;
                   a tenth of the queries unless told (--share select=1 for all)
    factorised-1, factorised-5, srht-1, srht-5
                   random projection of the same to 1 % and 5 % of the parameters; of 2 % of the examples unless told
    ekfac          factors and scores of BLOOM-560m: 20,000 sentences of T-REx's lengths, 100 queries, 100 candidates
    ekfac-1b       the same of OLMo-1B's attention: 300 of LIMA's lengths, 16 queries each of both sets, 100 candidates
    explaind       one EuroLLM-1.7B checkpoint: sequences of 4,096 tokens, 4 Gauss nodes, float32; of a batch of 3,072
                   and 512 held-out sequences 1/32 unless told
    grokking       the whole grokking decomposition, 2,000 steps; training is not counted

    python benchmarks/gpu.py [--rows ROW …] [--share ROW=FRACTION …] [--limit SECONDS] [--out FILE] [--tiny]

Each row is a process of its own, so that one that fails or is killed leaves the others alone; its result is a line of
JSON in FILE as soon as it is there. The table has every row's last result on this device. The ceiling is a large matrix
product in the row's precision on the row's device, timed in the same process. Shares of it are the plan's arithmetic
over the measured time. A share of the work is timed as it is, never scaled up. `--tiny` runs everything in tiny sizes,
on a CPU too: a test. The exit code is 1 where a row that was asked for was not measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tdaexp.app.compose import open_composer
from tdaexp.app.job import check
from tdaexp.building.tasks import build_problem, load_task
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.data.groups import ALL
from tdaexp.data.sizes import Sizes
from tdaexp.methods.select import Select
from tdaexp.models.components import component_map
from tdaexp.models.loaded import LoadedModel, freeze, quiet_transformers
from tdaexp.models.stated import stated_config
from tdaexp.objectives.tokens import NextToken
from tdaexp.paths.checkpoint_step import Plan, decompose
from tdaexp.paths.checkpoint_walk import slabs_of
from tdaexp.planning.plan import planned
from tdaexp.planning.text_work import TextWork
from tdaexp.planning.texts import text_work
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.rehearsal import Rehearsal
from tdaexp.training.checkpoint_list import Snapshot
from tdaexp.training.history import ListedCheckpoints

CONF = Path(__file__).resolve().parents[1] / "conf"
OLMO = ["model=olmo1b", "dataset=lima", "trainer.precision=bfloat16", "trainer.tokens_per_batch=8192"]
OLMO += ["trainer.cache_gb=40"]
TINY_SHAPE = {
    "olmo": "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 num_key_value_heads=2 intermediate_size=24",
    "bloom": "hidden_size=16 n_layer=2 n_head=2",
    "llama": "hidden_size=16 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 intermediate_size=24",
}
TINY_TEXTS = ["train=6", "queries=4", "prompt=[2,5]", "completion=[4,9]"]
RUNS = {"cuda": 50, "cpu": 10}  # matrix products that are timed


@dataclass(frozen=True)
class Row:
    """`overrides` of the whole work, `layout` of its tiny model, and `work` from a share of it to the measurement."""

    title: str
    overrides: list[str]
    work: Callable[[Row, float, bool, str], dict[str, Any]]
    share: float = 1.0
    layout: str | None = None

    def config(self, folder: str, tiny: bool, *more: str) -> Any:
        """The checked configuration as `attribute.py` makes it of these options."""
        small = [f"model.shape.{one}" for one in TINY_SHAPE[self.layout].split()] if self.layout else []
        small += ["model.shape.vocab_size=64", "trainer.cache_gb=0.05"] if self.layout else []
        options = [*self.overrides, *more, *(small if tiny else []), f"cache_dir={folder}", "logger=none"]
        with open_composer("attribute", CONF) as composer:
            opened = composer.opened(options)
            return check(composer, "attribute", opened, composer.compose(opened), ("tdaexp",)).config


class Random:
    """A model of the configured shape, its weights drawn on the device in the configured precision."""

    def __init__(self, config: Any) -> None:
        self.shape, self.device = stated_config(config.model.shape, "model.shape"), device_of(config)
        self.dtype = resolve_dtype(config.trainer.precision)

    def load(self, *_: Any) -> LoadedModel:
        torch.manual_seed(0)
        with quiet_transformers(), self.device:
            model = AutoModelForCausalLM.from_config(self.shape, dtype=self.dtype)
        return LoadedModel(freeze(model), None, "random", "plain", 1 << 20)  # type: ignore[arg-type]

    def examples(self, sizes: Sizes, prefix: str) -> Examples:
        """Random tokens in these lengths."""
        rng = np.random.default_rng(ord(prefix))
        blank = sizes.examples("")
        words = [rng.integers(0, self.shape.vocab_size, one.length) for one in blank]
        return Examples([replace(one, id=prefix + one.id, tokens=own) for one, own in zip(blank, words, strict=True)])


def device_of(config: Any) -> torch.device:
    return resolve_device(config.trainer.accelerator)


def compute_of(config: Any) -> Compute:
    trainer = config.trainer
    return Compute(device_of(config), resolve_dtype(trainer.precision), trainer.tokens_per_batch, trainer.cache_gb)


def sizes_of(config: Any) -> TextWork:
    return text_work(config, None, Rehearsal())[0]


def plan_of(config: Any) -> tuple[float, float]:
    """FLOP of the method, without what comes before it, and the most bytes that it has on the device."""
    stages = planned(config).stages
    return sum(stage.flop for stage in stages), max(stage.device for stage in stages)


def pairs(row: Row, share: float, tiny: bool, folder: str) -> dict[str, Any]:
    """A method that scores pairs of texts; of `select` a share is one of the queries, else of all examples."""
    whole = row.config(folder, tiny, *(f"dataset.assumed.{one}" for one in TINY_TEXTS if tiny))
    dataset, full = whole.dataset, sizes_of(whole)
    asked = max(1, round(share * full.query_sets[0]))
    limit = len(full.train) if isinstance(whole.method, Select) else max(1, round(share * len(full.train)))
    dataset.query_limit, dataset.limit = asked, limit
    work = sizes_of(whole)
    random = Random(whole)
    truth = np.zeros(work.pairs.shape, dtype=bool)
    truth[:, 0] = True
    names = [name for name, count in zip(dataset.query_sets, work.query_sets, strict=True) for _ in range(count)]
    loaded = random.load()
    problem = Problem(
        loaded.model, loaded.fingerprint, component_map(loaded.model), NextToken(), random.examples(work.train, "t"),
        random.examples(work.queries, "q"), names, Candidates(work.pairs, np.full(work.pairs.shape, np.nan)), truth,
        compute_of(whole), Path(folder), whole.seed, loaded=loaded,
    )  # fmt: skip
    amount = (
        f"{len(work.queries):,} of {len(full.queries):,} queries, {len(work.train):,} of {len(full.train):,} examples"
    )
    return timed(lambda: whole.method.attribute(problem), whole, device_of(whole), plan_of(whole)) | {"amount": amount}


def checkpoint(row: Row, share: float, tiny: bool, folder: str) -> dict[str, Any]:
    """One simulated update of a fresh optimiser; a share is one of the batch and of the held-out sequences."""
    batch, held_out, length = (4, 2, 16) if tiny else (3072, 512, 4096)
    own, asked = max(1, round(share * batch)), max(1, round(share * held_out))
    sizes = [f"train={own}", f"queries={asked}", "prompt=[0]", f"completion=[{length}]"]
    config = row.config(
        folder, tiny, *(f"dataset.assumed.{one}" for one in sizes), f"dataset.max_length={length}",
        f"trainer.fit.batch_size={own}", f"trainer.tokens_per_batch={length}",
    )  # fmt: skip
    work, random = sizes_of(config), Random(config)
    snapshot = Snapshot("random", 0, random, "random", None)  # type: ignore[arg-type]
    history = ListedCheckpoints([snapshot], [ALL] * own, [ALL] * asked, config.trainer.fit)
    model, none = random.load().model.to("meta"), np.empty((asked, 0), np.int64)
    problem = Problem(
        model, "random", component_map(model).complete(), NextToken(), random.examples(work.train, "t"),
        random.examples(work.queries, "q"), [ALL] * asked, Candidates(none, none.astype(float)), none.astype(bool),
        compute_of(config), Path(folder), config.seed, history=history,
    )  # fmt: skip
    queries, slabs = {ALL: list(range(asked))}, slabs_of(model, problem.map)
    plan = Plan(problem, history, config.method.quadrature, queries, [], slabs)
    found = timed(lambda: decompose(plan, snapshot, check=False), config, device_of(config), plan_of(config))
    return found | {
        "amount": f"{own:,} of {batch:,} sequences, {asked} of {held_out} held-out ones, of {length:,} tokens"
    }


def grokking(row: Row, share: float, tiny: bool, folder: str) -> dict[str, Any]:
    """Trained and recorded first, which is not counted; a share is one of the steps."""
    whole = 4 if tiny else 2000
    steps = max(2, round(share * whole))
    small = ["dataset.train=40", "dataset.test=8", "dataset.modulus=11", "model.hidden=8", "model.inner=8"]
    config = row.config(folder, tiny, f"trainer.fit.steps={steps}", *(small if tiny else []))
    plan = plan_of(config)
    start = time.perf_counter()
    device = device_of(config)
    problem = build_problem(config, load_task(config), dtype=torch.float32)
    trained = (time.perf_counter() - start) / 60
    found = timed(lambda: config.method.attribute(problem), config, device, plan)
    return found | {"amount": f"{steps:,} of {whole:,} steps (training: {trained:.1f} min)"}


def timed(work: Callable[[], Any], config: Any, device: torch.device, plan: tuple[float, float]) -> dict[str, Any]:
    """Wall time, the ceiling, and peaks of memory of the call; 10^9 bytes."""
    cuda, dtype = device.type == "cuda", resolve_dtype(config.trainer.precision)
    ceiling = matrix_rate(device, dtype)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {
        "minutes": seconds / 60,
        "on": device.type,
        "plan_tflop": plan[0] / 1e12,
        "ceiling_tflops": ceiling / 1e12,
        "precision": config.trainer.precision,
        "share_of_ceiling": plan[0] / seconds / ceiling,
        "plan_gb": plan[1] / 1e9,
        "device_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product."""
    width, runs = (8192 if device.type == "cuda" else 512), RUNS[device.type]
    left, right = torch.randn(2, width, width, device=device, dtype=dtype)
    for count in (3, runs):  # the first ones are not counted
        start = time.perf_counter()
        for _ in range(count):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
    return 2 * width**3 * runs / (time.perf_counter() - start)


ROWS = {"select": Row("`select`, products and search, OLMo-1B", [*OLMO, "method=select"], pairs, 0.1, "olmo")} | {
    f"{kind}-{percent}": Row(
        f"`project`, {kind}, {percent} %, OLMo-1B",
        [*OLMO, "method=project", f"method.projection={kind}", f"budget=0.0{percent}"], pairs, 0.02, "olmo",
    )
    for kind in ("factorised", "srht") for percent in (1, 5)
} | {
    "ekfac": Row(
        "`ekfac`, factors and scores, BLOOM-560m",
        ["model=bloom560m", "dataset=trex", "dataset.hub=ekinakyurek/ftrace", "method=ekfac", "dataset.limit=20000",
         "dataset.query_limit=100", "candidates.b=100", *OLMO[2:4], "trainer.cache_gb=30"], pairs, layout="bloom",
    ),
    "ekfac-1b": Row(
        "`ekfac`, attention, OLMo-1B",
        [*OLMO, "method=ekfac", "method.part=attention", "method.saves=1", "dataset.limit=300",
         "dataset.query_limit=16", "candidates.b=100"], pairs, layout="olmo",
    ),
    "explaind": Row(
        "`explaind`, one checkpoint, EuroLLM-1.7B",
        ["model=eurollm1b7", "dataset=lima", "method=explaind", "method.output=loss", "method.quadrature.rule=gauss",
         "method.quadrature.nodes=4", "trainer.fit.lr=3e-4", "trainer.fit.warmup=0", "trainer.fit.weight_decay=0.1"],
        checkpoint, 1 / 32, "llama",
    ),
    "grokking": Row("`explaind`, grokking", ["model=grokking", "dataset=modular_addition", "method=explaind"],
                    grokking),
}  # fmt: skip


def measure(name: str, share: float, tiny: bool, folder: str, sender: Any) -> None:
    """In a process of its own: send the device's name, then the measurement, or what went wrong."""
    sender.send(torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine())
    try:
        if not (tiny or torch.cuda.is_available()):
            raise RuntimeError("no CUDA device here (--tiny runs without one)")
        found = ROWS[name].work(ROWS[name], share, tiny, folder)
    except BaseException as error:  # a row that fails must not end the others, whatever it was
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    sender.send(found)


def run(name: str, share: float, tiny: bool, limit: float) -> dict[str, Any]:
    """One row's record; `failed` says why there are no numbers."""
    # a GPU wants a fresh process; tiny rows share the libraries that are loaded already
    context = multiprocessing.get_context("fork" if tiny else "spawn")
    about = {"row": name, "share": share, "tiny": tiny, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    found: dict[str, Any] = {"failed": f"not done after {limit:g} seconds"}
    with tempfile.TemporaryDirectory() as folder:  # here, so that a killed process leaves nothing behind
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(name, share, tiny, folder, sender))
        process.start()
        sender.close()
        try:
            about["device"] = receiver.recv()
            if receiver.poll(limit):
                found = receiver.recv()
        except EOFError:
            process.join()
            found = {"failed": f"its process was killed (exit code {process.exitcode})"}
        finally:
            process.kill()
            process.join()
    return about | found


def line(name: str, one: dict[str, Any] | None) -> str:
    cells = ["not measured", "-", "-", "-"]
    if one and "failed" in one:
        cells[0] = f"not measured: {one['failed']}"
    elif one:
        memory = "-" if one["device_gb"] is None else f"{one['device_gb']:.1f} GB (plan {one['plan_gb']:.1f})"
        part = "" if one["share"] == 1 else f"a share ({one['share']:.3g}): "
        rate = f"{one['share_of_ceiling']:.1%} of {one['ceiling_tflops']:.3g} TFLOP/s ({one['precision']}, {one['on']})"
        cells = [f"{one['minutes']:.3g}", part + one["amount"], rate, f"{memory}, {one['process_gb']:.1f} GB"]
    return "| " + " | ".join([ROWS[name].title, *cells]) + " |"


def shares(given: list[str]) -> dict[str, float]:
    """ROW=FRACTION by row, the others' usual ones. Errors (ValueError): an unknown row, a share outside (0, 1]."""
    found = {name: row.share for name, row in ROWS.items()}
    for text in given:
        name, _, value = text.partition("=")
        if name not in ROWS or not 0 < float(value) <= 1:
            raise ValueError(f"--share {text}: needs ROW=FRACTION, a row of {', '.join(ROWS)}, at most 1")
        found[name] = float(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--share", nargs="+", default=[], metavar="ROW=FRACTION")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one row")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    try:
        share = shares(options.share)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the row's process ends with this one
    records = [json.loads(one) for one in options.out.read_text().splitlines()] if options.out.exists() else []
    done = []
    for name in options.rows:
        done.append(run(name, share[name], options.tiny, options.limit))
        with options.out.open("a") as stream:
            stream.write(json.dumps(done[-1]) + "\n")
        print(line(name, done[-1]), file=sys.stderr, flush=True)
    device = next((one["device"] for one in done if "device" in one), "unknown")
    same = [one for one in [*records, *done] if (one["tiny"], one.get("device", device)) == (options.tiny, device)]
    latest = {one["row"]: one for one in same}
    print(f"{device}, {done[-1]['date']}, torch {torch.__version__}{', tiny sizes' if options.tiny else ''}\n")
    print("| what | minutes | amount | plan's arithmetic over time, of the ceiling | peak memory: GPU, process |")
    print("|---|---|---|---|---|")
    print("\n".join(line(name, latest.get(name)) for name in ROWS))
    return int(any("failed" in one for one in done))


if __name__ == "__main__":
    sys.exit(main())
