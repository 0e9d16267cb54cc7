"""Bases with matrices of few bits, beside which an adapter is trained and explained (Dettmers et al. 2023, QLoRA).

bitsandbytes holds such a matrix as integers and their scales, and multiplies by what they stand for; gradients go
through it to the layers below. It has no gradient of its own, so that what can be attributed to is the adapter.
"""

from __future__ import annotations

import importlib.metadata
import logging
from typing import TYPE_CHECKING, Any

from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

KINDS = ("nf4", "int8")
LIBRARY = "bitsandbytes"
LINEAR = ("Linear4bit", "Linear8bitLt")
"""Classes of peft for two matrices beside such a layer, which compute what its plain class does."""


def library_version() -> str:
    """Version of what multiplies. Errors (UserError): it is not installed."""
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model.quantised: such matrices need the package {LIBRARY}; pip install 'tdaexp[quantised]'"
        ) from error


def as_transformers_says(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How matrices are quantised when they are read; `dtype` is that of products. Errors (UserError): not installed."""
    from transformers import BitsAndBytesConfig

    library_version()
    logging.getLogger(LIBRARY).setLevel(logging.ERROR)  # it talks of each product, and of kernels that it could fetch
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether the model has matrices of few bits."""
    return getattr(model, "hf_quantizer", None) is not None


def kind_of(model: PreTrainedModel) -> str | None:
    """The kind that was asked for when the model was read: None for a plain one, and for one that is stored so."""
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is None or quantiser.pre_quantized:
        return None
    return "int8" if quantiser.quantization_config.load_in_8bit else "nf4"


def check_quantised(model: PreTrainedModel, where: str, adapted: bool, merged: bool) -> None:
    """Refuse (UserError) a base of few bits that is explained itself, or that an adapter is to be merged into."""
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return
    method = str(getattr(quantiser.quantization_config.quant_method, "value", "of its own kind"))
    if method != LIBRARY:
        raise UserError(f"{where}: is quantised by {method}, and only {LIBRARY} is read; take the plain checkpoint")
    if not adapted:
        raise UserError(
            f"{where}: quantised matrices have no gradients; name an adapter to them (model.adapter=FOLDER, or new to "
            "train one), or take the model in full precision (model.quantised=null)"
        )
    if merged:
        raise UserError(
            f"model.merge_adapter=true: an adapter is not merged into the quantised matrices of {where}; take the base "
            "in full precision (model.quantised=null), or explain the adapter (model.merge_adapter=false)"
        )


def settle(model: PreTrainedModel) -> PreTrainedModel:
    """Let every pass compute with the same numbers.

    On some processors bitsandbytes would pack matrices anew, with less precision, once a pass needs no gradient there.
    """
    for module in model.modules() if is_quantised(model) else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model
