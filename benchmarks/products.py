"""Component products against materialising every per-example gradient with torch.func and taking dots.

Both run the same model (OLMo architecture, 8 layers, hidden 64, vocabulary 1,024), the same 128 queries and the same
5 candidates each out of 256 training examples of about 40 tokens, one process and one thread each, float32. Prints CPU time and
peak memory above the loaded model, their ratios, and the largest difference of the results.

    python benchmarks/products.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import os
import numpy as np
import torch
TOKENS=int(os.environ.get('TOKENS',1024)); CACHE=float(os.environ.get('CACHE',.15))

QUERIES, CANDIDATES, TRAIN, LENGTH, TOPICS = 128, 5, 256, 40, 16


def build():
    """Model, training examples, queries, pairs: a candidate list in which nearby queries share candidates."""
    from transformers import OlmoConfig, OlmoForCausalLM

    from tdaexp.data.examples import Example, Examples

    config = OlmoConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OlmoForCausalLM(config).eval()
    rng = np.random.default_rng(0)

    def examples(count: int, prefix: str) -> Examples:
        items = []
        for number in range(count):
            length = int(rng.integers(LENGTH - 8, LENGTH + 9))
            mask = np.arange(length) >= length - 12
            items.append(Example(f"{prefix}{number}", rng.integers(0, 1024, length), mask, ""))
        return Examples(items)

    # As with BM25, queries on one topic compete for the same examples; topics are scattered over both lists.
    topics = rng.permutation(TRAIN).reshape(TOPICS, -1)
    topic_of = rng.permutation(np.arange(QUERIES) % TOPICS)
    pairs = np.stack([rng.choice(topics[topic], CANDIDATES, replace=False) for topic in topic_of])
    return model, examples(TRAIN, "t"), examples(QUERIES, "q"), pairs


def ours(model, train, queries, pairs) -> np.ndarray:
    from tdaexp.gradients.products import component_products
    from tdaexp.models.components import component_map

    with tempfile.TemporaryDirectory() as folder:
        found = component_products(
            model, component_map(model), train, queries, pairs,
            store=Path(folder) / "store", tokens_per_batch=TOKENS, cache_gb=CACHE,
        )  # fmt: skip
    return found["dot"]


def materialised(model, train, queries, pairs) -> np.ndarray:
    """torch.func: vmap(grad) over batches of 16, all gradients kept, then one dot product per pair and component."""
    from tdaexp.models.components import component_map

    parameters = dict(model.named_parameters())
    parameters = {name: value.detach() for name, value in parameters.items()}

    def loss(parameters, tokens, weights):
        logits = torch.func.functional_call(model, parameters, (tokens[None],), {"use_cache": False}).logits[0]
        terms = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        return (terms * weights).sum()

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def gradients(examples):
        order = np.argsort(examples.lengths, kind="stable")
        rows = {name: [None] * len(examples) for name in parameters}
        for start in range(0, len(order), 16):
            chosen = order[start : start + 16]
            from tdaexp.data.examples import collate

            batch = collate([examples[index] for index in chosen])
            weights = batch.loss_mask[:, 1:].float()
            weights = weights / weights.sum(1, keepdim=True)
            for name, value in per_example(parameters, batch.tokens, weights).items():
                for row, index in enumerate(chosen):
                    rows[name][index] = value[row].flatten().clone()
        return rows

    names = {part.module: k for k, c in enumerate(component_map(model).components) for part in c.parts}
    left, right = gradients(queries), gradients(train)
    dot = np.zeros((*pairs.shape, len(component_map(model))), np.float32)
    square = [{name: [(x * x).sum() for x in rows[name]] for name in parameters} for rows in (left, right)]
    del square
    for name in parameters:
        k = names[name.rsplit(".", 1)[0]]
        for q in range(len(pairs)):
            for c, t in enumerate(pairs[q]):
                dot[q, c, k] += float(left[name][q] @ right[name][t])
    return dot


def measure(way: str, out: str) -> None:
    torch.set_num_threads(1)
    import tdaexp.gradients.products  # noqa: F401  what is imported is no part of the comparison

    setting = build()
    with torch.no_grad():
        setting[0](torch.zeros(1, 8, dtype=torch.int64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    dot = {"ours": ours, "materialised": materialised}[way](*setting)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(out, dot)
    print(json.dumps({"seconds": seconds, "peak_mb": (peak - before) / 1024, "total_mb": peak / 1024}))


def main() -> None:
    found, dots = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("ours", "materialised"):
            out = f"{folder}/{way}.npy"
            reply = subprocess.run(
                [sys.executable, __file__, way, out], check=True, capture_output=True, text=True
            )
            found[way], dots[way] = json.loads(reply.stdout.splitlines()[-1]), np.load(out)
            print(f"{way:>13}: {found[way]['seconds']:.2f} s CPU, peak {found[way]['peak_mb']:.0f} MB above the loaded model, {found[way]['total_mb']:.0f} MB in all")
    a, b = found["ours"], found["materialised"]
    print(f"       faster: {b['seconds'] / a['seconds']:.2f} times; memory: {a['peak_mb'] / b['peak_mb']:.3f} of it")
    print(f"   difference: {np.abs(dots['ours'] - dots['materialised']).max() / np.abs(dots['materialised']).max():.1e}")


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
