"""Renderings against kornia, brute force, hand-worked cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from probe_nets import some_data
from torch import Tensor

from kdnotes.data import DataSpec, load, renderings
from kdnotes.data.renderings import (
    DOMAINS,
    canny,
    cue_conflict,
    draw,
    edges,
    grey,
    noise,
    otsu,
    partners,
    photo_patches,
    render,
    repaint,
    scramble,
    silhouette,
    sketch,
    stylised,
)
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError


def pictures(count: int = 8) -> Tensor:
    spec = DataSpec(name="scenes", split="test", count=count, options={"placement": 0.3})
    return to_float(load(spec).images)


def square(size: int = 32, light: float = 1.0, ground: float = 0.2) -> Tensor:
    """One image with a light square of 12 pixels in the middle."""
    image = torch.full((1, 3, size, size), ground)
    image[..., 10:22, 10:22] = light
    return image


@pytest.mark.parametrize(("weak", "strong"), [(0.03, 0.08), (0.05, 0.05)])
def test_canny_equals_kornias(weak: float, strong: float) -> None:
    from kornia.filters import canny as reference

    light = grey(pictures(6))
    # A kernel of one pixel smooths nothing; kornia leaves out the eighth of Sobel's filter.
    _, theirs = reference(light, weak * 8, strong * 8, kernel_size=1, sigma=(1e-3, 1e-3))
    ours = canny(light, torch.full((6,), weak), torch.full((6,), strong))
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    # Kornia rounds directions and breaks ties in its own way: a few pixels in a thousand.
    assert 0.02 < theirs[inner].mean() < 0.5
    assert (ours[inner] == (theirs[inner] > 0)).float().mean() > 0.97


def test_edges_of_a_square_are_two_pixels_wide_and_closed() -> None:
    shape = square(light=0.7)
    shape[..., 11:21, 11:21] = 1.0  # the gradient is steepest at rows and columns 10 and 21
    drawn = edges(shape)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    lines = drawn[0, 0]
    for row in (14, 16, 18):
        for line in (lines[row], lines[:, row]):
            places = line.nonzero().flatten().tolist()
            assert len(places) == 4
            assert places[1] - places[0] == places[3] - places[2] == 1
            assert 10 in places[:2]
            assert 21 in places[2:]
    assert edges(torch.full((1, 3, 32, 32), 0.5)).sum() == 0
    assert torch.equal(edges(shape / 2), drawn)  # thresholds are shares of the steepest gradient
    red = shape * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    assert torch.equal(edges(red), drawn)  # whatever the colour


def test_hysteresis_keeps_weak_edges_that_touch_strong_ones_only() -> None:
    light = torch.zeros(1, 1, 20, 20)
    light[..., 10:] = torch.linspace(0.1, 1, 20)[:, None].expand(20, 10)
    light[:, :, :, 3:5] = 0.2  # weak and on its own
    weak, strong = torch.tensor([0.03]), torch.tensor([0.3])
    found = canny(light, weak, strong)[0, 0]
    assert found[2:-2, 8:12].any(1).all()  # the whole edge, weak at its upper end
    assert not found[:, :7].any()
    assert canny(light, weak, weak)[0, 0, :, :7].any()


def test_otsus_threshold_is_the_one_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(6, 16, 16, generator=generator) ** torch.arange(1, 7).view(6, 1, 1)
    light[:3, 4:9, 4:9] = 0.9
    for image, found in zip(light, otsu(light).tolist(), strict=True):
        levels = (image * 255).round().numpy().ravel()
        scores = []
        for threshold in range(255):
            low, high = levels[levels <= threshold], levels[levels > threshold]
            share = len(low) / len(levels)
            apart = 0.0 if 0 in (len(low), len(high)) else low.mean() - high.mean()
            scores.append(share * (1 - share) * apart**2)
        assert scores[found] == pytest.approx(max(scores), rel=1e-9)
    assert otsu(torch.full((1, 4, 4), 0.5)).tolist() == [0]


def test_silhouettes_are_black_shapes_on_white() -> None:
    for light, ground in ((1.0, 0.2), (0.1, 0.7)):  # whichever of the two is brighter
        shape = silhouette(square(light=light, ground=ground))
        assert torch.equal(shape, silhouette(square()))
        assert shape[..., 10:22, 10:22].sum() == 0
        assert shape.sum() == 3 * (32 * 32 - 12 * 12)
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 3:5] = True
    assert torch.equal(silhouette(square(), mask)[:, 0] == 0, mask)
    assert silhouette(torch.full((1, 3, 8, 8), 0.5)).unique().numel() == 1


def test_a_sketch_is_dark_where_brightness_changes() -> None:
    still = sketch(square(), torch.zeros(1, 2, 4, 4))[0, 0]
    assert still[9:11, 15].min() < 0.3
    assert still[15, 15] == pytest.approx(0.97, abs=1e-4)
    assert still[2, 2] == pytest.approx(0.97, abs=1e-4)
    upside_down = sketch(1 - square(), torch.zeros(1, 2, 4, 4))[0, 0]
    assert torch.allclose(upside_down, still, atol=1e-4)
    aside = sketch(square(), torch.tensor([1.0, 0]).view(1, 2, 1, 1).expand(1, 2, 4, 4) / 0.8)
    assert torch.allclose(aside[0, 0, :, :-1], still[:, 1:], atol=1e-4)  # by one pixel
    blank = sketch(torch.full((1, 3, 32, 32), 0.4), torch.zeros(1, 2, 4, 4))
    assert torch.allclose(blank, torch.tensor(0.97), atol=1e-3)


def test_repaint_uses_exactly_the_others_pixels_in_order_of_brightness() -> None:
    images, others = pictures(4), pictures(8)[4:]
    painted = repaint(images, others, smoothing=0)
    for own, new, other in zip(images, painted, others, strict=True):
        assert sorted(map(tuple, new.flatten(1).T.tolist())) == sorted(
            map(tuple, other.flatten(1).T.tolist())
        )
        order = own.amax(0).flatten().argsort(stable=True)
        assert (new.amax(0).flatten()[order].diff() >= 0).all()
    generator = torch.Generator().manual_seed(0)
    distinct = torch.rand(2, 3, 8, 8, generator=generator)
    assert torch.equal(repaint(distinct, distinct, smoothing=0), distinct)


def test_a_smoothed_palette_is_a_running_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 1, 3, 8, 8, generator=generator)
    smooth = repaint(images, others, smoothing=5 / 64)[0].flatten(1).numpy()
    order = others[0].amax(0).flatten().argsort(stable=True).numpy()
    palette = np.pad(others[0].flatten(1).numpy()[:, order], ((0, 0), (2, 2)), mode="edge")
    wanted = np.stack([np.convolve(row, np.full(5, 0.2), mode="valid") for row in palette])
    own = images[0].amax(0).flatten().argsort(stable=True).numpy()
    assert np.allclose(smooth[:, own], wanted, atol=1e-6)


def test_scrambling_keeps_amplitudes_and_colours_and_loses_places() -> None:
    images = pictures(3)
    random = noise(torch.tensor([1, 2, 3]), 32, 32)
    mixed = scramble(images, random)
    before, after = (torch.fft.fft2(each.double()).abs() for each in (images, mixed))
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3)
    for own, new in zip(images.double().flatten(2), mixed.double().flatten(2), strict=True):
        assert torch.allclose(own.mean(1), new.mean(1), atol=1e-5)
        assert torch.allclose(torch.cov(own), torch.cov(new), atol=1e-5)
        assert abs(torch.corrcoef(torch.stack([own[0], new[0]]))[0, 1]) < 0.6
    assert torch.equal(noise(torch.tensor([2]), 32, 32)[0], random[1])  # each its own seed


def test_stylised_images_keep_the_shape_in_the_colours_of_the_style() -> None:
    image = square()
    sky = torch.tensor([0.4, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 32, 32).clone()
    sky += 0.01 * torch.linspace(-1, 1, 32)
    drawn = stylised(image, sky)
    inside, outside = drawn[0, :, 14:18, 14:18].mean((1, 2)), drawn[0, :, :6].mean((1, 2))
    assert (inside - outside > 0.1).all()  # stretched: the sky alone is nearly even
    assert outside[2] > outside[0] + 0.2  # and still blue
    striped = sky + 0.2 * torch.sin(torch.arange(32.0) * 2)[:, None]
    texture = stylised(image, striped.clamp(0, 1))[0, 0, :8, :8]
    assert texture.std(0).mean() > 3 * texture.std(1).mean()  # the style's stripes


def test_cue_conflict_puts_the_others_colours_on_the_shape() -> None:
    red, blue = square(), square()
    red[:, 1:, 10:22, 10:22] = 0
    blue[:, :2, 10:22, 10:22] = 0
    random = noise(torch.tensor([5]), 32, 32)
    mixed = cue_conflict(red, blue.roll(4, 3), random)[0]
    middle = mixed[:, 13:19, 13:19].mean((1, 2))
    assert middle[2] > middle[0] + 0.4


def test_partners_are_of_another_class_and_uniform() -> None:
    labels = torch.tensor([0, 1, 2, 1, 1, 0])
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([partners(labels, generator) for _ in range(3000)])
    assert (labels[chosen] != labels).all()
    for place, others in enumerate(labels[:, None] != labels):
        share = torch.bincount(chosen[:, place], minlength=6) / 3000
        assert torch.allclose(share, others.double().float() / others.sum(), atol=0.04)
    alone = partners(torch.zeros(5, dtype=torch.long), generator)
    assert set(alone.tolist()) <= set(range(5))


def test_photo_patches_are_pieces_of_the_photographs() -> None:
    where = torch.tensor([[0.0, 0.0, 0.0], [0.99, 0.999, 0.999]])
    patches = photo_patches(where, 32, 32)
    first, last = renderings.drawing.photographs()[0], renderings.drawing.photographs()[-1]
    corner = first[:, :128, :128].reshape(3, 32, 4, 32, 4).mean((2, 4))
    assert torch.allclose(patches[0], corner, atol=1e-5)
    corner = last[:, -128:, -128:].reshape(3, 32, 4, 32, 4).mean((2, 4))
    assert torch.allclose(patches[1], corner, atol=1e-5)
    assert photo_patches(where, 512, 300).shape == (2, 3, 512, 300)  # larger than they are


@pytest.mark.parametrize("sigma", [0.7, 2.0, 4.0])
def test_a_blur_is_that_of_scipy_however_it_is_made(sigma: float) -> None:
    from scipy.ndimage import gaussian_filter

    images = torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    blurred = renderings._blur(images, sigma)
    sigmas = (0, 0, sigma, sigma)
    expected = gaussian_filter(images.double().numpy(), sigmas, mode="mirror", truncate=3.0)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [16, 28, 64, 128])
def test_renderings_are_images_that_do_not_depend_on_batches(size: int) -> None:
    data = some_data(10, size)
    images, draws = to_float(data.images), draw(data.labels, 3)
    others = images[draws.partner]
    whole = render(images, others, draws)
    assert tuple(whole) == DOMAINS
    for name, each in whole.items():
        assert each.shape == images.shape
        assert each.dtype == images.dtype
        assert each.min() >= 0
        assert each.max() <= 1
        assert (each - images).abs().mean() > 0.02, name
    some = torch.tensor([7, 2, 4])
    part = render(images[some], others[some], draws[some])
    for name, each in part.items():
        assert torch.allclose(each, whole[name][some], atol=1e-5), name
    again, other = draw(data.labels, 3), draw(data.labels, 4)
    assert torch.equal(again.noise, draws.noise)
    assert not torch.equal(other.wobble, draws.wobble)


def test_light_shapes_are_drawn_light_unless_the_ground_shall_be_light() -> None:
    images = torch.cat([square(), square(light=0.1, ground=0.7)])
    shapes = torch.zeros(2, 32, 32, dtype=torch.bool)
    shapes[:, 10:22, 10:22] = True
    draws = draw(torch.tensor([0, 1]), 0)
    own = render(images, images.flip(0), draws, shapes)
    white = render(images, images.flip(0), draws, shapes, ground="light")
    assert torch.equal(white["silhouette"][:, 0] == 0, shapes)
    assert torch.equal(white["sketch"], sketch(images, draws.wobble))
    for name in ("sketch", "silhouette"):
        assert torch.equal(own[name][0], 1 - white[name][0])
        assert torch.equal(own[name][1], white[name][1])
    for name in ("stylised", "edge", "cue-conflict"):
        assert torch.equal(own[name], white[name])
    unknown = render(images, images.flip(0), draws)
    assert torch.equal(unknown["silhouette"], white["silhouette"])
    with pytest.raises(RequestError, match="one of own, light, not 'dark'"):
        render(images, images, draws, shapes, ground="dark")


def test_even_images_can_be_rendered() -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    draws = draw(torch.tensor([0, 1]), 0)
    for name, each in render(images, images.flip(0), draws).items():
        assert torch.isfinite(each).all(), name
