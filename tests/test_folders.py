"""Reading images from files: pixels checked against what was written, refusals by their words."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from kdnotes import data, paths
from kdnotes.data import folders, photos
from kdnotes.data.sources import torchvision_sets
from kdnotes.errors import RequestError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **how)
    return path


def fill(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """Class folders of 16x16 noise, whose seeds count on from start."""
    seed = start
    for name, count in classes.items():
        for index in range(count):
            save(root / name / f"{index:03}.png", noise(seed))
            seed += 1
    return root


def load(name: str, split: str, data_dir: Path | None = None, **options: object) -> data.ImageData:
    return data.load(data.DataSpec(name=name, split=split, options=options), data_dir)


def fingerprint(name: str, split: str, data_dir: Path | None = None, **options: object) -> str:
    spec = data.DataSpec(name=name, split=split, options=options)
    return data.with_fingerprint(spec, data_dir).fingerprint


def read(root: Path, split: str = "train", **options: object) -> data.ImageData:
    return load(f"imagefolder:{root}", split, **options)


def mark(root: Path, split: str = "train", **options: object) -> str:
    return fingerprint(f"imagefolder:{root}", split, **options)


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes every folder too large to be held in memory."""
    return lambda: monkeypatch.setattr(photos, "HELD", 1)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two classes of ten photos, without splits."""
    return fill(tmp_path / "plain", {"cat": 10, "dog": 10})


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Three training photos and two test photos of each of two classes."""
    fill(tmp_path / "split" / "train", {"cat": 3, "dog": 3})
    fill(tmp_path / "split" / "val", {"cat": 2, "dog": 2}, start=100)
    return tmp_path / "split"


# --- what is read ---------------------------------------------------------------------------


def test_pixels_labels_and_sources_of_given_splits(split: Path) -> None:
    train, test = read(split), read(split, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert train.images.dtype == torch.uint8
    for found, first in ((train, 0), (test, 100)):
        written = np.stack([noise(first + i).transpose(2, 0, 1) for i in range(len(found))])
        assert np.array_equal(found.images.numpy(), written)
    assert not set(train.sources.tolist()) & set(test.sources.tolist())
    assert len(set(test.sources.tolist())) == 4


@pytest.mark.parametrize("held_out", ["test", "val", "Val"])
def test_names_of_the_test_folder(split: Path, held_out: str) -> None:
    (split / "val").rename(split / held_out)
    assert len(read(split, "test")) == 4


def test_test_folder_goes_before_val_folder(split: Path) -> None:
    fill(split / "test", {"cat": 1, "dog": 1}, start=200)
    assert np.array_equal(read(split, "test").images[0].permute(1, 2, 0), noise(200))


def test_unlabelled_test_folder_is_passed_over_for_val(split: Path) -> None:
    save(split / "test" / "unknown.png", noise(9))
    assert len(read(split, "test")) == 4


def test_other_files_and_hidden_ones_are_ignored(plain: Path) -> None:
    before = read(plain)
    (plain / "cat" / "notes.txt").write_text("no image")
    (plain / "cat" / "._001.png").write_bytes(b"of another system")
    (plain / "readme.png").write_bytes(b"beside the class folders")
    (plain / ".git").mkdir()
    (plain / "__MACOSX").mkdir()
    after = read(plain)
    assert after.classes == ("cat", "dog")
    assert torch.equal(before.images, after.images)


def test_photos_in_deeper_folders_and_capital_endings(plain: Path) -> None:
    for name in ("cat", "dog"):
        save(plain / name / "images" / "deep.PNG", noise(50))
        save(plain / name / "images" / "deep.JPEG", noise(51))
    assert len(read(plain)) + len(read(plain, "test")) == 24


def test_linked_class_folder_is_read_and_a_loop_is_not_followed(plain: Path) -> None:
    shutil.move(plain / "dog", plain.parent / "elsewhere")
    (plain / "dog").symlink_to(plain.parent / "elsewhere")
    (plain / "cat" / "loop").symlink_to(plain)
    assert len(read(plain)) + len(read(plain, "test")) == 20


def test_home_and_relative_paths(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(plain).images
    monkeypatch.setenv("HOME", str(plain.parent))
    assert torch.equal(load("imagefolder:~/plain", "train").images, whole)
    monkeypatch.setenv("KDNOTES_BASE", str(plain.parent))
    relative = load("imagefolder:plain", "train")
    assert torch.equal(relative.images, whole)


def test_through_the_data_specification(plain: Path) -> None:
    spec = data.DataSpec(name=f"imagefolder:{plain}", split="train", count=5, seed=3)
    spec = data.with_fingerprint(spec, None)
    assert spec.fingerprint == mark(plain)
    some, whole = data.load(spec), read(plain)
    where = [whole.sources.tolist().index(source) for source in some.sources.tolist()]
    assert torch.equal(some.images, whole.images[where])


# --- the automatic split --------------------------------------------------------------------


def contents(found: data.ImageData) -> set[bytes]:
    return {image.numpy().tobytes() for image in found.images}


def test_automatic_split_is_disjoint_complete_and_stratified(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", {"a": 20, "b": 10, "c": 2})
    train, test = read(root), read(root, "test")
    assert torch.bincount(test.labels).tolist() == [4, 2, 1]
    assert torch.bincount(train.labels).tolist() == [16, 8, 1]
    assert not contents(train) & contents(test)
    assert len(contents(train) | contents(test)) == 32
    assert not set(train.sources.tolist()) & set(test.sources.tolist())


def test_automatic_split_hardly_moves_when_a_photo_is_added(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", {"a": 40, "b": 40})
    before = contents(read(root, "test"))
    save(root / "a" / "new.png", noise(999))
    assert len(before - contents(read(root, "test"))) <= 1


# --- sizes ----------------------------------------------------------------------------------


def test_size_is_kept_when_all_photos_share_a_small_one(plain: Path) -> None:
    assert read(plain).size == 16


@pytest.mark.parametrize(
    ("sides", "expected"), [((200, 300, 90), 64), ((20, 40, 30), 30), ((4, 4, 4), 8)]
)
def test_default_size(tmp_path: Path, sides: tuple[int, ...], expected: int) -> None:
    for name in ("a", "b"):
        for index, side in enumerate(sides):
            save(tmp_path / "p" / name / f"{index}.png", noise(index, side, side + 5))
    assert read(tmp_path / "p").size == read(tmp_path / "p", "test").size == expected


def test_shorter_side_is_scaled_and_the_centre_cropped(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = RED, GREEN, BLUE
    for name in ("a", "b"):
        save(tmp_path / "p" / "train" / name / "wide.png", wide)
        save(tmp_path / "p" / "train" / name / "tall.png", wide.transpose(1, 0, 2))
    images = read(tmp_path / "p", size=10).images
    assert images.shape == (4, 3, 10, 10)
    green = torch.tensor(GREEN)[:, None, None]
    inner = images[:, :, 2:-2, 2:-2].int()  # scaling blends the outermost with their neighbours
    assert torch.equal(inner, green.expand_as(inner))
    assert (images.argmax(dim=1) == 1).all()


def test_scaling_agrees_with_torch(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(noise(0, 6, 6)).resize((96, 96), Image.Resampling.BICUBIC))
    for name in ("a", "b"):
        save(tmp_path / "p" / "train" / name / "0.png", smooth)
    image = torch.from_numpy(smooth.copy()).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(image, (24, 24), mode="bicubic", antialias=True)
    expected = expected.clamp(0, 255)
    assert (read(tmp_path / "p", size=24).images[0] - expected[0]).abs().max() < 1.5


def test_large_jpeg_keeps_its_detail(tmp_path: Path) -> None:
    photo = Image.fromarray(noise(0, 50, 50)).resize((256, 256), Image.Resampling.BICUBIC)
    for name in ("a", "b"):
        path = save(tmp_path / "p" / "train" / name / "0.jpg", photo, quality=95)
    with Image.open(path) as stored:
        whole = np.asarray(stored.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    found = read(tmp_path / "p", size=32).images[0].permute(1, 2, 0).numpy()
    assert whole.std() > 20
    assert np.abs(found - whole).mean() < 3


# --- modes ----------------------------------------------------------------------------------


def grey_alpha() -> Image.Image:
    return Image.merge("LA", [Image.new("L", (16, 16), 100), Image.new("L", (16, 16), 128)])


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    return image


def deep_grey(values: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16), values, np.uint16))


def one_bit() -> Image.Image:
    image = Image.new("1", (16, 16), 1)
    image.putpixel((0, 0), 0)
    return image


@pytest.mark.parametrize(
    ("image", "ending", "how", "corner", "middle"),
    [
        (Image.new("RGB", (16, 16), (1, 2, 3)), "png", {}, (1, 2, 3), (1, 2, 3)),
        (Image.new("L", (16, 16), 77), "png", {}, (77,) * 3, (77,) * 3),
        # half of 100 and half of white
        (grey_alpha(), "png", {}, (177,) * 3, (177,) * 3),
        (palette_with_transparency(), "png", {}, RED, BLUE),
        (palette_with_transparency(), "png", {"transparency": 0}, (255,) * 3, BLUE),
        (palette_with_transparency(), "gif", {"transparency": 0}, (255,) * 3, BLUE),
        (palette_with_transparency(), "png", {"transparency": b"\xff\x00"}, RED, (255,) * 3),
        (Image.new("RGB", (16, 16), BLUE), "png", {"transparency": BLUE}, (255,) * 3, (255,) * 3),
        (Image.new("RGBA", (16, 16), (*RED, 0)), "png", {}, (255,) * 3, (255,) * 3),
        (Image.new("RGBA", (16, 16), (*RED, 255)), "webp", {"lossless": True}, RED, RED),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "tif", {}, RED, RED),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpg", {"quality": 100}, RED, RED),
        # 16 bits: 65535 is 255, 100 * 257 is 100, and 100.502 * 257 is nearer to 101
        (deep_grey(25829), "png", {}, (101,) * 3, (101,) * 3),
        (deep_grey(65535), "png", {}, (255,) * 3, (255,) * 3),
        (deep_grey(25700), "png", {}, (100,) * 3, (100,) * 3),
        (deep_grey(25700), "tif", {}, (100,) * 3, (100,) * 3),
        (deep_grey(25700), "pgm", {}, (100,) * 3, (100,) * 3),
        (one_bit(), "png", {}, (0,) * 3, (255,) * 3),
        (one_bit(), "bmp", {}, (0,) * 3, (255,) * 3),
    ],
)
def test_modes(
    tmp_path: Path,
    image: Image.Image,
    ending: str,
    how: dict[str, object],
    corner: tuple[int, ...],
    middle: tuple[int, ...],
) -> None:
    for name in ("a", "b"):
        save(tmp_path / "p" / "train" / name / f"0.{ending}", image, **how)
    found = read(tmp_path / "p").images[0].int()
    tolerance = 2 if ending == "jpg" else 0
    for place, colour in ((0, corner), (8, middle)):
        assert (found[:, place, place] - torch.tensor(colour)).abs().max() <= tolerance


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = RED, GREEN, BLUE
    stored = {  # EXIF 2.3, tag 0x0112: how the upright picture lies in the file
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a", "b"):
        path = tmp_path / "p" / "train" / name / f"0.{ending}"
        save(path, np.ascontiguousarray(stored), exif=exif)
    found = read(tmp_path / "p").images[0].permute(1, 2, 0).int()
    for (row, column), colour in {(3, 3): RED, (3, 12): GREEN, (12, 3): BLUE}.items():
        assert (found[row, column] - torch.tensor(colour)).abs().max() < 25


@pytest.mark.parametrize(
    ("values", "reason"),
    [(np.full((16, 16), 70000, np.int32), "16 bits"), (np.ones((16, 16), np.float32), "floating")],
)
def test_pixels_of_unknown_range_are_refused(plain: Path, values: np.ndarray, reason: str) -> None:
    save(plain / "cat" / "deep.tif", values)
    with pytest.raises(RequestError, match=rf"cat/deep\.tif \(.*{reason}"):
        read_both(plain)


# --- files that cannot be read --------------------------------------------------------------


def read_both(root: Path, **options: object) -> None:
    read(root, "train", **options)
    read(root, "test", **options)


def damage(root: Path) -> list[str]:
    """One file of each kind of damage in the training split; returns their names."""
    whole = save(root / "train" / "cat" / "truncated.jpg", noise(5, 64, 64)).read_bytes()
    (root / "train" / "cat" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "cat" / "text.png").write_text("not an image at all")
    (root / "train" / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "train" / "dog" / "void.png").touch()
    return [
        "train/cat/text.png",
        "train/cat/truncated.jpg",
        "train/dog/gone.png",
        "train/dog/void.png",
    ]


def test_damaged_files_are_named_and_refused(split: Path) -> None:
    damage(split)
    with pytest.raises(RequestError, match=r"2 of 14 files .*gone\.png \(empty\).*void\.png"):
        mark(split)
    (split / "train" / "dog" / "gone.png").unlink()
    (split / "train" / "dog" / "void.png").unlink()
    with pytest.raises(RequestError) as refusal:
        read(split)
    for part in (
        "2 of 8 files",
        "text.png (no image)",
        "truncated.jpg (",
        "-p skip_damaged=true",
        "--skip-damaged",
    ):
        assert part in str(refusal.value)
    assert len(read(split, "test")) == 4


def test_many_damaged_files_are_counted_and_five_named(plain: Path) -> None:
    for index in range(8):
        (plain / "cat" / f"void{index}.png").touch()
    with pytest.raises(
        RequestError, match=r"8 of 28 files .*void4\.png \(empty\) and 3 more"
    ) as refusal:
        read(plain)
    assert "void5" not in str(refusal.value)


@pytest.mark.parametrize("held", [True, False])
def test_damaged_files_are_skipped_on_request(
    split: Path, capsys: pytest.CaptureFixture[str], streaming: Callable[[], None], held: bool
) -> None:
    whole = read(split)
    names = damage(split)
    if not held:
        streaming()
    found = read(split, skip_damaged=True, size=16)
    shown = capsys.readouterr().err
    assert "skipped 4 of 10 files" in shown
    assert all(name in shown for name in names)
    assert torch.equal(found.batch(torch.arange(len(found))), whole.images)
    assert torch.equal(found.labels, whole.labels)
    assert len(set(found.sources.tolist())) == 6
    read(split, skip_damaged=True, size=16)
    assert "skipped 4 of 10 files" in capsys.readouterr().err
    with pytest.raises(RequestError, match="cannot be read"):
        read(split, size=16)


def test_skipping_does_not_hide_damage_from_those_who_did_not_ask(split: Path) -> None:
    (split / "train" / "dog" / "001.png").write_bytes(b"damaged")
    assert len(read(split, skip_damaged=True)) == 5
    with pytest.raises(RequestError, match="1 of 6 files"):
        read(split)


def test_a_class_with_nothing_readable_is_refused(split: Path) -> None:
    for path in (split / "train" / "cat").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(RequestError, match="no readable image of cat in the train split"):
        read(split, skip_damaged=True)


# --- folders that cannot be used ------------------------------------------------------------


def test_missing_folder_file_and_unknown_home(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(RequestError, match=f"no folder {tmp_path}/nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="is a file"):
        read(plain / "cat" / "000.png")
    with pytest.raises(RequestError, match=r"no folder .*~nobody-here/x"):
        load("imagefolder:~nobody-here/x", "train")
    with pytest.raises(RequestError, match="names no folder"):
        load("imagefolder:", "train")
    with pytest.raises(RequestError, match="no folder /xxx"):
        read(Path("/" + "x" * 5000))


def test_no_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "loose" / "a.png", noise(0))
    with pytest.raises(RequestError, match="no class folders"):
        read(tmp_path / "loose")


def test_split_folders_without_class_folders(tmp_path: Path) -> None:
    fill(tmp_path / "flat", {"train": 3, "test": 3})
    with pytest.raises(RequestError, match=r"splits in .*flat have no class folders"):
        read(tmp_path / "flat")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path / "vehicles", {"bus": 3, "train": 3})
    assert read(tmp_path / "vehicles").classes == ("bus", "train")


def test_single_class_names_the_folder_meant(tmp_path: Path) -> None:
    fill(tmp_path / "one" / "photos", {"cat": 2, "dog": 2})
    with pytest.raises(
        RequestError, match=f"single class folder.*imagefolder:{tmp_path}/one/photos"
    ):
        read(tmp_path / "one")


def test_empty_class_folders(plain: Path) -> None:
    (plain / "bird").mkdir()
    (plain / "bird" / "photo.heic").write_bytes(b"of a kind not read")
    with pytest.raises(RequestError, match=r"without images in .*: bird \(kinds read: .*jpeg"):
        read(plain)


def test_class_with_one_image_cannot_be_split(plain: Path) -> None:
    save(plain / "bird" / "only.png", noise(1))
    with pytest.raises(RequestError, match=r"'bird' .* has one image"):
        read(plain)


def test_splits_with_different_classes(split: Path) -> None:
    fill(split / "val", {"bird": 1})
    shutil.rmtree(split / "val" / "dog")
    with pytest.raises(RequestError, match="only in train: dog; only in test: bird"):
        read(split)


def test_missing_split(split: Path) -> None:
    shutil.rmtree(split / "val")
    assert len(read(split)) == 6
    with pytest.raises(RequestError, match="no test split: no folder test or val"):
        read(split, "test")
    (split / "train").rename(split / "val")
    assert len(read(split, "test")) == 6
    with pytest.raises(RequestError, match="no train split: no folder train"):
        mark(split)


def test_domains_are_not_taken_for_classes(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        fill(tmp_path / "pacs" / domain, {"dog": 3, "horse": 3})
    with pytest.raises(RequestError, match=f"Name one, such as imagefolder:{tmp_path}/pacs/photo"):
        read(tmp_path / "pacs")
    assert read(tmp_path / "pacs" / "photo").classes == ("dog", "horse")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for the superuser")
def test_folder_without_permission(plain: Path) -> None:
    (plain / "cat").chmod(0)
    try:
        with pytest.raises(RequestError, match="cat cannot be read"):
            read(plain)
    finally:
        (plain / "cat").chmod(0o755)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"sise": 32},
            "sise: no such option .*known: size, skip_damaged, groups",
        ),
        ({"size": 2}, "size: .*greater than or equal to 8"),
        ({"size": "large"}, "size: .*integer"),
        ({"split_seed": 1}, "split_seed: no such option"),
    ],
)
def test_wrong_options(plain: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read(plain, **options)
    with pytest.raises(RequestError, match=words):
        mark(plain, **options)


# --- streaming ------------------------------------------------------------------------------


def test_streaming_equals_memory(tmp_path: Path, streaming: Callable[[], None]) -> None:
    for index in range(100):
        name = "ab"[index % 2]
        save(tmp_path / "p" / "train" / name / f"{index}.jpg", noise(index, 40 + index, 90))
    held = read(tmp_path / "p", size=24)
    streaming()
    streamed = read(tmp_path / "p", size=24)
    assert isinstance(held.images, torch.Tensor)
    assert isinstance(streamed.images, photos.StreamingImages)
    assert len(streamed) == len(streamed.images) == 100
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(streamed.batch(order), held.batch(order))
    assert torch.equal(streamed.labels, held.labels)
    assert torch.equal(streamed.sources, held.sources)
    assert torch.equal(streamed.subset(order[:7]).images, held.subset(order[:7]).images)
    assert streamed.batch(order[:0]).shape == (0, 3, 24, 24)
    assert streamed.size == 24


def test_streaming_names_a_damaged_file_when_it_is_reached(
    split: Path, streaming: Callable[[], None]
) -> None:
    (split / "train" / "dog" / "001.png").write_bytes(b"damaged")
    streaming()
    streamed = read(split)
    assert streamed.batch(torch.arange(4)).shape[0] == 4
    with pytest.raises(RequestError, match=r"train/dog/001\.png \(no image\)"):
        streamed.batch(torch.arange(6))


# --- names of the content -------------------------------------------------------------------


def test_mark_follows_the_content_and_not_the_place(plain: Path) -> None:
    before = mark(plain)
    shutil.copytree(plain, plain.parent / "copy")  # keeps times
    assert mark(plain.parent / "copy") == before
    assert mark(plain, "test") != before
    assert mark(plain, size=8) != before
    assert mark(plain, size=16) == before
    names = sorted((plain / "cat").iterdir())
    os.utime(names[0], ns=(1, 1))
    os.utime(names[1], ns=(1, 1))
    touched = {mark(plain), mark(plain, "test")}
    assert len(touched - {before, mark(plain.parent / "copy", "test")}) >= 1


def test_equal_names_lengths_and_times_with_other_pixels_are_told_apart(tmp_path: Path) -> None:
    for root, first in ((tmp_path / "one", 0), (tmp_path / "two", 50)):
        for index in range(4):
            path = save(root / "train" / "ab"[index % 2] / f"{index}.ppm", noise(first + index))
            os.utime(path, ns=(0, 0))
    assert mark(tmp_path / "one") != mark(tmp_path / "two")
    assert not contents(read(tmp_path / "one")) & contents(read(tmp_path / "two"))


def test_changed_photo_is_read_anew(split: Path) -> None:
    before, name = mark(split), split / "train" / "cat" / "000.png"
    assert np.array_equal(read(split).images[0].permute(1, 2, 0), noise(0))
    save(name, noise(77))
    assert mark(split) != before
    assert np.array_equal(read(split).images[0].permute(1, 2, 0), noise(77))


# --- torchvision's sets ---------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    """Bytes of an IDX file of uint8 (LeCun's format): magic, lengths, values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def digits(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return (
        generator.integers(0, 256, (count, 28, 28), np.uint8),
        generator.integers(0, 10, count).astype(np.uint8),
    )


def mnist_files(folder: str = "MNIST") -> dict[str, bytes]:
    files = {}
    for prefix, seed, count in (("train", 1, 12), ("t10k", 2, 5)):
        images, labels = digits(seed, count)
        files[f"{folder}/raw/{prefix}-images-idx3-ubyte"] = idx(images)
        files[f"{folder}/raw/{prefix}-labels-idx1-ubyte"] = idx(labels)
    return files


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_grey_sets_ready_in_a_read_only_folder(tmp_path: Path, name: str, folder: str) -> None:
    root = write(tmp_path / "ready", mnist_files(folder))
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root.chmod(0o555)
    before = sorted(root.rglob("*"))
    train = load(name, "train", root)
    test = load(name, "test", root)
    for found, (images, labels) in ((train, digits(1, 12)), (test, digits(2, 5))):
        assert found.images.shape == (len(labels), 3, 28, 28)
        for channel in range(3):
            assert np.array_equal(found.images[:, channel], images)
        assert found.labels.tolist() == labels.tolist()
    assert len(train.classes) == 10
    assert not set(train.sources.tolist()) & set(test.sources.tolist())
    assert sorted(root.rglob("*")) == before


def test_mark_of_a_grey_set_follows_its_files(tmp_path: Path) -> None:
    root = write(tmp_path / "ready", mnist_files())
    before = fingerprint("mnist", "train", root)
    assert fingerprint("mnist", "train", shutil.copytree(root, tmp_path / "b")) == before
    labels = root / "MNIST/raw/train-labels-idx1-ubyte"
    raw = bytearray(labels.read_bytes())
    raw[-1] ^= 1
    labels.write_bytes(raw)
    assert fingerprint("mnist", "train", root) != before


def test_missing_set_names_folder_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "mine"))
    for name, file in (("mnist", "MNIST/raw/train-images"), ("cifar10", "cifar-10-batches-py/")):
        for act in (load, fingerprint):
            with pytest.raises(RequestError) as refusal:
                act(name, "train", tmp_path)
            words = str(refusal.value)
            assert all(
                w in words for w in (str(tmp_path), file, "data_dir", str(tmp_path / "mine"))
            )
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03 cut"),
        ("train-labels-idx1-ubyte", idx(np.zeros(7, np.uint8))),
    ],
)
def test_damaged_set(tmp_path: Path, file: str, content: bytes) -> None:
    root = write(tmp_path, mnist_files() | {f"MNIST/raw/{file}": content})
    with pytest.raises(RequestError, match=r"mnist: the files under .* get them again"):
        load("mnist", "train", root)


def test_cifar_that_is_not_the_published_one_is_refused_unread(tmp_path: Path) -> None:
    kind = datasets.CIFAR10
    for file in [*(f for f, _ in kind.train_list + kind.test_list), kind.meta["filename"]]:
        # unpickling this would end the process
        write(tmp_path, {f"{kind.base_folder}/{file}": b"cos\n_exit\n(I1\ntR."})
    with pytest.raises(RequestError, match="damaged"):
        load("cifar10", "train", tmp_path)


def test_sets_take_no_options(tmp_path: Path) -> None:
    root = write(tmp_path, mnist_files())
    for act in (load, fingerprint):
        with pytest.raises(RequestError, match=r"mnist: size: no such option \(known: none"):
            act("mnist", "train", root, size=32)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_what_is_declared_is_what_torchvision_has(name: str) -> None:
    declared = torchvision_sets._SETS[name]
    kind = getattr(datasets, declared.kind)
    if "mnist" in name:
        lists = [kind.resources]
        files = [f"{kind.__name__}/raw/{file.removesuffix('.gz')}" for file, _ in kind.resources]
    else:
        lists = [kind.train_list, kind.test_list, kind.meta]
        parts = [*kind.train_list, *kind.test_list, (kind.meta["filename"], "")]
        files = [f"{kind.base_folder}/{file}" for file, _ in parts]
    assert declared.paths == files
    digest = hashlib.sha256(json.dumps([name, *lists]).encode()).hexdigest()
    assert declared.content == digest[:16]
    classes = data.source(name).classes
    assert len(set(classes)) == (100 if name == "cifar100" else 10)
    assert list(classes) == sorted(classes) or "mnist" in name  # CIFAR's are in their order
    if name == "fashion-mnist":
        assert list(classes) == kind.classes
    assert data.source(name).mirrored == (name != "mnist")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server that MNIST is downloaded from; KDNOTES_DATA is an empty folder."""
    served = tmp_path / "served"
    resources = []
    for name, content in mnist_files().items():
        packed = gzip.compress(content)
        file = f"{Path(name).name}.gz"
        write(served, {file: packed})
        resources.append((file, hashlib.md5(packed).hexdigest()))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    yield served
    server.shutdown()
    server.server_close()


def test_download_says_so_once_and_only_where_no_folder_is_given(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    expected = fingerprint("mnist", "train")
    assert not mine.exists()
    first = load("mnist", "train")
    assert capsys.readouterr().err == f"kdnotes: downloading mnist into {mine}\n"
    assert np.array_equal(first.images[:, 0], digits(1, 12)[0])
    assert all((mine / name).is_file() for name in mnist_files())
    shutil.rmtree(mirror)
    again = load("mnist", "train")
    assert torch.equal(first.images, again.images)
    assert capsys.readouterr().err == ""
    assert fingerprint("mnist", "train") == expected


def test_failed_download_is_not_taken_for_whole(mirror: Path) -> None:
    whole = (mirror / "t10k-labels-idx1-ubyte.gz").read_bytes()
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(whole[:-9])
    with pytest.raises(RequestError, match=r"could not be downloaded .*data_dir"):
        load("mnist", "train")
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(whole)
    assert len(load("mnist", "test")) == 5


def test_no_network(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    with pytest.raises(RequestError, match=f"not in {tmp_path}/mine .*MNIST/raw/train-images"):
        load("mnist", "train")


def test_data_folder_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDNOTES_DATA", raising=False)
    assert torchvision_sets.data_folder().name == "kdnotes"
    monkeypatch.setenv("KDNOTES_DATA", "~/some")
    assert torchvision_sets.data_folder() == Path.home() / "some"


@pytest.mark.skipif(
    not os.environ.get("KDNOTES_TEST_DATA"),
    reason="KDNOTES_TEST_DATA does not name a folder with the real MNIST",
)
def test_real_mnist() -> None:
    root = Path(os.environ["KDNOTES_TEST_DATA"])
    train = load("mnist", "train", root)
    test = load("mnist", "test", root)
    # LeCun's page: 60,000 and 10,000; the first labels; the pixel mean everyone normalises with
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train.classes == tuple("0123456789")


# --- groups of photos -----------------------------------------------------------------------


def write_table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def grouped(split: Path) -> Path:
    """The split folder with a table of three groups; one photo has none, one row no photo."""
    write_table(
        split / "faces.csv",
        "file,race,group",
        "train/cat/000.png,one,b",
        "train/cat/001.png,two,a",
        "train/cat/002.png,one,",
        "./train/dog/000.png,two,a",
        "train\\dog\\001.png,one,b",
        "train/dog/002.png,one,c",
        "val/cat/000.png,two,a",
        "val/dog/001.png,one,b",
        "train/dog/gone.png,three,z",
    )
    return split


def test_groups_are_read_from_a_table(grouped: Path) -> None:
    train, test = read(grouped, groups="faces.csv"), read(grouped, "test", groups="faces.csv")
    assert train.names == test.names == {"group": ("a", "b", "c")}
    assert train.factors["group"].tolist() == [1, 0, -1, 0, 1, 2]
    assert test.factors["group"].tolist() == [0, -1, -1, 1]
    race = read(grouped, groups="faces.csv:race")
    assert race.names["group"] == ("one", "two")
    assert race.factors["group"].tolist() == [0, 1, 0, 1, 0, 0]
    assert torch.equal(race.images, read(grouped).images)
    few = race.subset(torch.tensor([5, 1]))
    assert few.names == race.names
    assert few.factors["group"].tolist() == [0, 1]
    assert read(grouped).factors == read(grouped).names == {}


def test_a_table_where_the_command_was_typed_goes_first(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("KDNOTES_BASE", str(elsewhere))
    assert read(grouped, groups="faces.csv").names["group"] == ("a", "b", "c")
    write_table(elsewhere / "faces.csv", "group,file", "q,train/cat/000.png")
    assert read(grouped, groups="faces.csv").names["group"] == ("q",)
    absolute = f"{grouped}/faces.csv:race"
    assert read(grouped, groups=absolute).names["group"] == ("one", "two")
    assert paths.without_absolute_paths(absolute) == "../split/faces.csv:race"


@pytest.mark.parametrize("held", [True, False])
def test_groups_are_left_out_and_keep_their_numbers(
    grouped: Path, streaming: Callable[[], None], held: bool
) -> None:
    if not held:
        streaming()
    how = {"groups": "faces.csv"}
    whole, less = read(grouped, **how), read(grouped, leave_out=("a", "c"), **how)
    assert less.names == whole.names
    assert less.factors["group"].tolist() == [1, -1, 1]
    assert less.labels.tolist() == [0, 0, 1]
    kept = torch.tensor([0, 2, 4])
    assert torch.equal(less.batch(torch.arange(3)), whole.batch(kept))


def test_images_have_one_size_whoever_is_left_out(grouped: Path) -> None:
    for name in ("cat/000.png", "dog/001.png"):  # group b
        save(grouped / "train" / name, noise(0, 40, 40))
    how = {"groups": "faces.csv"}
    assert read(grouped, leave_out=("a", "c"), **how).size == read(grouped, **how).size == 16


def test_groups_enter_the_mark_and_nothing_else_moves_it(grouped: Path) -> None:
    marks = [
        mark(grouped),
        mark(grouped, groups="faces.csv"),
        mark(grouped, groups="faces.csv:race"),
        mark(grouped, groups="faces.csv", leave_out=("a",)),
        mark(grouped, groups="faces.csv", leave_out=("c",)),
    ]
    assert len(set(marks)) == len(marks)
    before = mark(grouped, groups="faces.csv")
    with (grouped / "faces.csv").open("a") as stream:
        stream.write("train/dog/another.png,one,z\n")
    assert mark(grouped, groups="faces.csv") == before  # no photo here has that name
    with (grouped / "faces.csv").open("a") as stream:
        stream.write("train/cat/002.png,one,c\n")
    assert mark(grouped, groups="faces.csv") != before
    spec = data.DataSpec(
        name=f"imagefolder:{grouped}", split="train", options={"groups": "faces.csv"}
    )
    assert data.with_fingerprint(spec, None).identity()["options"] == {}


def test_marks_without_groups_and_domains_are_those_of_before(tmp_path: Path) -> None:
    root = fill(tmp_path / "p" / "train", {"cat": 2, "dog": 1}).parent
    for index, path in enumerate(sorted(root.rglob("*.png"))):
        path.write_bytes(f"P3 1 1 255 {index} 0 0\n".encode())
        os.utime(path, ns=(0, 7))
    assert mark(root, size=8) == "e2a264cc1dc9b4e5"  # worked out by hand


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": "none.csv"}, r"no file 'none\.csv' \(groups\)"),
        ({"groups": "none.csv:race"}, r"no file 'none\.csv' \(groups\)"),
        ({"groups": "faces.csv:age"}, "no column 'age'; it has: file, race, group"),
        ({"groups": "other.csv"}, "no column 'file'; it has: photo, group"),
        ({"groups": "far.csv"}, r"names no image of .*such as train/cat/000\.png"),
        ({"groups": "twice.csv"}, r"puts val/cat/000\.png into two groups: a and b"),
        ({"groups": "binary.csv"}, "cannot be read as a CSV"),
        (
            {"groups": "faces.csv", "leave_out": ("z",)},
            r"no image is in the group 'z'; groups in faces\.csv: a, b, c",
        ),
        ({"leave_out": ("a",)}, "name the CSV"),
        ({"groups": "dogs.csv", "leave_out": ("d",)}, "hold all images of dog in the train split"),
    ],
)
def test_tables_that_cannot_be_used(grouped: Path, options: dict[str, object], words: str) -> None:
    write_table(grouped / "other.csv", "photo,group", "train/cat/000.png,a")
    write_table(grouped / "far.csv", "file,group", "cat/000.png,a")
    write_table(grouped / "twice.csv", "file,group", "val/cat/000.png,a", "val/cat/000.png,b")
    (grouped / "binary.csv").write_bytes(b"file,group\n\xff\xfe\0,a\n")
    dogs = [f"train/dog/{index:03}.png,d" for index in range(3)]
    write_table(grouped / "dogs.csv", "file,group", *dogs)
    with pytest.raises(RequestError, match=words):
        read(grouped, **options)
    with pytest.raises(RequestError, match=words):
        mark(grouped, **options)


# --- domain folders -------------------------------------------------------------------------


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    """Domains that hold class folders, and a folder beside them that is none."""
    for number, domain in enumerate(("art", "photo", "sketch")):
        fill(tmp_path / "pacs" / domain, {"dog": 10, "horse": 5}, start=100 * number)
    save(tmp_path / "pacs" / "lists" / "loose.png", noise(7))
    return tmp_path / "pacs"


@pytest.fixture
def vlcs(tmp_path: Path) -> Path:
    """Domains with the splits that VLCS comes with."""
    counts = {"train": 3, "crossval": 2, "test": 1, "full": 4}
    for number, (domain, part) in enumerate(
        (domain, part) for domain in ("CALTECH", "SUN") for part in counts
    ):
        classes = {"bird": counts[part], "car": counts[part]}
        fill(tmp_path / "vlcs" / domain / part, classes, start=100 * number)
    return tmp_path / "vlcs"


def test_domains_with_class_folders_are_split_one_by_one(pacs: Path) -> None:
    assert folders.domain_names(f"imagefolder:{pacs}") == ("art", "photo", "sketch")
    chosen = {"domains": ("sketch", "art")}
    train, test = read(pacs, **chosen), read(pacs, "test", **chosen)
    assert train.classes == test.classes == ("dog", "horse")
    assert train.names == test.names == {"domain": ("art", "sketch")}
    for found, dogs, horses in ((train, 8, 4), (test, 2, 1)):
        for number, domain in enumerate(("art", "sketch")):
            here = found.factors["domain"] == number
            assert torch.bincount(found.labels[here]).tolist() == [dogs, horses]
            # the same photos as where the domain is read alone, though not the same split
            alone = contents(read(pacs / domain)) | contents(read(pacs / domain, "test"))
            assert {image.numpy().tobytes() for image in found.images[here]} <= alone
    assert not contents(train) & contents(test)
    assert len(contents(train) | contents(test)) == 30


def test_domains_with_given_splits(vlcs: Path) -> None:
    chosen = {"domains": ("CALTECH", "SUN")}
    train, test = read(vlcs, **chosen), read(vlcs, "test", **chosen)
    assert train.factors["domain"].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert train.labels.tolist() == [0] * 6 + [1] * 6
    assert len(test) == 4
    for number, domain in enumerate(("CALTECH", "SUN")):
        for found, split in ((train, "train"), (test, "test")):
            here = found.images[found.factors["domain"] == number]
            assert torch.equal(here, read(vlcs / domain, split).images)


def test_domains_enter_the_mark(pacs: Path) -> None:
    one, two = mark(pacs, domains=("art",)), mark(pacs, domains=("art", "photo"))
    assert one != two
    assert mark(pacs, domains=("photo", "art")) == two
    assert mark(pacs, "test", domains=("art", "photo")) != two


def test_groups_and_domains_together(pacs: Path) -> None:
    write_table(pacs / "t.csv", "file,group", "art/dog/000.png,a", "photo/dog/001.png,b")
    found = read(pacs, domains=("art", "photo"), groups="t.csv")
    assert found.names == {"domain": ("art", "photo"), "group": ("a", "b")}


def test_domains_that_cannot_be_used(pacs: Path, vlcs: Path) -> None:
    with pytest.raises(RequestError, match=r"'foto' with class .*it has: art, photo, sketch"):
        read(pacs, domains=("art", "foto"))
    fill(pacs / "photo", {"cat": 3})
    with pytest.raises(RequestError, match=r"domains in .* different classes; only in photo: cat"):
        read(pacs, domains=("art", "photo"))
    shutil.rmtree(vlcs / "SUN" / "test")
    with pytest.raises(RequestError, match=r"domain 'SUN' in .* has a train split only"):
        mark(vlcs, domains=("CALTECH", "SUN"))
    shutil.rmtree(pacs / "lists")
    shutil.rmtree(pacs / "photo" / "cat")
    with pytest.raises(RequestError, match="only the teacher sees, as in unseen=art"):
        read(pacs)


def cifar_files(train: int = 20, test: int = 10) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files as CIFAR-10's are, with images of noise; and these images by split and name."""
    labels, pictures, files = cifar_classes(), {}, {}
    for split, count, batches in (("train", train, 5), ("test", test, 1)):
        each = count // batches
        for batch in range(batches):
            places = range(batch * each, (batch + 1) * each)
            names = [f"{labels[place % 10]}_s_{place:06}.png" for place in places]
            pixels = [noise(place + 1000 * (split == "test"), 32, 32) for place in places]
            pictures |= {f"{split}/{name}": one for name, one in zip(names, pixels, strict=True)}
            content = {
                "data": np.stack([one.transpose(2, 0, 1).reshape(-1) for one in pixels]),
                "labels": [place % 10 for place in places],
                "filenames": names,
            }
            file = f"data_batch_{batch + 1}" if split == "train" else "test_batch"
            files[f"cifar-10-batches-py/{file}"] = pickle.dumps(content)
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": list(labels)})
    return files, pictures


def cifar_classes() -> tuple[str, ...]:
    found = data.source("cifar10").classes
    assert found
    return found


def test_cifar_by_a_list_equals_a_folder_of_these_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published from a folder can be made again from the original files."""
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *given: True)
    files, pictures = cifar_files(train=40)
    write(tmp_path / "original", files)
    rows = []
    for name, pixels in pictures.items():
        split, file = name.split("/")
        if split == "test" or int(file[-10:-4]) < 30:
            within = f"{split}/{file.partition('_')[0]}/{file}"
            save(tmp_path / "folder" / within, pixels)
            rows.append((split, within))
    listed = tmp_path / "images.csv"
    listed.write_text("split,file\n" + "".join(f"{s},{f}\n" for s, f in sorted(rows)))
    for split, count in (("train", 30), ("test", 10)):
        chosen = load(f"cifar10:{listed}", split, tmp_path / "original")
        folder = load(f"imagefolder:{tmp_path / 'folder'}", split)
        assert len(chosen) == count
        assert chosen.classes == folder.classes
        for attribute in ("images", "labels", "sources"):
            assert torch.equal(getattr(chosen, attribute), getattr(folder, attribute))
        whole = load("cifar10", split, tmp_path / "original")
        assert fingerprint(f"cifar10:{listed}", split) != fingerprint("cifar10", split)
        assert len(whole) == (40 if split == "train" else 10)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file\nairplane_s_000000.png\n", "columns split and file"),
        ("split,file\ntrain,airplane_s_000000.png\n", "no image of the test split"),
        ("split,file\ntrain,x.png\ntest,airplane_s_000000.png\n", "names x.png in the train split"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *given: True)
    root = write(tmp_path, cifar_files()[0] | {"images.csv": content.encode()})
    with pytest.raises(RequestError, match=words):
        load(f"cifar10:{root / 'images.csv'}", "train", root)
    with pytest.raises(RequestError, match="unknown data set"):
        load(f"mnist:{root / 'images.csv'}", "train", root)


def test_counts_of_groups(tmp_path: Path) -> None:
    root = fill(tmp_path / "faces" / "train", {"a": 8, "b": 8})
    fill(tmp_path / "faces" / "test", {"a": 4, "b": 4}, start=100)
    root = root.parent
    rows = [
        f"{path.relative_to(root).as_posix()},{'old' if int(path.stem) % 2 else 'young'}"
        for path in sorted(root.rglob("*.png"))
    ]
    (root / "groups.csv").write_text("file,group\n" + "\n".join(rows) + "\n")
    name = f"imagefolder:{root}"
    chosen = load(name, "train", groups="groups.csv", counts="old=3, young=7")
    assert chosen.names["group"] == ("old", "young")
    assert torch.bincount(chosen.factors["group"]).tolist() == [3, 7]
    again = load(name, "train", groups="groups.csv", counts="old=3, young=7")
    assert torch.equal(chosen.images, again.images)
    whole = {one.numpy().tobytes() for one in load(name, "train").images}
    assert {one.numpy().tobytes() for one in chosen.images} < whole
    tested = load(name, "test", groups="groups.csv", counts="old=3, young=7")
    assert torch.bincount(tested.factors["group"]).tolist() == [4, 4]
    few = load(name, "train", groups="groups.csv", counts="old=0")
    assert torch.bincount(few.factors["group"]).tolist() == [0, 8]
    for counts, words in (
        ("old=9", "old has 8 training images, not 9"),
        ("new=3", "no image is in the group 'new'"),
        ("old=3,old=4", "names a group twice"),
        ("3,4", "such as Black=600"),
        ("old=-1", "such as Black=600"),
    ):
        with pytest.raises(RequestError, match=words):
            load(name, "train", groups="groups.csv", counts=counts)
    with pytest.raises(RequestError, match="leave_out and counts name groups"):
        load(name, "train", counts="old=3")
