"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, as torchvision reads and downloads them."""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
from contextlib import nullcontext, redirect_stderr
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kdnotes.data import TEST_SOURCE_OFFSET, DataSpec, ImageData, NoOptions, Source
from kdnotes.errors import RequestError, brief
from kdnotes.lazy import torch
from kdnotes.paths import base_folder, data_folder
from kdnotes.store import checksum


class _Set(NamedTuple):
    """A set as torchvision has it; ``content``: made from the MD5s of its published files."""

    kind: str
    folder: str
    files: list[str]
    content: str
    classes: str
    size: int = 32

    @property
    def paths(self) -> list[str]:
        """The files, relative to the folder that holds the set."""
        return [f"{self.folder}/{name}" for name in self.files]

    def missing(self, root: Path) -> list[str]:
        """Files that are not in root."""
        return [path for path in self.paths if not (root / path).is_file()]


_IDX = [f"{part}-{of}-ubyte" for part in ("train", "t10k") for of in ("images-idx3", "labels-idx1")]
_BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
_HUNDRED_FILES = ["train", "test", "meta"]
_DIGITS = "0,1,2,3,4,5,6,7,8,9"
_CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_TEN = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_HUNDRED = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,"
    "butterfly,camel,can,castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,"
    "crab,crocodile,cup,dinosaur,dolphin,elephant,flatfish,forest,fox,girl,hamster,house,kangaroo,"
    "keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,man,maple_tree,motorcycle,mountain,mouse,"
    "mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,pickup_truck,pine_tree,plain,plate,poppy,"
    "porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet_pepper,table,tank,telephone,television,"
    "tiger,tractor,train,trout,tulip,turtle,wardrobe,whale,willow_tree,wolf,woman,worm"
)
_SETS = {
    "mnist": _Set("MNIST", "MNIST/raw", _IDX, "852e0846f9523dd1", _DIGITS, 28),
    "fashion-mnist": _Set(
        "FashionMNIST", "FashionMNIST/raw", _IDX, "1979fd13f59b08e4", _CLOTHES, 28
    ),
    "cifar10": _Set("CIFAR10", "cifar-10-batches-py", _BATCHES, "6566d4819a2ce932", _TEN),
    "cifar100": _Set("CIFAR100", "cifar-100-python", _HUNDRED_FILES, "fcfd48fd293e8f83", _HUNDRED),
}


def load(spec: DataSpec, options: NoOptions, data_dir: Path | None) -> ImageData:
    """One split, uint8 (N, 3, H, W); grey images get three equal channels.

    Without a data_dir it is read from, and if need be downloaded into, `data_folder`; with a list
    only what it names. RequestError when files are missing or damaged, or a list names others.
    """
    from torchvision import datasets

    name, _, listed = spec.name.partition(":")
    root = _root(name, data_dir)
    try:
        stored = getattr(datasets, _SETS[name].kind)(root, train=spec.split == "train")
        images, labels = torch.as_tensor(stored.data), torch.as_tensor(stored.targets).long()
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make torchvision's readers raise almost anything
        said = f"{type(error).__name__}: {error}"
        raise RequestError(
            f"{name}: the files under {root} are damaged ({said}). Delete them and get them again"
        ) from error
    is_grey = images.ndim == 3
    images = images[:, None].repeat(1, 3, 1, 1) if is_grey else images.permute(0, 3, 1, 2)
    kept = _numbers(root, listed, spec.split) if listed else torch.arange(len(labels))
    sources = torch.arange(len(kept)) + TEST_SOURCE_OFFSET * (spec.split == "test")
    return ImageData(images[kept].contiguous(), labels[kept], _classes(name), sources)


def _numbers(root: Path, listed: str, split: str) -> torch.Tensor:
    """Places in a split of CIFAR-10 of the images that a list names, whose bytes were verified."""
    batches = _SETS["cifar10"].paths
    there: list[str] = []
    for path in batches[:-2] if split == "train" else batches[-2:-1]:
        there += pickle.loads((root / path).read_bytes(), encoding="latin1")["filenames"]
    number = {name: place for place, name in enumerate(there)}
    names = [name for which, name in _listed(listed) if which == split]
    if unknown := [name for name in names if name not in number]:
        lacking = f"names {unknown[0]} in the {split} split, which CIFAR-10 does not have there"
        raise RequestError(f"{listed} {lacking}")
    return torch.tensor([number[name] for name in names])


def _listed(text: str) -> list[tuple[str, str]]:
    """Split and file of each row of a list; the folders before a file's name do not matter."""
    path = base_folder() / Path(text).expanduser()
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = list(csv.DictReader(stream))
        rows = [(row["split"], PurePosixPath(row["file"]).name) for row in table]
    except (OSError, KeyError, TypeError, ValueError) as error:
        wanted = "must be a CSV with the columns split and file"
        raise RequestError(f"{text} (dataset) {wanted}: {error!r}") from error
    if lost := {"train", "test"} - {split for split, _ in rows}:
        raise RequestError(f"{text} (dataset) names no image of the {min(lost)} split")
    return rows


def fingerprint(spec: DataSpec, options: NoOptions, data_dir: Path | None) -> str:
    """Name of the content, without a download; RequestError when files are missing in data_dir."""
    name, _, listed = spec.name.partition(":")
    if data_dir is None and not listed:
        return _SETS[name].content
    marks = [_SETS[name].content]
    if data_dir is not None:
        root = _root(name, data_dir)
        marks = [checksum(root / file) for file in _SETS[name].paths]
    if listed:
        marks.append(checksum(json.dumps(_listed(listed)).encode()))
    return checksum(" ".join(marks).encode())[:16]


def _classes(name: str) -> tuple[str, ...]:
    return tuple(_SETS[name].classes.split(","))


def _root(name: str, data_dir: Path | None) -> Path:
    """The folder that holds the set, which is downloaded where none is given."""
    root = data_folder() if data_dir is None else Path(data_dir).expanduser()
    missing = _SETS[name].missing(root)
    if missing and data_dir is None:
        _download(name, root)
    elif missing:
        more = f" ({len(missing)} files are missing)" if len(missing) > 1 else ""
        raise RequestError(
            f"{name}: {root} has no {missing[0]}{more}. Name a data_dir that holds {name} in "
            f"torchvision's layout, or leave data_dir empty to download it into {data_folder()}"
        )
    return root


def _download(name: str, root: Path) -> None:
    """Let torchvision download and verify a set; what it leaves when cut off is never whole."""
    from filelock import FileLock
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not _SETS[name].missing(root):  # another process was faster
                return
            print(f"kdnotes: downloading {name} into {root}", file=sys.stderr, flush=True)
            # torchvision draws a progress bar: not wanted where nobody watches
            with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
                getattr(datasets, _SETS[name].kind)(root, download=True)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        raise RequestError(
            f"{name} is not in {root} and could not be downloaded ({brief(error, 300)}). Without "
            f"a network, get it elsewhere and name the folder that holds {_SETS[name].paths[0]} "
            "and its like as data_dir"
        ) from error


SOURCES = tuple(
    Source(
        name,
        load,
        fingerprint,
        classes=_classes(name),
        mirrored=name != "mnist",
        takes_list=name == "cifar10",
        size=each.size,
    )
    for name, each in _SETS.items()
)
