"""What each process of a shared run does; apart from the tests, because new processes import it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from tiny_problem import with_model, with_type

from tdaexp import influence
from tdaexp.methods.base import Method
from tdaexp.models.generate import Decoding, generate
from tdaexp.models.loaded import LoadedModel
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.blockstore import BlockStore

Share = tuple[int, int]
"""What one process did for a method: blocks that it wrote, and calls of the model."""


def short_methods(*damped: str) -> dict[str, tuple[str, ...]]:
    """Methods that run the model, as overrides that keep them short; `damped` is for those that invert."""
    return {
        "project": ("project", "budget=0.3"),
        "trak": ("trak",),
        "logra": ("logra", "method.dimensions=16"),
        "datainf": ("datainf", "method.part=attention"),
        "trackstar": ("trackstar", "method.dimensions=16"),
        "ekfac": ("ekfac",),
        "kept": ("ekfac", "method.keep_gb=1"),
        "multistage": ("multistage",),
        "cg": ("cg", *damped, "method.preconditioner=ekfac", "method.iterations=8"),
        "astra": ("astra", *damped, "method.steps=4", "method.batch_size=5"),
        "lissa": ("lissa", *damped, "method.depth=4", "method.batch_size=5"),
        "arnoldi": ("arnoldi", *damped, "method.steps=8", "method.rank=6"),
        "repsim": ("repsim",),
        "cka": ("cka", "method.of=states"),
    }


def fresh(problem: Problem) -> Problem:
    """The problem on new copies of its models: those that have run hold hooks of transformers, which cannot travel."""

    def copied(loaded: LoadedModel) -> LoadedModel:
        new, name = with_type(loaded, torch.float32), loaded.model.name_or_path
        new.model.name_or_path = new.model.config.name_or_path = name
        return new

    assert problem.finetuned is not None
    after = dataclasses.replace(problem.finetuned, loaded=copied(problem.finetuned.loaded))
    return dataclasses.replace(with_model(problem, copied(problem.loaded)), finetuned=after)


def run_all(
    methods: dict[str, Method], problem: Problem, folder: Path
) -> tuple[dict[str, list[Share]], list[tuple[str, ...]]]:
    """Run each method with a cache of its own; process 0 keeps the stores in the folder. Then complete some prompts.

    Returns each process's share, by method and for `completions`, and the completions that each process has.
    """
    written, passes, shares = [0], [0], {}
    real, problem = BlockStore.write, fresh(problem)

    def write(store: BlockStore, block: int, values: dict) -> None:
        written[0] += 1
        real(store, block, values)

    def count(*_: object) -> None:
        passes[0] += 1

    def told() -> list[Share]:
        found = ranks.gathered((written[0], passes[0]))
        written[0] = passes[0] = 0
        return found

    for model in (problem.loaded.model, problem.finetuned.loaded.model):
        model.base_model.register_forward_pre_hook(count)
    BlockStore.write = write
    try:
        for name, method in methods.items():
            dataset = method.attribute(dataclasses.replace(problem, cache=folder / name))
            if ranks.current().first:
                influence.save(dataset, folder / f"{name}.zarr")
            shares[name] = told()
    finally:
        BlockStore.write = real
    prompts = [example.tokens[: 3 + number % 4] for number, example in enumerate(problem.train)]
    drawn = Decoding(max_new_tokens=4, batch_size=2, temperature=1.0)
    texts = [tuple(generate(problem.loaded, prompts, drawn, folder)) for _ in range(2)]  # then from the cache
    assert texts[0] == texts[1]
    return {**shares, "completions": told()}, ranks.gathered(texts[0])


def break_example(problem: Problem, id: str) -> Problem:
    """Make the hidden states of one example NaN wherever it is run, alone or in a batch."""
    (wanted,) = [torch.from_numpy(one.tokens) for one in [*problem.train, *problem.queries] if one.id == id]

    def spoil(_module: object, arguments: tuple, keywords: dict, output):
        tokens = keywords.get("input_ids", arguments[0] if arguments else None)
        width = min(tokens.shape[1], len(wanted) - 1)
        rows = (tokens[:, :width] == wanted[:width]).all(1)
        spoilt = output.last_hidden_state * torch.where(rows, torch.nan, 1.0)[:, None, None]
        output.last_hidden_state = spoilt
        if output.hidden_states is not None:
            output.hidden_states = (*output.hidden_states[:-1], spoilt)
        return output

    assert problem.finetuned is not None
    for model in (problem.loaded.model, problem.finetuned.loaded.model):
        model.base_model.register_forward_hook(spoil, with_kwargs=True)
    return problem


def run_broken(method: Method, problem: Problem, id: str) -> None:
    """Run a method on a problem of which one example is broken."""
    method.attribute(break_example(fresh(problem), id))
