"""Every method's answer on a GPU against its answer on the CPU: the same models, data and settings in the same run.

The models are trained once, on the device; each method then runs by `attribute.py` on both, with caches of their own.
Prints for each case the largest difference as a share of the largest score, the least rank correlation of a query's
scores, the share of queries with the same best example, and the seconds of both commands, imports included. Cases run
side by side, so the seconds are no measurement of speed.

    python benchmarks/agreement.py [--cases CASE …] [--jobs 7] [--device cuda] [--small] [--folder FOLDER]

The exit code is 1 where a run failed or an answer differs by more than its tolerance (TOLERANCES). `--device cpu` is a
test of the script; `--small` shortens the trainings.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from tdaexp.influence import blocks, load

REPOSITORY = Path(__file__).resolve().parents[1]
TOLERANCES = {"float32": 1e-4, "iterative": 3e-3, "drawn": 1e-2, "bfloat16": 1e-1, "exact": 0.0}
"""Largest difference over largest score. Solvers stop at a tolerance (`method.tolerance`); EK-FAC draws labels, of
which rounding makes a few others (`tests/curvature/test_on_cuda.py` has the same ones on both devices)."""
TOY = ["dataset.people=100", "dataset.query_limit=60", "trainer.fit.keep=all", "trainer.fit.steps=200"]
QA = ["model=toy_recall", "dataset=biographies_qa", "trainer.fit.steps=300", "trainer.finetune.steps=50"]
IMAGES = ["model=mnist_cnn", "model.padding=1", "dataset=digits", "dataset.query_limit=64"]
GIVEN = "dataset.query_sets=[paraphrased]"  # what the model writes may differ by a word where numbers are rounded
SMALL = {"toy": ["trainer.fit.steps=20", "trainer.fit.checkpoint_every=10"],
         "qa": ["trainer.fit.steps=20", "trainer.finetune.steps=10"], "images": ["trainer.fit.steps=5"]}  # fmt: skip
DATA = {"toy": TOY, "qa": QA, "images": IMAGES}
CASES = {
    **{name: ("toy", [f"method={name}"], "float32") for name in ("select", "full", "dot", "project", "repsim")},
    "ekfac": ("toy", ["method=ekfac"], "drawn"),
    **{f"project-{kind}": ("toy", ["method=project", f"method.projection={kind}", "budget=0.005"], "float32")
       for kind in ("srht", "sjlt")},
    **{f"ekfac-{mode}": ("toy", ["method=ekfac", f"method.mode={mode}"], "drawn") for mode in ("kfac", "diagonal")},
    "ekfac-rank": ("toy", ["method=ekfac", "method.query_rank=8"], "drawn"),
    "ekfac-kept": ("toy", ["method=ekfac", "method.keep_gb=4"], "drawn"),
    "ekfac-tokens": ("toy", ["method=ekfac", "method.per_token=3", "dataset.query_limit=10"], "drawn"),
    "cg": ("toy", ["method=cg", "method.examples=32"], "iterative"),
    "astra": ("toy", ["method=astra", "method.examples=32", "method.steps=40"], "iterative"),
    "lissa": ("toy", ["method=lissa", "method.depth=40"], "iterative"),
    "arnoldi": ("toy", ["method=arnoldi", "method.examples=32", "method.steps=30", "method.rank=20"], "iterative"),
    **{name: ("toy", [f"method={name}"], "float32") for name in ("tracin", "cka")},
    "trak": ("toy", ["method=trak", "method.projection=srht"], "float32"),
    "cka-states": ("toy", ["method=cka", "method.of=states"], "float32"),
    **{name: ("toy", [f"method={name}"], "exact") for name in ("bm25", "random")},
    **{f"{name}-bfloat16": ("toy", [f"method={name}", "trainer.precision=bfloat16", GIVEN], "bfloat16")
       for name in ("dot", "project", "ekfac")},
    "dot-float64": ("toy", ["method=dot", "trainer.precision=float64"], "float32"),
    "multistage": ("qa", ["method=multistage", "candidates=all"], "drawn"),
    "multistage-bfloat16": ("qa", ["method=multistage", "candidates=all", "trainer.precision=bfloat16"], "bfloat16"),
    "explaind": ("images", ["method=explaind"], "float32"),
    "explaind-train": ("images", ["method=explaind", "method.keep=[component,train]", "method.single=64"],
                       "float32"),
    "explaind-gauss": ("images", ["method=explaind", "method.quadrature.rule=gauss", "method.quadrature.nodes=4"],
                       "float32"),
    "classifier": ("images", ["method=ekfac"], "drawn"),
}  # fmt: skip


def command(program: str, device: str, cache: Path, folder: Path, options: list[str]) -> tuple[float, str]:
    """Seconds, and what went wrong (the end of what it said)."""
    words = [f"trainer.accelerator={device}", "logger=none", f"cache_dir={cache}", f"hydra.run.dir={folder}"]
    words += [] if program == "train" else ["metric.plots=false"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / f"{program}.py"), *options, *words],
        capture_output=True, text=True, cwd=cache.parent, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "said.txt").write_text(said, encoding="utf-8")
    return time.perf_counter() - start, "" if done.returncode == 0 else said[-1500:]


def given(root: Path, name: str) -> list[str]:
    """Options that take the language models that were trained, whatever the precision that a case runs in."""
    first = {"toy": "toy_gpt", "qa": "toy_recall"}.get(name, "none")
    found = {one.parent.name: one for one in (root / "trained" / "models").glob(f"{first}-*/model")}
    keys = {place: "finetuned" if "-finetuned-" in folder else "pretrained" for folder, place in found.items()}
    return [f"model.{key}={place}" for place, key in keys.items()]


def compared(ours: Path, theirs: Path) -> tuple[float, float, float]:
    """Largest difference over largest score, least rank correlation and share of equal best examples over queries."""
    found = [[one["influence"].values.astype(float) for one in blocks(load(side / "influence.zarr"))]
             for side in (ours, theirs)]  # fmt: skip
    left, right = (np.concatenate(one) for one in found)
    if left.shape != right.shape or (np.isnan(left) != np.isnan(right)).any():
        raise ValueError(f"answers of shapes {left.shape} and {right.shape}, or other pairs")
    worst = np.nanmax(np.abs(left - right)) / max(np.nanmax(np.abs(right)), 1e-300)
    sums = [np.where(np.isnan(one), 0.0, one).reshape(*one.shape[:2], -1).sum(2) for one in (left, right)]
    ranks = [spearmanr(a, b).statistic for a, b in zip(*sums, strict=True) if a.std() > 0 and b.std() > 0]
    best = (sums[0].argmax(1) == sums[1].argmax(1)).mean()
    return float(worst), float(min(ranks, default=np.nan)), float(best)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--jobs", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp(prefix="agreement")))
    options = parser.parse_args()
    root = options.folder.resolve()
    root.mkdir(parents=True, exist_ok=True)
    settings = {name: [*words, *(SMALL[name] if options.small else [])] for name, words in DATA.items()}
    wanted = {CASES[case][0] for case in options.cases}
    with ThreadPoolExecutor(options.jobs) as pool:
        trained = {name: pool.submit(command, "train", options.device, root / "trained", root / f"train-{name}", words)
                   for name, words in settings.items() if name in wanted}  # fmt: skip
        for name, one in trained.items():
            seconds, wrong = one.result()
            print(f"train {name}: {seconds:.0f} s {wrong}", flush=True)
        settings = {name: [*words, *given(root, name)] for name, words in settings.items()}
        for side in ("here", "cpu"):
            shutil.copytree(root / "trained", root / side, dirs_exist_ok=True)
        runs = {
            (case, side): pool.submit(command, "attribute", options.device if side == "here" else "cpu", root / side,
                                      root / f"{case}-{side}", [*settings[CASES[case][0]], *CASES[case][1]])
            for case in options.cases for side in ("here", "cpu")
        }  # fmt: skip
        print("| case | difference | rank correlation | same best | seconds: device, CPU | |")
        print("|---|---|---|---|---|---|")
        bad = sum(line(case, root, [runs[case, side].result() for side in ("here", "cpu")]) for case in options.cases)
    return int(bad > 0)


def line(case: str, root: Path, results: list[tuple[float, str]]) -> bool:
    """Print one case; whether it is bad."""
    seconds = ", ".join(f"{one[0]:.0f}" for one in results)
    failed = [f"{side}: {wrong}" for side, (_, wrong) in zip(("device", "CPU"), results, strict=True) if wrong]
    if failed:
        print(f"| {case} | - | - | - | {seconds} | failed: {' '.join(failed)} |", flush=True)
        return True
    try:
        worst, rank, best = compared(*(root / f"{case}-{side}" for side in ("here", "cpu")))
    except Exception as error:
        print(f"| {case} | - | - | - | {seconds} | {type(error).__name__}: {error} |", flush=True)
        return True
    bad = not worst <= TOLERANCES[CASES[case][2]]
    print(f"| {case} | {worst:.1e} | {rank:.4f} | {best:.3f} | {seconds} | {'too much' if bad else ''} |", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
