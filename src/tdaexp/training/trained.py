"""A model trained on a data set: from the cache where it exists, else trained now."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.loaded import LoadedModel, moved
from tdaexp.models.pretrained import Pretrained, trusts
from tdaexp.models.scratch import Scratch
from tdaexp.runtime import cache, ranks, seal
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.training.fit import fit
from tdaexp.training.settings import FitSettings


@dataclasses.dataclass(frozen=True)
class Tokenisation:
    """How training records become tokens: the keywords of `tdaexp.data.tokenise.tokenise`.

    `max_length` is cut to the model's context.
    """

    template: str = "auto"
    max_length: int = 512
    loss_on: str = "completion"
    append_eos: bool = True
    turns: str = "all"
    chunk: int | None = None


def trained_folder(
    config: Scratch | Pretrained,
    records: Sequence[Record],
    settings: FitSettings,
    tokenisation: Tokenisation,
    *,
    cache_dir: Path,
    seed: int,
    precision: str = "float32",
) -> Path:
    """Where this training lies or will lie: the folder is named after all that the weights depend on."""
    texts = [record.content for record in records]
    parts = (config.start_fingerprint(), texts, tokenisation, settings.deciding(), seed, precision)
    every = "" if settings.keep == "last" else f"-every{settings.checkpoint_every}"
    every += "-state" if settings.keep == "state" else ""
    return cache.entry(cache_dir, "models", *parts, by=[trained, type(config)], name=f"{config.name}-{{}}{every}")


def trained(
    config: Scratch | Pretrained,
    records: Sequence[Record],
    settings: FitSettings,
    tokenisation: Tokenisation,
    *,
    cache_dir: Path,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: str = "float32",
    place: torch.device | str | None = None,
) -> LoadedModel:
    """Train `config` on the records, or load the result when it is in the cache, and return it in `dtype` at `place`,
    by default the `device` of the training.

    A `Scratch` config starts from random weights and a tokenizer of its own, a `Pretrained` one is
    fine-tuned. `precision` is that of the training, `dtype` that of the returned model. Killed and called
    again, the training goes on. The fingerprint is that of the training
    (`tdaexp.training.fit.fit_fingerprint`).
    """
    if settings.record:
        raise UserError(
            f"trainer.fit.record={settings.record}: a recorded language model is read by method=explaind only; for "
            "other methods keep its checkpoints with trainer.fit.keep=all"
        )
    folder = trained_folder(
        config, records, settings, tokenisation, cache_dir=cache_dir, seed=seed, precision=precision
    )
    if not ranks.from_first((folder / "model").exists()):
        start = config.start([record.text for record in records])
        longest = min(tokenisation.max_length, start.max_length)
        keywords = {**dataclasses.asdict(tokenisation), "max_length": longest}
        examples = tokenise(records, start.tokenizer, **keywords)
        moved(start.model, device)
        fit(start, examples, settings, folder=folder, seed=seed, device=device, precision=precision)
    return load_trained(folder / "model", config, device=device if place is None else place, dtype=dtype)


def load_trained(
    folder: Path, config: Scratch | Pretrained, *, device: torch.device | str, dtype: torch.dtype
) -> LoadedModel:
    """Load the result of `fit`, with the training's identity; without `training.json` it is an error."""
    seal.require(folder)
    longest = config.context if isinstance(config, Scratch) else config.max_length
    trusted = trusts(config)
    if isinstance(config, Pretrained) and config.adapter is not None:
        named = dataclasses.replace(config, adapter=str(folder))
    else:
        named = Pretrained(str(folder), template=config.template, max_length=longest, trust_remote_code=trusted)
    loaded = named.load(device, dtype)
    note = folder / "training.json"
    try:
        identity = json.loads(note.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{note}: not readable ({error}); delete {folder} and run again") from error
    merged = isinstance(config, Pretrained) and config.merge_adapter  # the same training, other components
    return dataclasses.replace(loaded, fingerprint=fingerprint(identity, "merged") if merged else str(identity))
