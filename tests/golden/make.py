"""Makes the golden values again, all of them or some, and says what changed: python tests/golden/make.py.

Only for a change that is meant: an error that is corrected, a case that is added. The message of the commit says why.
"""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false")

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "programs"))
sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES
from net import VALUES, Net, differences, load, save, sizes


def run(arguments: argparse.Namespace, folder: Path) -> bool:
    """Make, compare, and write unless only the comparison is asked for; whether all is as it was."""
    net, before = Net(folder / "work", folder / "cache"), load() if VALUES.exists() else {}
    made, changed = {}, False
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        begun = time.process_time()
        made[name] = net.found(name)
        seconds = time.process_time() - begun
        lines = differences(case, made[name], before[name]) if name in before else ["is new"]
        largest = max(sizes(made[name], before.get(name, {}), CASES[name].tolerance).values(), default=0.0)
        changed |= bool(lines)
        print(f"case {name}: {seconds:.2f} s, {largest:.1e}", *lines, sep="\n  ", flush=True)
    for name in set(before) - set(CASES):
        print(f"{name}: no longer a case")
    if not arguments.compare:
        every = before | made
        save({name: every[name] for name in CASES if name in every})
        print(f"{VALUES}: {len(every)} cases, {VALUES.stat().st_size / 1000:.0f} kB")
    return not changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true", help="write nothing")
    parser.add_argument("--only", default="", help="cases with this in their name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(0 if run(given, Path(scratch)) or not given.compare else 1)
