"""Several processes that train one network together, by Lightning Fabric.

A process belongs to a group when a launcher such as torchrun has set WORLD_SIZE; else it is alone.
"""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from kdnotes import methods
from kdnotes.errors import RequestError

# How long a process waits for the others: the first one may be decoding a million photos.
PATIENCE = timedelta(days=1)


@lru_cache(maxsize=1)
def joined(device: str) -> Fabric:
    """This process on ``cpu``, ``cuda`` or ``cuda:all``, in its group; RequestError: no device."""
    kind: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true"}
    if on_cuda := device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        kind = {"accelerator": "cuda", "precision": "bf16-mixed"}
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Fabric(devices=1, **kind)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if on_cuda and (devices := torch.cuda.device_count()) < here:
        raise RequestError(
            f"{here} processes but {devices} CUDA devices on this machine: set --nproc-per-node to "
            "the number of devices, or device=cpu"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Its replacement is younger than the oldest torch that this package runs with.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
    # Buffers are not handed round at every step: CRD keeps its large memory equal by its own means,
    # and BatchNorm's statistics are averaged once per epoch.
    options: dict[str, Any] = {"timeout": PATIENCE, "broadcast_buffers": False}
    strategy = DDPStrategy(process_group_backend="nccl" if on_cuda else "gloo", **options)
    fabric = Fabric(devices=here, num_nodes=count // here, strategy=strategy, **kind)
    fabric.launch()
    return fabric


class Together(methods.Group):
    """The processes of a Fabric, as methods see them."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    def share(self, batch: int) -> slice:
        """The rows of a batch that this process takes; raises RequestError for unequal shares."""
        count = self.fabric.world_size
        if batch % count:
            shared = f"a batch of {batch} images cannot be shared evenly by {count} processes"
            raise RequestError(f"{shared}; use a number of processes that divides it")
        first = self.fabric.global_rank * batch // count
        return slice(first, first + batch // count)

    def gathered(self, values: Tensor) -> Tensor:
        """Rows (n, ...) of all processes in their order; gradients go back to each."""
        if self.fabric.world_size == 1:
            return values
        every = self.fabric.all_gather(values.contiguous(), sync_grads=True)
        return every.flatten(0, 1)  # type: ignore[union-attr]


@torch.no_grad()
def average_statistics(fabric: Fabric, network: nn.Module) -> None:
    """Make BatchNorm's running statistics in all processes their mean over the processes."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            fabric.all_reduce([module.running_mean, module.running_var])  # in place
