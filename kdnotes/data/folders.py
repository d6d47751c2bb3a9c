"""Image data that lies in files: torchvision's small sets, and any folder of one's own photos."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from statistics import median_low
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from kdnotes.data import FOLDER_PREFIX, ImageData
from kdnotes.errors import RequestError
from kdnotes.paths import base_folder, cache_folder

if TYPE_CHECKING:
    from PIL import Image

REVISION = 1  # raise it when the same files give other pixels: cached networks depend on them
_IMAGE_KINDS = "bmp gif jfif jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset(f".{kind}" for kind in _IMAGE_KINDS.split())
TEST_SHARE = 0.2
_GROUP = "group"
TEST_SOURCE_OFFSET = 1_000_000_000  # first source of a test split: train and test share none
_TRAIN_FOLDERS = ("train",)
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_LARGEST_DEFAULT_SIZE = 64
_SMALLEST_SIZE = 8
_SAMPLE = 64  # photos that are opened to learn about a folder
_HEAD = 1 << 16  # bytes of a file that its content is told by
_BLOCK = 64  # photos per task of the thread pool
_NAMED = 5  # unreadable files named in one message


class FolderOptions(BaseModel):
    """How a folder of photos is read.

    ``size``: side of the images in pixels; the central square of a photo is scaled to it. None
    means the median shorter side of a sample of the photos, at most 64: photos that are all
    32x32 stay as they are. ``split_seed``: which photos an automatic split holds out.
    ``skip_unreadable``: leave out damaged files instead of refusing the folder. ``memory_gb``:
    images that take more than this are decoded as they are asked for. ``groups``: a CSV that sorts
    photos into groups, ``FILE.csv`` (column ``group``) or ``FILE.csv:COLUMN``; its column ``file``
    is relative to the folder, as the CSV itself is unless it lies where the command was typed.
    ``leave_out``: groups whose photos are not read. ``domains``: the folder holds domains, such as
    PACS's, which hold classes or splits; only these domains are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int | None = Field(None, ge=_SMALLEST_SIZE, le=1024)
    split_seed: int = Field(0, ge=0)
    skip_unreadable: bool = False
    memory_gb: float = Field(4.0, gt=0)
    groups: str = ""
    leave_out: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


def load(name: str, split: str, data_dir: Path | None, options: dict[str, Any]) -> ImageData:
    """Read one split of a torchvision set or of ``imagefolder:PATH``.

    Images are uint8 (N, 3, size, size); grey ones get three equal channels. ``sources`` number
    the photos, with an offset in the test split. With the options ``groups`` or ``domains`` the
    factor ``group`` or ``domain`` numbers the names (sorted) that ``names`` has under it; the
    group is -1 where the table does not name a photo. A torchvision set is read from data_dir;
    without a data_dir it is read from, and if need be downloaded into, the folder of `data_folder`.
    PATH may start with ``~``; a relative one starts where the command was typed.
    Raises RequestError when files are missing or unusable, or an option is unknown.
    """
    if name.startswith(FOLDER_PREFIX):
        return _load_photos(_root(name), split, _parse(options))
    return _load_torchvision(name, split, data_dir, options)


def fingerprint(name: str, split: str, data_dir: Path | None, options: dict[str, Any]) -> str:
    """Name of the content behind one split, for cache keys; it holds no absolute path.

    Photos count by relative name, length and time of change, so that a large folder is named in
    seconds. Sets that torchvision verifies by checksum (CIFAR, and all it downloads) are named by
    those checksums, without a download.
    Raises RequestError as `load` does, except for damage inside files.
    """
    if name.startswith(FOLDER_PREFIX):
        chosen = _parse(options)
        folder, size = _read(_root(name), chosen)
        mark = _photo_mark(folder, split, chosen, size)
        if _GROUP not in folder.factors:
            return mark
        groups = _numbers(folder, _GROUP, folder.split(split))
        return _digest([mark, folder.names[_GROUP], groups])
    return _torchvision_mark(name, data_dir, options)


def domain_names(name: str) -> tuple[str, ...]:
    """Folders in ``imagefolder:PATH`` that hold folders, sorted: its domains if it has any.

    Raises RequestError when there is no such folder.
    """
    root = _root(name)
    return tuple(top for top in _folders_in(root) if _folders_in(root / top))


def image_size(name: str, options: dict[str, Any]) -> int:
    """Side in pixels of the images of ``imagefolder:PATH``. Raises RequestError as `load`."""
    return _read(_root(name), _parse(options))[1]


def data_folder() -> Path:
    """Where downloads go: KDNOTES_DATA, else the user's data folder of the system."""
    from platformdirs import user_data_path

    given = os.environ.get("KDNOTES_DATA")
    return Path(given).expanduser() if given else user_data_path("kdnotes")


# --- torchvision's sets ---------------------------------------------------------------------


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets

    return {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }[name]


def _is_cifar(name: str) -> bool:
    return name.startswith("cifar")


def _needed_files(name: str) -> list[str]:
    """Files of a torchvision set, relative to the folder that holds it."""
    kind = _torchvision_class(name)
    if _is_cifar(name):
        files = [*(file for file, _ in kind.train_list + kind.test_list), kind.meta["filename"]]
        return [f"{kind.base_folder}/{file}" for file in files]
    return [f"{kind.__name__}/raw/{file.removesuffix('.gz')}" for file, _ in kind.resources]


def _missing_files(name: str, root: Path) -> list[str]:
    return [file for file in _needed_files(name) if not (root / file).is_file()]


def _check_present(name: str, root: Path) -> None:
    missing = _missing_files(name, root)
    if missing:
        raise RequestError(
            f"{name}: {root} has no {missing[0]}"
            + (f" ({len(missing)} files are missing)" if len(missing) > 1 else "")
            + f". Name a data_dir that holds {name} in torchvision's layout, or leave data_dir "
            f"empty to download it into {data_folder()}"
        )


def _refuse_options(name: str, options: dict[str, Any]) -> None:
    if options:
        raise RequestError(f"{name} takes no options, got: {', '.join(sorted(options))}")


def _load_torchvision(
    name: str, split: str, data_dir: Path | None, options: dict[str, Any]
) -> ImageData:
    _refuse_options(name, options)
    root = Path(data_dir).expanduser() if data_dir is not None else data_folder()
    if data_dir is None and _missing_files(name, root):
        _download(name, root)
    _check_present(name, root)
    try:
        stored = _torchvision_class(name)(root, train=split == "train", download=False)
    except (
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AssertionError,
        EOFError,
        UnpicklingError,
    ) as error:  # what torchvision's readers raise on damaged files
        raise RequestError(
            f"{name}: the files under {root} are damaged ({type(error).__name__}: {error}). "
            "Delete them and get them again"
        ) from error
    if _is_cifar(name):
        images = torch.from_numpy(np.ascontiguousarray(stored.data.transpose(0, 3, 1, 2)))
    else:
        images = stored.data[:, None].repeat(1, 3, 1, 1)
    labels = torch.as_tensor(stored.targets).long()
    if len(images) != len(labels):
        raise RequestError(
            f"{name}: the files under {root} hold {len(images)} images but {len(labels)} labels. "
            "Delete them and get them again"
        )
    classes = tuple(str(digit) for digit in range(10)) if name == "mnist" else stored.classes
    return ImageData(images, labels, tuple(classes), _sources(torch.arange(len(labels)), split))


def _download(name: str, root: Path) -> None:
    """Let torchvision download and verify a set into root, whose files appear only when whole."""
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not _missing_files(name, root):  # another process was faster
                return
            _report(f"downloading {name} into {root}")
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
                # torchvision draws a progress bar: not wanted where nobody watches
                quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
                with quiet:
                    _torchvision_class(name)(scratch, download=True)
                for file in _needed_files(name):
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    (Path(scratch) / file).replace(root / file)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{name} is not in {root} and could not be downloaded ({reason}). Without a network, "
            f"get it elsewhere and name the folder that holds {_needed_files(name)[0]} and its "
            "like as data_dir"
        ) from error


def _torchvision_mark(name: str, data_dir: Path | None, options: dict[str, Any]) -> str:
    _refuse_options(name, options)
    kind = _torchvision_class(name)
    if data_dir is not None:
        _check_present(name, Path(data_dir).expanduser())
    if _is_cifar(name):
        return _digest([name, kind.train_list, kind.test_list, kind.meta])
    if data_dir is None:
        return _digest([name, kind.resources])
    contents = []
    for file in _needed_files(name):
        path = Path(data_dir).expanduser() / file
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        contents.append([file, path.stat().st_size, hashlib.sha256(head).hexdigest()])
    return _digest([name, contents])


# --- a folder of photos: what is there ------------------------------------------------------


class _Photo(NamedTuple):
    """A file of a class; its name is relative to the data set's folder, with forward slashes."""

    name: str
    label: int
    length: int
    changed: int


@dataclass(frozen=True)
class _Folder:
    """A data set's folder: its classes and, for each split that it has, its photos by name.

    factors: numbers by a photo's name; names: what these stand for.
    """

    root: Path
    classes: tuple[str, ...]
    photos: dict[str, list[_Photo]]
    factors: dict[str, dict[str, int]] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, split: str) -> list[_Photo]:
        if split not in self.photos:
            wanted = _TRAIN_FOLDERS if split == "train" else _TEST_FOLDERS
            raise RequestError(
                f"{self.root} has no {split} split: no folder {' or '.join(wanted)} with a "
                "sub-folder for each class. A folder that holds the class folders directly is "
                "split automatically"
            )
        present = {photo.label for photo in self.photos[split]}
        lost = [name for label, name in enumerate(self.classes) if label not in present]
        if lost:  # only groups that are left out can take a whole class away
            raise RequestError(
                f"the groups left out hold all images of {_enumerate(lost)} in the {split} split "
                f"of {self.root}; leave out others"
            )
        return self.photos[split]


def _parse(options: dict[str, Any]) -> FolderOptions:
    try:
        return FolderOptions(**options)
    except ValidationError as error:
        known = ", ".join(FolderOptions.model_fields)
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: "
            + ("no such option" if one["type"] == "extra_forbidden" else one["msg"])
            for one in error.errors()
        )
        raise RequestError(f"options of {FOLDER_PREFIX}PATH: {wrong} (known: {known})") from error


def _root(name: str) -> Path:
    text = name.removeprefix(FOLDER_PREFIX).strip()
    if not text:
        raise RequestError(f"{name!r} names no folder; write {FOLDER_PREFIX}PATH")
    try:
        path = base_folder() / Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (RuntimeError, OSError) as error:  # no such user, no access, name too long
        raise RequestError(f"{FOLDER_PREFIX}{text}: {error}") from error
    if is_file:
        raise RequestError(f"{path} is a file, not a folder of images; unpack it if it is packed")
    if not is_folder:
        raise RequestError(f"there is no folder {path}")
    return path


def _read(root: Path, options: FolderOptions) -> tuple[_Folder, int]:
    """A folder as the options want it, and the side of its images."""
    folder = _survey(root, options)
    size = _side(folder, options)  # of all photos: networks that see fewer groups see this size
    if options.domains:
        folder = _with_domains(folder, options)
    if options.groups:
        return _with_groups(folder, options), size
    if options.leave_out:
        raise RequestError("leave_out names groups: name the CSV that has them as groups")
    return folder, size


def _survey(root: Path, options: FolderOptions) -> _Folder:
    """Find splits, classes and photos; raise RequestError on a folder that cannot be used."""
    if options.domains:
        listed = _domain_splits(root, options)
    else:
        listed = _given_splits(root) or _automatic_splits(root, options.split_seed)
    classes = _common_classes(root, listed)
    photos = {split: _labelled(by_class) for split, by_class in listed.items()}
    if not options.skip_unreadable:
        everything = [photo for of_split in photos.values() for photo in of_split]
        empty = {photo.name: "empty" for photo in everything if not photo.length}
        _refuse_unreadable(root, len(everything), empty)
    return _Folder(root, classes, photos)


def _given_splits(root: Path, inner: str = "") -> dict[str, dict[str, list[_Photo]]]:
    """Photos by class for each split that has a folder of its own; nothing if there is none.

    inner: the folder in root to look into.
    """
    folder = root / inner
    tops = _folders_in(folder)
    found = {
        "train": _first_split_folder(folder, tops, _TRAIN_FOLDERS),
        "test": _first_split_folder(folder, tops, _TEST_FOLDERS),
    }
    lower = {top.lower() for top in tops}
    if not any(found.values()) and lower & set(_TRAIN_FOLDERS) and lower & set(_TEST_FOLDERS):
        raise RequestError(f"the splits in {folder} have no class folders: put each class in one")
    prefix = f"{inner}/" if inner else ""
    return {split: _class_photos(root, prefix + name) for split, name in found.items() if name}


def _automatic_splits(root: Path, seed: int, inner: str = "") -> dict[str, dict[str, list[_Photo]]]:
    parts: dict[str, dict[str, list[_Photo]]] = {"train": {}, "test": {}}
    for name, photos in _class_photos(root, inner).items():
        if len(photos) < 2:
            raise RequestError(
                f"class {name!r} in {root / inner} has one image; an automatic split needs two "
                "or more"
            )
        held_out = _held_out(photos, seed)
        parts["train"][name] = [photo for photo in photos if photo.name not in held_out]
        parts["test"][name] = [photo for photo in photos if photo.name in held_out]
    return parts


def _domain_splits(root: Path, options: FolderOptions) -> dict[str, dict[str, list[_Photo]]]:
    """Photos by class for both splits, over all domains asked for, each split by itself."""
    there = [top for top in _folders_in(root) if _folders_in(root / top)]
    joined: dict[str, dict[str, list[_Photo]]] = {"train": {}, "test": {}}
    first: tuple[str, set[str]] | None = None
    for domain in sorted(set(options.domains)):
        if domain not in there:
            raise RequestError(
                f"{root} has no domain folder {domain!r} with class folders; it has: "
                f"{', '.join(there) or 'none'}"
            )
        listed = _one_domain(root, domain, options.split_seed)
        classes = set(_common_classes(root / domain, listed))
        first = first or (domain, classes)
        if classes != first[1]:
            raise RequestError(
                f"the domains in {root} have different classes: {first[0]} has "
                f"{_enumerate(sorted(first[1]))}, and {domain} has {_enumerate(sorted(classes))}"
            )
        for split, by_class in listed.items():
            for name, photos in by_class.items():
                joined[split].setdefault(name, []).extend(photos)
    return joined


def _one_domain(root: Path, domain: str, seed: int) -> dict[str, dict[str, list[_Photo]]]:
    listed = _given_splits(root, domain)
    if len(listed) == 1:
        raise RequestError(
            f"domain {domain!r} in {root} has a {next(iter(listed))} split only; give it both "
            "splits (train and test), or put its class folders directly into it"
        )
    if listed:
        return listed
    # VLCS has all images once more in "full"; where that is all there is, it is split as others.
    tops = _folders_in(root / domain)
    return _automatic_splits(root, seed, f"{domain}/full" if tops == ["full"] else domain)


def _with_domains(folder: _Folder, options: FolderOptions) -> _Folder:
    names = tuple(sorted(set(options.domains)))
    number = {name: index for index, name in enumerate(names)}
    found = {name: number[name.partition("/")[0]] for name in _photo_names(folder)}
    return replace(
        folder, factors=folder.factors | {"domain": found}, names=folder.names | {"domain": names}
    )


def _photo_names(folder: _Folder) -> list[str]:
    return [photo.name for photos in folder.photos.values() for photo in photos]


def _numbers(folder: _Folder, factor: str, photos: Sequence[_Photo]) -> list[int]:
    return [folder.factors[factor].get(photo.name, -1) for photo in photos]


def _with_groups(folder: _Folder, options: FolderOptions) -> _Folder:
    """The folder with the groups of its photos, and without the photos of those left out."""
    table = _group_table(folder.root, options.groups)
    of_photo = {name: table[name] for name in _photo_names(folder) if name in table}
    if not of_photo:
        shown = next(iter(folder.photos.values()))[0].name
        raise RequestError(
            f"groups {options.groups!r} names no image of {folder.root}; its column 'file' is "
            f"relative to that folder, such as {shown}"
        )
    names = tuple(sorted(set(of_photo.values())))
    for group in options.leave_out:
        if group not in names:
            raise RequestError(
                f"no image is in the group {group!r}; groups in {options.groups}: "
                f"{', '.join(names)}"
            )
    number = {name: index for index, name in enumerate(names)}
    kept = {
        split: [photo for photo in photos if of_photo.get(photo.name) not in options.leave_out]
        for split, photos in folder.photos.items()
    }
    groups = {name: number[group] for name, group in of_photo.items()}
    return replace(
        folder,
        photos=kept,
        factors=folder.factors | {_GROUP: groups},
        names=folder.names | {_GROUP: names},
    )


def _group_table(root: Path, text: str) -> dict[str, str]:
    """Group by file name, as a CSV has it; rows without a group are left out."""
    path, column = _table_file(root, text)
    table: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            there = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = there
            for wanted in ("file", column):
                if wanted not in there:
                    raise RequestError(
                        f"groups {text!r} has no column {wanted!r}; it has: {', '.join(there)}"
                    )
            for row in rows:
                file = (row["file"] or "").strip().replace("\\", "/").removeprefix("./")
                group = (row[column] or "").strip()
                if group and table.setdefault(file, group) != group:
                    raise RequestError(
                        f"groups {text!r} puts {file} into two groups: {table[file]} and {group}"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"groups {text!r} cannot be read as a CSV: {error}") from error
    return table


def _table_file(root: Path, text: str) -> tuple[Path, str]:
    """File and column that ``FILE.csv`` or ``FILE.csv:COLUMN`` stand for."""
    before, colon, after = text.rpartition(":")
    for name, column in ((text, _GROUP), (before, after)):
        # Where the command was typed comes first: there lies what was named by an absolute path.
        for start in (base_folder(), root):
            with suppress(RuntimeError, OSError):  # no such user, name too long
                path = start / Path(name).expanduser()
                if name and column and path.is_file():
                    return path, column
    raise RequestError(
        f"there is no file {before if colon else text!r} (groups), neither where the command was "
        f"typed nor in {root}"
    )


def _held_out(photos: Sequence[_Photo], seed: int) -> set[str]:
    """Names of a seeded fifth of a class; an added photo hardly changes where the others go."""
    names = sorted(
        (photo.name for photo in photos),
        key=lambda name: hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest(),
    )
    return set(names[: max(1, round(len(names) * TEST_SHARE))])


def _labelled(by_class: dict[str, list[_Photo]]) -> list[_Photo]:
    return [
        photo._replace(label=label)
        for label, photos in enumerate(by_class.values())
        for photo in photos
    ]


def _common_classes(root: Path, listed: dict[str, dict[str, list[_Photo]]]) -> tuple[str, ...]:
    train, test = (set(listed.get(split, {})) for split in ("train", "test"))
    if train and test and train != test:
        sides = [
            f"only in {split}: {_enumerate(sorted(names))}"
            for split, names in (("train", train - test), ("test", test - train))
            if names
        ]
        raise RequestError(f"the splits of {root} have different classes; {'; '.join(sides)}")
    return tuple(sorted(train or test))


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not _is_ignored(e.name))
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}") from error


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _first_split_folder(root: Path, tops: list[str], wanted: tuple[str, ...]) -> str | None:
    """The first wanted folder that holds folders, so that a class may well be called 'train'."""
    for name in wanted:
        for top in tops:
            if top.lower() == name and _folders_in(root / top):
                return top
    return None


def _class_photos(root: Path, split_folder: str) -> dict[str, list[_Photo]]:
    """Photos of each class folder of root/split_folder, sorted by name, deeper ones included."""
    folder = root / split_folder
    names = _folders_in(folder)
    if not names:
        raise RequestError(f"{folder} has no class folders: put each class's images in one")
    if len(names) == 1:
        inner = _folders_in(folder / names[0])
        hint = f"; did you mean {FOLDER_PREFIX}{folder / names[0]}?" if len(inner) > 1 else ""
        raise RequestError(f"{folder} has a single class folder, {names[0]!r}{hint}")
    prefix = f"{split_folder}/" if split_folder else ""
    by_class = {
        name: sorted(_walk(folder / name, f"{prefix}{name}/"), key=lambda photo: photo.name)
        for name in names
    }
    empty = [name for name, photos in by_class.items() if not photos]
    if empty:
        raise RequestError(
            f"class folders without images in {folder}: {_enumerate(empty)} "
            f"(kinds read: {_IMAGE_KINDS})"
        )
    _refuse_domains(folder, prefix, by_class)
    return by_class


def _walk(folder: Path, prefix: str) -> Iterator[_Photo]:
    """Image files in a folder and below; linked folders are not entered, they may form a loop."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    try:
                        state = entry.stat()
                    except OSError:  # a link to nothing: named among the unreadable ones
                        yield _Photo(prefix + entry.name, 0, 0, 0)
                    else:
                        yield _Photo(prefix + entry.name, 0, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}") from error


def _refuse_domains(folder: Path, prefix: str, by_class: dict[str, list[_Photo]]) -> None:
    """Raise if the "classes" are domains (PACS, VLCS) that each hold the same class folders."""
    depth = prefix.count("/") + 1
    inner = [
        {"/".join(photo.name.split("/")[depth:-1]) for photo in photos}
        for photos in by_class.values()
    ]
    if len(inner[0]) > 1 and "" not in inner[0] and all(names == inner[0] for names in inner):
        first = next(iter(by_class))
        raise RequestError(
            f"the folders in {folder} all hold the same folders "
            f"({_enumerate(sorted(inner[0]))}): they look like domains, not classes. Name one, "
            f"such as {FOLDER_PREFIX}{folder / first}, or put each class's images directly in "
            "its folder. The chapter unseen-domains reads them as domains if it is told with "
            f"unseen={first} which of them only the teacher sees"
        )


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _side(folder: _Folder, options: FolderOptions) -> int:
    """Side of the images: as asked, else the median shorter side of a sample, within limits."""
    from PIL import Image

    if options.size is not None:
        return options.size
    names = sorted(photo.name for photos in folder.photos.values() for photo in photos)
    sides = []
    with _quiet_pillow():
        for name in _sample(names):
            try:
                with Image.open(folder.root / name) as image:
                    sides.append(min(image.size))
            except Exception:  # named when it is decoded
                continue
    typical = median_low(sides) if sides else _LARGEST_DEFAULT_SIZE
    return min(max(typical, _SMALLEST_SIZE), _LARGEST_DEFAULT_SIZE)


def _photo_mark(folder: _Folder, split: str, options: FolderOptions, size: int) -> str:
    photos = folder.split(split)
    state = hashlib.sha256()
    for photo in photos:
        line = f"{photo.name}\0{photo.length}\0{photo.changed}\n"
        state.update(line.encode(errors="surrogateescape"))
    for photo in _sample(photos):  # archives may give all files one time and one length
        with (
            suppress(OSError),  # named when it is decoded
            (folder.root / photo.name).open("rb") as stream,
        ):
            state.update(stream.read(_HEAD))
    return _digest([REVISION, split, size, options.skip_unreadable, state.hexdigest()])


def _sample(items: Sequence[Any]) -> Sequence[Any]:
    return items[:: max(1, -(-len(items) // _SAMPLE))]


# --- a folder of photos: pixels -------------------------------------------------------------


class StreamingImages:
    """Photos decoded when they are asked for: a source of images for folders beyond memory.

    Indexing with an int64 tensor (n,) gives uint8 (n, 3, size, size), the same pixels as a folder
    held in memory; it raises RequestError naming the files that cannot be read.
    """

    def __init__(self, root: Path, names: Sequence[str], size: int) -> None:
        self.root = root
        self.names = names
        self.size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        names = [self.names[index] for index in indices.tolist()]
        images = np.empty((len(names), 3, self.size, self.size), np.uint8)
        _refuse_unreadable(self.root, len(names), _decode(self.root, names, images))
        return torch.from_numpy(images)


def _load_photos(root: Path, split: str, options: FolderOptions) -> ImageData:
    folder, size = _read(root, options)
    photos = folder.split(split)
    names = [photo.name for photo in photos]
    mark = _photo_mark(folder, split, options, size)
    images: Tensor | StreamingImages
    if len(names) * 3 * size * size > options.memory_gb * 1e9:
        kept = torch.arange(len(names))
        if options.skip_unreadable:
            check = partial(_readable, root, names, size)
            kept = _once(f"{mark}-readable", check)["kept"]
        images = StreamingImages(root, [names[index] for index in kept.tolist()], size)
    else:
        decode = partial(_decoded, root, names, size, options.skip_unreadable)
        stored = _once(mark, decode)
        kept, images = stored["kept"], stored["images"]
    labels = torch.tensor([photo.label for photo in photos])[kept]
    present = set(labels.tolist())
    lost = [name for label, name in enumerate(folder.classes) if label not in present]
    if lost:
        raise RequestError(
            f"no readable image of {_enumerate(lost)} in the {split} split of {root}"
        )
    factors = {name: torch.tensor(_numbers(folder, name, photos))[kept] for name in folder.factors}
    sources = _sources(kept, split)
    return ImageData(images, labels, folder.classes, sources, factors, names=folder.names)


def _sources(index: Tensor, split: str) -> Tensor:
    return index + (TEST_SOURCE_OFFSET if split == "test" else 0)


def _decoded(root: Path, names: Sequence[str], size: int, skip: bool) -> dict[str, Tensor]:
    images = np.empty((len(names), 3, size, size), np.uint8)
    unreadable = _decode(root, names, images, progress=True)
    if not skip:
        _refuse_unreadable(root, len(names), unreadable)
    kept = _kept(root, names, unreadable)
    pixels = torch.from_numpy(images)
    return {"images": pixels[kept] if unreadable else pixels, "kept": kept}


def _readable(root: Path, names: Sequence[str], size: int) -> dict[str, Tensor]:
    """Which photos can be read; only decoding them all can tell, their pixels are dropped."""
    unreadable: dict[str, str] = {}
    scratch = np.empty((_BLOCK * _threads() * 16, 3, size, size), np.uint8)
    starts = range(0, len(names), len(scratch))
    for start in _tracked(starts, len(starts)):
        part = names[start : start + len(scratch)]
        unreadable |= _decode(root, part, scratch[: len(part)])
    return {"kept": _kept(root, names, unreadable)}


def _kept(root: Path, names: Sequence[str], unreadable: dict[str, str]) -> Tensor:
    if unreadable:
        _report(
            f"{root}: skipped {len(unreadable)} of {len(names)} files that cannot be read: "
            f"{_with_reasons(unreadable)}"
        )
    return torch.tensor([i for i, name in enumerate(names) if name not in unreadable]).long()


def _refuse_unreadable(root: Path, total: int, unreadable: dict[str, str]) -> None:
    if unreadable:
        raise RequestError(
            f"{root}: {len(unreadable)} of {total} files cannot be read: "
            f"{_with_reasons(unreadable)}. Mend or delete them, or set skip_unreadable=true"
        )


def _with_reasons(unreadable: dict[str, str]) -> str:
    return _enumerate([f"{name} ({unreadable[name]})" for name in sorted(unreadable)])


def _decode(
    root: Path, names: Sequence[str], images: np.ndarray, progress: bool = False
) -> dict[str, str]:
    """Decode photos into images, uint8 (n, 3, size, size); return why some could not be read."""

    def block(start: int) -> dict[str, str]:
        unreadable: dict[str, str] = {}
        for index in range(start, min(start + _BLOCK, len(names))):
            try:
                images[index] = _pixels(root / names[index], images.shape[-1])
            except MemoryError:
                raise
            except Exception as error:  # damaged bytes make decoders raise almost anything
                unreadable[names[index]] = _reason(root / names[index], error)
        return unreadable

    starts = range(0, len(names), _BLOCK)
    unreadable: dict[str, str] = {}
    with _quiet_pillow(), ThreadPoolExecutor(min(_threads(), len(starts) or 1)) as pool:
        try:
            results = pool.map(block, starts)
            for found in _tracked(results, len(starts)) if progress else results:
                unreadable |= found
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the rest
            raise
    return unreadable


def _pixels(path: Path, size: int) -> np.ndarray:
    """The central square of a photo, upright and in colour, uint8 (3, size, size)."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # JPEG: decode large photos at a fraction
        ImageOps.exif_transpose(image, in_place=True)
        flat = _colour(image)
    side = min(flat.size)
    left, top = (flat.width - side) / 2, (flat.height - side) / 2
    square = flat.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(square).transpose(2, 0, 1)


def _colour(image: Image.Image) -> Image.Image:
    """A photo of any mode as RGB; what is transparent becomes white."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):  # grey of 16 bits, 65535 is white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixel values beyond 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is unknown")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image" if path.stat().st_size else "empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow warns of oddities in files; what cannot be read is reported as an error anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _threads() -> int:
    usable = getattr(os, "sched_getaffinity", None)  # Linux: what this process may use
    return min(16, len(usable(0)) if usable else os.cpu_count() or 1)


def _tracked(items: Any, total: int) -> Any:
    """The items, with a bar and the time left on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    quiet = not sys.stderr.isatty()
    return track(items, "reading photos", total=total, console=console, disable=quiet)


# --- decoded copies -------------------------------------------------------------------------


def _once(mark: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors under a mark, made by one process and kept in the cache folder for all others.

    A cache that cannot be written only costs time.
    """
    from filelock import FileLock

    path = cache_folder() / "data" / f"{mark}.safetensors"
    stored = _read_copy(path)
    if stored is not None:
        return stored
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        return make()
    try:
        stored = _read_copy(path)
        if stored is None:
            stored = make()
            _write_copy(path, stored)
        return stored
    finally:
        lock.release()


def _read_copy(path: Path) -> dict[str, Tensor] | None:
    """Tensors of a copy; None if there is none or it is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            checksum = (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return tensors if checksum == _checksum(tensors) else None


def _write_copy(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, {"sha256": _checksum(tensors)})
        unfinished.replace(path)
    except (OSError, SafetensorError):  # a full disk: go on without a copy
        unfinished.unlink(missing_ok=True)


def _checksum(tensors: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for key in sorted(tensors):
        state.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}\n".encode())
        state.update(np.ascontiguousarray(tensors[key].numpy()).data)
    return state.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _report(line: str) -> None:
    print(f"kdnotes: {line}", file=sys.stderr, flush=True)
