"""Lightning Fabric as runs of several processes use it; apart from `launch`, because it is slow to import."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch.distributed.rendezvous import rendezvous

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.quiet import quiet
from tdaexp.runtime.surroundings import PORTS, number

LEFT_BEHIND = "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"  # by a cluster: Lightning would take itself for one of several
MEETING = timedelta(seconds=45)
WAIT = timedelta(days=30)  # one process may work for long while the others wait; `pulse` tells whether it lives


class QuietDDP(DDPStrategy):
    """Fabric's strategy without its announcements."""

    def setup_environment(self) -> None:
        """Join the other processes. Errors (UserError): they do not come together within MEETING."""
        with quiet("lightning.fabric", "lightning.pytorch", "lightning_utilities"):
            super().setup_environment()

    def _setup_distributed(self) -> None:
        """As Fabric does it, but the wait for the others has an end of its own."""
        if torch.distributed.is_initialized():
            return
        self._set_world_ranks()
        around: Any = self.cluster_environment
        self._process_group_backend = self._get_process_group_backend()
        os.environ |= {"MASTER_ADDR": around.main_address, "MASTER_PORT": str(around.main_port)}
        rank, world = around.global_rank(), around.world_size()
        try:
            store = next(rendezvous("env://", rank, world, timeout=MEETING))[0]
        except (RuntimeError, ValueError, OSError) as error:  # DistNetworkError and the like are RuntimeErrors
            place = f"MASTER_ADDR={around.main_address} MASTER_PORT={around.main_port}"
            raise UserError(
                f"process {rank} of {world} did not meet the others at {place} "
                f"({str(error).strip().splitlines()[0][:160]}); start all of them within "
                f"{MEETING.total_seconds():.0f} s, where process 0 can be reached and its port is free"
            ) from error
        device = self.root_device if self.root_device.type != "cpu" else None
        torch.distributed.init_process_group(
            self._process_group_backend, store=store, rank=rank, world_size=world, timeout=WAIT, device_id=device
        )


class OnThisMachine(LightningEnvironment):
    """Processes that this program starts, on one machine."""

    @property
    def main_address(self) -> str:
        """Theirs."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """The port that was given, or a free one."""
        if self._main_port == -1:
            with socket.socket() as opened:
                opened.bind(("127.0.0.1", 0))
                self._main_port = number("MASTER_PORT", opened.getsockname()[1], *PORTS)
        return self._main_port


def environment(outside: str | None) -> Any:
    """What tells Lightning which process this is."""
    if outside == "srun":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if outside == "torchrun" else OnThisMachine()


def open_fabric(accelerator: str, devices: int, nodes: int, outside: str | None) -> Any:
    """Fabric for `devices` processes on each of `nodes` machines, started by `outside` (torchrun, srun) or by it."""
    for name in LEFT_BEHIND if outside is None else ():
        os.environ.pop(name, None)
    strategy = QuietDDP(
        process_group_backend="cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo",
        timeout=WAIT,
        start_method="popen" if outside else "spawn",
    )
    with quiet("lightning.fabric"):
        return Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy, plugins=[environment(outside)]
        )
