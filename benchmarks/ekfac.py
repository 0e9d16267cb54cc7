"""EK-FAC against kronfluence: GPT-NeoX (4 layers, 2 heads, hidden 256, vocabulary 2,048), 500 sequences of 128 tokens.

10 queries against all 500, over the 16 attention and MLP matrices; float32, one thread, batches of 32, each program in
a process of its own, which also times the plain pass (forward and backward with weight gradients over the same
batches). Prints CPU time per phase as multiples of it, operations (multiply-adds of matrix products, as multiples of
the plain pass's), the share of a large matrix product's rate that a phase reaches, and peak memory above the loaded
model's. The last phase is a second query set against training gradients that were kept in 8 bits.

    python benchmarks/ekfac.py [sequences]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tdaexp.curvature import covariance
from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factors_store import Factors
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.gradient_index import GradientIndex, index_bytes, indexed_scores
from tdaexp.curvature.layers import Layers, layers_of
from tdaexp.curvature.phases import Phases
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.data.examples import Example, Examples
from tdaexp.gradients.passes import Gradients
from tdaexp.models.components import component_map
from tdaexp.objectives.tokens import NextToken
from tdaexp.selection.parts import names_of

LENGTH, VOCABULARY, HIDDEN, INNER, DEPTH, QUERIES, BATCH = 128, 2048, 256, 1024, 4, 10, 32
TARGETS = {"covariances": 1.8, "lambda": 2.3, "pairs": 1.1}


def build() -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=DEPTH, num_attention_heads=2,
        intermediate_size=INNER, max_position_embeddings=LENGTH, use_cache=False, bos_token_id=0, eos_token_id=0,
        attention_dropout=0.0, hidden_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(config).eval()


def sequences(count: int, seed: int, prefix: str) -> Examples:
    """Tokens of a Zipf distribution, so that the inputs have a spectrum."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    mask = np.arange(LENGTH) > 0
    tokens = rng.choice(VOCABULARY, (count, LENGTH), p=weights / weights.sum())
    return Examples([Example(f"{prefix}{n}", row, mask, "") for n, row in enumerate(tokens)])


class Clock:
    """CPU seconds and peak memory by phase."""

    def __init__(self) -> None:
        self.base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.found: dict[str, dict[str, float]] = {}

    def run(self, phase: str, work: Callable):
        start = time.process_time()
        result = work()
        seconds = time.process_time() - start
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.base) / 1024
        self.found[phase] = {"seconds": seconds, "megabytes": peak}
        return result


def plain(model: GPTNeoXForCausalLM, examples: Examples) -> None:
    """Forward and backward over all batches, weight gradients included."""
    tokens = torch.from_numpy(np.stack([one.tokens for one in examples]))
    model.requires_grad_(True)
    with torch.enable_grad():
        for batch in tokens.split(BATCH):
            logits = model(input_ids=batch[:, :-1]).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
            model.zero_grad()
    model.requires_grad_(False)


def matmul() -> None:
    """A fixed amount of large matrix products: 2e10 multiply-adds."""
    x = torch.randn(1000, 1000)
    for _ in range(20):
        x @ x


def ours(count: int) -> dict:
    model, train, queries = build(), sequences(count, 0, "t"), sequences(QUERIES, 1, "q")
    plain(model, train[:BATCH])
    clock = Clock()
    clock.run("matmul", matmul)
    clock.run("plain", lambda: plain(model, train))
    components = component_map(model)
    layers = layers_of(components.select(names_of(components, "blocks")))
    both = [Gradients(model, layers.map, side, NextToken(), reduction="sum") for side in (train, queries)]
    source = FisherSamples(both[0], layers, BATCH * LENGTH)
    every = np.tile(np.arange(count), (QUERIES, 1))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fit = Phases(source, seed=0, partitions=1, saves=4, store=root / "f")
        with source.ready(), torch.no_grad():
            readers = fit.readers()
            clock.run("covariances", lambda: fit.covariance(readers))
            clock.run("eigenbases", lambda: fit.eigen(readers))
            clock.run("lambda", lambda: fit.spectrum("lambda", readers))
        factors = Factors(root / "f", source.layers, readers, "ekfac", count, source.dtype)

        def precondition(name, gradient):
            return factors.precondition(name, gradient, Damping(relative=0.1))

        sides = LayerPairs(*both, layers, precondition)
        budget = {"tokens_per_batch": BATCH * LENGTH}
        scores = clock.run("pairs", lambda: pair_scores(sides, every, store=root / "s", **budget)[:]).sum(2)
        size = index_bytes(layers, count) / 1e9
        clock.run("keep", lambda: GradientIndex(both[0], layers, root / "k", size, BATCH * LENGTH).fill())

        def again():
            stores = {"index": root / "k", "store": root / "again"}
            return indexed_scores(sides, every, **stores, keep_gb=size, **budget)[:].sum(2)

        kept = clock.run("second query set", again)
        rank = np.corrcoef(kept.ravel(), scores.ravel())[0, 1]
        return {"phases": clock.found, "operations": operations(layers, count), "kept_gb": size, "kept_r": rank,
                "scores": scores.tolist(), "labels": factors.labels().flatten(0, 1)[:count].tolist()}  # fmt: skip


def second_moment(tokens: int, width: int) -> int:
    """Multiply-adds of one `covariance.add_second_moment`: the blocks of rows up to the diagonal."""
    block = covariance.BLOCK
    return tokens * sum((min(start + block, width) - start) * (width - start) for start in range(0, width, block))


def rotated_squares(positions: int, outputs: int, inputs: int, bias: int) -> int:
    """Multiply-adds per example of `lambdas.add_rotated_squares`, elementwise work left out."""
    rotated = outputs * outputs * min(positions, inputs + bias) + inputs * (inputs + bias) * min(positions, outputs)
    return positions * outputs * inputs + rotated


def operations(layers: Layers, count: int) -> dict[str, float]:
    """Multiply-adds of the matrix products of each phase."""
    positions = LENGTH - 1
    tokens = count * positions
    linear = sum(layer.outputs * (layer.inputs - layer.bias) for layer in layers.layers)
    head, attention = VOCABULARY * HIDDEN, DEPTH * 2 * positions * HIDDEN
    frozen = tokens * (2 * linear + 2 * head + 3 * attention)
    total = {"plain": tokens * (3 * linear + 3 * head + 3 * attention), "covariances": frozen, "lambda": frozen}
    for layer in layers.layers:
        inputs = layer.inputs - layer.bias
        total["covariances"] += sum(second_moment(tokens, width) for width in (inputs, layer.outputs))
        total["lambda"] += count * rotated_squares(positions, layer.outputs, inputs, layer.bias)
    preconditioned = QUERIES * sum(2 * layer.size * (layer.outputs + layer.inputs) for layer in layers.layers)
    total["pairs"] = (count + QUERIES) / count * (frozen + linear * tokens) + linear * count * QUERIES + preconditioned
    total["keep"] = frozen + linear * tokens
    total["second query set"] = QUERIES / count * (frozen + linear * tokens) + linear * count * QUERIES + preconditioned
    total["matmul"] = 2e10
    return total


def theirs(count: int, labels: list) -> dict:
    """kronfluence over the same tokens with the same labels."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class LanguageTask(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(input_ids=batch["x"]).logits
            if sample:  # drawing them is part of the work; using them would give other factors
                torch.multinomial(logits.detach().flatten(0, 1).softmax(1), 1)
            chosen = batch["drawn"] if sample else batch["y"]
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), chosen.flatten(), reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return modules

    model, train, queries = build(), sequences(count, 0, "t"), sequences(QUERIES, 1, "q")
    components = component_map(model)
    layers = layers_of(components.select(names_of(components, "blocks")))
    modules = [component.parts[0].module for component in layers.map.components]
    plain(model, train[:BATCH])
    clock = Clock()
    clock.run("plain", lambda: plain(model, train))
    task = LanguageTask()
    model = prepare_model(model, task)
    rows = [
        [{"x": tokens[:-1], "y": tokens[1:], "drawn": drawn} for tokens, drawn in zip(side, chosen, strict=True)]
        for side, chosen in (
            (torch.from_numpy(np.stack([one.tokens for one in train])), torch.tensor(labels)),
            (torch.from_numpy(np.stack([one.tokens for one in queries])), torch.zeros(QUERIES, LENGTH - 1)),
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("a", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        how = {"per_device_batch_size": BATCH, "factor_args": FactorArguments("ekfac")}
        clock.run("covariances", lambda: analyzer.fit_covariance_matrices("f", rows[0], **how))
        clock.run("eigenbases", lambda: analyzer.perform_eigendecomposition("f", FactorArguments("ekfac")))
        clock.run("lambda", lambda: analyzer.fit_lambda_matrices("f", rows[0], **how))
        settings = ScoreArguments(damping_factor=None)
        pairs = ("s", "f", rows[1], rows[0], QUERIES, BATCH)
        clock.run("pairs", lambda: analyzer.compute_pairwise_scores(*pairs, score_args=settings))
        return {"phases": clock.found, "scores": analyzer.load_pairwise_scores("s")["all_modules"].tolist()}


def measure(program: str, count: int, path: str) -> None:
    """Run one program in this process; `path` is a file for its results."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = ours(count) if program == "ours" else theirs(count, json.loads(Path(path).read_text())["labels"])
    Path(path).write_text(json.dumps(found))


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        found = {}
        for program in ("ours", "theirs"):
            subprocess.run([sys.executable, __file__, program, str(count), str(path)], check=True)
            found[program] = json.loads(path.read_text())
    mine, other = found["ours"]["phases"], found["theirs"]["phases"]
    operations = found["ours"]["operations"]
    rate = operations["matmul"] / mine["matmul"]["seconds"]
    print(f"plain pass: {mine['plain']['seconds']:.1f} and {other['plain']['seconds']:.1f} s CPU; "
          f"a matrix product runs at {2e-9 * rate:.0f} GFLOP/s")  # fmt: skip
    for phase, one in mine.items():
        if phase == "matmul":
            continue
        line = f"{phase:>17}: {one['seconds'] / mine['plain']['seconds']:5.2f} × plain"
        if phase in operations:
            share = operations[phase] / one["seconds"] / rate
            line += f" (operations {operations[phase] / operations['plain']:.2f} ×, {share:4.0%} of a product's rate)"
        if phase in other and phase != "plain":
            line += f"; kronfluence {other[phase]['seconds'] / other['plain']['seconds']:5.2f} ×"
        if phase in TARGETS:
            line += f"; target {TARGETS[phase]} ×"
        print(f"{line}; peak {one['megabytes']:.0f} MB")
    print(f"kronfluence's peak {max(one['megabytes'] for one in other.values()):.0f} MB")
    first = sum(mine[phase]["seconds"] for phase in ("covariances", "eigenbases", "lambda", "keep"))
    second = mine["second query set"]["seconds"]
    print(f"second query set: {second / mine['pairs']['seconds']:.3f} of the first's pairs, "
          f"{second / first:.3f} of all of the first; store {found['ours']['kept_gb']:.2f} GB, "
          f"correlation with exact scores {found['ours']['kept_r']:.6f}")  # fmt: skip
    scores = [np.array(one["scores"]) for one in found.values()]
    print(f"scores differ by {np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max():.1e} of the largest")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
