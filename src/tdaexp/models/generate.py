"""What the model under study writes itself: batched completions of prompts, cached on disk, resumable.

Decoding is transformers' own `generate`. Prompts are batched by length, longest first, padded on the left and
masked, so that a batch gives what one prompt alone would give. Under sampling the random numbers belong to a
batch: they follow from the seed and the batch's number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise_prompts
from tdaexp.models.completions import CompletionCache
from tdaexp.models.loaded import LoadedModel, quiet_transformers
from tdaexp.runtime import lockstep, ranks
from tdaexp.runtime.cache import entry
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn.

    Keys: `max_new_tokens`; `temperature`, 0 = greedy; `top_p` the nucleus that sampling draws from; `seed` of
    the sampling; `batch_size` in prompts.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise UserError(
                f"decoding: max_new_tokens={self.max_new_tokens} and batch_size={self.batch_size}: "
                "both must be at least 1"
            )
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise UserError(
                f"decoding: temperature={self.temperature} and top_p={self.top_p}: "
                "the first must be at least 0, the second above 0 and at most 1"
            )

    def deciding(self) -> dict[str, int | float]:
        """The settings that decide the text: greedy decoding knows no seed, nucleus or batch."""
        return asdict(self) if self.temperature else {"max_new_tokens": self.max_new_tokens, "temperature": 0.0}


def generate(loaded: LoadedModel, prompts: Sequence[np.ndarray], decoding: Decoding, cache_dir: Path) -> list[str]:
    """Return one completion per prompt (token ids [T] int64), without prompt, special tokens and outer blanks.

    A completion ends at the end token or after `max_new_tokens`; it may be empty. Finished batches are kept
    under `cache_dir`, in a file named after model, decoding and prompts, so that a killed run loses one batch
    of each process at most; several processes share the batches out. Errors: an empty prompt, or one so long that the
    completion would not fit into the context.
    """
    _check_lengths(prompts, loaded.max_length - decoding.max_new_tokens, loaded.max_length)
    dtype = str(loaded.model.dtype)
    parts = (loaded.fingerprint, dtype, decoding.deciding(), list(prompts))
    path = entry(cache_dir, ".", *parts, by=[generate], name="generated-{}.jsonl")
    settings = {
        "fingerprint": path.stem,
        "model": loaded.fingerprint,
        "dtype": dtype,
        "decoding": asdict(decoding),
    }
    batches = _batches(prompts, decoding.batch_size, padded=loaded.model.dtype != torch.float64)
    with CompletionCache.opened(path, settings) as cache:
        todo = [number for number, batch in enumerate(batches) if not all(index in cache for index in batch)]
        if todo:
            _complete_all(loaded, prompts, decoding, {number: batches[number] for number in todo}, len(batches), cache)
        return [cache[index] for index in range(len(prompts))]


def _complete_all(
    loaded: LoadedModel,
    prompts: Sequence[np.ndarray],
    decoding: Decoding,
    batches: dict[int, list[int]],
    total: int,
    cache: CompletionCache,
) -> None:
    """Complete numbered batches in rounds, one for each process, and keep them after each round."""
    me, numbers = ranks.current(), list(batches)
    rounds = [numbers[start : start + me.world] for start in range(0, len(numbers), me.world)]
    for members in track(rounds, "completing prompts", total, total - len(numbers), each=me.world, stoppable=True):
        texts: list[str] = []
        if me.rank < len(members):
            number = members[me.rank]
            texts = _complete(loaded, [prompts[index] for index in batches[number]], decoding, number)
        lockstep.serve()
        every = ranks.gathered(texts, leave=False)  # a run that is to end keeps what it has
        for number, completed in zip(members, every, strict=False):  # the last round may be short
            cache.append(dict(zip(batches[number], completed, strict=True)))


def generated_queries(
    loaded: LoadedModel,
    paraphrased: Sequence[Record],
    decoding: Decoding,
    cache_dir: Path,
    *,
    template: str | None = None,
    max_length: int | None = None,
) -> list[Record]:
    """Return the records with the model's own completion in place of theirs; ids, prompts and truth stay.

    `template` and `max_length` (tokens, prompt and completion together) default to the model's. An empty
    completion is kept: its example consists of the prompt and the end token.
    """
    room = min(max_length or loaded.max_length, loaded.max_length) - decoding.max_new_tokens
    if room < 1:
        raise UserError(
            f"decoding: max_new_tokens={decoding.max_new_tokens} leaves no room for a prompt in "
            f"{room + decoding.max_new_tokens} tokens; lower it"
        )
    prompts = tokenise_prompts(
        list(paraphrased), loaded.tokenizer, template=template or loaded.template, max_length=room
    )
    completions = generate(loaded, prompts, decoding, cache_dir)
    return [dataclasses.replace(record, completion=text) for record, text in zip(paraphrased, completions, strict=True)]


def _check_lengths(prompts: Sequence[np.ndarray], room: int, context: int) -> None:
    for number, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= room:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens; it needs 1 to {max(room, 0)} so that its "
                f"completion fits into the context of {context}: shorten it or lower max_new_tokens"
            )


def _batches(prompts: Sequence[np.ndarray], size: int, padded: bool) -> list[list[int]]:
    """Cut the prompts into batches, longest first; without padding a batch holds prompts of one length.

    Float64 goes without: several architectures take the softmax in float32, where a float64 mask of left
    padding overflows to minus infinity and fully masked rows become NaN.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    groups = [order] if padded else [list(g) for _, g in itertools.groupby(order, lambda i: len(prompts[i]))]
    return [group[place : place + size] for group in groups for place in range(0, len(group), size)]


def _complete(loaded: LoadedModel, prompts: list[np.ndarray], decoding: Decoding, number: int) -> list[str]:
    """Complete one batch, left-padded to its longest prompt."""
    pad = loaded.tokenizer.pad_token_id or 0
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), width), pad, dtype=torch.int64, device="cpu")
    attention = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.from_numpy(prompt)
        attention[row, width - len(prompt) :] = 1
    device = loaded.model.device
    ends = _end_tokens(loaded)
    config = _generation_config(decoding, ends, pad)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), _own_settings_only(loaded):
        torch.manual_seed(int(np.random.SeedSequence([decoding.seed, number]).generate_state(1)[0]))
        out = loaded.model.generate(  # type: ignore[operator]
            input_ids=tokens.to(device),
            attention_mask=attention.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_finite]),
            synced_gpus=False,  # the other processes of a run have no prompts of their own
        )
    return [_text(loaded, row, ends) for row in out[:, width:].tolist()]


def _finite(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The logits [B, V] as they are. Errors (UserError): no token can be chosen by them, as one is NaN or infinite."""
    if not torch.isfinite(logits.amax(dim=-1)).all():
        raise UserError(
            "the model's own completions: its logits are NaN or infinite; check the checkpoint, or try "
            "trainer.precision=float32"
        )
    return logits


def _generation_config(decoding: Decoding, ends: list[int], pad: int) -> GenerationConfig:
    sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **(sampling if decoding.temperature else {"do_sample": False}),
    )


@contextlib.contextmanager
def _own_settings_only(loaded: LoadedModel) -> Iterator[None]:
    """Set the model's own decoding advice aside: transformers would fill it in where we leave a default."""
    advice = loaded.model.generation_config
    loaded.model.generation_config = GenerationConfig()
    try:
        with quiet_transformers():
            yield
    finally:
        loaded.model.generation_config = advice


def _end_tokens(loaded: LoadedModel) -> list[int]:
    """The tokenizer's end token and those that the model's authors name (chat models have several)."""
    named = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    several = named if isinstance(named, list) else [named]
    return sorted({token for token in (loaded.tokenizer.eos_token_id, *several) if token is not None})


def _text(loaded: LoadedModel, tokens: list[int], ends: list[int]) -> str:
    """Decode up to the first end token."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return str(loaded.tokenizer.decode(tokens[:stop], skip_special_tokens=True)).strip()
