"""Time whole commands: `--help`, and the jobs of a budget sweep on a fresh cache.

    python benchmarks/commands.py

CPU seconds, one thread. The sweep is `method=select -m budget=0.02,0.05,0.1` with reports, figures and wandb as they
come. Its first job trains the default model, completes the queries and computes the component products; the rest only
search and report. A fourth job with a cleared store of products, but with the model there, tells how much of the
difference the products are.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
REPOSITORY = Path(__file__).resolve().parents[1]
HELP_LIMIT_S, GOAL = 2.0, 10.0


def job_seconds(*arguments: str) -> list[float]:
    """CPU seconds of every job of a sweep in this process, imports left out."""
    from tdaexp.app import main, stages

    original, seconds = stages.attribute, []

    def timed(*given: object) -> dict[str, float]:
        start = time.process_time()
        metrics = original(*given)
        seconds.append(time.process_time() - start)
        return metrics

    stages.attribute = timed
    try:
        main("attribute", REPOSITORY / "conf", ["attribute.py", *arguments])
    finally:
        stages.attribute = original
    return seconds


def help_seconds() -> float:
    """CPU seconds of `attribute.py --help`."""
    before = os.times()
    subprocess.run([sys.executable, str(REPOSITORY / "attribute.py"), "--help"], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    print(f"--help: {help_seconds():.2f} CPU-s (limit {HELP_LIMIT_S})")
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        first, second, third = job_seconds("method=select", "-m", "budget=0.02,0.05,0.1")
        shutil.rmtree(Path("cache/products"))
        (products,) = job_seconds("method=select", "budget=0.02")
        os.chdir(REPOSITORY)
    print(f"sweep on a fresh cache: {first:.1f}, then {second:.1f} and {third:.1f} CPU-s: ", end="")
    print(f"the second is {first / second:.1f} times faster (goal {GOAL:.0f})")
    print(f"first job with the model there: {products:.1f} CPU-s, {products / second:.1f} times the second")


if __name__ == "__main__":
    main()
