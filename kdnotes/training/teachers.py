"""A frozen teacher and its answers: from a table that all its students share, or asked live.

A table's rows lie in memory-mapped files that processes share. Each has a mark, its checksum, which
is written after it: what does not match its mark is computed again.
"""

from __future__ import annotations

import math
import sys
import zlib
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
from kdnotes.store import naming, write_at
from kdnotes.training.specification import NetworkSpec, Recipe

CHECKED_ROWS = 64  # of a table that is opened
CHUNK = 256  # every pass that fills a table has this size: a row does not depend on its company
CONFIDENCE_IMAGES = 10_000  # enough for one mean; a live teacher would take hours for all
ROWS, MARKS = "rows", "marks"  # files: float32 (images x views, width), uint32 (images x views,)
MOST_BYTES = 50_000_000_000  # of a table of logits
MOST_BYTES_OF_MAPS = 300_000_000


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher (`networks.freeze`) and the table of its answers; without one it is live."""

    network: Normalized | Composite
    table: TeacherTable | None = None

    def confidence(self, data: ImageData, recipe: Recipe, tau: float, place: torch.device) -> float:
        """Mean largest probability at a temperature, over (of a live teacher, some) images."""
        indices = torch.arange(len(data))
        if self.table is not None:
            logits = self.table.rows(indices, torch.full_like(indices, recipe.views.centre)).logits
        else:
            sample = indices[:: math.ceil(len(data) / CONFIDENCE_IMAGES)].split(CHUNK)
            asked = (whole(data.batch(part).to(place), recipe) for part in sample)
            logits = torch.cat([live(self.network, images, None).logits for images in asked])
        return float((logits / tau).softmax(1).amax(1).mean())


class TeacherTable:
    """What a frozen teacher says of each (image, view), in rows; files that lie are made anew."""

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
        self.device, self.layer, self.folder = device, layer, folder
        first = live(teacher, to_float(data.batch(torch.tensor([0]))).to(device), layer)
        self._shapes = [values.shape[1:] for values in _to_keep(first)]
        self._widths = [shape.numel() for shape in self._shapes]
        count = len(data) * len(views)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock")
        with self._lock:
            _lengthen(folder / MARKS, 4 * count, sparse=False)
            _lengthen(folder / ROWS, 4 * count * sum(self._widths), sparse=True)
            self._marks, self._rows = _opened(folder, count)
            if not self._is_sound():
                print(f"teacher table {folder.name} is wrong: making it anew", file=sys.stderr)
                write_at(folder / MARKS, [(0, bytes(4 * count))])

    def _is_sound(self) -> bool:
        """Whether rows that match their marks are what the teacher says today."""
        filled = np.flatnonzero(self._marks)
        some = filled[:: math.ceil(len(filled) / CHECKED_ROWS) or 1]
        whole = np.setdiff1d(some, self._lacking(some))
        return not len(whole) or self._agree(whole)

    def fill(self, indices: Tensor, views: Tensor) -> int:
        """Compute rows (n,) that lack or are damaged; returns how many. RunFailedError: no room."""
        wanted = np.unique(self._places(indices, views))
        if not len(self._lacking(wanted)):
            return 0
        with self._lock:  # a second student waits here, and then finds the rows made
            lacking = self._lacking(wanted)
            if damaged := np.count_nonzero(self._marks[lacking]):
                said = f"{damaged} damaged rows of teacher table {self.folder.name}"
                print(f"{said}: computing them again", file=sys.stderr)
            for start in range(0, len(lacking), CHUNK):
                self._write(lacking[start : start + CHUNK])
            return len(lacking)

    def _write(self, places: np.ndarray) -> None:
        rows = self._answer(places, CHUNK).numpy()
        marks, width = _marks_of(rows, places, self.folder), 4 * rows.shape[1]
        for name, size, values in ((ROWS, width, rows), (MARKS, 4, marks)):
            parts = zip(places.tolist(), values, strict=True)
            write_at(self.folder / name, ((size * place, part.tobytes()) for place, part in parts))

    def _lacking(self, places: np.ndarray) -> np.ndarray:
        """Those of the places (n,) whose row is not there or does not match its mark."""
        marks = self._marks[places]
        there = marks != 0  # others may have no room on disk yet
        rows = self._rows[places[there]]
        there[there] = _marks_of(rows, places[there], self.folder) == marks[there]
        return places[~there]

    def rows(self, indices: Tensor, views: Tensor) -> Outputs:
        """The answers in rows (n,), which are filled first, on the table's device."""
        self.fill(indices, views)
        rows = torch.from_numpy(self._rows[self._places(indices, views)]).to(self.device)
        parts = zip(rows.split(self._widths, dim=1), self._shapes, strict=True)
        kept = [part.unflatten(1, shape) for part, shape in parts]
        if len(kept) == 1:
            return Outputs(layer=kept[0].permute(0, 3, 1, 2) if kept[0].ndim == 4 else kept[0])
        return Outputs(kept[0], kept[1], kept[0])

    def agrees(self, indices: Tensor, views: Tensor) -> bool:
        """Whether filled rows (n,) are what the live teacher answers, to 1e-4."""
        return self._agree(self._places(indices, views))

    def _agree(self, places: np.ndarray) -> bool:
        # On a CPU a few rows come out the same to the last digits, and cost a fraction of a chunk.
        answer = self._answer(places, len(places) if self.device.type == "cpu" else CHUNK)
        return bool(((torch.from_numpy(self._rows[places]) - answer).abs() <= 1e-4).all())

    def _places(self, indices: Tensor, views: Tensor) -> np.ndarray:
        return (indices * len(self.views) + views).numpy()

    def _answer(self, places: np.ndarray, chunk: int) -> Tensor:
        padded = np.pad(places, (0, chunk - len(places)))
        indices, views = map(torch.from_numpy, np.divmod(padded, len(self.views)))
        seen = self.views.apply(self.data.batch(indices), views)
        answer = _to_keep(live(self.teacher, to_float(seen.to(self.device)), self.layer))
        rows = torch.cat([values.flatten(1) for values in answer], 1)
        return rows[: len(places)].float().cpu()


def _to_keep(answer: Outputs) -> list[Tensor]:
    """The parts of an answer that a table holds, maps with channels last."""
    if answer.logits is not None:
        return [answer.logits, answer.features]
    return [answer.layer.permute(0, 2, 3, 1) if answer.layer.ndim == 4 else answer.layer]


def _lengthen(path: Path, size: int, sparse: bool) -> None:
    """Give a file its size; what is new is zero, and takes no room on disk where it is sparse."""
    with naming(path), path.open("ab") as file:
        file.truncate(min(file.tell(), size))
        while not sparse and (lacking := size - file.seek(0, 2)) > 0:
            file.write(bytes(min(lacking, 1_000_000)))
        file.truncate(size)


def _opened(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Marks and rows of a table of so many; ValueError where sizes do not agree."""
    marks = np.memmap(folder / MARKS, np.uint32, "r", shape=(count,))
    return marks, np.memmap(folder / ROWS, np.float32, "r").reshape(count, -1)


def _marks_of(rows: np.ndarray, places: np.ndarray, folder: Path) -> np.ndarray:
    """Checksums (n,) of rows at these places of this very table; none is 0."""
    start = zlib.crc32(folder.name.encode())
    parts = zip(rows, places.tolist(), strict=True)
    sums = (zlib.crc32(row, (start + place) % 2**32) or 1 for row, place in parts)
    return np.fromiter(sums, np.uint32, len(rows))


def damage(folder: Path) -> str:
    """What is wrong with the table in a folder, empty if nothing is."""
    marked, has_rows = folder / MARKS, (folder / ROWS).exists()
    if not marked.exists() or not (has_rows or np.fromfile(marked, np.uint32).any()):
        return ""  # nothing in it is used
    try:
        marks, rows = _opened(folder, marked.stat().st_size // 4)
    except (OSError, ValueError) as error:  # numpy's words for files of no or of odd size
        return f"teacher table {folder.name}: {error}"
    filled = np.flatnonzero(marks)
    parts = np.array_split(filled, len(filled) // 10_000 + 1)
    wrong = sum(np.count_nonzero(_marks_of(rows[p], p, folder) != marks[p]) for p in parts)
    said = f"teacher table {folder.name}: {wrong} of {len(filled)} rows are damaged"
    return said if wrong else ""


@torch.no_grad()
def live(network: Normalized | Composite, images: Tensor, layer: str | None) -> Outputs:
    """What a teacher says of images in [0, 1]; of a layer (a path), nothing behind is computed."""
    if layer not in (None, "logits"):
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
    """Whether a teacher can answer from a table: of finite views (of maps: one), not too large."""
    views, each = len(spec.recipe.views), 4 * len(data)
    if spec.recipe.resized is not None or (spec.needs_layer and views > 1):
        return False
    if not spec.needs_layer:
        return each * spec.num_classes * views <= MOST_BYTES
    one = to_float(data.batch(torch.arange(1)).to(next(network.parameters()).device))
    return each * live(network, one, layer_of(spec, network)).layer.numel() <= MOST_BYTES_OF_MAPS
