"""What lies in a folder of photos: splits, classes, domains and groups, told by names alone.

Planning needs no torch and no pandas. Torchvision's finders do, and enter loops of links.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median_low
from typing import Any, NamedTuple

from pydantic import Field

from kdnotes.data import FOLDER_PREFIX, Strict
from kdnotes.errors import RequestError
from kdnotes.paths import base_folder
from kdnotes.store import checksum

REVISION = 1  # raise it when the same files give other pixels: cached networks depend on them
_KINDS = "bmp gif jfif jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
EXTENSIONS = frozenset(f".{kind}" for kind in _KINDS.split())
TEST_SHARE = 0.2
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_LARGEST_DEFAULT_SIZE = 64
_SMALLEST_SIZE = 8
_SAMPLE = 64  # photos that are opened to learn about a folder
_HEAD = 1 << 16  # bytes of a file that its content is told by
_NAMED = 5  # names in one message


class FolderOptions(Strict):
    """How a folder of photos is read.

    ``size``: side of the images in pixels; the central square of a photo is scaled to it. None
    means the median shorter side of a sample of the photos, at most 64. ``skip_damaged``: leave out
    damaged files instead of refusing the folder. ``groups``: a CSV that sorts photos into groups,
    ``FILE.csv`` (column ``group``) or ``FILE.csv:COLUMN``; its column ``file`` is relative to the
    folder, as the CSV itself is unless it lies where the command was typed. ``leave_out``: groups
    whose photos are not read; ``counts``: training photos of groups, drawn at random, such as
    ``Black=600,White=50``. ``domains``: the folder holds domains, such as PACS's, which hold
    classes or splits; only these domains are read.
    """

    size: int | None = Field(None, ge=_SMALLEST_SIZE, le=1024)
    skip_damaged: bool = False
    groups: str = ""
    leave_out: tuple[str, ...] = ()
    counts: str = ""
    domains: tuple[str, ...] = ()


class Photo(NamedTuple):
    """A file: its name relative to the data set's folder, with forward slashes, and its place."""

    name: str
    length: int
    changed: int
    label: str  # name of its class
    split: str = ""
    domain: str = ""
    group: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder as the options want it: for each split its photos by class, domain and name.

    size: side of its images in pixels; names: what numbers of the factors group and domain mean.
    """

    root: Path
    options: FolderOptions
    size: int
    classes: tuple[str, ...]
    photos: dict[str, list[Photo]]
    names: dict[str, tuple[str, ...]]

    def split(self, split: str) -> list[Photo]:
        """Photos of a split. Raises RequestError where it is not there, or lacks a class."""
        if split not in self.photos:
            wanted = " or ".join(_SPLIT_FOLDERS[split])
            raise RequestError(
                f"{self.root} has no {split} split: no folder {wanted} with a sub-folder for each "
                "class. A folder that holds the class folders directly is split automatically"
            )
        present = _by("label", self.photos[split])
        if lost := [label for label in self.classes if label not in present]:
            raise RequestError(
                f"the groups left out hold all images of {enumerated(lost)} in the {split} split "
                f"of {self.root}; leave out others"
            )
        return self.photos[split]

    def factor(self, name: str, photos: Sequence[Photo]) -> list[int]:
        """Numbers of the photos' groups or domains; -1 for a photo without one."""
        number = {each: index for index, each in enumerate(self.names[name])}
        return [number.get(getattr(photo, name), -1) for photo in photos]

    def fingerprint(self, split: str) -> str:
        """Name of the content of a split, for cache keys, without absolute paths.

        Names, lengths and times of change tell photos apart in seconds, and the beginnings of some:
        archives may give all files one time.
        """
        photos, state = self.split(split), hashlib.sha256()
        for photo in photos:
            line = f"{photo.name}\0{photo.length}\0{photo.changed}\n"
            state.update(line.encode(errors="surrogateescape"))
        for photo in _sample(photos):
            # What cannot be opened is named when it is decoded.
            with suppress(OSError), (self.root / photo.name).open("rb") as stream:
                state.update(stream.read(_HEAD))
        damaged = self.options.skip_damaged
        mark = _digest([REVISION, split, self.size, damaged, state.hexdigest()])
        if "group" not in self.names:
            return mark
        return _digest([mark, self.names["group"], self.factor("group", photos)])


def domain_names(name: str) -> tuple[str, ...]:
    """Folders in ``imagefolder:PATH`` that hold folders, sorted; RequestError if it is none."""
    root = _root(name)
    return tuple(top for top in _folders_in(root) if _folders_in(root / top))


def image_size(name: str, options: dict[str, Any]) -> int:
    """Side in pixels of the images of ``imagefolder:PATH``. Raises RequestError as `survey`."""
    return survey(name, FolderOptions(**options)).size


def survey(name: str, options: FolderOptions) -> Folder:
    """What there is in ``imagefolder:PATH``, from `base_folder`; RequestError if it is unusable."""
    root = _root(name)
    domains = tuple(sorted(set(options.domains)))
    photos = [photo for domain in domains for photo in _in_domain(name, domain)]
    photos = photos or _in_splits(root)
    _refuse_different(f"domains in {root}", _by("domain", photos))
    if not options.skip_damaged:
        empty = {photo.name: "empty" for photo in photos if not photo.length}
        refuse_damaged(root, len(photos), empty)
    # Of all photos: networks that see fewer groups see images of this size, too.
    size = options.size or usual_size(root, sorted(photo.name for photo in photos))
    photos.sort(key=lambda photo: (photo.label, photo.domain, photo.name))
    classes, splits = tuple(_by("label", photos)), _by("split", photos)
    names: dict[str, tuple[str, ...]] = {"domain": domains} if domains else {}
    if options.groups:
        photos, names["group"] = _in_groups(root, photos, options)
    elif options.leave_out or options.counts:
        raise RequestError("leave_out and counts name groups: name the CSV that has them as groups")
    splits = {split: [] for split in splits} | _by("split", photos)  # all may be left out of one
    return Folder(root, options, size, classes, splits, names)


def photos_to_test(text: str) -> tuple[Path, list[Photo]]:
    """A folder and the photos to measure in it: its test split or all; RequestError as `survey`."""
    root = _root(text)
    photos = _in_classes(root, _split_folder(root, "", "test") or "")
    return root, sorted(photos, key=lambda photo: (photo.label, photo.name))


def refuse_damaged(root: Path, total: int, damaged: dict[str, str]) -> None:
    """Raise RequestError if there are damaged files (with what is wrong with each)."""
    if damaged:
        reasons = enumerated([f"{name} ({damaged[name]})" for name in sorted(damaged)])
        raise RequestError(
            f"{root}: {len(damaged)} of {total} files cannot be read: {reasons}. Mend or delete "
            "them, or leave them out: -p skip_damaged=true (audit: --skip-damaged)"
        )


def enumerated(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _root(name: str) -> Path:
    text = name.removeprefix(FOLDER_PREFIX).strip()
    if not text:
        raise RequestError(f"{name!r} names no folder; write {FOLDER_PREFIX}PATH")
    path = base_folder() / os.path.expanduser(text)
    if os.path.isfile(path):
        raise RequestError(f"{path} is a file, not a folder of images; unpack it if it is packed")
    if not os.path.isdir(path):
        raise RequestError(f"there is no folder {path}")
    return path


def _in_domain(name: str, domain: str) -> list[Photo]:
    """Photos of one domain, in both splits."""
    root, there = _root(name), domain_names(name)
    if domain not in there:
        has = ", ".join(there) or "none"
        raise RequestError(f"{root} has no domain {domain!r} with class folders; it has: {has}")
    photos = _in_splits(root, f"{domain}/")
    if len(splits := _by("split", photos)) == 1:
        raise RequestError(
            f"domain {domain!r} in {root} has a {next(iter(splits))} split only; give it both "
            "splits (train and test), or put its class folders directly into it"
        )
    return [photo._replace(domain=domain) for photo in photos]


def _split_folder(root: Path, prefix: str, split: str) -> str | None:
    """The first folder with a split's name that holds folders: a class may be called "train"."""
    tops = _folders_in(root / prefix)
    named = (top for name in _SPLIT_FOLDERS[split] for top in tops if top.lower() == name)
    return next((f"{prefix}{top}/" for top in named if _folders_in(root / prefix / top)), None)


def _in_splits(root: Path, prefix: str = "") -> list[Photo]:
    """Photos below root/prefix: in the splits that have folders there, else split by ourselves."""
    folder = root / prefix
    photos: list[Photo] = []
    for split in _SPLIT_FOLDERS:
        if inside := _split_folder(root, prefix, split):
            photos += [photo._replace(split=split) for photo in _in_classes(root, inside)]
    if photos:
        _refuse_different(f"splits of {folder}", _by("split", photos))
        return photos
    tops = {top.lower() for top in _folders_in(folder)}
    if all(tops & set(names) for names in _SPLIT_FOLDERS.values()):
        raise RequestError(f"the splits in {folder} have no class folders: put each class in one")
    return _held_out(folder, _in_classes(root, prefix))


def _held_out(folder: Path, photos: list[Photo]) -> list[Photo]:
    """The photos with a fifth of each class as test split, by hashes, so that they hardly move."""
    done = []
    for label, part in _by("label", photos).items():
        if len(part) < 2:
            raise RequestError(f"class {label!r} in {folder} has one image; a split needs two")
        part.sort(key=lambda photo: checksum(f"0/{photo.name}".encode(errors="surrogateescape")))
        held = max(1, round(len(part) * TEST_SHARE))
        done += [photo._replace(split="test") for photo in part[:held]]
        done += [photo._replace(split="train") for photo in part[held:]]
    return done


def _in_classes(root: Path, prefix: str) -> list[Photo]:
    """Photos of each class folder of root/prefix, deeper ones included."""
    folder = root / prefix
    labels = _folders_in(folder)
    if not labels:
        raise RequestError(f"{folder} has no class folders: put each class's images in one")
    if len(labels) == 1:
        inner = folder / labels[0]
        hint = f"; did you mean {FOLDER_PREFIX}{inner}?" if len(_folders_in(inner)) > 1 else ""
        raise RequestError(f"{folder} has a single class folder, {labels[0]!r}{hint}")
    by_label = {label: list(_in_class(root, prefix, label)) for label in labels}
    if empty := enumerated([label for label in labels if not by_label[label]]):
        kinds = f"(kinds read: {_KINDS})"
        raise RequestError(f"class folders without images in {folder}: {empty} {kinds}")
    _refuse_domains(folder, prefix, by_label)
    return [photo for photos in by_label.values() for photo in photos]


def _in_class(root: Path, prefix: str, label: str) -> Iterator[Photo]:
    """Image files of a class; linked folders inside are not entered, they may form a loop."""
    start = len(os.path.join(root, ""))
    for place, inner, files in os.walk(root / prefix / label, onerror=_refuse_folder):
        inner[:] = [name for name in inner if not _is_ignored(name)]
        for file in files:
            if _is_ignored(file) or os.path.splitext(file)[1].lower() not in EXTENSIONS:
                continue
            length = changed = 0  # of a link to nothing, too
            path = os.path.join(place, file)
            with suppress(OSError):
                state = os.stat(path)
                length, changed = state.st_size, state.st_mtime_ns
            yield Photo(path[start:].replace(os.sep, "/"), length, changed, label)


def _refuse_domains(folder: Path, prefix: str, by_label: dict[str, list[Photo]]) -> None:
    """Raise if the "classes" are domains (PACS, VLCS) that each hold the same class folders."""
    inner = [
        {photo.name.removeprefix(f"{prefix}{label}/").rpartition("/")[0] for photo in photos}
        for label, photos in by_label.items()
    ]
    if len(inner[0]) > 1 and "" not in inner[0] and all(names == inner[0] for names in inner):
        first = next(iter(by_label))
        raise RequestError(
            f"the folders in {folder} look like domains, not classes: all hold the same folders "
            f"({enumerated(sorted(inner[0]))}). Name one, such as {FOLDER_PREFIX}{folder / first}, "
            "put each class's images directly in its folder, or say which domain only the teacher "
            f"sees, as in unseen={first}, in a chapter that asks for it"
        )


def _refuse_different(what: str, parts: dict[str, list[Photo]]) -> None:
    """Raise if one of the parts has other classes than the first."""
    labels = {name: set(_by("label", photos)) for name, photos in parts.items()}
    first = next(iter(labels))
    for name, own in labels.items():
        missing = {first: labels[first] - own, name: own - labels[first]}
        if sides := [f"only in {k}: {enumerated(sorted(v))}" for k, v in missing.items() if v]:
            raise RequestError(f"the {what} have different classes; {'; '.join(sides)}")


def _by(place: str, photos: Iterable[Photo]) -> dict[str, list[Photo]]:
    """The photos by label, split or domain."""
    parts: dict[str, list[Photo]] = {}
    for photo in photos:
        parts.setdefault(getattr(photo, place), []).append(photo)
    return parts


def _folders_in(folder: Path) -> list[str]:
    there = next(os.walk(folder, onerror=_refuse_folder))[1]
    return sorted(name for name in there if not _is_ignored(name))


def _refuse_folder(error: OSError) -> None:
    raise RequestError(f"{error.filename} cannot be read: {error.strerror}") from error


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def usual_size(root: Path, names: Sequence[str]) -> int:
    """The median shorter side of a sample of the photos, within limits."""
    from PIL import Image

    sides = []
    with warnings.catch_warnings(action="ignore"):
        for name in _sample(names):
            # What cannot be opened is named when it is decoded: damaged bytes raise anything.
            with suppress(Exception), Image.open(root / name) as image:
                sides.append(min(image.size))
    typical = median_low(sides or [_LARGEST_DEFAULT_SIZE])
    return min(max(typical, _SMALLEST_SIZE), _LARGEST_DEFAULT_SIZE)


def _in_groups(
    root: Path, photos: list[Photo], options: FolderOptions
) -> tuple[list[Photo], tuple[str, ...]]:
    """The photos with their groups, without those of groups left out; the names of all groups."""
    table, counts = _group_table(root, options.groups), counts_of(options.counts)
    photos = [photo._replace(group=table.get(photo.name, "")) for photo in photos]
    groups = tuple(sorted({photo.group for photo in photos} - {""}))
    if not groups:
        raise RequestError(
            f"groups {options.groups!r} names no image of {root}; its column 'file' is relative "
            f"to that folder, such as {photos[0].name}"
        )
    if unknown := {*options.leave_out, *counts} - set(groups):
        known = f"groups in {options.groups}: {', '.join(groups)}"
        raise RequestError(f"no image is in the group {min(unknown)!r}; {known}")
    out = {photo for photo in photos if photo.group in options.leave_out}
    for group, count in counts.items():
        part = [photo for photo in photos if (photo.split, photo.group) == ("train", group)]
        there = [] if group in options.leave_out else part
        if count > len(there):
            raise RequestError(f"counts: {group} has {len(there)} training images, not {count}")
        out.update(Random(0).sample(there, len(there) - count))
    return [photo for photo in photos if photo not in out], groups


def counts_of(text: str) -> dict[str, int]:
    """Numbers of photos by group, from ``Black=600,White=50``. Raises RequestError."""
    parts = [part.rpartition("=") for part in text.split(",") if text]
    if not all(name.strip() and number.strip().isdecimal() for name, _, number in parts):
        raise RequestError(f"counts must be such as Black=600,White=50, not {text!r}")
    found = {name.strip(): int(number) for name, _, number in parts}
    if len(found) < len(parts):
        raise RequestError(f"counts {text!r} names a group twice")
    return found


def _group_table(root: Path, text: str) -> dict[str, str]:
    """Group by file name, as ``FILE.csv`` or ``FILE.csv:COLUMN`` has it, of rows that have one."""
    before, ending, column = text.rpartition(".csv:")
    name, column = (f"{before}.csv", column) if ending else (text, "group")
    # Where the command was typed comes first: there lies what was named by an absolute path.
    places = [start / os.path.expanduser(name) for start in (base_folder(), root)]
    path = next((place for place in places if os.path.isfile(place)), None)
    if path is None:
        raise RequestError(f"there is no file {name!r} (groups) in {base_folder()} or in {root}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", skipinitialspace=True)
            there, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"groups {text!r} cannot be read as a CSV: {error}") from error
    if lost := [wanted for wanted in ("file", column) if wanted not in there]:
        raise RequestError(f"groups {text!r} has no column {lost[0]!r}; it has: {', '.join(there)}")
    table: dict[str, str] = {}
    for row in rows:
        file = row["file"].strip().replace("\\", "/").removeprefix("./")
        group = row[column].strip()
        if group and (other := table.setdefault(file, group)) != group:
            raise RequestError(f"groups {text!r} puts {file} into two groups: {other} and {group}")
    return table


def _sample(items: Sequence[Any]) -> Sequence[Any]:
    return items[:: max(1, -(-len(items) // _SAMPLE))]


def _digest(content: Any) -> str:
    return checksum(json.dumps(content).encode())[:16]
