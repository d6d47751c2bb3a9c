"""Half-trained networks on disk, so that a killed run goes on at its last finished epoch.

Each lies in a folder of its own, tensors as safetensors and the rest as JSON, that appears under
its name in one step. A damaged one is passed over, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kdnotes.errors import RequestError

# A network of the laptop preset is done before this; one of ImageNet's epochs takes longer.
DEFAULT_SECONDS = 60.0


@dataclass
class Checkpoints:
    """The checkpoints of one network, at most one of which is kept.

    ``every``: seconds of training that a kill may cost, besides the epoch that was under way: an
    epoch that ends sooner after the last checkpoint leaves none. 0 means after every epoch.
    """

    folder: Path
    every: float = DEFAULT_SECONDS
    _written: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether enough time has passed for another one."""
        return time.monotonic() - self._written >= self.every

    def write(self, epoch: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Keep the state after an epoch (counted from 1) in place of the one before."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(content, scratch / "state.safetensors")
        notes = notes | {"epoch": epoch, "sha256": _digest(scratch / "state.safetensors")}
        (scratch / "state.json").write_text(json.dumps(notes))
        target = self.folder / f"epoch-{epoch:05}"
        shutil.rmtree(target, ignore_errors=True)  # a damaged one that was passed over
        scratch.rename(target)
        for other in self.folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
        self._written = time.monotonic()

    def last(self) -> int:
        """Epoch of the last sound checkpoint, 0 if there is none."""
        found = sorted(self.folder.glob("epoch-*"), reverse=True) if self.folder.is_dir() else []
        for path in found:
            notes = _notes(path)
            if notes is not None and notes["sha256"] == _digest(path / "state.safetensors"):
                return int(notes["epoch"])
        return 0

    def read(self, epoch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and notes after an epoch that `last` named."""
        from safetensors.torch import load_file

        path = self.folder / f"epoch-{epoch:05}"
        notes = _notes(path)
        if notes is None:
            raise FileNotFoundError(f"checkpoint {path} is gone")
        return load_file(path / "state.safetensors"), notes

    def remove(self) -> None:
        """Delete them: the network is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def seconds_between() -> float:
    """KDNOTES_CHECKPOINT_SECONDS, else 60; raises RequestError when it is no number."""
    text = os.environ.get("KDNOTES_CHECKPOINT_SECONDS", "")
    try:
        value = float(text) if text else DEFAULT_SECONDS
    except ValueError:
        value = -1
    if not value >= 0:
        raise RequestError(
            f"KDNOTES_CHECKPOINT_SECONDS must be a number of seconds, 0 or more, not {text!r}"
        )
    return value


def _notes(path: Path) -> dict[str, Any] | None:
    try:
        notes = json.loads((path / "state.json").read_text())
        return notes if {"epoch", "sha256"} <= notes.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
