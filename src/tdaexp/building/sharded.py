"""A study's model shared out over the processes of a run."""

from __future__ import annotations

from typing import Any

from tdaexp.building.texts import load_model
from tdaexp.data.records import Corpus
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.sharded import Sharded
from tdaexp.runtime import ranks
from tdaexp.runtime.device import resolve_device
from tdaexp.runtime.errors import UserError


def load_sharded(config: Any, corpus: Corpus) -> LoadedModel:
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
        sharded = Sharded(loaded.model, mesh)
    sharded.open()
    return loaded
