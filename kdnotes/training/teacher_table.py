"""A teacher's answers to every (image, view), computed once and shared by all its students.

The rows lie in memory-mapped files, so that several processes read one copy. A row is written
before its flag; a killed writer leaves flags unset, and its rows are computed again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from kdnotes.data import ImageData
from kdnotes.data.views import Views, to_float
from kdnotes.networks import Normalized, forward_with_features

CHUNK = 256  # every forward pass has this size, so that a row does not depend on its company


class TableError(RuntimeError):
    """A stored row differs from what the teacher answers."""


class TeacherTable:
    """Logits (classes) and penultimate features (D) of one teacher for each (image, view).

    ``teacher`` must be frozen (`networks.freeze`). ``folder`` holds the files; it is made on
    first use.
    """

    def __init__(
        self, folder: Path, teacher: Normalized, data: ImageData, views: Views, device: torch.device
    ) -> None:
        self.teacher, self.data, self.views, self.device = teacher, data, views, device
        with torch.inference_mode():
            logits, features = forward_with_features(
                teacher, to_float(data.batch(torch.tensor([0]))).to(device)
            )
        self._widths = (logits.shape[1], features.shape[1])
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock")
        rows = (len(data), len(views))
        with self._lock:
            self._check_shape(folder / "shape.json", [*rows, *self._widths])
            self._filled = _open(folder / "filled.bin", np.uint8, rows)
            self._rows = _open(folder / "rows.bin", np.float32, (*rows, sum(self._widths)))

    @staticmethod
    def _check_shape(path: Path, shape: list[int]) -> None:
        if path.exists() and json.loads(path.read_text()) != shape:
            raise TableError(f"table {path.parent.name} was made for other data")
        path.write_text(json.dumps(shape))

    def fill(self, indices: Tensor, views: Tensor) -> int:
        """Compute the rows (n,) that are missing; returns how many were."""
        if self._missing(indices, views).size == 0:
            return 0
        with self._lock:  # a second student waits here, and then finds the rows made
            missing = self._missing(indices, views)
            for start in range(0, len(missing), CHUNK):
                flat = missing[start : start + CHUNK]
                items, of_view = np.divmod(flat, len(self.views))
                self._rows[items, of_view] = self._answer(
                    torch.from_numpy(items), torch.from_numpy(of_view)
                ).numpy()
                self._filled[items, of_view] = 1
            return len(missing)

    def rows(self, indices: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and features (n, D) of filled rows, on the table's device."""
        rows = torch.from_numpy(self._rows[indices.numpy(), views.numpy()]).to(self.device)
        logits, features = rows.split(self._widths, dim=1)
        return logits, features

    def recheck(self, indices: Tensor, views: Tensor, tolerance: float = 1e-4) -> None:
        """Compare stored rows with the live teacher; raises TableError where they differ."""
        stored = torch.from_numpy(self._rows[indices.numpy(), views.numpy()])
        # On a CPU a few rows come out the same to the last digits, and cost a fraction of a chunk.
        chunk = len(indices) if self.device.type == "cpu" else CHUNK
        difference = float((stored - self._answer(indices, views, chunk)).abs().max())
        if not difference <= tolerance:
            raise TableError(
                f"teacher table is off by {difference:.2g}: it will be thrown away and made anew"
            )

    def _missing(self, indices: Tensor, views: Tensor) -> np.ndarray:
        flat = np.unique((indices * len(self.views) + views).numpy())
        return flat[self._filled.reshape(-1)[flat] == 0]

    def _answer(self, indices: Tensor, views: Tensor, chunk: int = CHUNK) -> Tensor:
        padding = chunk - len(indices)
        images = self.data.batch(torch.cat([indices, indices.new_zeros(padding)]))
        seen = self.views.apply(images, torch.cat([views, views.new_zeros(padding)]))
        with torch.inference_mode():
            logits, features = forward_with_features(self.teacher, to_float(seen.to(self.device)))
        return torch.cat([logits, features], 1)[: len(indices)].float().cpu()


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            file.truncate(size)  # sparse: views never asked for take no room on disk
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
