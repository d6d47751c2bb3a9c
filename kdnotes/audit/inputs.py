"""The images of an audit: a folder of classes or a table, groups of them, which class is which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes.data import folders
from kdnotes.data.folders import enumerated
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.paths import base_folder
from kdnotes.store import checksum

if TYPE_CHECKING:
    from kdnotes.data import ImageData

SEED = 0  # of every random choice of images


@dataclass(frozen=True)
class Listed:
    """Images by name, not read yet.

    root: the folder that names are relative to; labels: of each image the number of its class;
    groupings: by the name of a way to group images, each one's group, empty for none; files: what
    was read to know this, with SHA-256.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    groupings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def at(self, places: Sequence[int]) -> Listed:
        """The images at some places."""

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[place] for place in places)

        groups = {name: pick(values) for name, values in self.groupings.items()}
        return replace(self, names=pick(self.names), labels=pick(self.labels), groupings=groups)


def listed(source: str, count: int | None = None, groups: str | None = None) -> Listed:
    """What lies in a folder of class folders, or is named by a CSV ``file,label[,group...]``.

    count: how many images at most, chosen at random but always the same ones; groups: a CSV with a
    column ``file`` whose other columns (``FILE.csv:COLUMN``: that one) group the images. Labels
    that are whole numbers are the networks' classes; names of classes are numbered in their order.
    Raises RequestError.
    """
    if count is not None and count < 1:
        raise RequestError(f"images must be 1 or more, not {count}")
    path = base_folder() / Path(source).expanduser()
    found = _in_table(path) if path.is_file() and path.suffix == ".csv" else _in_folder(source)
    if groups:
        found = _grouped(found, groups)
    if count is None or count >= len(found.names):
        return found
    order = torch.randperm(len(found.names), generator=torch.Generator().manual_seed(SEED))
    return found.at(order[:count].sort().values.tolist())


def read(of: Listed, size: int, skip_damaged: bool) -> tuple[ImageData, Listed, list[str]]:
    """Pixels of the images, the images that could be read, and the names of those that could not.

    Raises RequestError naming damaged files unless they are to be skipped, or if none is left.
    """
    from kdnotes.data import ImageData, photos

    images, kept = photos.read(of.root, list(of.names), size, skip_damaged)
    if not len(kept):
        raise RequestError(f"none of the {len(of.names)} images in {of.root} can be read")
    sound = of.at(kept.tolist())
    lost = sorted(set(of.names) - set(sound.names))
    data = ImageData(images, torch.tensor(sound.labels), of.classes, torch.arange(len(kept)))
    return data, sound, lost


def columns(text: str, classes: Sequence[str]) -> tuple[int, ...]:
    """For each of the networks' classes, the class of the images that it counts for; -1 for none.

    text: a CSV ``class,label`` with a row for every class of the networks by number, from 0, whose
    label is a class of the images, or empty. Raises RequestError.
    """
    table = _table(text, "map", ("class", "label"))
    number = {name: place for place, name in enumerate(classes)}
    if sorted(table["class"]) != sorted(map(str, range(len(table)))):
        raise RequestError(
            f"map {text!r} needs one row for each class of the networks, by number: 0, 1, ..., "
            f"{len(table) - 1} for its {len(table)} rows"
        )
    if unknown := sorted(set(table["label"]) - set(number) - {""}):
        raise RequestError(
            f"map {text!r} has labels that the images do not have: {enumerated(unknown)}; theirs: "
            f"{enumerated(list(classes))}"
        )
    if lost := [name for name in classes if name not in set(table["label"])]:
        raise RequestError(f"map {text!r} maps no class onto {enumerated(lost)}")
    labels = dict(zip(table["class"].astype(int), table["label"], strict=True))
    return tuple(number.get(labels[place], -1) for place in range(len(table)))


def _in_folder(source: str) -> Listed:
    root, photos = folders.photos_to_test(source)
    classes = tuple(dict.fromkeys(photo.label for photo in photos))
    number = {name: place for place, name in enumerate(classes)}
    labels = tuple(number[photo.label] for photo in photos)
    return Listed(root, tuple(photo.name for photo in photos), labels, classes)


def _in_table(path: Path) -> Listed:
    table = _table(str(path), "data", ("file", "label"))
    if twice := sorted(table["file"][table["file"].duplicated()]):
        raise RequestError(f"{path.name} names files twice: {enumerated(twice)}")
    if unnamed := [str(row + 2) for row, text in enumerate(table["label"]) if not text]:
        raise RequestError(f"{path.name} has no label in line {enumerated(unnamed)}")
    texts = list(table["label"])
    if all(text.isdecimal() for text in texts):
        labels = tuple(map(int, texts))
        classes = tuple(map(str, range(max(labels) + 1)))
    else:
        classes = tuple(sorted(set(texts)))
        labels = tuple(classes.index(text) for text in texts)
    others = [name for name in table.columns if name not in ("file", "label")]
    groupings = {name: tuple(table[name]) for name in others}
    return Listed(
        path.parent, tuple(table["file"]), labels, classes, groupings, {path.name: checksum(path)}
    )


def _grouped(of: Listed, text: str) -> Listed:
    before, ending, column = text.rpartition(".csv:")
    file = f"{before}.csv" if ending else text
    table = _table(file, "groups", ("file", column) if ending else ("file",))
    wanted = [column] if ending else [name for name in table.columns if name != "file"]
    if not wanted:
        raise RequestError(f"groups {text!r} has no column besides 'file' to group by")
    if twice := sorted(table["file"][table["file"].duplicated()]):
        raise RequestError(f"groups {text!r} names files twice: {enumerated(twice)}")
    by_file = table.set_index("file")
    rows = by_file.reindex(list(of.names))
    if rows[wanted[0]].isna().all():
        raise RequestError(
            f"groups {text!r} names none of the images; its column 'file' is relative to {of.root},"
            f" such as {of.names[0]}"
        )
    groupings = {name: tuple(rows[name].fillna("")) for name in wanted}
    mark = {Path(file).name: checksum(base_folder() / Path(file).expanduser())}
    return replace(of, groupings=of.groupings | groupings, files=of.files | mark)


def _table(text: str, option: str, needed: Sequence[str]) -> pd.DataFrame:
    """A CSV as text without spaces around it, empty where a cell is, its files named in one way.

    Raises RequestError.
    """
    path = base_folder() / Path(text).expanduser()
    if not path.is_file():
        raise RequestError(f"there is no file {text!r} (--{option})")
    try:
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        table = pd.read_csv(path, skipinitialspace=True, **options)
    except (OSError, ValueError) as error:  # pandas' own errors are of the second kind
        raise RequestError(f"{text!r} (--{option}) cannot be read as a CSV: {error}") from error
    table.columns = [str(name).strip() for name in table.columns]
    for wanted in needed:
        if wanted not in table:
            there = ", ".join(table.columns)
            raise RequestError(f"{text!r} (--{option}) has no column {wanted!r}; it has: {there}")
    if table.empty:
        raise RequestError(f"{text!r} (--{option}) has no rows")
    table = table.apply(lambda column: column.fillna("").astype(str).str.strip())
    if "file" in needed:
        table["file"] = table["file"].str.replace("\\", "/", regex=False).str.removeprefix("./")
    return table
