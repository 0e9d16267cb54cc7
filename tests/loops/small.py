"""Small models and rows, and the usual ways to train on them: Trainer, Lightning, a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.tokenizer import train_tokenizer

TEXTS = [f"river {k} runs past town {7 * k % 5} and farther on to the sea" for k in range(11)]
QUERIES = ["river 3 runs past town 1", "town 2 lies by the river 8"]


def new_model(seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A Llama and its tokenizer."""
    tokenizer = train_tokenizer([*TEXTS, *QUERIES], 280)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.LlamaConfig(
        **sizes, vocab_size=len(tokenizer), max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **changes,
    )  # fmt: skip
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config), tokenizer


def items(tokenizer: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Tokens of each text."""
    return [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]


def trainer(model: Any, tokenizer: Any, folder: Path, callback: Any, **changes: Any) -> transformers.Trainer:
    """Transformers' Trainer on the texts, as anybody would set it up."""
    keys: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 3, "max_steps": 5, "learning_rate": 1e-2,
        "lr_scheduler_type": "linear", "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "weight_decay": 0.1, "max_grad_norm": 0.0,
    }  # fmt: skip
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(**{**keys, **changes}),
        train_dataset=items(tokenizer, TEXTS),
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[callback],
    )


class Net(nn.Module):
    """Two layers on five numbers, with a norm and a bias; the activations of the first may be recomputed."""

    def __init__(self, checkpointing: str = "") -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)
        self.checkpointing = checkpointing

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.first.weight.dtype)
        if self.checkpointing and self.training:
            inputs = inputs.detach().requires_grad_()  # without which reentrant checkpointing has no derivatives
            hidden = checkpoint(self._inner, inputs, use_reentrant=self.checkpointing == "reentrant")
        else:
            hidden = self._inner(inputs)
        return self.last(hidden)

    def _inner(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.norm(self.first(inputs)))


class Pairs(torch.utils.data.Dataset):
    """Inputs and classes."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 5, generator=generator)
        self.targets = torch.randint(3, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.inputs[row], self.targets[row]


def net(seed: int = 0, checkpointing: str = "") -> Net:
    """A network with weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(checkpointing)


def class_losses(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of each item [B]."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def loader(count: int = 11, batch: int = 4, seed: int = 1) -> DataLoader:
    """Shuffled batches, the last one smaller."""
    return DataLoader(Pairs(count), batch, shuffle=True, generator=torch.Generator().manual_seed(seed))


class Module(lightning.LightningModule):
    """A network in Lightning's words."""

    def __init__(self, net: nn.Module, rate: float = 0.05) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def training_step(self, batch: Any, _: int) -> Tensor:
        return class_losses(self.net, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), self.rate)


def lightning_trainer(callback: Any, **changes: Any) -> lightning.Trainer:
    """Lightning's Trainer without its files."""
    keys: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": 7, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return lightning.Trainer(**{**keys, **changes}, callbacks=[callback])
