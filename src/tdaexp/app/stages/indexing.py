"""`python attribute.py shard=3/64 candidates=best`: a share of the blocks of a method's index, built by one task."""

from __future__ import annotations

import logging
from pathlib import Path

from tdaexp.app.config import AttributeConfig
from tdaexp.building.build import builder_of
from tdaexp.index.shares import share_of
from tdaexp.report.loggers import RunLogger
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.files import write_json
from tdaexp.runtime.progress import doing

log = logging.getLogger(__name__)


def build_share(config: AttributeConfig, shard: str, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Build what is missing of a task's share, and say how many blocks of the whole are there by now.

    The tasks need not know of each other: whoever asks a question finds their blocks in the cache, and builds the rest.
    """
    share = share_of(shard)
    doing("reading the data")
    problem = builder_of(config).problem(Clock()).after(config.stage)
    index = config.method.index(problem)
    built = index.build(share)
    mine, count = len(share.of_blocks(len(index.blocks))), len(index.blocks)
    there = sum(block.path.exists() for block in index.blocks)
    if not ranks.current().first:
        return {}
    log.info("index: %d of %d blocks built as shard %s, %d were there; %d of %d are there now",
             built, count, share, mine - built, there, count)  # fmt: skip
    metrics = {"index/blocks": float(count), "index/built": float(built), "index/there": float(there)}
    write_json(folder / "metrics.json", metrics)
    logger.log_metrics(metrics)
    return metrics
