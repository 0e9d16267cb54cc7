"""Tokenizers of several kinds, built in memory."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Where does Anna live?",
    "Anna lives in Riga.",
    "<|user|>\n<|assistant|>\n",
    "The bakery is old.",
] * 4


def byte_level(**special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every string comes back from its tokens as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """With eos and pad, without bos or chat template."""
    return byte_level(eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Without any special token."""
    return byte_level()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a bos token before every text, as Llama's does."""
    tokenizer = byte_level(bos_token="<bos>", eos_token="<eos>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """With AMD-OLMo's kind of chat template, which closes the assistant's turn with eos."""
    tokenizer = byte_level(eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
        "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt }}"
    )
    return tokenizer
