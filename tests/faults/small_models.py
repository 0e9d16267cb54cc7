"""Folders with small language models, made on the spot, and pairs of texts."""

import json
from pathlib import Path

import torch
import transformers

from tdaexp.models.tokenizer import train_tokenizer

ROWS = [
    {
        "id": f"r{k}",
        "prompt": f"Where does river {k} run?",
        "completion": f"past town {7 * k % 5}",
        "para": f"by {k} mills",
    }
    for k in range(6)
]
CUSTOM = """
from transformers import LlamaForCausalLM


class Scaled(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 3
        return out
"""


def llama(folder: Path, **values) -> Path:
    """A Llama of two layers in hub format."""
    tokenizer = train_tokenizer([f"{row['prompt']} {row['completion']} {row['para']}" for row in ROWS], 300)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=len(tokenizer),
        max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **values,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_own_forward(folder: Path) -> Path:
    """A Llama whose own code scales its logits."""
    llama(folder)
    (folder / "scaled.py").write_text(CUSTOM)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "scaled.Scaled"}, "architectures": ["Scaled"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows(file: Path) -> Path:
    """The pairs of texts as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def arguments(model: Path, data: Path, *more: str) -> list[str]:
    """Of attribute.py: that model on those pairs, every pair scored in float64."""
    return [
        "model=olmo1b", f"model.pretrained={model}", "model.expected_components=null", "model.template=plain",
        "dataset=text", f"dataset.path={data}", "dataset.id_column=id", "dataset.prompt_column=prompt",
        "dataset.completion_column=completion", "dataset.paraphrase_prompt_column=prompt",
        "dataset.paraphrase_completion_column=para", "dataset.query_sets=[paraphrased]", "candidates=all",
        "dataset.template=plain", "trainer.precision=float64", "metric.bootstrap=20", *more,
    ]  # fmt: skip


def flip(file: Path, place: int = -1, mask: int = 1) -> None:
    """Change one byte of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= mask
    file.write_bytes(content)
