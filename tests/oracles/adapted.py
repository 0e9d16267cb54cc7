"""Tiny models with adapters as peft itself writes them, and their gradients by plain autograd."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tdaexp.data.examples import Examples
from tdaexp.models.loaded import quiet_transformers


def write_adapter(base: Path, folder: Path, stated: str | None = None, **keys) -> Path:
    """Write an adapter with random matrices, to the base in a folder, which it calls by the name `stated`."""
    with torch.random.fork_rng(), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        keys = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **keys}
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **keys))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        adapted.peft_config["default"].base_model_name_or_path = str(base) if stated is None else stated
        adapted.save_pretrained(folder)
    return folder


def by_peft(base: Path, adapter: Path) -> PeftModel:
    """The adapted model in float64 as peft loads it, its two matrices trainable and nothing else."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        return PeftModel.from_pretrained(model, adapter, is_trainable=True).double().eval()


def gradients(model: PeftModel, examples: Examples) -> torch.Tensor:
    """Of each example's mean loss with respect to all matrices of the adapter [N, P], one example at a time."""
    wanted, rows = [p for p in model.parameters() if p.requires_grad], []
    for one in examples:
        ids, where = torch.from_numpy(one.tokens), torch.from_numpy(one.loss_mask).nonzero()[:, 0]
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, where - 1], ids[where])
        rows.append(torch.cat([value.flatten() for value in torch.autograd.grad(loss, wanted)]))
    return torch.stack(rows)
