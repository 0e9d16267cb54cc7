"""Language models that a configuration names, loaded or trained, and its text, drawn and tokenised.

A second training stage is there where the data set has fine-tuning records, or the model names its successor.
"""

from __future__ import annotations

import logging
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tdaexp.building.covered import checked_map
from tdaexp.building.settings import Named
from tdaexp.data.classes import tokenise_classes
from tdaexp.data.examples import Examples
from tdaexp.data.records import Corpus, Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.loaded import LoadedModel, check_tokens
from tdaexp.models.pretrained import Pretrained, trusts
from tdaexp.models.sharded import Sharded
from tdaexp.models.successor import check_successor
from tdaexp.runtime import ranks
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import doing
from tdaexp.training.trained import Tokenisation, trained

log = logging.getLogger(__name__)


def load_model(config: Named, records: list[Record], always_train: bool = False) -> LoadedModel:
    """Load the configured model, training it on the records when it has no weights yet (or `always_train`).

    One that is to be sharded stays in main memory.
    """
    doing("loading the model")
    if not (config.model.needs_training or always_train):
        one_stage = {"classifier": True} if isinstance(config.model, Pretrained) else {}
        loaded: LoadedModel = config.model.load(_place(config), resolve_dtype(config.trainer.precision), **one_stage)
        return loaded
    return _trained(config, config.model, records, config.trainer.fit)


def load_successor(config: Named, records: list[Record], first: LoadedModel) -> LoadedModel | None:
    """The model after the second training stage, trained on the records where no weights are named; None without one.

    `first` is the model before it. Errors (UserError): the named model is no successor of it.
    """
    if config.model.finetuned is not None:
        named = Pretrained(config.model.finetuned, template=first.template, trust_remote_code=trusts(config.model))
        loaded = named.load(*_where(config), classifier=True)
        check_successor(first, loaded, config.model.finetuned)
        return replace(loaded, max_length=min(first.max_length, loaded.max_length))
    if not records:
        return None
    # what a model was trained from lies in a folder, or on the hub under the configured name
    folder, model = Path(str(first.model.name_or_path)), config.model
    known: dict[str, Any] = {"template": first.template, "max_length": first.max_length}
    if getattr(model, "adapter", None) is not None:
        start = replace(model, adapter=str(folder), **known)
    elif folder.is_dir():
        merged = getattr(model, "merge_adapter", False)
        start = Pretrained(str(folder), name=model.name, trust_remote_code=trusts(model), merge_adapter=merged, **known)
    else:
        start = replace(model, **known)
    named = replace(start, name=f"{config.model.name}-finetuned")
    return _trained(config, named, records, config.trainer.finetune)


def load_sharded(config: Named, corpus: Corpus) -> LoadedModel:
    """Load the configured model, trained first where it has no weights yet; each process keeps its share.

    Processes load one after the other: a machine's main memory holds the whole model once. Errors (UserError): the
    data has a second training stage.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if corpus.finetune:
        raise UserError(
            "trainer=fsdp: shares out one model, and the data has fine-tuning records for a second; take trainer=ddp"
        )
    device = resolve_device(config.trainer.accelerator)
    mesh = init_device_mesh(device.type, (ranks.current().world,))
    ranks.barrier()  # a mistake in the model's name must not meet processes that are still setting this up
    with ranks.in_turn():
        loaded = load_model(config, corpus.train)
        if loaded.base is not None:
            raise UserError("trainer=fsdp: shares out whole models, and this one has an adapter; take trainer=ddp")
        if any(part.kind == "expert" for one in checked_map(loaded).components for part in one.parts):
            raise UserError("trainer=fsdp: the weights of experts must be whole in each process; take trainer=ddp")
        sharded = Sharded(loaded.model, mesh)
    sharded.open()
    return loaded


def _where(config: Named) -> tuple[Any, Any]:
    return resolve_device(config.trainer.accelerator), resolve_dtype(config.trainer.precision)


def _place(config: Named) -> Any:
    """Where a model is loaded."""
    return "cpu" if config.trainer.strategy == "fsdp" else resolve_device(config.trainer.accelerator)


def _trained(config: Named, model: Any, records: list[Record], settings: Any) -> LoadedModel:
    device, dtype = _where(config)
    method = getattr(config, "method", None)  # only attribute has one
    if method is not None and method.wants_checkpoints and settings.keep == "last":
        settings = replace(settings, keep="all")
    if method is not None and method.wants_state and settings.optimizer == "adamw":
        settings = replace(settings, keep="state")
    return trained(
        model,
        records,
        settings,
        tokenisation(config),
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        device=device,
        dtype=dtype,
        precision=config.trainer.precision,
        place=_place(config),
    )


def drawn(corpus: Corpus, dataset: Any, seed: int) -> Corpus:
    """The corpus with at most `query_limit` queries of each set, drawn at random and in their order (None: all).

    By the data set's `query_seed`, or by the run's `seed`.
    """
    limit = dataset.query_limit
    if limit is None:
        return corpus
    seed = seed if dataset.query_seed is None else dataset.query_seed
    queries = {}
    for name, records in corpus.queries.items():
        places = random.Random(f"{seed} {name}").sample(range(len(records)), min(limit, len(records)))
        queries[name] = [records[place] for place in sorted(places)]
    return replace(corpus, queries=queries)


def tokenised(
    config: Named,
    records: list[Record],
    loaded: LoadedModel,
    classes: tuple[str, ...] | None = None,
    *,
    trained_on: bool = True,
) -> Examples:
    """The records as the model reads them; each ends in one of the `classes` where it classifies.

    What a model is trained on may be cut into pieces (`dataset.chunk`), a question is not.
    """
    longest = min(config.dataset.max_length, loaded.max_length)
    if classes is None:
        how = replace(tokenisation(config), max_length=longest)
        how = how if trained_on else replace(how, chunk=None)
        examples = tokenise(records, loaded.tokenizer, **asdict(how))
    else:
        examples = tokenise_classes(records, loaded.tokenizer, classes, longest)
    check_tokens(loaded.model, examples, classes=classes is not None)
    return examples


def text_template(config: Named) -> str:
    """The data set's template, or the model's where the data set leaves it open."""
    return str(config.model.template if config.dataset.template == "auto" else config.dataset.template)


def tokenisation(config: Named) -> Tokenisation:
    """How a model that is trained here reads the data set's texts."""
    dataset = config.dataset
    return Tokenisation(
        template=text_template(config),
        max_length=dataset.max_length,
        loss_on=dataset.loss_on,
        append_eos=dataset.append_eos,
        turns=dataset.turns,
        chunk=dataset.chunk,
    )


def check_simple(config: Named, corpus: Corpus, what: str) -> None:
    """Refuse what only scores of pairs know: pieces of texts, and questions that compare two answers."""
    if config.dataset.chunk is not None:
        raise UserError(f"dataset.chunk={config.dataset.chunk}: {what} knows whole texts only; leave it out (null)")
    for record in (one for records in corpus.queries.values() for one in records):
        if record.rejected is not None:
            raise UserError(
                f"{record.place}: compares two answers, which {what} cannot; remove its rejected answer, or take a "
                "method of gradients (ekfac, dot, trak)"
            )
