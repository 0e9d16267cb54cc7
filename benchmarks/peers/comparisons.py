"""What is compared: a peer's method with ours on the same work, and why they differ where they do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """A method of a program (`with_PROGRAM.py`) with its settings."""

    program: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """As the program's command line has them."""
        return [self.method, *(f"{key}={json.dumps(value)}" for key, value in self.settings.items())]

    @property
    def told(self) -> str:
        """For people: our options, or a peer's method and settings."""
        shown = [json.dumps(value) if key != "options" else " ".join(value) for key, value in self.settings.items()]
        if self.program == "tdaexp":
            itself = ["self_influence=true"] if self.method == "itself" else []
            labels = ["(labels of the data)"] if "labels" in self.settings else []
            return f"`{' '.join([*self.settings['options'], *itself])}`" + "".join(f" {one}" for one in labels)
        named = [f"{key}={text}" for key, text in zip(self.settings, shown, strict=True)]
        return f"{self.program} `{' '.join([self.method, *named])}`"


@dataclass(frozen=True)
class Check:
    """A cause and what it was shown by: two runs that agree once it is gone, or that differ alike because of it."""

    cause: str
    shown: str
    one: Run
    other: Run


@dataclass(frozen=True)
class Comparison:
    """A peer's method and ours on a piece of work; `check` where they are not the same."""

    name: str
    work: str
    theirs: Run
    ours: Run
    check: Check | None = None


def ours(*options: str, **settings: Any) -> Run:
    """A method of this program by its options."""
    return Run("tdaexp", "attribute", {"options": [f"method={options[0]}", *(f"method.{one}" for one in options[1:])],
                                       **settings})  # fmt: skip


KRON = {"labels": "ours"}
SOLVER = {"damping": 0.01}
"""λ of the solvers on logistic regression, absolute."""
EXACT = ("damping=0.01", "examples=null", "queries=null")
CG = ours("cg", *EXACT, "tolerance=1e-6", "iterations=400")
ARNOLDI = ours("arnoldi", *EXACT, "steps=300", "rank=60")
WHOLE_TRAK = ours("trak", "projection=factorised", "dimensions=650")
TRAK, OTHER_TRAK = (ours("trak", "distribution=normal", f"seed={seed}") for seed in (0, 1))
EKFAC, OTHER_EKFAC = ours("ekfac"), ours("ekfac", "seed=1")
OF_DATA = ours("ekfac", "reduction=sum", labels="data")
FIXED = ours("ekfac", "damping=0.001")
DOT, COSINE = (ours(method, "part=blocks") for method in ("dot", "full"))
ITSELF = Run("tdaexp", "itself", {"options": ["method=ekfac"]})
SKETCH, OTHER_SKETCH = (ours("project", "part=blocks", "budget=0.05", f"seed={seed}") for seed in (0, 1))
DATTRI_EKFAC = Run("dattri", "ekfac", {"damping": 0.001})
DEPARTED = Run("formula", "ekfac", {"damping": 0.001, "transposed": True, "flat": True})

DRAWN = Check(
    "The labels for the Fisher matrix are drawn from the model, other ones by each program",
    "Ours against ours with labels of another seed",
    EKFAC,
    OTHER_EKFAC,
)
PROJECTED = Check(
    "The projection is another random matrix in each program",
    "Ours against ours with the matrix of another seed",
    TRAK,
    OTHER_TRAK,
)

COMPARISONS = [
    Comparison("kronfluence-ekfac", "mlp", Run("kronfluence", "ekfac", {"labels": "own"}), EKFAC, DRAWN),
    Comparison("kronfluence-ekfac-handed", "mlp", Run("kronfluence", "ekfac", KRON), EKFAC),
    Comparison("kronfluence-itself", "mlp", Run("kronfluence", "itself", KRON), ITSELF),
    Comparison("kronfluence-texts", "llama", Run("kronfluence", "ekfac", {"labels": "own"}), EKFAC, DRAWN),
    Comparison("kronfluence-texts-handed", "llama", Run("kronfluence", "ekfac", KRON), EKFAC),
    Comparison("dattri-dot", "mlp", Run("dattri", "tracin"), DOT),
    Comparison("dattri-cosine", "mlp", Run("dattri", "tracin", {"normalised": True}), COSINE),
    Comparison("dattri-tracin", "logistic", Run("dattri", "tracin", {"moments": True}), ours("tracin", "moments=5")),
    Comparison("dattri-cg", "logistic", Run("dattri", "cg", {**SOLVER, "iterations": 100}), CG),
    Comparison("dattri-arnoldi", "logistic", Run("dattri", "arnoldi", {**SOLVER, "rank": 60, "steps": 300}), ARNOLDI),
    Comparison("dattri-trak", "logistic", Run("dattri", "trak"), WHOLE_TRAK),
    Comparison("dattri-trak-projected", "mlp", Run("dattri", "trak", {"dimensions": 256}), TRAK, PROJECTED),
    Comparison(
        "dattri-ekfac", "mlp", DATTRI_EKFAC, FIXED,
        Check(
            "dattri takes curvature of the data's labels; it multiplies by the eigenvectors where their transposes "
            "belong, so that gradients are not in the eigenbasis and scores hang on the eigenvectors' signs; and it "
            "cuts a query's weights and biases, one behind the other, into rows as if the bias were a column",
            "dattri against the formula with these three departures (`with_formula.py`)",
            DATTRI_EKFAC, DEPARTED,
        ),
    ),
    Comparison("traker-trak", "logistic", Run("traker", "trak"), WHOLE_TRAK),
    Comparison("traker-trak-projected", "mlp", Run("traker", "trak", {"dimensions": 256}), TRAK, PROJECTED),
    Comparison("dattri-llm-dot", "llama", Run("dattri_llm", "tracin"), DOT),
    Comparison("dattri-llm-cosine", "llama", Run("dattri_llm", "tracin", {"normalised": True}), COSINE),
    Comparison(
        "dattri-llm-ekfac", "llama", Run("dattri_llm", "ekfac", {"damping": 0.1}), EKFAC,
        Check(
            "dattri-llm takes curvature of the data's labels and of the mean over tokens, where ours is of the sum; "
            "what is left, by its source: positions without an output gradient (prompts, in the last block) "
            "are not in its A",
            "Ours with the labels of the data against it without padding, both of the sum",
            OF_DATA,
            Run("dattri_llm", "ekfac", {"damping": 0.1, "reduction": "sum", "padded": False}),
        ),
    ),
    Comparison("bergson-dot", "llama", Run("bergson", "similarity"), DOT),
    Comparison("bergson-cosine", "llama", Run("bergson", "similarity", {"cosine": True}), COSINE),
    Comparison(
        "bergson-projected", "llama", Run("bergson", "similarity", {"cosine": True, "side": 14}), SKETCH,
        Check(PROJECTED.cause, PROJECTED.shown, SKETCH, OTHER_SKETCH),
    ),
    Comparison(
        "bergson-ekfac", "llama", Run("bergson", "ekfac", {"damping": 0.1}), EKFAC,
        Check(
            "bergson draws other labels, and takes curvature of the mean over tokens, where ours is of the sum",
            "Ours with the labels of the data against it with those, both of the sum", OF_DATA,
            Run("bergson", "ekfac", {"damping": 0.1, "labels": "data", "reduction": "sum"}),
        ),
    ),
]  # fmt: skip
