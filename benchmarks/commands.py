"""Time whole commands: `--help`, and the second job of a budget sweep against the first.

    python benchmarks/commands.py

CPU seconds of the child process, one thread. The sweep's first job has a trained model but no stored products; the
second job is the same command with another budget.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
HELP_LIMIT_S, SWEEP_GOAL = 2.0, 10.0


def cpu_seconds(folder: Path, script: str, *arguments: str) -> float:
    """User and system seconds of one command, run in `folder`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"--help: {cpu_seconds(folder, 'attribute.py', '--help'):.2f} CPU-s (limit {HELP_LIMIT_S})")
        quick = ("logger=none", "metric.plots=false", "metric.bootstrap=100")
        cpu_seconds(folder, "train.py", "logger=none")
        cpu_seconds(folder, "attribute.py", "method=bm25", *quick)  # fills the cache of generated queries
        first = cpu_seconds(folder, "attribute.py", "method=select", "budget=0.02", *quick)
        second = cpu_seconds(folder, "attribute.py", "method=select", "budget=0.05", *quick)
        bare = cpu_seconds(folder, "attribute.py", "method=random", *quick)
        print(f"sweep over budget, whole processes: {first:.1f} then {second:.1f} CPU-s ({first / second:.1f} times)")
        work = (first - bare) / max(second - bare, 1e-3)
        print(f"without what any job costs ({bare:.1f} CPU-s, method=random): {work:.0f} times (goal {SWEEP_GOAL:.0f})")


if __name__ == "__main__":
    main()
