"""Adapters without data, for plans: as peft describes them, with the shapes of their matrices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tdaexp.models.adapted import is_matrix
from tdaexp.models.adapters import quiet_peft, require_peft
from tdaexp.models.lora import Lora

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import PreTrainedModel


def described(adapter: Lora | Path) -> LoraConfig:
    """A new adapter, or the one in a folder, as peft describes it."""
    require_peft("model.adapter")
    if isinstance(adapter, Lora):
        return adapter.config()
    from peft import PeftConfig

    found: LoraConfig = PeftConfig.from_pretrained(str(adapter))
    return found


def put_empty_on(model: PreTrainedModel, config: LoraConfig | None, mode: FakeTensorMode) -> PreTrainedModel:
    """Give a model without data an adapter without data, where there is one."""
    if config is not None:
        from peft import inject_adapter_in_model

        with quiet_peft():
            inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
        for path, module in model.named_modules():
            if is_matrix(path):
                for name, own in module.named_parameters(recurse=False):
                    with mode:
                        empty = torch.empty(own.shape, dtype=model.dtype, device="cpu")
                    setattr(module, name, nn.Parameter(empty, requires_grad=False))
        model._hf_peft_config_loaded = True
        model.requires_grad_(False)
    return model
