"""What comes before a method: training where there are no weights yet, loading, and the model's own completions."""

from __future__ import annotations

from typing import Any

from tdaexp.data.sizes import Sizes
from tdaexp.planning.rehearsed import RUNTIME_BYTES
from tdaexp.planning.stored import stored_bytes
from tdaexp.planning.task_work import TaskWork
from tdaexp.planning.text_work import TextWork
from tdaexp.runtime.costs import StageCost
from tdaexp.selection.parts import PARTS

ADAMW = 4  # numbers that training holds for each parameter: weight, gradient, two moments
LOOKED_AT = 2000  # examples of a batch where the loss of a classifier is looked at


def of_texts(config: Any, work: TextWork) -> list[StageCost]:
    """Stages before a method on a language model."""
    stages, prompts = [], work.prompts
    embedded: Any = work.model.get_input_embeddings()
    if kept := stored_bytes(config.dataset, work.train, int(embedded.weight.shape[0])):
        note = "records and tokens of the training texts, kept once; other runs find them in the cache"
        stages.append(StageCost("texts", disk=kept, host=RUNTIME_BYTES, note=note))
    if config.model.needs_training:
        stages.append(_training("training", config.trainer.fit, work, work.train))
    if work.finetune is not None and config.model.finetuned is None:
        stages.append(_training("fine-tuning", config.trainer.finetune, work, work.finetune))
    if work.shares > 1:
        whole = float(work.every.total * work.dtype.itemsize)
        note = "a process at a time holds the whole model in main memory"
        stages.append(StageCost("loading", device=work.weights, host=whole + RUNTIME_BYTES, note=note))
    if prompts is not None:
        rows = min(config.decoding.batch_size, len(prompts))
        written = work.generation(prompts, rows, config.decoding.max_new_tokens)
        stages.append(
            StageCost(
                "completions",
                forward=len(prompts),
                flop=written.flop,
                device=work.weights + written.bytes,
                host=RUNTIME_BYTES,
            )
        )
    return stages


def _training(name: str, fit: Any, work: TextWork, sizes: Sizes) -> StageCost:
    batch = fit.batch_size if fit.batches == "stream" else min(fit.batch_size, len(sizes))
    runs, passed = fit.steps * batch, work.training(sizes, batch)
    parameters = 4.0 * work.every.total
    adapter = [one.size for one in work.every.components if PARTS["adapter"] in one.name]
    own = 4.0 * sum(adapter) if adapter else parameters  # an adapter is trained alone
    return StageCost(
        name,
        forward=runs,
        backward=runs,
        flop=passed.flop * runs / len(sizes),
        disk=own,
        device=parameters + (ADAMW - 2) * own + passed.bytes if fit.steps else parameters,  # its gradient is the pass's
        host=parameters + RUNTIME_BYTES,
        note="once; other runs find the model in the cache",
    )


def of_task(work: TaskWork) -> list[StageCost]:
    """The training of a classifier, and its recording."""
    fit, runs = work.fit, work.fit.steps * work.batch
    most = work.watched or max(work.train, work.queries)
    looked = (min(work.train, most) + min(work.queries, most)) * (fit.steps // fit.evaluate_every)
    block = work.layout.rows * 2 * work.weights if work.layout else 0.0
    activations = max(work.batch * work.training.bytes, min(LOOKED_AT, work.train) * work.forward.bytes)
    return [
        StageCost(
            "training",
            forward=runs + looked,
            backward=runs,
            flop=runs * work.training.flop + looked * work.forward.flop,
            disk=work.weights + work.trajectory_bytes,
            device=ADAMW * work.weights + activations,
            host=2 * block + RUNTIME_BYTES + work.inputs,
            note="once; other runs find it in the cache",
        )
    ]
