"""Lightning Fabric as runs of several processes use it; apart from `launch`, because it is slow to import."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy

from tdaexp.runtime.quiet import quiet

WAIT = timedelta(days=30)  # one process may work for long while the others wait; `pulse` tells whether it lives


class QuietDDP(DDPStrategy):
    """Fabric's strategy without its announcements."""

    def setup_environment(self) -> None:
        """Join the other processes."""
        with quiet("lightning.fabric", "lightning.pytorch", "lightning_utilities"):
            super().setup_environment()


def environment(outside: str | None) -> Any:
    """What tells Lightning which process this is."""
    if outside == "srun":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if outside == "torchrun" else LightningEnvironment()


def open_fabric(accelerator: str, devices: int, nodes: int, outside: str | None) -> Any:
    """Fabric for `devices` processes on each of `nodes` machines, started by `outside` (torchrun, srun) or by it."""
    strategy = QuietDDP(
        process_group_backend="cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo",
        timeout=WAIT,
        start_method="popen" if outside else "spawn",
    )
    with quiet("lightning.fabric"):
        return Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy, plugins=[environment(outside)]
        )
