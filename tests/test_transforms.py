"""Views against plain padding and slicing, one image at a time."""

from __future__ import annotations

import pytest
import torch

from kdnotes.data.views import Views, to_float


def test_number_of_views_of_the_usual_augmentation() -> None:
    assert len(Views(pad=4, step=1, flip=True)) == 162
    assert len(Views(pad=2, step=2)) == 9
    assert len(Views(pad=0, step=1)) == 1


@pytest.mark.parametrize("views", [Views(pad=2, step=2), Views(pad=4, step=1, flip=True)])
def test_views_are_crops_of_the_padded_image(views: Views) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(views), 3, 10, 10), generator=generator).to(torch.uint8)
    numbers = torch.arange(len(views))
    seen = views.apply(images, numbers)
    for number, image, view in zip(numbers.tolist(), images, seen, strict=True):
        padded = torch.zeros(3, 10 + 2 * views.pad, 10 + 2 * views.pad, dtype=torch.uint8)
        padded[:, views.pad : -views.pad, views.pad : -views.pad] = image
        crop = number % views.shifts**2
        top, left = (crop // views.shifts) * views.step, (crop % views.shifts) * views.step
        expected = padded[:, top : top + 10, left : left + 10]
        if number >= views.shifts**2:
            expected = expected.flip(-1)
        assert torch.equal(view, expected)


def test_centre_view_changes_nothing() -> None:
    views = Views(pad=4, step=2, flip=True)
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(views.apply(images, torch.full((3,), views.centre)), images)


def test_all_views_are_drawn_about_equally() -> None:
    views = Views(pad=2, step=2)
    drawn = views.draw(9000, torch.Generator().manual_seed(1))
    counts = torch.bincount(drawn, minlength=9)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_to_float_spans_the_unit_interval() -> None:
    assert to_float(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [0, 1]
