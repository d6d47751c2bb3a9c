"""The registry of data sets: one file adds one, and planning with them imports no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdnotes import data
from kdnotes.data import sources
from kdnotes.errors import RequestError

ONE_FILE = """
from pydantic import BaseModel, ConfigDict, Field

from kdnotes.data import ImageData, Source


class StripeOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = Field(default=2, ge=1, le=8)


def load(spec, options, data_dir):
    import torch

    across = torch.arange(16) // options.width % 2 * 255
    image = across.expand(3, 16, 16).to(torch.uint8)
    images = torch.stack([image, image.transpose(1, 2)] * 5)
    return ImageData(images, torch.arange(10) % 2, ("lying", "standing"), torch.arange(10))


def fingerprint(spec, options, data_dir):
    return "stripes-1"


SOURCES = (Source("stripes", load, fingerprint, StripeOptions, ("lying", "standing")),)
"""


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is known is looked up anew in the test and after it."""
    data._sources.cache_clear()
    yield
    data._sources.cache_clear()
    for name in ("kdnotes.data.sources.stripes", "stripes"):
        sys.modules.pop(name, None)


def check_stripes() -> None:
    assert "stripes" in data.names()
    spec = data.DataSpec(name="stripes", split="train", count=4, options={"width": 4})
    assert data.with_fingerprint(spec, None).fingerprint == "stripes-1"
    found = data.load(spec)
    assert len(found) == 4
    assert found.images[0, 0, 0].tolist() == ([0] * 4 + [255] * 4) * 2 or found.labels[0] == 1
    assert data.source("stripes").classes == found.classes
    assert not data.source("stripes").mirrored
    with pytest.raises(RequestError, match=r"options of stripes: width: .*8 \(known: width\)"):
        data.load(spec.model_copy(update={"options": {"width": 9}}))


def test_a_file_among_the_sources_is_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    (tmp_path / "stripes.py").write_text(ONE_FILE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    check_stripes()


def test_another_package_adds_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    (tmp_path / "stripes.py").write_text(ONE_FILE)
    about = tmp_path / "stripes-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[kdnotes.data]\nstripes = stripes:SOURCES\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_stripes()


def test_planning_with_data_sets_imports_no_torch(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "a.ppm").write_bytes(b"P6 8 8 255 " + bytes(192))
    (tmp_path / "groups.csv").write_text("file,group\ntrain/cat/a.ppm,one\n")
    code = f"""
import sys
from kdnotes import data
from kdnotes.data.views import ColorJitter, Crops, ResizedCrops, Views
len(Views()), Views().centre, ColorJitter(), Crops(), ResizedCrops()
groups = {{"groups": "groups.csv"}}
folder = data.DataSpec(name="imagefolder:{tmp_path}", split="train", options=groups)
for spec in (folder, *(data.DataSpec(name=n, split="train") for n in data.names() if ":" not in n)):
    data.source(spec.name)
    data.with_fingerprint(spec, None).key()
print([name for name in ("torch", "torchvision", "pandas", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_names_with_and_without_paths() -> None:
    assert set(data.names()) == {
        *("scenes", "scenes-of-mnist", "digits", "mnist", "fashion-mnist", "cifar10", "cifar100"),
        "imagefolder:PATH",
    }
    assert data.source("imagefolder:/photos").classes is None
    for wrong in ("imagefolder", "scenes:/photos", "photos"):
        with pytest.raises(RequestError, match=f"unknown data set '{wrong}'; known: .*scenes"):
            data.source(wrong)


def test_a_part_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    whole = data.load(data.DataSpec(name="scenes", split="train", count=40))
    part = whole.sample(15, seed=3)
    assert torch.equal(part.images, whole.sample(15, seed=3).images)
    assert not torch.equal(part.images, whole.sample(15, seed=4).images)
    assert len(part.sources.unique()) == 15
    assert whole.sample(40, seed=3) is whole
