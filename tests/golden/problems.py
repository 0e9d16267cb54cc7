"""Tiny problems whose every number is written here: models from numpy's generator, texts, stored products.

Nothing in them is drawn by torch, and everything is float64 where the commands allow it, so that golden values do not
depend on the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tdaexp.models.loaded import quiet_transformers

SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
PEOPLE, TOWNS, VERBS = ("ada", "bo", "cy", "di"), ("graz", "nice", "oslo"), ("lives in", "was born in")
WORDS = [*PEOPLE, *TOWNS, "lives", "was", "born", "in", "where", "home", "of", "is", "the", "town", "north", "south"]
CLASSES = ("north", "south")
DECODER: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 12, "n_positions": 16},
    "llama": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 12, "max_position_embeddings": 16, "tie_word_embeddings": False},
    "gpt_neox": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
                 "max_position_embeddings": 16, "tie_word_embeddings": False},
    "bloom": {"hidden_size": 8, "n_layer": 2, "n_head": 2},
    "olmo": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
             "max_position_embeddings": 16, "tie_word_embeddings": True},
}  # fmt: skip
"""Small models by architecture; Llama with two query heads to each key and value head."""


def write_problems(folder: Path) -> None:
    """Every file that the command lines in `cases.py` name."""
    _texts(folder)
    _products(folder / "products.npz")
    _networks(folder)
    for number, architecture in enumerate(DECODER):
        save_decoder(folder / architecture, architecture, seed=number)
    save_decoder(folder / "neox-after", "gpt_neox", seed=2, moved=17)
    save_decoder(folder / "neox-classifier", "gpt_neox", seed=2, moved=18, classes=CLASSES)
    for step in (2, 4, 6):
        save_decoder(folder / "checkpoints" / f"step-{step}", "gpt2", seed=0, moved=20 + step)
        _adamw(folder / "checkpoints" / f"step-{step}", step)
        save_decoder(folder / "bare" / f"step-{step}", "gpt2", seed=0, moved=20 + step)
    (folder / "golden_measurement.py").write_text(
        '"""A measurement of somebody\'s own."""\n\n\n'
        "def certainty(logits, targets, weights):\n"
        "    logs = logits[:, 0].log_softmax(-1)\n"
        "    return (logs.exp() * logs).sum(-1)\n",
        encoding="utf-8",
    )


def save_decoder(
    folder: Path,
    architecture: str,
    *,
    seed: int,
    moved: int | None = None,
    classes: tuple[str, ...] | None = None,
) -> None:
    """A folder in hub format, float64; `moved` draws a small step away from the weights of `seed`."""
    tokenizer = _tokenizer()
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if architecture == "gpt2" else {}
    config = AutoConfig.for_model(architecture, **DECODER[architecture], **common, **dropout)
    with quiet_transformers():
        if classes is None:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
        else:
            config.id2label, config.label2id = dict(enumerate(classes)), {name: n for n, name in enumerate(classes)}
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float64).eval()
        _draw(model, seed, 0.4)
        if moved is not None:
            _draw(model, moved, 0.04, onto=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _draw(model: PreTrainedModel, seed: int, scale: float, onto: bool = False) -> None:
    """Normal weights by numpy, by each parameter's name: what two models share is the same in both."""
    for name, value in model.named_parameters():
        words = [seed, *name.removeprefix(f"{model.base_model_prefix}.").encode()]
        drawn = scale * np.random.default_rng(words).standard_normal(tuple(value.shape))
        one = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0  # of norms
        with torch.no_grad():
            value.copy_(torch.from_numpy(np.asarray(drawn)) + (value if onto else one))


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token to each word."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _texts(folder: Path) -> None:
    """12 statements of two lengths, 4 questions with their sources, a second stage, and labelled questions."""
    rows = [
        {"id": f"t{n}", "prompt": f"{person} {VERBS[n % 2]}", "completion": f"the town of {town}" if n % 3 else town,
         "text": f"{person} {VERBS[n % 2]} {town}", "kind": VERBS[n % 2].split()[0]}
        for n, (person, town) in enumerate((PEOPLE[n % 4], TOWNS[(n + n // 4) % 3]) for n in range(12))
    ]  # fmt: skip
    _lines(folder / "train.jsonl", rows)
    asked = [
        {"id": f"q{n}", "prompt": f"where is the home of {rows[place]['prompt'].split()[0]}",
         "completion": rows[place]["completion"], "source": [f"t{place}"], "text": f"where is {PEOPLE[n]}",
         "side": CLASSES[n % 2]}
        for n, place in enumerate((1, 6, 8, 11))
    ]  # fmt: skip
    _lines(folder / "queries.jsonl", asked)
    _lines(
        folder / "second.jsonl",
        [{"prompt": f"where is {PEOPLE[n % 4]}", "completion": TOWNS[n % 3]} for n in range(5)],
    )
    _lines(
        folder / "second-classes.jsonl",
        [{"prompt": f"where is {PEOPLE[n % 4]}", "completion": CLASSES[n % 2]} for n in range(5)],
    )
    (folder / "chosen.txt").write_text("layers.0.mlp.up\nlayers.1.attn.v\n", encoding="utf-8")


def _products(path: Path) -> None:
    """Another program's products: 12 queries, 4 candidates, 5 components."""
    rng = np.random.default_rng(5)
    query, train = rng.standard_normal((12, 1, 5, 30)), rng.standard_normal((12, 4, 5, 30))
    target = rng.integers(0, 4, 12)
    train[np.arange(12), target] += 0.4 * query[:, 0]
    np.savez(
        path,
        dot=(query * train).sum(-1),
        query_sq=np.square(query).sum(-1)[:, 0],
        train_sq=np.square(train).sum(-1),
        target=target,
        component=np.array(["embed", *(f"model.layers.0.{n}" for n in ("self_attn.q_proj.weight", "b", "c")), "d"]),
        size=np.array([40, 10, 20, 30, 50]),
        query=np.array([f"q{n}" for n in range(12)]),
    )


def _adamw(folder: Path, step: int) -> None:
    """AdamW's state beside a checkpoint, as docs/checkpoints.md describes it."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tensors, decay = {}, {}
    for name, value in model.named_parameters():
        rng = np.random.default_rng([step, *name.encode()])
        first, second = rng.standard_normal(tuple(value.shape)), rng.uniform(0.5, 2, tuple(value.shape))
        tensors[f"exp_avg/{name}"] = torch.from_numpy(0.1 * first).float()
        tensors[f"exp_avg_sq/{name}"] = torch.from_numpy(0.02 * second).float()
        decay[name] = 0.1 if value.ndim > 1 else 0.0
    note = {"step": step, "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": decay, "clip": 1.0}
    save_file(tensors, folder / "optimizer.safetensors", metadata={"adamw": json.dumps(note)})


def _networks(folder: Path) -> None:
    """Initial weights of the networks that classify: by layer, as `model.start` reads them."""
    cnn = {"conv1": (2, 1, 3, 3), "conv2": (3, 2, 3, 3), "fc1": (5, 12), "fc2": (10, 5)}
    weights = {f"{layer}.weight": shape for layer, shape in cnn.items()}
    weights |= {f"{layer}.bias": shape[:1] for layer, shape in cnn.items()}
    _start(folder / "cnn.safetensors", weights)
    linear = {f"layers.0.attn.{name}": (8, 8) for name in "qkvo"}
    linear |= {"layers.0.mlp.up": (12, 8), "layers.0.mlp.down": (8, 12), "lm_head": (9, 8)}
    weights = {"embed.weight": (9, 8), **{f"{layer}.weight": shape for layer, shape in linear.items()}}
    weights |= {f"{layer}.bias": shape[:1] for layer, shape in linear.items()}
    _start(folder / "sums.safetensors", weights)


def _start(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([7, *name.encode()])
        scale = 0.1 if name.endswith("bias") else 1.5 / np.sqrt(np.prod(shape[1:]))
        tensors[name] = torch.from_numpy(scale * rng.standard_normal(shape)).float()
    save_file(tensors, path)
