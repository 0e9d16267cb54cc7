"""Writes docs/leaderboard.md from the folder that `python evaluate.py experiment=leaderboard` left.

python benchmarks/leaderboard.py multirun/leaderboard/report
"""

from __future__ import annotations

import argparse
import datetime
import shutil
from pathlib import Path

import pandas as pd
import yaml

from tdaexp.report.leaderboard import markdown
from tdaexp.runtime.fingerprint import git_commit

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# Leaderboard

Methods judged by models that are trained again: the linear datamodeling score (LDS), for each method its best
setting of a small sweep beside its defaults. Made on {date} at commit {commit}, on two cores with one
thread for each process, by

```bash
make leaderboard
```

which can be stopped and goes on where it was. It took {took}, with other work beside it.

- Brackets are 95 % intervals: over subsets and queries for one seed, over seeds for several.
- Read *how smooth the training is* before a subject's other tables. Where the exact derivative (`magic`) misses little
  of a real change, it is the best that there is, and others are judged by how near they come. Where it misses more than
  all of it (beyond 1), a training is a rough function of its examples' weights: the exact slope at one point tells
  little about leaving 5 % out, and methods that take a mean of the training, as influence functions do, foretell more.
- The best of several settings is chosen by the same numbers that stand here, so that it is a little flattered; the
  defaults are not.
- Cost: seconds of a run without training or loading the model. More than both cores were busy, so that they compare
  within a factor of two.
- `random` is a control of normally distributed scores. The noise ceiling is what a perfect score would reach where each
  retrained model has a start of its own.

![LDS against cost](images/leaderboard.svg)

"""


def main() -> None:
    """Read, write, and copy the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", default=(git_commit() or "unknown")[:10], help="of the code that ran")
    parser.add_argument("--took", default="some hours", help="how long it took, in words")
    told = parser.parse_args()
    folder = told.folder
    table = pd.read_csv(folder / "leaderboard.csv", keep_default_na=False, na_values=[""]).fillna({"setting": ""})
    cells = pd.read_csv(folder / "cells.csv", dtype={"setting": str, "failed": str})
    cells = cells.fillna({"setting": "", "failed": ""})
    made = datetime.date.fromtimestamp((folder / "leaderboard.csv").stat().st_mtime)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["analysis"]
    lines = [HEAD.format(date=made.isoformat(), commit=told.commit, took=told.took)]
    lines += ["## Subjects", "", "| subject | keys | judged | seeds |", "|---|---|---|---|"]
    for name, one in config["subjects"].items():
        seeds = len(one.get("seeds", [0]))
        lines.append(f"| {name} | `{' '.join(one['keys'])}` | `{' '.join(one['judged'])}` | {seeds} |")
    lines += ["", "## Results", "", markdown(table)]
    failed = cells[cells["failed"] != ""].drop_duplicates(["subject", "method", "setting"])
    if len(failed):
        lines += ["## Not judged", "", "| subject | method | why |", "|---|---|---|"]
        lines += [f"| {row.subject} | {row.method} {row.setting} | {row.failed} |" for row in failed.itertuples()]
    (DOCS / "leaderboard.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    shutil.copy(folder / "plots" / "pareto.svg", DOCS / "images" / "leaderboard.svg")


if __name__ == "__main__":
    main()
