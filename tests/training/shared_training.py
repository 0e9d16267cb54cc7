"""Trainings that several processes share; apart from the tests, because new processes import it."""

from __future__ import annotations

import os
from pathlib import Path

from tasks import problem, settings

import tdaexp.training.module as causal
import tdaexp.training.recorded as loop
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.scratch import Scratch
from tdaexp.runtime import ranks
from tdaexp.training.fit import fit
from tdaexp.training.language import trained_language
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.trained import Tokenisation

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
RECORDS = [Record(f"r{n}", f"Where was person {n} born?", "In " + "a quiet " * (n % 3) + "town.") for n in range(10)]
EPOCHS = {"batches": "epochs", "batch_size": 3, "warmup": 2, "lr": 1e-2}  # the last of four batches is one example
FIT = FitSettings(steps=11, checkpoint_every=4, clip=0.5, **EPOCHS)
LANGUAGE = FitSettings(steps=9, checkpoint_every=4, clip=0.0, record=1, **EPOCHS)
NAMES = ("fit", "recorded", "language")


def train_all(folder: Path, names: tuple[str, ...] = NAMES, fault: tuple[str, int, int] | None = None) -> None:
    """Run the named trainings; `fault` = (training, step, signal) that hits the last process, or the only one."""
    for name in names:
        if fault is not None and fault[0] == name and ranks.current().rank == ranks.current().world - 1:
            _strike(*fault[1:])
        _train(name, folder / name)


def _train(name: str, folder: Path) -> None:
    scratch = Scratch("olmo", SIZES, vocab_size=280, context=64, name="small")
    if name == "fit":
        start = scratch.start([record.text for record in RECORDS])
        examples = tokenise(RECORDS, start.tokenizer, template="plain", max_length=64)
        fit(start, examples, FIT, folder=folder, seed=0)
    elif name == "recorded":
        fit_recorded(problem(), settings(steps=13, batch_size=29), folder=folder, seed=3, identity="test")
    else:
        queries = {"paraphrased": [Record("q", "Where was she born?", "In a town.")]}
        trained_language(scratch, RECORDS, queries, LANGUAGE, Tokenisation("plain"), cache_dir=folder, seed=0)


def _strike(at: int, number: int) -> None:
    """Send this process a signal when it asks for the batch of a step."""
    for module, name in ((causal, "epoch_batch"), (loop, "step_batch")):
        own = getattr(module, name)

        def batch(step: int, own=own, **rest):
            if step == at:
                os.kill(os.getpid(), number)
            return own(step, **rest)

        setattr(module, name, batch)
