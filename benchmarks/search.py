"""20 questions against an index of 1,000,000 rows of 2,048 numbers (8 components) in float16: time and memory of the
exact search, of numpy's product with the same memory-mapped rows, and of faiss with its recall, best and worst 100.

Rows are generated, as blocks of an index, in one of two kinds: `noise` has no structure at all, which is the worst case
of an approximate search; `topics` is a mixture of 1,000 topics with a falling spectrum. Each way is a process of its
own on one thread and asked twice, of which the second time counts; what faiss needs is made first. It takes 16 GB of
disk and an hour.

    python benchmarks/search.py FOLDER [ROWS]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tdaexp.data.best import Best
from tdaexp.index.approximate import Approximate
from tdaexp.index.blocks import Block
from tdaexp.index.found import by_faiss, recall_of
from tdaexp.index.index import DOCUMENTS, Index
from tdaexp.index.meeting import Meeting, euclidean
from tdaexp.index.search import extremes
from tdaexp.index.storage import packed, row_bytes
from tdaexp.runtime import digests
from tdaexp.runtime.digests import SETTLED_S
from tdaexp.runtime.rows import rows_of

QUERIES, WIDTH, COMPONENTS, K, TOPICS = 20, 2048, 8, 100, 1000
COLUMNS = {str(k): slice(k * WIDTH // COMPONENTS, (k + 1) * WIDTH // COMPONENTS) for k in range(COMPONENTS)}
KINDS = ("topics", "noise")
WAYS = {
    "numpy": None,
    "exact": Best(k=K),
    "flat": Best(k=K, search="flat", measured=0),
    "ivf": Best(k=K, search="ivf", measured=0),
    "ivf, 32 lists": Best(k=K, search="ivf", probes=32, measured=0),
    "pq": Best(k=K, search="pq", measured=0),
}


class Generated(Index):
    """Rows that no gradient is behind."""

    def __init__(self, folder: Path, count: int) -> None:
        compute = SimpleNamespace(device=torch.device("cpu"), cache_gb=2.0)
        self.problem: Any = SimpleNamespace(compute=compute, cache=folder, stores=set(), overhead=set(), wanted=None)
        self.making: Any = SimpleNamespace(width=WIDTH, storage="float16")
        self.columns, self.dtype, self.row_bytes, self.place = COLUMNS, np.dtype("f4"), 4 * WIDTH, np.arange(count)
        cuts = [(start, min(start + DOCUMENTS, count)) for start in range(0, count, DOCUMENTS)]
        self.blocks = [Block(lambda at=at: folder / "blocks" / f"{at[0]:016x}", *at) for at in cuts]


def rows(kind: str, count: int, seed: int) -> torch.Tensor:
    """So many rows, or questions."""
    generator, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    made = torch.randn(count, WIDTH, generator=generator)
    if kind == "noise":
        return made
    topics = torch.randn(TOPICS, WIDTH, generator=same)
    spectrum = ((1 + torch.arange(WIDTH)) ** -0.5)[torch.randperm(WIDTH, generator=same)]
    return (made + topics[torch.randint(0, TOPICS, (count,), generator=generator)]) * spectrum


def generate(folder: Path, kind: str, count: int) -> None:
    """Leave the blocks, but for their checksums, which no search looks at."""
    for number, block in enumerate(Generated(folder, count).blocks):
        kept, scale = packed(rows(kind, len(block), number + 1), list(COLUMNS.values()), "float16")
        block.write(kept, scale, [str(one) for one in range(block.start, block.stop)], 0.0)


def product(index: Index, queries: np.ndarray) -> np.ndarray:
    """The floor: numpy's product with the rows as they lie there, in float32, a block at a time; nothing is kept."""
    for block in index.blocks:
        scores = queries @ np.load(block.path / "rows.npy", mmap_mode="r").astype(np.float32).T
    return scores


def measure(folder: Path, kind: str, count: int, way: str) -> None:
    """Run one way; print CPU seconds and peak MB above what was there, and what it found."""
    torch.set_num_threads(1)
    index, queries, best = Generated(folder, count), rows(kind, QUERIES, 10**6).numpy(), WAYS[way]
    approximate = Approximate(index, Meeting(euclidean), best, 2.0) if best and best.search != "exact" else None
    spent = {"made": 0.0, "made_peak": 0.0, "size": 0.0}
    with digests.kept_in(folder):
        if approximate is not None:
            begun, before = time.process_time(), fresh()
            approximate.opened()
            spent = {"made": time.process_time() - begun, "made_peak": peak() - before}
            spent["size"] = (approximate.path / "rows.faiss").stat().st_size / 1e9
        time.sleep(SETTLED_S)  # a file that was just written is read again to see whether it is whole
        for _ in range(2):  # the first time looks at checksums, and files come to memory
            begun, before = time.process_time(), fresh()
            if best is None:
                found = product(index, queries)
            elif approximate is None:
                found = extremes(index, queries, K, Meeting(euclidean))
            else:
                found = by_faiss(approximate, rows_of(queries))[0]
            spent |= {"seconds": time.process_time() - begun, "peak": peak() - before}
    answer = folder / "exact.npy"
    if way == "exact":
        np.save(answer, found)
    print(json.dumps(spent | (recall_of(found, np.load(answer)) if approximate is not None else {})))


def fresh() -> float:
    """Forget the peak of memory so far; MB that are there now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> float:
    """The peak since then, in MB."""
    return status("VmHWM")


def status(key: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))


def main(folder: Path, count: int) -> None:
    size = count * row_bytes(WIDTH, COMPONENTS, "float16", 4) / 1e9
    print(f"{QUERIES} questions, {count:,} rows of {WIDTH:,} in float16, {size:.2f} GB, one thread")
    for kind in KINDS:
        place = folder / kind
        generate(place, kind, count)
        print(f"\n| {kind} | made: CPU s | peak | on disk | asked: CPU s | peak | helpful | harmful |")
        print("|---|---|---|---|---|---|---|---|")
        for way in WAYS:
            command = [sys.executable, __file__, str(folder), str(count), kind, way]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            one = json.loads(done.stdout.splitlines()[-1])
            made = [f"{one['made']:.0f}", f"{one['made_peak']:.0f} MB", f"{one['size']:.2f} GB"]
            recall = [f"{one[name]:.3f}" if name in one else "" for name in ("recall_helpful", "recall_harmful")]
            asked = [f"{one['seconds']:.2f}", f"{one['peak']:.0f} MB"]
            print(
                "| " + " | ".join([way, *(made if one["made"] else ["", "", ""]), *asked, *recall]) + " |", flush=True
            )
        shutil.rmtree(place)


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int((*sys.argv, "1000000")[2])
    measure(folder / sys.argv[3], sys.argv[3], count, sys.argv[4]) if len(sys.argv) > 4 else main(folder, count)
