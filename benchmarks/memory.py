"""Peak memory of the products that `select` and `project` work on, for 200 and for 2,000 queries, 5 candidates each,
and of a whole run of `full` over all pairs.

`select`: OLMo architecture (4 layers, hidden 96, vocabulary 512), examples of 24 to 32 tokens. `project`: sketches of
150,000 numbers, 30 components, on disk. As many training examples as queries, float32, one thread, a process of its own
for each. Prints the peak above that before the call, the stated cache (`trainer.cache_gb`), and what the table of
results takes. `all`: 60 and 600 queries × 20,000 short texts, `candidates=all`, one layer (8 components), with the CPU
seconds of scoring and of the report; it takes several minutes. `store`: 600 queries × 20,000 × 113 components, numbers
without a model behind them, as a run's store that `evaluate.py` judges and reports on, 5.4 GB of disk.

    python benchmarks/memory.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

CACHE_GB, TOKENS_PER_BATCH, CANDIDATES = 0.1, 512, 5
TEXTS, ALL_GB = 20_000, 2.0  # of a run over all pairs, and its stated cache
ENTRIES, COMPONENTS = 150_000, 30  # of a sketch


def measure(count: int) -> dict[str, float]:
    """What `peak` gives of the products that `select` works on."""
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    from tdaexp.data.examples import Example, Examples
    from tdaexp.gradients.passes import Gradients
    from tdaexp.gradients.products import component_products
    from tdaexp.models.components import component_map
    from tdaexp.objectives.tokens import NextToken

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = OlmoConfig(
        vocab_size=512, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    model = OlmoForCausalLM(config).eval()
    parts = component_map(model)

    def examples(number: int, prefix: str) -> Examples:
        lengths = rng.integers(24, 33, number)
        return Examples(
            [Example(f"{prefix}{k}", rng.integers(0, 512, n), np.arange(n) >= n - 8, "") for k, n in enumerate(lengths)]
        )

    def run(number: int) -> dict[str, Any]:
        # neighbours share candidates, as queries on one topic do
        pairs = (np.arange(number)[:, None] + np.arange(CANDIDATES)) % number
        with tempfile.TemporaryDirectory() as folder:
            return component_products(
                *(Gradients(model, parts, examples(number, side), NextToken()) for side in "tq"), pairs,
                store=Path(folder) / "store", tokens_per_batch=TOKENS_PER_BATCH, cache_gb=CACHE_GB,
            )  # fmt: skip

    run(4)  # libraries are loaded on first use
    return peak(lambda: run(count))


def measure_sketches(count: int) -> dict[str, float]:
    """As `measure`, of products of stored sketches."""
    from tdaexp.gradients.feature_products import feature_products
    from tdaexp.gradients.features import FILE_BYTES, Features
    from tdaexp.runtime.blockstore import BlockStore

    rng, width = np.random.default_rng(0), ENTRIES // COMPONENTS
    columns = {str(k): slice(k * width, (k + 1) * width) for k in range(COMPONENTS)}
    pairs = (np.arange(count)[:, None] + np.arange(CANDIDATES)) % count

    def stored(path: Path) -> Features:
        blocks = [slice(start, min(start + 8, count)) for start in range(0, count, 8)]
        shape = {"features": ((count, ENTRIES), "float32")}
        store = BlockStore(path, shape, blocks, compressed=False, rows=FILE_BYTES // (4 * ENTRIES))
        for number, block in enumerate(blocks):
            rows = rng.standard_normal((block.stop - block.start, ENTRIES), dtype=np.float32)
            store.write(number, {"features": rows})
        return Features(store, np.arange(count), columns)

    with tempfile.TemporaryDirectory() as folder:
        queries, train = (stored(Path(folder) / side) for side in ("queries", "train"))
        return peak(lambda: feature_products(queries, train, pairs, store=Path(folder) / "products", cache_gb=CACHE_GB))


def measure_all(count: int) -> dict[str, float]:
    """As `measure`, of a run of `full` from its command to its report; `scoring` and `report` are CPU seconds."""
    from tdaexp.app import main as run
    from tdaexp.app.stages import answering
    from tdaexp.methods.full import Full

    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **more: Any) -> Any:
            start = time.process_time()
            found = work(*arguments, **more)
            spent[name] = time.process_time() - start
            return found

        return inner

    def texts(number: int, prompt: str, step: int) -> str:
        places = np.arange(number) * step % TEXTS
        rows = [(f"r{k}", prompt.format(k), f" the river {k % 977} runs past town {k * 7 % 1301}") for k in places]
        return "".join(json.dumps(dict(zip(("id", "prompt", "completion"), row, strict=True))) + "\n" for row in rows)

    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.multiple(answering, write_report=timed("report", answering.write_report)),
        mock.patch.multiple(Full, attribute=timed("scoring", Full.attribute)),
    ):
        folder = Path(place)
        (folder / "rows.jsonl").write_text(texts(TEXTS, "Where is mill {}?", 1))
        (folder / "questions.jsonl").write_text(texts(count, "Tell me where mill {} is.", 31))
        arguments = [
            "dataset=text", "dataset.id_column=id", "dataset.prompt_column=prompt",
            "dataset.completion_column=completion",
            f"dataset.path={folder}/rows.jsonl", f"dataset.query_path={folder}/questions.jsonl",
            "dataset.truth_column=id", "dataset.query_sets=[paraphrased]", "candidates=all", "method=full",
            "candidates.index_with=bm25s", "trainer.fit.steps=20", "trainer.fit.warmup=2", f"trainer.cache_gb={ALL_GB}",
            *(f"model.config.{key}={value}" for key, value in small.items()),
            "logger=none", f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        conf = Path(__file__).resolve().parents[1] / "conf"
        found = peak(lambda: {} if run("attribute", conf, ["attribute.py", *arguments]) == 0 else sys.exit(1))
    return found | spent | {"results": count * TEXTS * 8 * 2 * 4 / 1e6}


def measure_store(count: int, texts: int = TEXTS, components: int = 113) -> dict[str, float]:
    """As `measure`, of a store that is written from generated rows, and of `evaluate.py` about it; CPU seconds of
    `writing` and of the `report`, peaks of both.
    """
    from tdaexp import influence
    from tdaexp.app import main as run
    from tdaexp.runtime.rows import Rows

    names = np.array([f"r{k}" for k in range(texts)], dtype=object)
    own = np.arange(count) * 31 % texts

    def values(places: np.ndarray) -> np.ndarray:
        """Noise, and more of it where the row is the question's own."""
        found = np.empty((len(places), texts, components), dtype=np.float32)
        for one, place in zip(found, places, strict=True):
            np.random.default_rng(int(place)).standard_normal(out=one, dtype=np.float32)
            one[own[place]] += 0.3
        return found

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = influence.build(
            Rows((count, texts, components), np.float32, values),
            query=[f"q{k}" for k in range(count)],
            query_set=["paraphrased"] * count,
            train=Rows((count, texts), object, lambda places: np.tile(names, (len(places), 1))),
            truth=own[:, None] == np.arange(texts),
            component=[f"layers.{k // 7}.{k % 7}" for k in range(components)],
            size=np.full(components, 256),
            attrs={"method": "dot", "label": "dot", "study": "generated"},
        )
        written = peak(lambda: influence.save(store, folder / "run" / "influence.zarr") or {})
        arguments = [f"runs=[{folder}/run]", "logger=none", f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/page"]
        conf = Path(__file__).resolve().parents[1] / "conf"
        found = peak(lambda: {} if run("evaluate", conf, ["evaluate.py", *arguments]) == 0 else sys.exit(1))
    results = count * texts * components * 4 / 1e6
    parts = {"writing": written["seconds"], "written": written["peak"], "report": found["seconds"], "scoring": 0.0}
    return {"peak": max(written["peak"], found["peak"]), "seconds": parts["writing"] + parts["report"],
            "judged": found["peak"], "results": results} | parts  # fmt: skip


def peak(work: Callable[[], dict[str, Any]]) -> dict[str, float]:
    """Peak resident memory above that before the work, size of what it returns, both in MB; CPU seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = status("VmRSS"), time.process_time()
    found = work()
    results = sum(np.prod(values.shape) * values.dtype.itemsize for values in found.values()) / 1e6
    return {"peak": status("VmHWM") - before, "results": results, "seconds": time.process_time() - start}


def status(key: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))


def main() -> None:
    kinds = {"select": measure, "project": measure_sketches, "all": measure_all, "store": measure_store}
    if len(sys.argv) > 1:
        print(json.dumps(kinds[(*sys.argv, "select")[2]](int(sys.argv[1]))))
        return
    print("| | queries | peak above what was there | stated cache | table of results | CPU seconds |")
    print("|---|---|---|---|---|---|")
    counts = {"all": (60, 600), "store": (600,)}
    for kind, count in ((one, count) for one in kinds for count in counts.get(one, (200, 2000))):
        done = subprocess.run([sys.executable, __file__, str(count), kind], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cache = 1000 * (ALL_GB if kind == "all" else CACHE_GB)
        sizes = [f"{value:.0f} MB" for value in (found["peak"], cache, found["results"])]
        seconds = f"{found['seconds']:.0f}"
        if "report" in found:
            parts = ("scoring", "writing", "report")
            seconds += f" ({', '.join(f'{found[part]:.0f} {part}' for part in parts if found.get(part))})"
        print("| " + " | ".join([f"`{kind}`", f"{count:,}", *sizes, seconds]) + " |")


if __name__ == "__main__":
    main()
