"""Influence of single training examples by the reverse sweep, where ExPLAIND's authors' code was timed.

    mnist     5,120 training and 16 test images, log-probabilities of 10 classes, 20 AdamW steps of 256 images (batches
              of an epoch), a CNN of 27,562 parameters. Published code: 112 CPU-seconds and 2.4 GB with 100 midpoint
              nodes (mean error of the log-probabilities 0.0012), 48 CPU-seconds with 10 (0.0137).
    grokking  4,000 training and 4 test examples, logits of 115 tokens, full batch, two AdamW steps of a transformer
              with one layer. Published code: 18.7 CPU-seconds a step and 7.3 GB with 10 nodes.
    memory    the grokking setting with 500 training examples.
    layers    the grokking setting by layer instead of by training example: 2,000 test examples, all outputs, two parts,
              one node; one step's cost against a forward pass over the test examples.

The images are those of the MNIST files in a folder (its test part has enough); the sums are random. float32, one
thread, a process of its own for each; training is not counted. Prints CPU seconds, peak memory of the process, the mean
absolute residual, and the largest difference between the examples' sum and the updates that they make.

    python benchmarks/explaind.py FOLDER
"""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import example_losses, of_model, output
from tdaexp.pathkernel.parameters import Layout, Step, by_module
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.sweep import Sweep
from tdaexp.pathkernel.updates import AdamW, Regularisation, split_update


class Attention(nn.Module):
    """One layer of four heads, then a ReLU MLP and a decoder, read at the last of four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(115, 64)
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(64, 512), nn.Linear(512, 64), nn.Linear(64, 115)

    def forward(self, tokens):
        hidden = self.embed(tokens)
        q, k, v = (part(hidden).unflatten(-1, (4, 16)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = (q @ k.mT / 4).softmax(-1) @ v
        hidden = hidden + self.o(mixed.transpose(1, 2).flatten(2))
        hidden = hidden[:, -1]
        return self.head(hidden + self.down(self.up(hidden).relu()))


def mnist(folder: Path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 1, 28, 28)[:5136].float() / 255
    targets = torch.frombuffer(bytearray(labels), dtype=torch.uint8)[:5136].long()
    order = torch.randperm(5120)
    return model, (images[:5120], targets[:5120]), (images[5120:], targets[5120:]), order.split(256), 0.01, 0.1


def grokking(folder: Path, examples: int = 4000):
    torch.manual_seed(0)
    first, second = torch.randint(0, 113, (2, examples + 4))
    tokens = torch.stack([first, torch.full_like(first, 113), second, torch.full_like(first, 114)], 1)
    targets = (first + second) % 113
    split = [(tokens[:examples], targets[:examples]), (tokens[examples:], targets[examples:])]
    return Attention(), *split, [torch.arange(examples)] * 2, 0.001, 4.0


def record(model, train, batches, rate, decay) -> list[Step]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.7, 0.9), weight_decay=decay)
    steps = []
    for number, ids in enumerate(batches):
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train[0][ids]), train[1][ids]).backward()
        optimiser.step()
        end = {name: value.detach().clone() for name, value in model.named_parameters()}
        second = {name: optimiser.state[p]["exp_avg_sq"].clone() for name, p in model.named_parameters()}
        rates, decays = dict.fromkeys(start, rate), dict.fromkeys(start, decay)
        weights = torch.full((len(ids),), 1 / len(ids), dtype=torch.float64)
        steps.append(Step(number, start, end, rates, decays, ids, weights, second))
    return steps


EXACT = [Quadrature("secant")]
FIXED = [Quadrature("midpoint", count) for count in (1, 10, 11, 100, 128)]  # 11 and 128: their error at 10 and 100
STEERED = [Quadrature(nodes=4, tolerance=tolerance, most=256) for tolerance in (0.1, 0.03, 0.01)]
SETTINGS = {
    "mnist": (mnist, "log_probabilities", [*EXACT, *FIXED, *STEERED]),
    "grokking": (grokking, "logits", [*EXACT, *(Quadrature(nodes=n) for n in (1, 2, 10))]),
    "memory": (lambda folder: grokking(folder, 500), "logits", [Quadrature(nodes=1)]),
}


def measure(folder: str, setting: str, number: str) -> None:
    torch.set_num_threads(1)
    build, read, rules = SETTINGS[setting]
    model, train, queries, batches, rate, decay = build(Path(folder))
    steps = record(model, train, batches, rate, decay)
    parameters = dict(model.named_parameters())
    layout = Layout.of(parameters, by_module(model))
    model.eval().requires_grad_(False)
    function = of_model(model, output(read).read)
    start = time.process_time()
    sweep = Sweep(function, example_losses(model), layout, AdamW((0.7, 0.9)), queries, rules[int(number)])
    total, residual, updates, nodes = None, 0.0, 0.0, 0
    for step in reversed(steps):
        one = sweep.step(step, tuple(tensor[step.ids] for tensor in train))
        total = one.train.new_zeros(len(train[0]), *one.residual.shape) if total is None else total
        total.index_add_(0, step.ids, one.train[0])
        residual, nodes = residual + one.residual, nodes + one.nodes
        updates = updates + one.whole[0] - one.regularisation[0]
    found = {
        "seconds": time.process_time() - start,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "steps": len(steps),
        "nodes": nodes / len(steps),
        "residual": float(residual.abs().mean()),
        "rule": rules[int(number)].rule,
        "difference": float((total.sum(0) - updates).abs().max() / updates.abs().max()),
        "parameters": layout.size,
    }
    print(json.dumps(found))


def layers() -> None:
    torch.set_num_threads(1)
    model, _, _, batches, rate, decay = grokking(Path())
    train = grokking(Path(), 4000)[1]
    steps = record(model, train, batches, rate, decay)
    layout = Layout.of(dict(model.named_parameters()), by_module(model))
    model.eval().requires_grad_(False)
    queries = tuple(tensor[:2000] for tensor in train)
    decomposer = Decomposer(of_model(model, output("logits").read), layout, queries)
    rule, times = Regularisation(AdamW((0.7, 0.9)), layout), {"forward": 0.0, "step": 0.0}
    for step in steps:
        parts = split_update(step, rule.advance(step), layout)
        before = decomposer.value(step.start)
        decomposer.step(step, parts, before)  # once unmeasured
        for name, work in (("forward", lambda s=step: decomposer.value(s.start)),
                           ("step", lambda s=step, p=parts, b=before: decomposer.step(s, p, b))):  # fmt: skip
            start = time.process_time()
            for _ in range(5):
                work()
            times[name] += (time.process_time() - start) / 5 / len(steps)
    print(
        f"   layers, {len(layout.components)} of them: {times['step']:.2f} s CPU a step, "
        f"{times['step'] / times['forward']:.0f} forward passes of {1000 * times['forward']:.0f} ms"
    )


def main(folder: str) -> None:
    layers()
    for setting, (_, _, rules) in SETTINGS.items():
        for number in range(len(rules)):
            command = [sys.executable, __file__, folder, setting, str(number)]
            reply = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            one = json.loads(reply.stdout.splitlines()[-1])
            print(
                f"{setting:>9}, {one['rule']}, {one['nodes']:4.1f} nodes a step: {one['seconds']:6.2f} s CPU "
                f"({one['seconds'] / one['steps']:.2f} a step), {one['megabytes']:5.0f} MB; {one['parameters']:,} "
                f"parameters; residual {one['residual']:.1e}; examples against updates {one['difference']:.0e}"
            )


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 2 else main(*sys.argv[1:])
