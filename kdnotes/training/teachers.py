"""A frozen teacher and its answers: from a table that all its students share, or asked live.

A table's rows lie in memory-mapped files, so that several processes read one copy. A row is written
before its flag: what a killed writer leaves without one is computed again.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from kdnotes import networks
from kdnotes.data import ImageData
from kdnotes.data.views import Views, to_float
from kdnotes.methods import Outputs
from kdnotes.networks import Composite, Normalized
from kdnotes.store import appearing
from kdnotes.training.specification import NetworkSpec, Recipe

CHECKED_ROWS = 64  # of a table that is opened
CHUNK = 256  # every pass that fills a table has this size: a row does not depend on its company
CONFIDENCE_IMAGES = 10_000  # enough for one mean; a live teacher would take hours for all
MOST_BYTES = 50_000_000_000  # of a table of logits
MOST_BYTES_OF_MAPS = 300_000_000


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher (`networks.freeze`) and the table of its answers; without one it is live."""

    network: Normalized | Composite
    table: TeacherTable | None = None

    def confidence(self, data: ImageData, recipe: Recipe, tau: float, place: torch.device) -> float:
        """Mean largest probability at a temperature, over the training images.

        A live teacher is asked about `CONFIDENCE_IMAGES` of them at most, evenly spaced.
        """
        indices = torch.arange(len(data))
        if self.table is not None:
            views = torch.full_like(indices, recipe.views.centre)
            self.table.fill(indices, views)
            logits = self.table.rows(indices, views).logits
        else:
            sample = indices[:: math.ceil(len(data) / CONFIDENCE_IMAGES)].split(CHUNK)
            asked = (whole(data.batch(part).to(place), recipe) for part in sample)
            logits = torch.cat([live(self.network, images, None).logits for images in asked])
        return float((logits / tau).softmax(1).amax(1).mean())


class TeacherTable:
    """What a frozen teacher says of each (image, view): all that `live` gives, one row each.

    Files in ``folder`` that do not say what the teacher says are made anew.
    """

    def __init__(
        self,
        folder: Path,
        teacher: Normalized | Composite,
        data: ImageData,
        views: Views,
        device: torch.device,
        layer: str | None = None,
    ) -> None:
        self.teacher, self.data, self.views = teacher, data, views
        self.device, self.layer = device, layer
        first = live(teacher, to_float(data.batch(torch.tensor([0]))).to(device), layer)
        self._shapes = [values.shape[1:] for values in _to_keep(first)]
        self._widths = [shape.numel() for shape in self._shapes]
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock")
        with self._lock:
            self._open(folder)
            if not self._is_sound():
                print(f"teacher table {folder.name} is wrong: making it anew", file=sys.stderr)
                for file in folder.glob("*.npy"):
                    file.unlink()
                self._open(folder)

    def _is_sound(self) -> bool:
        filled = torch.from_numpy(np.flatnonzero(self._filled))
        some = filled[:: math.ceil(len(filled) / CHECKED_ROWS) or 1]
        return not len(some) or self.agrees(some // len(self.views), some % len(self.views))

    def _open(self, folder: Path) -> None:
        rows = (len(self.data), len(self.views))
        self._filled = _opened(folder / "filled.npy", np.uint8, rows)
        self._rows = _opened(folder / "rows.npy", np.float32, (*rows, sum(self._widths)))

    def fill(self, indices: Tensor, views: Tensor) -> int:
        """Compute the rows (n,) that are missing; returns how many were."""
        if self._missing(indices, views).size == 0:
            return 0
        with self._lock:  # a second student waits here, and then finds the rows made
            missing = self._missing(indices, views)
            for start in range(0, len(missing), CHUNK):
                items, of_view = np.divmod(missing[start : start + CHUNK], len(self.views))
                answer = self._answer(torch.from_numpy(items), torch.from_numpy(of_view), CHUNK)
                self._rows[items, of_view] = answer.numpy()
                self._filled[items, of_view] = 1
            return len(missing)

    def rows(self, indices: Tensor, views: Tensor) -> Outputs:
        """The answers in filled rows (n,), on the table's device."""
        rows = torch.from_numpy(self._rows[indices.numpy(), views.numpy()]).to(self.device)
        kept = [
            part.unflatten(1, shape)
            for part, shape in zip(rows.split(self._widths, dim=1), self._shapes, strict=True)
        ]
        if len(kept) == 1:
            return Outputs(layer=kept[0].permute(0, 3, 1, 2) if kept[0].ndim == 4 else kept[0])
        return Outputs(kept[0], kept[1], kept[0])

    def agrees(self, indices: Tensor, views: Tensor) -> bool:
        """Whether filled rows (n,) are what the live teacher answers, to 1e-4."""
        stored = torch.from_numpy(self._rows[indices.numpy(), views.numpy()])
        # On a CPU a few rows come out the same to the last digits, and cost a fraction of a chunk.
        chunk = len(indices) if self.device.type == "cpu" else CHUNK
        answer = self._answer(indices, views, chunk)
        return bool(((stored - answer).abs() <= 1e-4).all())

    def _missing(self, indices: Tensor, views: Tensor) -> np.ndarray:
        flat = np.unique((indices * len(self.views) + views).numpy())
        return flat[self._filled.reshape(-1)[flat] == 0]

    def _answer(self, indices: Tensor, views: Tensor, chunk: int) -> Tensor:
        padding = chunk - len(indices)
        images = self.data.batch(torch.cat([indices, indices.new_zeros(padding)]))
        seen = self.views.apply(images, torch.cat([views, views.new_zeros(padding)]))
        answer = _to_keep(live(self.teacher, to_float(seen.to(self.device)), self.layer))
        rows = torch.cat([values.flatten(1) for values in answer], 1)
        return rows[: len(indices)].float().cpu()


def _to_keep(answer: Outputs) -> list[Tensor]:
    """The parts of an answer that a table holds, maps with channels last."""
    if answer.logits is not None:
        return [answer.logits, answer.features]
    return [answer.layer.permute(0, 2, 3, 1) if answer.layer.ndim == 4 else answer.layer]


def _opened(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    if not path.exists():
        with appearing(path) as scratch:  # sparse: views never asked for take no room on disk
            np.lib.format.open_memmap(scratch, mode="w+", dtype=dtype, shape=shape)
    return np.lib.format.open_memmap(path, mode="r+")


@torch.no_grad()
def live(network: Normalized | Composite, images: Tensor, layer: str | None) -> Outputs:
    """What a teacher says of images in [0, 1]; of a layer, nothing behind it is computed.

    ``layer``: a path, or "logits", or None.
    """
    if layer is not None and layer != "logits":
        return Outputs(layer=networks.features_at(network, images, layer))
    logits, features = networks.forward_with_features(network, images)
    return Outputs(logits, features, logits)


def whole(raw: Tensor, recipe: Recipe) -> Tensor:
    """uint8 images as they are, as floats of the size that a recipe trains on."""
    images = to_float(raw)
    return images if recipe.resized is None else recipe.resized.whole(images)


def layer_of(spec: NetworkSpec, network: Normalized | Composite) -> str | None:
    """Path of the layer that the method looks at in the teacher, None where it needs no layer."""
    return spec.layers and networks.hint_layer(network, spec.layers[1])


def fits_table(spec: NetworkSpec, network: Normalized | Composite, data: ImageData) -> bool:
    """Whether a student's teacher can answer from a table: of finite views, and not too large.

    Of a layer's maps, which are large, only where images have one view.
    """
    numbers, views, most = spec.num_classes, len(spec.recipe.views), MOST_BYTES
    if spec.recipe.resized is not None or (spec.needs_layer and views > 1):
        return False
    if spec.needs_layer:
        one = to_float(data.batch(torch.arange(1)).to(next(network.parameters()).device))
        numbers = live(network, one, layer_of(spec, network)).layer.numel()
        most = MOST_BYTES_OF_MAPS
    return 4 * numbers * views * len(data) <= most
