"""Component products against materialising every per-example gradient with torch.func and taking dots.

All ways run the same model (OLMo architecture, 8 layers, hidden 64, vocabulary 1,024), the same 128 queries and the
same 5 candidates each out of 256 training examples of 32 to 48 tokens; float32, one thread, a process of its own.
`vmap` materialises with vmap(grad) in batches of 16 examples of similar length, `one by one` with grad. Both keep all
gradients, as they must for arbitrary pairs. Prints CPU time, peak memory above that of the loaded model, the ratios,
and the largest difference of the results relative to the largest product.

    python benchmarks/products.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import OlmoConfig, OlmoForCausalLM

from tdaexp.data.examples import Example, Examples, collate
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.products import component_products
from tdaexp.models.components import component_map
from tdaexp.objectives.tokens import NextToken

QUERIES, CANDIDATES, TRAIN, TOPICS, PREDICTED = 128, 5, 256, 16, 12
TOKENS_PER_BATCH, CACHE_GB = 1024, 0.1


def build():
    """Model, training examples, queries and pairs.

    As with BM25, queries on one topic compete for the same examples; topics are scattered over both lists.
    """
    config = OlmoConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    topics = rng.permutation(TRAIN).reshape(TOPICS, -1)
    pairs = [rng.choice(topics[k], CANDIDATES, replace=False) for k in rng.permutation(np.arange(QUERIES) % TOPICS)]
    return (
        OlmoForCausalLM(config).eval(),
        _examples(rng, TRAIN, "t"),
        _examples(rng, QUERIES, "q"),
        np.stack(pairs),
    )


def _examples(rng: np.random.Generator, count: int, prefix: str) -> Examples:
    lengths = rng.integers(32, 49, count)
    return Examples(
        [
            Example(f"{prefix}{k}", rng.integers(0, 1024, n), np.arange(n) >= n - PREDICTED, "")
            for k, n in enumerate(lengths)
        ]
    )


def ours(model, train, queries, pairs) -> np.ndarray:
    parts = component_map(model)
    sides = [Gradients(model, parts, side, NextToken()) for side in (train, queries)]
    with tempfile.TemporaryDirectory() as folder:
        return component_products(
            *sides, pairs, store=Path(folder) / "store", tokens_per_batch=TOKENS_PER_BATCH, cache_gb=CACHE_GB,
        )["dot"][:]  # fmt: skip


def materialised(model, train, queries, pairs, size: int) -> np.ndarray:
    """Dots [Q, C, K] of explicit gradients; the self-products, which the cosine needs, are taken too."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, tokens, weights):
        logits = torch.func.functional_call(model, parameters, (tokens[None],), {"use_cache": False}).logits[0]
        return (torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none") * weights).sum()

    gradient = torch.func.grad(loss)
    batched = torch.func.vmap(gradient, in_dims=(None, 0, 0))

    def gradients(examples: Examples) -> dict[str, list[torch.Tensor]]:
        order = np.argsort(examples.lengths, kind="stable")
        rows: dict[str, list] = {name: [None] * len(examples) for name in parameters}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = collate([examples[index] for index in chosen])
            weights = batch.loss_mask[:, 1:] / batch.loss_mask[:, 1:].sum(1, keepdim=True)
            if size == 1:
                found = gradient(parameters, batch.tokens[0], weights[0])
                found = {name: value[None] for name, value in found.items()}
            else:
                found = batched(parameters, batch.tokens, weights)
            for name, value in found.items():
                for row, index in enumerate(chosen):
                    rows[name][index] = value[row].flatten()
        return rows

    column = {part.module: k for k, one in enumerate(component_map(model).components) for part in one.parts}
    left, right = gradients(queries), gradients(train)
    dot = np.zeros((*pairs.shape, len(component_map(model))), np.float32)
    for name in parameters:
        k = column[name.rsplit(".", 1)[0]]
        for rows in (left[name], right[name]):
            torch.stack([row @ row for row in rows])
        for (q, c), t in np.ndenumerate(pairs):
            dot[q, c, k] += float(left[name][q] @ right[name][t])
    return dot


WAYS = {
    "ours": ours,
    "vmap": lambda *setting: materialised(*setting, size=16),
    "one by one": lambda *setting: materialised(*setting, size=1),
}


def measure(way: str, out: str) -> None:
    """Run one way in this process; print seconds of CPU and MB above what the loaded model takes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    setting = build()
    with torch.no_grad():
        setting[0](torch.zeros(1, 8, dtype=torch.int64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    dot = WAYS[way](*setting)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    np.save(out, dot)
    print(json.dumps({"seconds": seconds, "megabytes": peak / 1024}))


def main() -> None:
    found, dots = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            command = [sys.executable, __file__, way, f"{folder}/dots.npy"]
            reply = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way], dots[way] = json.loads(reply.stdout.splitlines()[-1]), np.load(f"{folder}/dots.npy")
    for way, one in found.items():
        times = one["seconds"] / found["ours"]["seconds"]
        memory = found["ours"]["megabytes"] / one["megabytes"]
        difference = np.abs(dots[way] - dots["ours"]).max() / np.abs(dots["ours"]).max()
        print(
            f"{way:>10}: {one['seconds']:6.2f} s CPU, {one['megabytes']:5.0f} MB; "
            f"ours is {times:.2f} times faster in {memory:.3f} of the memory; difference {difference:.0e}"
        )


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
