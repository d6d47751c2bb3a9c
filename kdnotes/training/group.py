"""What the processes of a group do together: train each of some networks, one after the other.

``python -m kdnotes.training.group FILE``, started by torchrun or another launcher that sets
WORLD_SIZE, RANK and LOCAL_RANK. FILE: JSON with ``networks`` (arm and spec of each), ``device`` and
``data_dir`` (or null).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kdnotes.training import cache, distributed, pool
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec


def train_together(planned: list[Planned], device: str, data_dir: Path | None) -> int:
    """Train what is missing of these networks and those behind them; returns how many that were.

    The first process speaks for all.
    """
    fabric = distributed.joined(device)
    first = fabric.is_global_zero
    to_train: list[Planned] = fabric.broadcast(cache.missing(planned) if first else [])
    with pool.display(to_train, quiet=not first) as show:
        for item in to_train:
            pool.train_shown(item, cache.train_one, device, data_dir, show)
    return len(to_train)


def main(file: Path) -> None:
    """Train what a file asks for."""
    request = json.loads(file.read_text())
    planned = [
        Planned(each["arm"], NetworkSpec.model_validate(each["spec"]))
        for each in request["networks"]
    ]
    data_dir = request["data_dir"] and Path(request["data_dir"])
    train_together(planned, request["device"], data_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
