"""docs/peers.md, from the records of the comparisons."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comparisons import COMPARISONS, Comparison

SAME = 0.999
"""Pearson's correlation from which on scores count as the same."""

HEAD = """# Peers on the same work

<!-- made by benchmarks/peers/run.py -->

Other programs' scores beside ours: the same trained model, examples and queries, as files that each program reads in an
environment of its own. Measured on {dates}, {cores} CPU cores that did other work beside, one thread, torch
{torch} on both sides. No number here comes from elsewhere.

```bash
bash benchmarks/peers/environment.sh      # benchmarks/peers/.venv: the peers, and what they need
python benchmarks/peers/run.py            # all of the table; NAME … runs those that begin so
```

- **Pearson** compares scores over all pairs, and for the query where it is lowest. The peer's file is read by the
  reader of `scores=`: `python evaluate.py runs=[outputs/peers/NAME/ours] scores=outputs/peers/NAME/theirs.npz`.
- **Costs** are of a process of its own, both sides in turn ({rounds}): CPU seconds, and peak memory above
  the loaded model's, in MB. Imports and reading the model are left out (bergson reads it itself, which counts).
  At these sizes fixed costs weigh much; [performance](performance.md) has larger ones.
- **Works**: `logistic` and `mlp` (64-128-64-10) on 1,280 digits, 100 queries; `llama`, 4 layers of width 64 on 200
  biographies, 20 queries. All queries meet all examples. A language model counts with the linear layers of its blocks.
- From {same} on two methods count as the same. Where they are less alike, a number leads to the cause, and to the
  experiment that shows it.
"""

UNCOMPARED = """
## What is not compared

- torchvision, torchaudio and bitsandbytes, which some peers ask for, are not installed: nothing above needs them.
- dattri-llm's LoGra and LESS, and bergson's TRAK, TrackStar and LiSSA, project or sample by seeds of their own; the
  exact methods above fix the gradients that they start from.
- dattri's EK-FAC reads no sequences, bergson and dattri-llm no classifiers.
- dattri's solvers multiply by the Hessian, ours by the Gauss-Newton matrix: the same for logistic regression alone.
"""


def write_page(path: Path, records: dict[str, dict[str, Any]]) -> None:
    """Write the page of all comparisons; what was not run says so."""
    dates = sorted({one["date"] for one in records.values()})
    said = dates[0] if len(dates) < 2 else f"{dates[0]} to {dates[-1]}"
    turns = {one["rounds"] for one in records.values() if "rounds" in one} or {0}
    rounds = "once" if turns == {1} else f"{min(turns)} times, the run with fewest CPU seconds"
    torch = version("torch").split("+")[0]
    head = HEAD.format(dates=said if dates else "-", cores=os.cpu_count(), torch=torch, rounds=rounds, same=SAME)
    notes: list[str] = []
    rows = [line(one, records.get(one.name, {"failed": "not run"}), notes) for one in COMPARISONS]
    table = [
        "| peer | its method | ours | work | Pearson | lowest query | CPU s: peer | ours | MB: peer | ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    causes = ["", "## Where scores differ", "", *notes]
    path.write_text("\n".join([head, *table, *causes]) + "\n" + UNCOMPARED, encoding="utf-8")


def line(one: Comparison, record: dict[str, Any], notes: list[str]) -> str:
    """A row of the table; what explains it is added to the notes."""
    peer = one.theirs.program.replace("_", "-")
    settings = one.theirs.told.removeprefix(f"{one.theirs.program} ")
    if "failed" in record:
        return f"| {peer} | {settings} | {one.ours.told} | `{one.work}` | {record['failed']} | | | | | |"
    mark = ""
    if one.check is not None:
        found = correlation(record["check"]["all"])
        notes.append(f"{len(notes) + 1}. {one.check.cause}. {one.check.shown}: {found}.")
        mark = f" ({len(notes)})"
    theirs, own = record["theirs"], record["ours"]
    cells = [
        f"{peer} {theirs['version']}", settings, one.ours.told, f"`{one.work}`",
        correlation(record["pearson"]["all"]) + mark, correlation(record["pearson"]["lowest"]),
        *(f"{side['seconds']:.1f}" for side in (theirs, own)), *(f"{side['megabytes']:.0f}" for side in (theirs, own)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def correlation(value: float) -> str:
    """Three digits; more of what is near one, never rounded up to it."""
    if value >= SAME:
        return "> 0.999999" if value > 0.999999 else f"{int(value * 1e6) / 1e6:.6f}"
    return f"{value:.3f}"
