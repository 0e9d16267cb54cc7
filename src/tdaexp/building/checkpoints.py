"""From a checked configuration to the study of a list of checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tdaexp.building.texts import load_model, text_template
from tdaexp.data.examples import Examples
from tdaexp.data.groups import groups_of
from tdaexp.data.records import HELD_OUT, Corpus, Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.hub import load_skeleton, load_tokenizer
from tdaexp.models.pretrained import Pretrained, model_length
from tdaexp.models.source import locate
from tdaexp.paths.checkpoint_problem import CheckpointStudy
from tdaexp.problem import Compute
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.training.checkpoint_list import Snapshot, snapshots

log = logging.getLogger(__name__)


def checkpoint_corpus(config: Any) -> Corpus:
    """The training records and, as queries, those that are held out.

    Errors (UserError): no checkpoints will be there, no held-out records.
    """
    if config.trainer.precision == "bfloat16":
        raise UserError("trainer.precision=bfloat16: rounds away what one update changes; use float32 or float64")
    _check_kept(config)
    train, held_out = config.dataset.train_records(), config.dataset.held_out_records()
    if not held_out:
        raise UserError(
            "dataset.held_out: simulated updates are judged by the loss of held-out records, of which there are none; "
            "set e.g. dataset.held_out=64 (dataset=text or multilingual)"
        )
    return Corpus(train, {HELD_OUT: held_out}, [])


def build_checkpoint_study(config: Any, corpus: Corpus | None = None) -> CheckpointStudy:
    """The checkpoints that the model names, or that its own training left, with batches and held-out text.

    `corpus` is that of `checkpoint_corpus` where it has been read already. Errors (UserError): as there, and
    checkpoints that do not belong together.
    """
    corpus = corpus or checkpoint_corpus(config)
    train, held_out = corpus.train, corpus.queries[HELD_OUT]
    found = snapshots(*_listed(config, train))
    log.info("checkpoints: %d, steps %d to %d", len(found), found[0].step, found[-1].step)
    device, dtype = resolve_device(config.trainer.accelerator), resolve_dtype(config.trainer.precision)
    return CheckpointStudy(
        snapshots=found,
        pool=_tokens(config, found[0], train),
        pool_groups=groups_of(train),
        queries=_tokens(config, found[0], held_out),
        query_groups=groups_of(held_out),
        batch_size=config.trainer.fit.batch_size,
        fit=config.trainer.fit,
        compute=Compute(device, dtype, config.trainer.tokens_per_batch, config.trainer.cache_gb),
        cache=Path(config.cache_dir),
        seed=config.seed,
    )


def _check_kept(config: Any) -> None:
    """Refuse a model that names no checkpoints, and a training that will leave none with the optimiser's state."""
    if isinstance(config.model, Pretrained):
        if not config.model.checkpoints:
            raise UserError(
                f"model.checkpoints: {config.model.name} names none; list folders or revisions, oldest first "
                "(model.checkpoints=[step-1000,step-2000])"
            )
    elif config.trainer.fit.keep != "state":
        raise UserError(
            f"trainer.fit.keep={config.trainer.fit.keep}: method=explaind needs the checkpoints of its training "
            "with the optimiser's state (trainer.fit.keep=state), or every update recorded (trainer.fit.record=1)"
        )


def _listed(config: Any, train: list[Record]) -> tuple[list[str], Pretrained]:
    """The entries of the list, and what they have in common."""
    model = config.model
    if isinstance(model, Pretrained):
        return model.checkpoints, model
    result = Path(str(load_model(config, train).model.name_or_path))
    folder = result.parent / "checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"trainer.fit.checkpoint_every={config.trainer.fit.checkpoint_every}: the training of "
            f"{config.trainer.fit.steps} steps left no checkpoint; lower it"
        )
    base = Pretrained(str(result), name=model.name, template=model.template, max_length=model.context)
    return [str(folder)], base


def _tokens(config: Any, first: Snapshot, records: list[Record]) -> Examples:
    model = first.model
    weights = locate(model.pretrained, model.revision, "model.checkpoints")
    words = locate(model.tokenizer, None, "model.tokenizer") if model.tokenizer else weights
    tokenizer = load_tokenizer(words, model.trust_remote_code)
    longest = model.max_length or model_length(load_skeleton(weights, model.trust_remote_code).config, tokenizer)
    return tokenise(
        records,
        tokenizer,
        template=text_template(config),
        max_length=min(config.dataset.max_length, longest),
        loss_on=config.dataset.loss_on,
        append_eos=config.dataset.append_eos,
    )
