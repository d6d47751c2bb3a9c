"""The batches of a training: images in views, and what the teacher says of these very views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdnotes.data import ImageData, colors
from kdnotes.data.views import crop, to_float
from kdnotes.methods import Group, Outputs, controls
from kdnotes.training import teachers
from kdnotes.training.specification import NetworkSpec, derive_seed
from kdnotes.training.teachers import Teacher


class Shown:
    """A batch: float images (B, 3, H, W), int64 labels and numbers (B,), the teacher's answers.

    Neither tuple nor dataclass: on CUDA, Fabric would make what it finds in these bfloat16, soft
    labels too.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, indices: Tensor, answers: Outputs | None
    ) -> None:
        self.images, self.labels, self.indices, self.answers = images, labels, indices, answers


class Epoch(NamedTuple):
    """What is drawn for one pass over the images, a row for each, on the training's device."""

    order: Tensor  # the images' numbers
    asked: Tensor  # those that the teacher is asked about
    views: Tensor
    rectangles: Tensor | None  # of `ResizedCrops`
    parts: tuple[slice, ...]  # the rows of each step


class Stream:
    """All batches of a training, or this process's share; images stay on the device as bytes."""

    def __init__(
        self,
        spec: NetworkSpec,
        data: ImageData,
        teacher: Teacher | None,
        group: Group,
        place: torch.device,
    ) -> None:
        self.recipe, self.teacher, self.place = spec.recipe, teacher, place
        self.layer = None if teacher is None else teachers.layer_of(spec, teacher.network)
        self.images: Any = data.images
        if isinstance(data.images, Tensor):
            self.images = data.images.to(place, memory_format=torch.channels_last)
        self.labels = data.labels.to(place)
        self.batch = min(spec.recipe.batch, len(data))
        self.steps = len(data) // self.batch
        self.own = group.share(self.batch)
        self.order = torch.Generator().manual_seed(spec.order_seed)
        self.jitters = torch.Generator().manual_seed(derive_seed("jitter", spec.role, spec.seed))
        self.permutation = None
        if spec.labels == "permuted":
            numbers = torch.Generator().manual_seed(derive_seed("permuted", spec.seed))
            self.permutation = controls.permute_within_class(data.labels, numbers)

    def epoch(self) -> Iterator[Shown]:
        """The batches of the next epoch."""
        drawn = self._draw()
        answer = self._answers(drawn)
        for part, raw in zip(drawn.parts, self._raw_images(drawn), strict=True):
            seen, indices = self._view(raw, drawn, part), drawn.order[part]
            answers = answer(part, seen)
            yield Shown(self._changed(seen), self.labels[indices], indices, answers)

    def _draw(self) -> Epoch:
        recipe, many = self.recipe, len(self.labels)
        order = torch.randperm(many, generator=self.order)[: self.steps * self.batch]
        views = recipe.views.draw(many, self.order)[order]
        rectangles = None
        if recipe.resized is not None:
            rectangles = recipe.resized.draw(len(order), self.order).to(self.place)
        asked = order if self.permutation is None else self.permutation[order]
        starts = range(0, len(order), self.batch)
        parts = tuple(slice(start + self.own.start, start + self.own.stop) for start in starts)
        order, asked, views = (rows.to(self.place) for rows in (order, asked, views))
        return Epoch(order, asked, views, rectangles, parts)

    def _raw_images(self, drawn: Epoch) -> Iterator[Tensor]:
        """The bytes of each part; of a folder, the next ones are read while these are used."""
        if isinstance(self.images, Tensor):
            for part in drawn.parts:
                yield self._at(drawn.order[part])
            return
        order = drawn.order.cpu()  # once: later, it would have to wait for the GPU
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.images.__getitem__, order[drawn.parts[0]])
            for following in drawn.parts[1:]:
                raw = coming.result()
                coming = reader.submit(self.images.__getitem__, order[following])
                yield raw.to(self.place)
            yield coming.result().to(self.place)

    def _view(self, raw: Tensor, drawn: Epoch, part: slice) -> Tensor:
        """A part's view of images, uint8 in and float out: the same for student and teacher."""
        seen = to_float(self.recipe.views.apply(raw, drawn.views[part]))
        if self.recipe.resized is None or drawn.rectangles is None:
            return seen
        return self.recipe.resized.apply(seen, drawn.rectangles[part])

    def _answers(self, drawn: Epoch) -> Callable[[slice, Tensor], Outputs | None]:
        """What the teacher says of each part in turn, given the student's view of it."""
        teacher = self.teacher
        if teacher is None:
            return lambda part, seen: None
        if teacher.table is not None:
            asked, views = drawn.asked.cpu(), drawn.views.cpu()
            teacher.table.fill(asked, views)
            rows = teacher.table.rows(asked, views)  # all at once: to copy to a GPU is to wait
            return lambda part, seen: Outputs(*(v if v is None else v[part] for v in rows))

        def live(part: slice, seen: Tensor) -> Outputs:
            if self.permutation is not None:  # it is asked about other images, in the same views
                seen = self._view(self._at(drawn.asked[part]), drawn, part)
            return teachers.live(teacher.network, seen, self.layer)

        return live

    def _at(self, places: Tensor) -> Tensor:
        """Images (n, 3, H, W) at some places (n,)."""
        if not isinstance(self.images, Tensor):
            return self.images[places.cpu()].to(self.place)
        rows = self.images.permute(0, 2, 3, 1)
        # Whole rows are copied as such, not pixel by pixel.
        chosen = rows.flatten(1).index_select(0, places)
        return chosen.unflatten(1, rows.shape[1:]).permute(0, 3, 1, 2)

    def _changed(self, images: Tensor) -> Tensor:
        """With crops and changes of colour, drawn for the whole batch that these are a share of."""
        if (crops := self.recipe.crops) is not None:
            images = crop(images, crops.draw(self.batch, self.jitters)[self.own].to(self.place))
        if (jitter := self.recipe.jitter) is not None:
            strengths = jitter.model_dump()
            factors = colors.draw_jitter(self.batch, **strengths, generator=self.jitters)
            images = colors.jitter(images, factors[self.own])
        return images
