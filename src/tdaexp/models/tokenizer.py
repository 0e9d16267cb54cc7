"""A small byte-level BPE tokenizer, trained on the texts that its model will be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from tdaexp.runtime.errors import UserError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SMALLEST_VOCABULARY = 256 + 3  # every byte, and the three special tokens
LONGEST_WORD = 1_000  # characters of a word that the vocabulary is learnt from
LARGEST_VOCABULARY = 1_000_000  # the library takes memory for all of it beforehand, and aborts where there is none


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `texts`; the same texts give the same tokenizer.

    Any string can be encoded, since every byte has a token. Ids 0, 1, 2 are bos, eos and pad. The vocabulary has at
    most `vocab_size` entries, fewer when the texts offer no more merges; `vocab_size` below 259 is an error.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"model.vocab_size={vocab_size}: must be at least {SMALLEST_VOCABULARY}: 256 bytes and 3 special tokens"
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(f"model.vocab_size={vocab_size}: must be at most {LARGEST_VOCABULARY}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    start = (
        BOS,
        tokenizer.token_to_id(BOS),
    )  # every text begins with bos, so that its first token is predicted too
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def _pieces(text: str) -> Iterator[str]:
    """The text; one with a word of more than `LONGEST_WORD` characters in pieces, as training takes their square."""
    if len(text) <= LONGEST_WORD or max(map(len, text.split()), default=0) <= LONGEST_WORD:
        yield text
        return
    for start in range(0, len(text), LONGEST_WORD):
        yield text[start : start + LONGEST_WORD]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, special tokens included; joined they are the decoded text.

    A character that is spread over several tokens stands at the last of them, the others are "".
    """
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids]
