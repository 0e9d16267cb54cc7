"""A model shared out over two processes: the numbers of one process, to the bit, and no process waits for ever.

One pair of processes makes all the checks, because starting it takes longest. Each computes what it expects with the
whole model, by itself, before that is shared out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing as mp

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layer_blocks import scores_by_blocks
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.score import LayerPairs
from tdaexp.gradients.assembly import Consumer
from tdaexp.gradients.features import component_features
from tdaexp.gradients.products import component_products
from tdaexp.gradients.projection import make_sketch
from tdaexp.models import generate
from tdaexp.models.completions import CompletionCache
from tdaexp.models.components import ComponentMap, component_map
from tdaexp.models.sharded import Sharded, units_of
from tdaexp.runtime import lockstep, ranks, stop
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.oom_split import Shrinking, two

WORLD, PATIENCE_S = 2, 240
TIED, GROUPED = "olmo-tied", "llama-untied"  # the second has two heads of keys for four of queries
OTHERS = ("gpt2-tied", "bloom-untied", "gpt_neox-sequential")
Oracle = Callable[..., dict[str, np.ndarray]]


def build(variant: str, seed: int = 0) -> torch.nn.Module:
    from gradient_oracle import build_model

    model = build_model(variant, torch.float32).requires_grad_(False)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(seed)
    return model


def sketches(parts: ComponentMap) -> dict:
    return {one.name: make_sketch("factorised", one.name, one.matrix, 4, 0) for one in parts.components}


def products(model, folder: Path) -> dict[str, np.ndarray]:
    """What `full`, `dot` and `select` keep."""
    from gradient_oracle import gradients_of, make_examples

    sides = [gradients_of(model, side) for side in (make_examples(1, 12), make_examples(2, 7))]
    pairs = np.random.default_rng(0).integers(0, 12, (7, 3))
    settings = {"store": folder / "products", "tokens_per_batch": 30, "cache_gb": 2e-5}
    return {name: rows[:] for name, rows in component_products(*sides, pairs, **settings).items()}


def features(model, folder: Path) -> dict[str, np.ndarray]:
    """What `project` keeps."""
    from gradient_oracle import gradients_of, make_examples

    side = gradients_of(model, make_examples(1, 12))
    settings = {"store": folder / "features", "tokens_per_batch": 30}
    return {"features": component_features(side, sketches(side.components), **settings).rows(range(12))}


def influence(model, folder: Path) -> dict[str, np.ndarray]:
    """What `ekfac` keeps, with drawn labels; the layers in three parts, so that passes end at different depths."""
    from gradient_oracle import gradients_of, make_examples
    from kronecker_oracle import samples_of

    parts = component_map(model)
    layers = layers_of(parts.select([name for name in parts.names if name.startswith("layers.")]))
    train, queries = make_examples(1, 12), make_examples(2, 5)
    settings = FactorSettings(partitions=3, saves=2)
    factors = fit_factors(samples_of(model, layers, train, 30), settings, store=folder / "factors")
    sides = LayerPairs(
        gradients_of(model, train, layers.map),
        gradients_of(model, queries, layers.map),
        layers,
        lambda name, gradient: factors.precondition(name, gradient, Damping()),
    )
    scores = scores_by_blocks(
        sides,
        np.random.default_rng(0).integers(0, 12, (5, 3)),
        3,
        store=lambda names: folder / f"scores-{names[0]}",
        tokens_per_batch=30,
        cache_gb=4e-5,
    )
    found = {f"A.{layer.name}": factors.covariance(layer.name).inputs.numpy() for layer in layers.layers}
    found |= {f"L.{layer.name}": factors[layer.name].spectrum.numpy() for layer in layers.layers}
    return found | {"scores": scores[:]}


def gradients(model, names: list[str], rows: list[int], before: Consumer | None = None) -> dict[str, np.ndarray]:
    """Explicit gradients of some examples from one pass."""
    from gradient_oracle import gradients_of, make_examples

    side, found = gradients_of(model, make_examples(3, 8), component_map(model).select(names)), {}

    def consume(components, factors) -> None:
        if before is not None:
            before(components, factors)
        for component, one in zip(components, factors, strict=True):
            found[component.name] = one.materialise().numpy().copy()

    with side.ready():
        side.capture(rows, consume)
    return found


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def share(model, mesh) -> None:
    """Share the model out; of every matrix this process must have less than the whole."""
    sizes = component_map(model).sizes
    Sharded(model, mesh).open()
    assert (component_map(model).sizes == sizes).all()
    for name, parameter in model.named_parameters():
        rows = -(-parameter.shape[0] // WORLD)
        assert parameter.to_local().numel() * parameter.shape[0] == rows * parameter.numel(), name
    assert len(units_of(model)) >= model.config.num_hidden_layers


def stores_are_those_of_one_process(rank: int, folder: Path, mesh) -> None:
    for variant in (TIED, GROUPED):
        model = build(variant)
        with ranks.in_turn():  # the second one finds what the first one stored
            wanted = [made(model, folder / f"{variant}-alone") for made in (products, features, influence)]
        share(model, mesh)
        for made, value in zip((products, features, influence), wanted, strict=True):
            same(made(model, folder / variant), value)


def gradients_are_those_of_one_process(rank: int, folder: Path, mesh) -> None:
    for variant in OTHERS:
        model = build(variant)
        names = component_map(model).names
        wanted = gradients(model, names, [rank, 3])
        share(model, mesh)
        same(gradients(model, names, [rank, 3]), wanted)


def passes_of_different_length_and_number(rank: int, folder: Path, mesh) -> None:
    """One process has three passes that end at the head, at the last block or at the embedding, the other has none."""
    model = build(GROUPED)
    chosen = [["lm_head"], ["layers.1.mlp.down"], component_map(model).names]
    wanted = [gradients(model, names, [1, 2]) for names in chosen]
    share(model, mesh)
    for names, value in zip(chosen, wanted, strict=True) if rank == 0 else ():
        same(gradients(model, names, [1, 2]), value)
    lockstep.serve()


def a_pass_that_fails_lets_the_others_go_on(rank: int, folder: Path, mesh) -> None:
    """Errors where factors are used, in the middle of the backward pass, and in the forward pass."""
    model = build(TIED)
    names = component_map(model).names
    wanted = gradients(model, names, [1, 2])
    share(model, mesh)

    def refuse(components, _) -> None:
        if components[0].name.startswith("layers.1.attn"):
            raise ArithmeticError("as NaN would")

    def break_off(*_) -> None:
        raise MemoryError

    if rank == 0:
        with pytest.raises(ArithmeticError):
            gradients(model, names, [1, 2], refuse)
        handle = model.get_submodule("model.layers.1.mlp").register_forward_hook(break_off)
        with pytest.raises(MemoryError):
            gradients(model, names, [1, 2])
        handle.remove()
    same(gradients(model, names, [1, 2]), wanted)
    lockstep.serve()


def out_of_memory_is_halved(rank: int, folder: Path, mesh) -> None:
    model = build(TIED)
    wanted = [gradients(model, ["layers.0.attn.q"], [row]) for row in range(4)]
    share(model, mesh)

    def work(rows: list[int]) -> list[dict[str, np.ndarray]]:
        def full(_, factors) -> None:
            if factors[0].examples > 1:
                raise MemoryError

        return [gradients(model, ["layers.0.attn.q"], rows, full)]

    if rank == 1:
        found = Shrinking(work, two, lambda parts: [one for part in parts for one in part])([0, 1, 2, 3])
        for one, value in zip(found, wanted, strict=True):
            same(one, value)
    lockstep.serve()


def two_models_in_different_order(rank: int, folder: Path, mesh) -> None:
    models = [build(TIED), build(GROUPED, seed=1)]
    wanted = [gradients(model, component_map(model).names, [4, 5]) for model in models]
    for model in models:
        share(model, mesh)
    for place in (0, 1) if rank == 0 else (1, 0):
        same(gradients(models[place], component_map(models[place]).names, [4, 5]), wanted[place])
    lockstep.serve()


def completions_are_those_of_one_process(rank: int, folder: Path, mesh) -> None:
    model, tokens = build(GROUPED), torch.tensor([[1, 2, 3]])
    settings = {"max_new_tokens": 4, "do_sample": False, "synced_gpus": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        wanted = model.generate(tokens, **settings)
    share(model, mesh)
    if rank == 0:
        with torch.no_grad():
            assert torch.equal(model.generate(tokens, **settings), wanted)
    lockstep.serve()
    same(gradients(model, ["embed"], [0]), gradients(build(GROUPED), ["embed"], [0]))


def a_request_to_stop_ends_all_after_their_blocks(rank: int, folder: Path, mesh) -> None:
    """It reaches one process, whose block ends first; the other one still ends its own."""
    model = build(TIED)
    share(model, mesh)
    store = BlockStore(folder / "stopped", {"x": ((6,), "float64")}, [slice(k, k + 1) for k in range(6)])
    with pytest.raises(stop.Stopped), store.pending() as mine:
        for number in store.each(mine, "blocks"):
            if rank == 0:
                stop.request(stop.Stopped("stopped by SIGTERM"))
            for row in range(1 + 3 * rank):
                gradients(model, ["embed"], [row])
            store.write(number, {"x": np.zeros(1)})
    stop._reason = None
    ranks.barrier()
    assert store.missing() == [2, 3, 4, 5]


def completions_are_kept_before_a_stop(rank: int, folder: Path, mesh) -> None:
    """It reaches both processes in the middle of the first of two rounds."""

    def complete(*_: object) -> list[str]:
        stop.request(stop.Stopped("stopped by SIGTERM"))
        return [f"by {rank}"]

    patch, batches = pytest.MonkeyPatch(), {number: [number] for number in range(4)}
    patch.setattr(generate, "_complete", complete)
    settings = {"fingerprint": "x", "model": "m"}
    with CompletionCache.opened(folder / "completions.jsonl", settings) as cache:
        with pytest.raises(stop.Stopped):
            generate._complete_all(None, [np.zeros(2, int)] * 4, generate.Decoding(), batches, 4, cache)
        stop._reason = None
        assert [cache[0], cache[1]] == ["by 0", "by 1"] and 2 not in cache
    patch.undo()


CHECKS = (
    stores_are_those_of_one_process,
    gradients_are_those_of_one_process,
    passes_of_different_length_and_number,
    a_pass_that_fails_lets_the_others_go_on,
    out_of_memory_is_halved,
    two_models_in_different_order,
    completions_are_those_of_one_process,
    completions_are_kept_before_a_stop,
    a_request_to_stop_ends_all_after_their_blocks,
)


def member(rank: int, folder: Path) -> None:
    """One of the processes; the first error ends it, and with it the test."""
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    with ranks.acting_as(ranks.Ranks(rank, WORLD)):
        for check in CHECKS:
            check(rank, folder, mesh)
            (folder / f"{check.__name__}-{rank}").touch()
            ranks.barrier()
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes(tmp_path: Path) -> None:
    context = mp.spawn(member, (tmp_path,), nprocs=WORLD, join=False)
    try:
        assert context.join(PATIENCE_S) or context.join(1), "a process waits for ever"
    finally:
        for process in context.processes:
            process.kill()
    for check in CHECKS:
        assert all((tmp_path / f"{check.__name__}-{rank}").exists() for rank in range(WORLD)), check.__name__
