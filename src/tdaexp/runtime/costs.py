"""What a run is going to cost: stages with passes, arithmetic, disk and memory, and how a plan is written down.

FLOP are those of matrix products, convolutions, attention and eigendecompositions (`fake_device.RULES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

GB = 1e9
PROGRAM_BYTES = 0.50e9
"""Resident memory of the program with all that it imports, before any data."""
RATES = {
    ("H200", "bfloat16"): 400.0,
    ("H200", "float32"): 35.0,
    ("H100", "bfloat16"): 400.0,
    ("H100", "float32"): 35.0,
    ("A100", "bfloat16"): 150.0,
    ("A100", "float32"): 14.0,
    ("cuda", "bfloat16"): 60.0,
    ("cuda", "float32"): 10.0,
    ("cuda", "float64"): 1.0,
    ("cpu", "bfloat16"): 0.02,
    ("cpu", "float32"): 0.05,
    ("cpu", "float64"): 0.025,
}
"""Assumed sustained TFLOP/s by kind of device and precision: about 40 % of a GPU's peak, one core of a CPU."""


@dataclass(frozen=True)
class StageCost:
    """One stage: `forward` and `backward` passes in examples, `flop`, bytes that it leaves on `disk`.

    `device` is the peak of bytes in tensors where the model is, weights included; `host` what it needs in main memory
    beside that. `note` says what is assumed.
    """

    name: str
    forward: float = 0.0
    backward: float = 0.0
    flop: float = 0.0
    disk: float = 0.0
    device: float = 0.0
    host: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the run is planned for: `kind` for people, `cuda` or not, `tflops`, and bytes of memory (None: unknown).

    `processes` share the arithmetic evenly, in the ideal; rate and device memory are those of one. Main memory is that
    of one of `nodes` machines, which its processes share.
    """

    kind: str
    cuda: bool
    tflops: float
    device_bytes: float | None = None
    host_bytes: float | None = None
    processes: int = 1
    nodes: int = 1

    @property
    def neighbours(self) -> int:
        """Processes on one machine."""
        return max(1, self.processes // self.nodes)

    def rate(self) -> str:
        """The rate, for people."""
        many = f"{self.processes} × " if self.processes > 1 else ""
        return f"{many}{self.tflops:g} TFLOP/s ({self.kind})"


@dataclass(frozen=True)
class CostPlan:
    """A plan: stages in order, the machine, and what had to be assumed about model and data."""

    title: str
    stages: list[StageCost]
    machine: Machine
    assumed: list[str]

    def hours(self, stage: StageCost) -> float:
        """Hours of a stage at the rate of all processes."""
        return stage.flop / (self.machine.tflops * self.machine.processes * 1e12) / 3600

    @property
    def total(self) -> StageCost:
        """All stages together: sums, and the highest peaks."""
        summed = [
            sum(getattr(stage, name) for stage in self.stages) for name in ("forward", "backward", "flop", "disk")
        ]
        peaks = [max((getattr(stage, name) for stage in self.stages), default=0.0) for name in ("device", "host")]
        total = StageCost("total", *summed, *peaks)
        if self.machine.cuda:
            return total
        highest = max((stage.device + stage.host for stage in self.stages), default=0.0)
        return replace(total, host=highest - total.device)  # on one machine the two peaks need not coincide

    def host(self, stage: StageCost) -> float:
        """Peak resident memory of the process in a stage: tensors too, where the device is the CPU."""
        return PROGRAM_BYTES + stage.host + (0 if self.machine.cuda else stage.device)

    @property
    def problems(self) -> list[str]:
        """What will not fit, one line each."""
        found = []
        for stage in self.stages:
            pairs = [("host", self.host(stage) * self.machine.neighbours, self.machine.host_bytes)]
            if self.machine.cuda:
                pairs.append(("device", stage.device, self.machine.device_bytes))
            for where, needed, there in pairs:
                if there is not None and needed > there:
                    found.append(
                        f"stage '{stage.name}' needs about {needed / GB:.3g} GB of {where} memory, "
                        f"{self.machine.kind} has {there / GB:.3g} GB: try trainer.precision=bfloat16, a smaller "
                        "trainer.cache_gb or trainer.tokens_per_batch, or a larger device"
                    )
        return found

    def line(self) -> str:
        """The plan in one line."""
        total = self.total
        device = f"{total.device / GB:.3g} GB on the device, " if self.machine.cuda else ""
        return (
            f"plan: {total.forward:,.0f} forward and {total.backward:,.0f} backward passes, {total.flop / 1e12:.3g} "
            f"TFLOP, {total.disk / GB:.3g} GB of disk, {device}{self.host(total) / GB:.3g} GB of main memory"
            f"{' a process' if self.machine.processes > 1 else ''}, "
            f"{duration(self.hours(total))} at {self.machine.rate()}; "
            "less where the cache has some of it"
        )

    def table(self) -> str:
        """The plan as a table for people."""
        heads = ["stage", "forward", "backward", "TFLOP", "disk GB", "device GB", "main GB", "time"]
        rows = [self._row(stage) for stage in (*self.stages, self.total)]
        notes = [f"{stage.name}: {stage.note}" for stage in self.stages if stage.note]
        lines = [self.title, *aligned([heads, *rows])]
        if self.machine.processes > 1:
            lines.append(f"memory is that of each of {self.machine.processes} processes, the rest that of all together")
        lines.append(f"time at {self.machine.rate()}, set by trainer.rate_tflops")
        lines.append("FLOP of matrix products, convolutions, attention and eigendecompositions; passes count examples")
        lines += [f"assumed: {one}" for one in self.assumed] + notes
        return "\n".join(lines + [f"too small: {one}" for one in self.problems])

    def _row(self, stage: StageCost) -> list[str]:
        return [
            stage.name,
            f"{stage.forward:,.0f}",
            f"{stage.backward:,.0f}",
            f"{stage.flop / 1e12:.4g}",
            f"{stage.disk / GB:.3g}",
            f"{stage.device / GB:.3g}" if self.machine.cuda else "-",
            f"{self.host(stage) / GB:.3g}",
            duration(self.hours(stage)),
        ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows]  # fmt: skip


def duration(hours: float) -> str:
    """Hours in a unit that people read."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"


def assumed_rate(kind: str, precision: str) -> float:
    """The rate of RATES for a device, by its family where it is known by name."""
    family = next((name for name, _ in RATES if name in kind), "cuda")
    return RATES.get((family, precision), RATES["cuda", precision])
