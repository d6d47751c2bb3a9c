"""Changes of colour against torchvision and kornia, image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from kdnotes.data.colors import JitterFactors, draw_jitter, jitter, rotate_hue


def some_images(count: int = 40, size: int = 8, seed: int = 0) -> Tensor:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    images[0] = 0.5  # grey: no hue
    images[1] = 0  # black
    images[2, :, :4] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # pure colour
    return images


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torchvision_jitter(image: Tensor, factors: JitterFactors, index: int) -> Tensor:
    steps = (
        (tv.adjust_brightness, factors.brightness),
        (tv.adjust_contrast, factors.contrast),
        (tv.adjust_saturation, factors.saturation),
        (tv.adjust_hue, factors.hue),
    )
    for number in factors.order[index].tolist():
        step, amounts = steps[number]
        image = step(image, float(amounts[index]))
    return image


def test_jitter_equals_torchvision_image_by_image() -> None:
    images = some_images()
    factors = draw_jitter(len(images), 0.6, 0.5, 0.4, 0.3, seeded())
    expected = torch.stack(
        [torchvision_jitter(image, factors, index) for index, image in enumerate(images)]
    )
    torch.testing.assert_close(jitter(images, factors), expected, atol=1e-5, rtol=0)
    in_channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(jitter(in_channels_last, factors), expected, atol=1e-5, rtol=0)


def test_jitter_equals_kornia_with_its_parameters_overwritten() -> None:
    from kornia.augmentation import ColorJitter

    images = some_images()
    factors = draw_jitter(len(images), 0.4, 0.4, 0.4, 0.2, seeded(3))
    order = torch.tensor([3, 0, 2, 1])
    same_order = JitterFactors(
        factors.brightness,
        factors.contrast,
        factors.saturation,
        factors.hue,
        order.expand(len(images), 4),
    )
    augment = ColorJitter(0.4, 0.4, 0.4, 0.2, p=1.0)
    parameters = augment.forward_parameters(images.shape)
    parameters.update(
        brightness_factor=factors.brightness,
        contrast_factor=factors.contrast,
        saturation_factor=factors.saturation,
        hue_factor=factors.hue,
        order=order,
    )
    expected = augment(images, params=parameters)
    torch.testing.assert_close(jitter(images, same_order), expected, atol=2e-4, rtol=0)


def test_hue_equals_torchvision() -> None:
    images = some_images()
    turns = torch.linspace(-0.5, 0.5, len(images))
    expected = torch.stack(
        [tv.adjust_hue(image, float(turn)) for image, turn in zip(images, turns, strict=True)]
    )
    torch.testing.assert_close(rotate_hue(images, turns), expected, atol=1e-5, rtol=0)


def test_a_third_of_a_turn_permutes_the_channels() -> None:
    images = some_images()
    torch.testing.assert_close(rotate_hue(images, 1 / 3), images[:, [2, 0, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [0.1, 0.37, -0.25, 1.4])
def test_hue_keeps_value_and_saturation_and_can_be_undone(turns: float) -> None:
    images = some_images()
    turned = rotate_hue(images, turns)
    assert (turned[3:] - images[3:]).abs().max() > 0.05
    torch.testing.assert_close(turned.amax(1), images.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.amin(1), images.amin(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(rotate_hue(turned, -turns), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[:2], images[:2], atol=1e-6, rtol=0)  # grey stays grey


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    factors = draw_jitter(4000, 0.4, 0.2, 1.0, 0.1, seeded())
    for values, low, high in (
        (factors.brightness, 0.6, 1.4),
        (factors.contrast, 0.8, 1.2),
        (factors.saturation, 0.0, 2.0),
        (factors.hue, -0.1, 0.1),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert (factors.order.sort(1).values == torch.arange(4)).all()
    counts = torch.unique(factors.order, dim=0, return_counts=True)[1]
    assert len(counts) == 24  # all orders occur, about equally often
    assert counts.min() > 110
    assert counts.max() < 230


def test_one_seed_gives_one_jitter_scaled_by_its_strength() -> None:
    weak = draw_jitter(100, 0.2, 0.2, 0.2, 0.1, seeded(5))
    strong = draw_jitter(100, 0.4, 0.4, 0.4, 0.2, seeded(5))
    torch.testing.assert_close(strong.brightness - 1, 2 * (weak.brightness - 1))
    torch.testing.assert_close(strong.hue, 2 * weak.hue)
    assert torch.equal(strong.order, weak.order)


def test_the_result_does_not_depend_on_the_batch() -> None:
    images = some_images()
    factors = draw_jitter(len(images), 0.4, 0.4, 0.4, 0.2, seeded())
    halves = [jitter(images[part], factors[part]) for part in (slice(0, 7), slice(7, None))]
    torch.testing.assert_close(jitter(images, factors), torch.cat(halves))


def test_input_is_left_alone_and_zero_strength_changes_nothing() -> None:
    images = some_images()
    before = images.clone()
    same = jitter(images, draw_jitter(len(images), 0, 0, 0, 0, seeded()))
    torch.testing.assert_close(same, before, atol=1e-6, rtol=0)
    jitter(images, draw_jitter(len(images), 0.6, 0.6, 0.6, 0.3, seeded()))
    assert torch.equal(images, before)


def test_factors_must_fit_the_images() -> None:
    with pytest.raises(ValueError, match="40 images but 3 sets"):
        jitter(some_images(), draw_jitter(3, 0.1, 0.1, 0.1, 0.1, seeded()))
