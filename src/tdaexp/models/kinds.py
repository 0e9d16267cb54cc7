"""Which kinds of transformers models can be explained: those that read from left to right and write the next token."""

from __future__ import annotations

from typing import Any

from tdaexp.runtime.errors import UserError

WANTED = "only models that predict the next token (decoders such as Llama, GPT-2 or OLMo) can be explained"


def check_kind(config: Any, name: str) -> None:
    """Refuse an encoder, an encoder-decoder, and what is no language model, from the config of the model `name`.

    A model with Python code of its own for the purpose counts as what it says it is.
    """
    from transformers.models.auto import modeling_auto as known

    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    check_direction(config, name)
    kind = str(getattr(config, "model_type", ""))
    if kind not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{name}: a {kind} model has no head for the next token; {WANTED}")


def check_direction(config: Any, name: str) -> None:
    """Refuse an encoder and an encoder-decoder, also where they classify: a text's last token must see all others."""
    from transformers.models.auto import modeling_auto as known

    kind = str(getattr(config, "model_type", ""))
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name}: a {kind} model is an encoder-decoder; {WANTED}")
    masked = kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    one_way = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if masked and not one_way:
        raise UserError(f"{name}: a {kind} model is an encoder, it sees both sides of a token; {WANTED}")
