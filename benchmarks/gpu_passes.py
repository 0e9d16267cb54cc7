"""What captured passes cost on a GPU beside plain ones, and whether the host waits: OLMo-1B's shape, random weights.

    plain          forward and backward over a batch, logits at every position, weight gradients included
    capture        per-example factors of all components, dropped at once
    project        the same, each component's gradient sketched from its factors (`factorised`, 256 dimensions)
    products       dot products with 16 held queries, every pair
    covariances, lambda, pairs
                   the phases of EK-FAC over all matrices of the blocks, of a model with `--ekfac-layers` layers, beside
                   plain passes of that model; pairs are against 16 queries
    waits          synchronisations that torch reports (`set_sync_debug_mode`) in a block of 2 and of 6 batches

    python benchmarks/gpu_passes.py [--precision float32 bfloat16] [--device cuda] [--tiny]

Batches are 16 sequences of 512 tokens, loss on the last three quarters. Times are medians of rounds between
synchronisations, in milliseconds a batch; the ratio is to the plain pass of the same precision.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import OlmoConfig, OlmoForCausalLM

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factors_store import Factors
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.phases import Phases
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.data.examples import Example, Examples, collate
from tdaexp.gradients.features import project
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.products import component_products
from tdaexp.gradients.projection import make_sketch
from tdaexp.models.components import component_map
from tdaexp.models.loaded import freeze
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.device import resolve_dtype
from tdaexp.selection.parts import names_of

ROUNDS, QUERIES, FEW, MANY, DIMENSIONS = 3, 16, 2, 6, 256


@dataclass(frozen=True)
class Sizes:
    """Of the model and of a batch."""

    hidden: int = 2048
    inner: int = 8192
    heads: int = 16
    layers: int = 16
    vocabulary: int = 50304
    examples: int = 16
    length: int = 512


TINY = Sizes(32, 64, 2, 2, 64, 4, 16)


def build(sizes: Sizes, layers: int, device: torch.device, dtype: torch.dtype) -> OlmoForCausalLM:
    config = OlmoConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.inner, num_hidden_layers=layers,
        num_attention_heads=sizes.heads, tie_word_embeddings=True, use_cache=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        return freeze(OlmoForCausalLM(config).to(dtype))


def texts(sizes: Sizes, count: int, seed: int, prefix: str) -> Examples:
    rng = np.random.default_rng(seed)
    mask = np.arange(sizes.length) >= sizes.length // 4
    rows = rng.integers(0, sizes.vocabulary, (count, sizes.length))
    return Examples([Example(f"{prefix}{n}", row, mask, "") for n, row in enumerate(rows)])


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Median milliseconds; a first round warms up."""
    found = []
    for _ in range(rounds + 1):
        settle(device)
        start = time.perf_counter()
        work()
        settle(device)
        found.append(1000 * (time.perf_counter() - start))
    return median(found[1:]) if rounds else found[0]


def waits(work: Callable[[], object]) -> int:
    """Synchronisations in a piece of work."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = [one for one in found if "synchroniz" in str(one.message)]
    for place in sorted({f"{one.filename}:{one.lineno}" for one in where}):
        print(f"      waits at {place}: {sum(f'{one.filename}:{one.lineno}' == place for one in where)}")
    return len(where)


def plain(model: OlmoForCausalLM, batches: list[Examples], device: torch.device) -> None:
    model.requires_grad_(True)
    with torch.enable_grad():
        for batch in map(collate, batches):
            one = batch.to(device)
            logits = model(input_ids=one.tokens, attention_mask=one.attention).logits[:, :-1]
            targets = one.tokens[:, 1:].masked_fill(~one.loss_mask[:, 1:], -100)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            model.zero_grad(set_to_none=True)
    model.requires_grad_(False)


def passes(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
    """The rows of whole models."""
    model = build(sizes, sizes.layers, device, dtype)
    whole, tokens = component_map(model), sizes.examples * sizes.length
    sketches = {one.name: make_sketch("factorised", one.name, one.matrix, DIMENSIONS, 0) for one in whole.components}
    train, queries = texts(sizes, MANY * sizes.examples, 0, "t"), texts(sizes, QUERIES, 1, "q")
    side = Gradients(model, whole, train, NextToken())
    asked = Gradients(model, whole, queries, NextToken())
    starts = range(0, FEW * sizes.examples, sizes.examples)

    def captured(sketched: bool) -> None:
        def consume(found, factors) -> None:
            for component, one in zip(found, factors, strict=True):
                if sketched:
                    project(one, sketches[component.name])

        with side.ready():
            for start in starts:
                side.capture(range(start, start + sizes.examples), consume)

    def products(batches: int) -> None:
        pairs = np.tile(np.arange(batches * sizes.examples), (QUERIES, 1))
        with tempfile.TemporaryDirectory() as folder:
            component_products(side, asked, pairs, store=Path(folder) / "p", tokens_per_batch=tokens, cache_gb=40)

    base = timed(lambda: plain(model, [train[start : start + sizes.examples] for start in starts], device), device)
    told("plain", base / FEW, base / FEW)
    for name, work in (("capture", lambda: captured(False)), ("project", lambda: captured(True))):
        told(name, timed(work, device) / FEW, base / FEW)
    few, many = (timed(lambda n=n: products(n), device) for n in (FEW, MANY))
    told("products", (many - few) / (MANY - FEW), base / FEW)
    if device.type == "cuda":
        found = [waits(lambda n=n: products(n)) for n in (FEW, MANY)]
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(f"    products wait {found[0]} times for {FEW} batches, {found[1]} for {MANY}; peak {peak:.1f} GB")


def curvature(sizes: Sizes, layers: int, device: torch.device, dtype: torch.dtype) -> None:
    """The rows of EK-FAC: time of `MANY` batches less that of `FEW`, after one fit that warms up."""
    model = build(sizes, layers, device, dtype)
    found = [fitted(model, sizes, count, device) for count in (FEW, FEW, MANY)][1:]
    train = texts(sizes, FEW * sizes.examples, 0, "t")
    batches = [train[start : start + sizes.examples] for start in range(0, len(train), sizes.examples)]
    base = timed(lambda: plain(model, batches, device), device) / FEW
    told(f"plain, {layers} layers", base, base)
    print(f"    eigenbases {found[0].pop('eigenbases') / 1000:.1f} s once")
    for name, few in found[0].items():
        told(name, (found[1][name] - few) / (MANY - FEW), base)


def fitted(model: OlmoForCausalLM, sizes: Sizes, count: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of the phases over so many batches."""
    components, tokens = component_map(model), sizes.examples * sizes.length
    blocks = layers_of(components.select(names_of(components, "blocks")))
    sets = texts(sizes, count * sizes.examples, 0, "t"), texts(sizes, QUERIES, 1, "q")
    train, queries = (Gradients(model, blocks.map, one, NextToken(), reduction="sum") for one in sets)
    source, budget = FisherSamples(train, blocks, tokens), {"tokens_per_batch": tokens, "cache_gb": 40}
    every = np.tile(np.arange(len(train)), (QUERIES, 1))
    with tempfile.TemporaryDirectory() as folder:
        fit = Phases(source, seed=0, partitions=1, saves=1, store=Path(folder) / "f")
        with source.ready(), torch.no_grad():
            readers = fit.readers()
            now = {"covariances": timed(lambda: fit.covariance(readers), device, 0)}
            now["eigenbases"] = timed(lambda: fit.eigen(readers), device, 0)
            now["lambda"] = timed(lambda: fit.spectrum("lambda", readers), device, 0)
        factors = Factors(Path(folder) / "f", source.layers, readers, "ekfac", len(train), source.dtype)
        sides = LayerPairs(train, queries, blocks, lambda n, g: factors.precondition(n, g, Damping(relative=0.1)))

        def pairs(name: str) -> None:
            pair_scores(sides, every, store=Path(folder) / name, **budget)

        now["pairs"] = timed(lambda: pairs("timed"), device, 0)
        if device.type == "cuda":
            print(f"    pairs wait {waits(lambda: pairs('waits'))} times for {count} batches")
    return now


def told(name: str, milliseconds: float, base: float) -> None:
    print(f"    {name:>20}: {milliseconds:9.2f} ms a batch, {milliseconds / base:.3f} times plain", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ekfac-layers", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    sizes, device = TINY if options.tiny else Sizes(), torch.device(options.device)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}, {sizes}")
    for precision in options.precision:
        print(f"  {precision}")
        passes(sizes, device, resolve_dtype(precision))
        curvature(sizes, options.ekfac_layers, device, resolve_dtype(precision))


if __name__ == "__main__":
    main()
