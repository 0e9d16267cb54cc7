"""Compare this program's scores and costs with its peers' on the same models, examples and queries.

    bash benchmarks/peers/environment.sh                 # once: the peers' own environment
    python benchmarks/peers/run.py [NAME …]              # all comparisons, or those whose names begin so
    python benchmarks/peers/run.py --page                # docs/peers.md from what was measured

Each run is a process of its own with one thread; a comparison runs both sides in turn, `--rounds` times, and takes of
each the run with fewest CPU seconds. Works, scores and records stay under outputs/peers, and what is measured again
replaces its record. A peer that cannot be run is a record with the reason. Exits with 1 where one was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import with_tdaexp  # noqa: F401  (its forks have what it imports)
from comparisons import COMPARISONS, Check, Comparison, Run
from page import write_page
from threadpoolctl import threadpool_limits
from work import read_scores

from tdaexp import influence
from tdaexp.metrics.external import read_scores as scores_of_another_program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLACE = ROOT / "outputs" / "peers"
PEERS = HERE / ".venv" / "bin" / "python"
HERE_TOO = ("tdaexp", "formula")
"""Programs that this environment has."""
LIMIT_S = 300


class Failed(Exception):
    """A program ended with an error; its last line is the reason."""


def execute(script: str, arguments: list[str], python: Path | str = sys.executable) -> None:
    """Run a script of this folder. Errors (Failed): it does not end well."""
    if python == PEERS and not PEERS.exists():
        raise Failed("the peers' environment is missing: run benchmarks/peers/environment.sh")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        command = [str(python), "-W", "ignore", str(HERE / script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not done after {LIMIT_S} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(" ".join(lines[-1].split())[:200])


def forked(program: str, arguments: list[str]) -> None:
    """Run a script of this environment in a fork, which has the libraries. Errors (Failed): it does not end well."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            with threadpool_limits(1):
                import_module(f"with_{program}").run(arguments)
        except BaseException as error:  # whatever it was, it is this comparison's
            sender.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            sys.exit(1)

    process = context.Process(target=work)
    process.start()
    sender.close()
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        raise Failed(f"not done after {LIMIT_S} seconds")
    if process.exitcode:
        raise Failed(receiver.recv() if receiver.poll() else f"exit code {process.exitcode}")


def measure(work: str, run: Run, out: Path) -> dict[str, Any]:
    """What a run cost; its scores lie in OUT.npz."""
    arguments = [str(PLACE / "works" / work), str(out), *run.arguments]
    if run.program in HERE_TOO:
        forked(run.program, arguments)
    else:
        execute(f"with_{run.program}.py", arguments, PEERS)
    return json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def agreement(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Pearson's correlation over all pairs, and the lowest of a query's."""
    rows = [float(np.corrcoef(*pair)[0, 1]) for pair in zip(one, other, strict=True)]
    return {"all": float(np.corrcoef(one.ravel(), other.ravel())[0, 1]), "lowest": min(rows)}


def compare(comparison: Comparison, rounds: int) -> dict[str, Any]:
    """The record of a comparison."""
    folder = PLACE / comparison.name
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"ours": comparison.ours, "theirs": comparison.theirs}
    costs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            costs[name].append(measure(comparison.work, run, folder / name))
    found: dict[str, Any] = {name: min(runs, key=lambda one: one["seconds"]) for name, runs in costs.items()}
    found["rounds"] = rounds
    found["pearson"] = agreement(*(scores(folder / name, folder / "ours") for name in ("theirs", "ours")))
    if comparison.check is not None:
        found["check"] = checked(comparison.work, comparison.check, folder)
    return found


def scores(out: Path, ours: Path) -> np.ndarray:
    """Scores [query, train] of a run, read as `evaluate.py runs=[OURS] scores=FILE` does where pairs are scored."""
    file, store = out.with_suffix(".npz"), ours / "influence.zarr"
    if not store.exists():
        return read_scores(file)[0]
    reference = influence.load(store)
    return influence.dense(scores_of_another_program(file, reference)).values


def checked(work: str, check: Check, folder: Path) -> dict[str, float]:
    """How far the check's two runs agree."""
    for name, run in (("one", check.one), ("other", check.other)):
        measure(work, run, folder / name)
    return agreement(*(read_scores(folder / f"{name}.npz")[0] for name in ("one", "other")))


def prepare(work: str) -> None:
    """Export a piece of work where it is not there."""
    if not (PLACE / "works" / work / "work.json").exists():
        execute("export.py", [str(PLACE / "works"), work])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[""])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="write docs/peers.md alone")
    given = parser.parse_args()
    failed = False
    PLACE.mkdir(parents=True, exist_ok=True)
    for one in COMPARISONS if not given.page else []:
        if not one.name.startswith(tuple(given.names)):
            continue
        try:
            prepare(one.work)
            found = compare(one, given.rounds)
        except Failed as error:
            found, failed = {"failed": str(error)}, True
        found["date"] = time.strftime("%Y-%m-%d")
        (PLACE / f"{one.name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(one.name, found.get("failed") or found["pearson"], found.get("check", ""), flush=True)
    records = {one.name: PLACE / f"{one.name}.json" for one in COMPARISONS}
    there = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in records.items() if file.exists()}
    write_page(ROOT / "docs" / "peers.md", there)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
