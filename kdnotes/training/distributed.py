"""Several processes that train one network together: which of them this is, and what they share.

A process belongs to a group when a launcher such as torchrun has set WORLD_SIZE. Alone, every
function here does nothing or hands back what it was given.
"""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from kdnotes.errors import RequestError

# How long a process waits for the others: the first one may be decoding a million photos.
PATIENCE = timedelta(days=1)


def count() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0; the first one alone writes files and shows progress."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def fabric_for(device: str) -> Any:
    """A launched Fabric for ``cpu``, ``cuda`` or ``cuda:all``; bf16 autocast on CUDA.

    Alone it has one device. In a group each process has one, and gradients are averaged.
    """
    from lightning_fabric import Fabric

    on_cuda = device.startswith("cuda")
    kind: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true"}
    if on_cuda:
        torch.set_float32_matmul_precision("high")
        kind = {"accelerator": "cuda", "precision": "bf16-mixed"}
    if count() == 1:
        return Fabric(devices=1, **kind)
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Its replacement is younger than the oldest torch that this package runs with.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
    # Buffers are not handed round at every step: the memory of CRD is large, and is kept equal by
    # its own means; BatchNorm's statistics are averaged once per epoch.
    strategy = DDPStrategy(
        process_group_backend="nccl" if on_cuda else "gloo",
        timeout=PATIENCE,
        broadcast_buffers=False,
    )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    fabric = Fabric(devices=here, num_nodes=count() // here, strategy=strategy, **kind)
    fabric.launch()
    return fabric


def start(device: str) -> None:
    """Join the group, if there is one; raises RequestError when there are too few devices."""
    if count() == 1:
        return
    # What Fabric's launcher hands on would contradict what is said here.
    for name in [name for name in os.environ if name.startswith("LT_")]:
        del os.environ[name]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    if device.startswith("cuda"):
        if torch.cuda.device_count() < here:
            raise RequestError(
                f"{here} processes but {torch.cuda.device_count()} CUDA devices on this machine: "
                f"set --nproc-per-node to the number of devices, or device=cpu"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    fabric_for(device)


def share(batch: int) -> slice:
    """The rows of a batch that this process takes; raises RequestError for unequal shares."""
    if batch % count():
        raise RequestError(
            f"a batch of {batch} images cannot be shared evenly by {count()} processes; use a "
            "number of processes that divides it"
        )
    each = batch // count()
    return slice(rank() * each, (rank() + 1) * each)


def barrier() -> None:
    """Wait for all processes."""
    if count() > 1:
        torch.distributed.barrier()


def told(value: Any) -> Any:
    """What the first process says, in all of them."""
    if count() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def gathered(values: Tensor) -> Tensor:
    """Rows (n, ...) of all processes in their order, (count * n, ...); without gradient."""
    if count() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(count())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def mean(values: Tensor) -> Tensor:
    """The mean over all processes, without gradient."""
    if count() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / count()


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Make BatchNorm's running statistics in all processes their mean over the processes."""
    if count() == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for statistic in (module.running_mean, module.running_var):
                assert statistic is not None
                statistic.copy_(mean(statistic))
