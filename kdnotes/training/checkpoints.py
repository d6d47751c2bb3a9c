"""Half-trained networks on disk, so that a killed run goes on at its last finished epoch."""

from __future__ import annotations

import io
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdnotes.store import appearing, checksum

# A network of the laptop preset is done before this; one of ImageNet's epochs takes longer.
SECONDS_BETWEEN = 60.0


@dataclass
class Checkpoints:
    """The checkpoints of one network, at most one of which is kept: epoch-NUMBER-CHECKSUM.

    The checksum is of the network's name, too: what lies in another one's folder is damaged.
    """

    folder: Path
    _written: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether enough time has passed for another one."""
        return time.monotonic() - self._written >= SECONDS_BETWEEN

    def write(self, epoch: int, state: dict[str, Any]) -> None:
        """Keep the state after an epoch (counted from 1) in place of the one before."""
        content = io.BytesIO()
        torch.save(state, content)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"epoch-{epoch:05}-{checksum(content.getvalue(), of=self.folder.name)}"
        with appearing(path) as scratch:
            scratch.write_bytes(content.getvalue())
        for other in set(self.folder.iterdir()) - {path}:
            other.unlink(missing_ok=True)
        self._written = time.monotonic()

    def last(self) -> Path | None:
        """The last sound checkpoint: a damaged one is passed over, never used."""
        for path in sorted(self.folder.glob("epoch-*"), reverse=True):
            if path.is_file() and path.name.endswith(checksum(path, of=self.folder.name)):
                return path
        return None

    def remove(self) -> None:
        """Delete them: the network is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """The state that `Checkpoints.write` was given; tensors on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
