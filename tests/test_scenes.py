"""Scenes: the factors are what they claim, and nothing leaks from train to test."""

from __future__ import annotations

import colorsys
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdnotes.data import DataSpec, ImageData, drawing, load, with_fingerprint
from kdnotes.data.sources import digits as digit_source
from kdnotes.errors import RequestError


def scenes(split: str, count: int, seed: int = 0, **options: object) -> ImageData:
    spec = DataSpec(name="scenes", split=split, count=count, seed=seed, options=options)
    return load(spec)


def digits(domain: str) -> ImageData:
    return load(DataSpec(name="digits", split="test", options={"domain": domain}))


def test_train_and_test_share_no_glyph() -> None:
    train, test = (drawing.glyphs("bundled", split, None) for split in ("train", "test"))
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert len(train.ids) + len(test.ids) == 1797
    assert set(test.labels.tolist()) == set(range(10))


def test_bundled_glyphs_are_scikit_learns_digits() -> None:
    digits = load_digits()
    images, labels = drawing._bundled()
    assert np.array_equal(images * 16, digits.images)
    assert np.array_equal(labels, digits.target)


def test_scenes_show_glyphs_of_their_split_only() -> None:
    train = scenes("train", 500)
    test = scenes("test", 500)
    assert not set(train.sources.tolist()) & set(test.sources.tolist())


def test_same_request_gives_same_pixels_and_another_seed_others() -> None:
    first = scenes("train", 50, 3, marker=True)
    again = scenes("train", 50, 3, marker=True)
    other = scenes("train", 50, 4, marker=True)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_pixels_are_those_that_networks_were_trained_on() -> None:
    """Raise `drawing.REVISION` and these, should a change of the drawings ever be wanted."""
    cues = {"marker": True, "marker_contrast": 0.5, "marker_agreement": 0.0}
    styles = {"hue_agreement": 0.5, "placement": 0.3, "group_weights": (1, 1, 1, 1)}
    for data, expected in (
        # A pixel or so is rounded otherwise on some processors.
        (scenes("train", 100, **cues), {"1742e44db675c7dd", "d61d7466732bf675"}),
        (scenes("test", 100, 1, **styles), {"2840ed9218d3ea11"}),
        (digits("all"), {"8526009b88c8ab52"}),
    ):
        assert hashlib.sha256(data.images.numpy().tobytes()).hexdigest()[:16] in expected


def test_cues_agree_as_often_as_asked() -> None:
    data = scenes("train", 4000, marker=True, marker_agreement=0.4, shape_agreement=0.8)
    # A random cue equals the class by luck once in ten times.
    for cue, asked in (("digit", 0.8), ("marker", 0.4)):
        expected = asked + (1 - asked) / 10
        observed = (data.factors[cue] == data.labels).float().mean().item()
        assert observed == pytest.approx(expected, abs=0.03)


def test_masks_cover_where_the_cue_changes_the_picture() -> None:
    """Pixels outside both masks show the dark background, inside the digit bright ink."""
    data = scenes("train", 200, marker=True)
    brightest = data.images.amax(1).float() / 255
    digit, marker = data.masks["digit"], data.masks["marker"]
    assert not (digit & marker).any()
    assert brightest[~(digit | marker)].median() < 0.5
    assert brightest[digit].median() > 0.5
    radius_area = 3.14159 * (0.16 * 32) ** 2
    assert marker.sum((1, 2)).float().mean().item() == pytest.approx(radius_area, rel=0.1)


def test_hue_tells_the_class_when_asked_and_not_otherwise() -> None:
    def inked_hue_error(agreement: float) -> float:
        data = scenes("train", 300, hue_agreement=agreement)
        errors = []
        for image, mask, label in zip(data.images, data.masks["digit"], data.labels, strict=True):
            pixels = image[:, mask].float() / 255
            bright = pixels[:, pixels.amax(0).argmax()]
            hue = colorsys.rgb_to_hsv(*bright.tolist())[0]
            distance = abs(hue - label.item() / 10)
            errors.append(min(distance, 1 - distance))
        return float(torch.tensor(errors).median())

    assert inked_hue_error(1.0) < 0.06
    assert inked_hue_error(0.0) > 0.15


def test_hsv_to_rgb_is_colorsys() -> None:
    hue, saturation, value = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    ours = drawing.hsv_to_rgb(hue, saturation, value)
    parts = zip(hue.tolist(), saturation.tolist(), value.tolist(), strict=True)
    for row, (h, s, v) in zip(ours, parts, strict=True):
        assert row.tolist() == pytest.approx(colorsys.hsv_to_rgb(h, s, v), abs=1e-5)


def test_groups_come_as_often_as_weighted_and_look_different() -> None:
    data = scenes("train", 2000, group_weights=(3, 1, 0, 0))
    share = (data.factors["group"] == 1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.04)
    mean = data.images.float().mean((1, 2, 3))
    assert mean[data.factors["group"] == 1].mean() > mean[data.factors["group"] == 0].mean() + 50


def test_digit_domains_show_the_same_glyphs() -> None:
    grey = digits("orig")
    color = digits("color")
    textured = digits("m")
    assert torch.equal(grey.images[:, 0], grey.images[:, 1])
    assert not torch.equal(color.images[:, 0], color.images[:, 1])
    assert torch.equal(grey.labels, color.labels)
    corner = textured.images[..., :4, :4].float()
    assert corner.std() > 10  # patches of photographs, not one colour
    assert color.images[..., 0, 0].float().std() > 50


def test_the_classes_are_balanced() -> None:
    labels = scenes("train", 1000).labels
    assert torch.bincount(labels).tolist() == [100] * 10


def test_wrong_options_are_named() -> None:
    with pytest.raises(RequestError, match=r"marker_agreement.*less than or equal to 1"):
        load(DataSpec(name="scenes", split="train", count=5, options={"marker_agreement": 2}))
    with pytest.raises(RequestError, match=r"colour: no such option.*known:.*hue_agreement"):
        load(DataSpec(name="scenes", split="train", count=5, options={"colour": 2}))
    with pytest.raises(RequestError, match=r"unknown data set 'minst'; known: .*mnist"):
        load(DataSpec(name="minst", split="train"))


def test_fingerprint_enters_the_key() -> None:
    spec = DataSpec(name="scenes", split="train", count=5)
    marked = with_fingerprint(spec, None)
    assert marked.fingerprint
    assert marked.key() != spec.key()


def test_subset_keeps_everything_aligned() -> None:
    data = scenes("test", 60, marker=True)
    indices = torch.tensor([5, 2, 40])
    part = data.subset(indices)
    assert torch.equal(part.images, data.images[indices])
    assert torch.equal(part.masks["marker"], data.masks["marker"][indices])
    assert torch.equal(part.factors["digit"], data.factors["digit"][indices])
    assert torch.equal(part.sources, data.sources[indices])


def test_digits_on_photographs_of_a_folder(tmp_path: Path) -> None:
    """M is the absolute difference between a patch of these photographs and the digit."""
    rows = np.arange(60, dtype=np.uint8)[:, None, None]
    photo = np.broadcast_to(rows, (60, 28, 3))  # tells from which row a pixel was taken
    for split, pixels in (("train", photo), ("test", np.full((40, 50, 3), 200, np.uint8))):
        (tmp_path / split).mkdir()
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / split / "one.png")
    how = {"grounds": str(tmp_path), "domain": "m"}

    def drawn(split: Literal["train", "test"], **options: str) -> ImageData:
        return load(DataSpec(name="digits", split=split, count=50, options=options))

    tested = drawn("test", **how)
    plain = tested.masks["digit"].logical_not()
    assert (tested.images.permute(0, 2, 3, 1)[plain] >= 200 - 0.3 * 255 - 1).all()
    black = (tested.images == 200).all(1)
    assert black.float().mean() > 0.3  # where no ink is, the photograph
    trained = drawn("train", **how)
    down = trained.images[:, 0].long().diff(dim=1)
    assert (down[:, :3] == 1).all()  # every pixel of the photograph, at the margin without ink
    assert len({int(top) for top in trained.images[:, 0, 0, 0]}) > 5  # from many places
    usual = drawn("train", domain="m")
    assert not torch.equal(usual.images, trained.images)
    assert torch.equal(usual.labels, trained.labels)
    marks = {
        with_fingerprint(DataSpec(name="digits", split=split, options=how), None).fingerprint
        for split in ("train", "test")
    }
    assert len(marks) == 2
    with pytest.raises(RequestError, match=r"no photographs in .*none/train \(grounds\)"):
        drawn("train", grounds=str(tmp_path / "none"), domain="m")
    (tmp_path / "train" / "two.png").write_bytes(b"no image")
    digit_source._photographs.cache_clear()
    with pytest.raises(RequestError, match=r"two\.png \(grounds\) is no image"):
        drawn("train", **how)
