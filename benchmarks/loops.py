"""CPU time of a training that observers look at over that of the same training alone.

Updates of AdamW on batches of 16 x 128 tokens, by a plain loop; `InRunShapley` with validation texts of 16 tokens each,
`KeepCheckpoints` with state, `Record` of each update. Least CPU time of several rounds in which the ways take turns,
one thread.

    python benchmarks/loops.py
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import OlmoConfig, OlmoForCausalLM

import tdaexp
from tdaexp.loops.observer import Observer

ROUNDS, UPDATES, BATCH, LENGTH, ASKED = 3, 4, 16, 128, 16
SIZES = {"hidden 256, 4 layers, vocabulary 4,096": (4096, 256, 4)}


class Tokenizer:
    """Stands for one where it is saved beside a checkpoint."""

    def save_pretrained(self, folder: Any) -> None:
        return


def build(vocabulary: int, hidden: int, layers: int) -> OlmoForCausalLM:
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return OlmoForCausalLM(config)


def texts(vocabulary: int, count: int, length: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def train(model: OlmoForCausalLM, rows: list[dict[str, torch.Tensor]], observer: Observer | None) -> float:
    """CPU seconds of the updates, without what happens before and after them."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    loader = DataLoader(rows, BATCH)
    around: Any = contextlib.nullcontext()
    if observer is not None:
        around = tdaexp.Loop(model, optimizer, observer, loader=loader, tokenizer=Tokenizer(), steps=UPDATES + 1)
    with around:
        batches: Iterator[Any] = iter(loader)
        update(model, optimizer, next(batches))  # warms up, and is checked
        start = time.process_time()
        for batch in batches:
            update(model, optimizer, batch)
        return time.process_time() - start


def update(model: OlmoForCausalLM, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def ways(vocabulary: int, folder: Path) -> dict[str, Callable[[], Observer | None]]:
    """Observers by what they are called; each is made anew, in a folder of its own."""
    count = iter(range(10**6))

    def shapley(queries: int, every: int) -> Callable[[], Observer]:
        return lambda: tdaexp.InRunShapley(folder / str(next(count)), texts(vocabulary, queries, ASKED), every=every)

    return {
        "alone": lambda: None,
        "InRunShapley, 1 query": shapley(1, 1),
        "InRunShapley, 4 queries": shapley(4, 1),
        "InRunShapley, 4 queries, every=4": shapley(4, 4),
        f"KeepCheckpoints, once in {UPDATES} updates": lambda: tdaexp.KeepCheckpoints(
            folder / str(next(count)), UPDATES
        ),
        "Record": lambda: tdaexp.Record(folder / str(next(count)), losses),
    }


def losses(model: OlmoForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean negative log-likelihood of each text [B]."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.mT, batch["labels"][:, 1:], reduction="none").mean(1)


def main() -> None:
    torch.set_num_threads(1)
    for title, (vocabulary, hidden, layers) in SIZES.items():
        model = build(vocabulary, hidden, layers)
        rows = texts(vocabulary, BATCH * (UPDATES + 1), LENGTH)
        with tempfile.TemporaryDirectory() as folder:
            found = ways(vocabulary, Path(folder))
            best = dict.fromkeys(found, float("inf"))
            for _ in range(ROUNDS):
                for name, make in found.items():
                    best[name] = min(best[name], train(model, rows, make()))
        print(f"{title}: {best['alone'] / UPDATES:.2f} s an update")
        for name, seconds in best.items():
            print(f"  {name:>40}: {seconds / best['alone']:.3f} times")


if __name__ == "__main__":
    main()
