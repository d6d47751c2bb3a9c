"""What cannot be right is refused before work: every parameter of every chapter, and what fits."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from asked import BOOK, wrong_values
from PIL import Image
from tiny_book import files_under, kdnotes

from kdnotes.book import parameters, running
from kdnotes.probes.localization import SMALLEST_MAP

CHAPTERS = sorted(path.stem for path in BOOK.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which nothing may be left, with a cache in which nothing may be made."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "cache"))
    yield folder
    assert files_under(folder) == []
    assert not (tmp_path / "cache").exists()


def photos(folder: Path, *classes: str, size: int = 32, count: int = 12) -> str:
    """A folder of images for each class; its name as a data set."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((size, size, 3), number, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return f"imagefolder:{folder}"


def refusal(*arguments: str) -> str:
    """What the command line says to a wrong request, at once, in one line and with status 2."""
    started = time.monotonic()
    done = kdnotes("run", *arguments, "--out", "out")
    assert done.exit_code == 2, (arguments, done.output, done.exception)
    assert time.monotonic() - started < 3 * (os.getloadavg()[0] + 1)
    assert done.stdout == ""
    assert done.stderr.startswith("kdnotes: ")
    return done.stderr


@pytest.mark.parametrize("stem", CHAPTERS)
def test_no_parameter_takes_what_it_does_not_allow(stem: str) -> None:
    name = stem[3:] if stem[0].isdigit() else stem
    for each in parameters.read(BOOK / f"{stem}.ipynb").values():
        assert each.kind == "bool" or each.allowed
        for value in wrong_values(each):
            if each.optional and not value:
                continue
            said = refusal(name, "-p", f"{each.name}={value}")
            assert each.name in said or "name" in each.allowed, said


def test_the_ends_of_every_range_are_allowed() -> None:
    for stem in CHAPTERS:
        for each in parameters.read(BOOK / f"{stem}.ipynb").values():
            low, to, high = (
                each.allowed.removeprefix("each ").removeprefix("whole, ").partition(" to ")
            )
            if to:
                assert str(each.parse(low)).startswith(low)
                assert each.parse(high) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fidelity -p train_count=9", "'train_count' must be a whole number (10 to"),
        ("dose -p train_count=20", "5 training images cannot show 10 classes"),
        ("fidelity -p dataset=cifar100 -p train_count=50", "50 training images cannot show 100"),
        ("fidelity -p first_seed=99", "seeds 99 to 103 do not lie in one range"),
        ("fidelity -p methods=kl,,hint", "unknown method ''"),
        ("fidelity -p student=vgg-smal", "did you mean vgg-small"),
        ("fidelity -p teacher=resnet81", "did you mean resnet"),
        ("domain-adaptation -p dataset=cifar10", "dataset must be digits or mnist, not 'cifar10'"),
        ("decision-boundaries -p dataset=scenes", "dataset must be digits or mnist"),
        ("unseen-domains -p unseen=sketch", "unseen is for a folder of images"),
        ("shape-and-cue-bias -p conflict=.", "conflict is for photographs"),
        ("bias -p groups=groups.csv", "groups, unseen, counts need a folder of images"),
        ("bias -p counts=dark=20", "groups, unseen, counts need a folder of images"),
        ("bias -p dataset=digits -p counts=dark=20", "name the CSV with them as groups, too"),
        ("domain-adaptation -p grounds=nowhere", "no photographs in nowhere/train (grounds)"),
        ("fidelity -p dataset=cifar10:no.csv", "no.csv (dataset) must be a CSV"),
        ("fidelity -p dataset=mnist:no.csv", "unknown data set 'mnist:no.csv'"),
        ("bias -p dataset=digits -p unseen=dark", "name the CSV with them as groups, too"),
        ("localization -p student=vgg11", "those of vgg11 have 2 and 1 on a side"),
        ("fidelity -p student=vit_tiny_patch16_224", "cannot be shown images of 32 x 32 pixels"),
        ("architectures -p eps=4 -p attacked=3", "'attacked' must be a whole number (4 to"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: str, said: str) -> None:
    assert said in refusal(*arguments.split())


def test_folders_are_looked_at_first(tmp_path: Path) -> None:
    def said(name: str, **given: str) -> str:
        return refusal(name, *(f"-p{key}={value}" for key, value in given.items()))

    photos(tmp_path / "untested" / "train", "cat", "dog")
    assert "has no test split" in said("fidelity", dataset=f"imagefolder:{tmp_path / 'untested'}")
    small = photos(tmp_path / "small", "cat", "dog", size=8)
    assert "shifts go up to 14" in said("crop-and-shift-invariance", dataset=small, shift="15")
    assert "those of vgg-medium have 2 and 1 on" in said("localization", dataset=small)
    large = photos(tmp_path / "large", "cat", "dog", size=64)
    assert "vit-tiny takes images of 32 pixels" in said(
        "fidelity", dataset=large, student="vit-tiny"
    )
    many = photos(tmp_path / "many", *map(str, range(12)))
    assert "11 training images cannot" in said("fidelity", dataset=many, train_count="11")
    conflicts = said("shape-and-cue-bias", dataset=large, conflict=str(tmp_path / "small"))
    assert "is named like cat/cat1-dog2.png" in conflicts
    assert "no folder" in said("shape-and-cue-bias", dataset=large, conflict="nothing")


def test_the_chapter_on_maps_asks_for_those_that_its_probe_takes() -> None:
    """At 25 to 32 pixels the last maps of the book's networks have four cells on a side."""
    request = running.request(running.chapter("localization"), {"student": "vit-tiny"})
    plan = next(iter(request.study.plans.values()))
    plan.needs_maps(2, SMALLEST_MAP)
    with pytest.raises(ValueError, match="needs maps of 5 x 5 cells"):
        plan.needs_maps(2, SMALLEST_MAP + 1)
