"""What an audit is given: images with their groups and classes, or what networks predicted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdnotes.data import folders
from kdnotes.data.folders import enumerated
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.paths import base_folder

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast

ARMS = ("teacher", "student", "independent")
OF_SUM = 1e-3  # by how much probabilities may miss 1, as rounded ones do
_NETWORK = re.compile(rf"({'|'.join(ARMS)})[ _-]?(\d*)")


@dataclass(frozen=True)
class Listed:
    """Images by name, not read yet.

    root: the folder that names are relative to; labels: by name, in order, the number of the class;
    groups: by name a column for each way to group images, empty texts for no group.
    """

    root: Path
    labels: pd.Series
    classes: tuple[str, ...]
    groups: pd.DataFrame

    def at(self, places: Sequence[int]) -> Listed:
        """The images at some places."""
        return replace(self, labels=self.labels.iloc[places], groups=self.groups.iloc[places])


def listed(source: str, count: int | None = None, groups: str | None = None) -> Listed:
    """What lies in a folder of class folders, or is named by a CSV ``file,label[,group...]``.

    count: how many images at most, chosen at random but always the same ones; groups: a CSV with a
    column ``file`` whose other columns (``FILE.csv:COLUMN``: that one) group the images. Labels
    that are whole numbers are the networks' classes; names of classes are numbered in their order.
    Raises RequestError.
    """
    if count is not None and count < 1:
        raise RequestError(f"images must be 1 or more, not {count}")
    path = place(source)
    found = _in_table(source) if path.is_file() and path.suffix == ".csv" else _in_folder(source)
    if groups:
        more = _groups(found, groups)
        kept = found.groups.drop(columns=more.columns, errors="ignore")
        found = replace(found, groups=kept.join(more))
    if count is None or count >= len(found.labels):
        return found
    order = torch.randperm(len(found.labels), generator=torch.Generator().manual_seed(0))
    return found.at(order[:count].sort().values.tolist())


def read(of: Listed, size: int, skip_damaged: bool) -> tuple[ImageData, Listed]:
    """The images that can be read, with their pixels.

    Raises RequestError naming damaged files unless they are to be skipped, or if none is left.
    """
    from kdnotes.data import ImageData, photos

    images, kept = photos.read(of.root, list(of.labels.index), size, skip_damaged)
    if not len(kept):
        raise RequestError(f"none of the {len(of.labels)} images in {of.root} can be read")
    sound = of.at(kept.tolist())
    labels = torch.tensor([*sound.labels])
    return ImageData(images, labels, of.classes, torch.arange(len(kept))), sound


def columns(text: str, classes: Sequence[str]) -> tuple[int, ...]:
    """For each of the networks' classes, the class of the images that it counts for; -1 for none.

    text: a CSV ``class,label`` with a row for every class of the networks by number, from 0, whose
    label is a class of the images, or empty. Raises RequestError.
    """
    table = _table(text, "map", ("class", "label"))
    if sorted(table["class"]) != sorted(map(str, range(len(table)))):
        raise RequestError(
            f"map {text!r} needs one row for each class of the networks, by number: 0, 1, ..., "
            f"{len(table) - 1} for its {len(table)} rows"
        )
    if unknown := sorted(set(table["label"]) - {*classes, ""}):
        raise RequestError(
            f"map {text!r} has labels that the images do not have: {enumerated(unknown)}; theirs: "
            f"{enumerated(classes)}"
        )
    if lost := [name for name in classes if name not in set(table["label"])]:
        raise RequestError(f"map {text!r} maps no class onto {enumerated(lost)}")
    number = {name: at for at, name in enumerate(classes)} | {"": -1}
    in_order = table.set_index(table["class"].astype(int))["label"].sort_index()
    return tuple(number[label] for label in in_order)


def _in_folder(source: str) -> Listed:
    root, photos = folders.photos_to_test(source)
    labels, classes = pd.factorize(np.array([photo.label for photo in photos]))
    names = pd.Index([photo.name for photo in photos], dtype=object)  # of any bytes
    groups = pd.DataFrame(index=names)
    return Listed(root, pd.Series(labels, names), tuple(map(str, classes)), groups)


def _in_table(text: str) -> Listed:
    table = _table(text, "data", ("file", "label"))
    if unnamed := [str(row + 2) for row, label in enumerate(table["label"]) if not label]:
        raise RequestError(f"{text!r} (--data) has no label in line {enumerated(unnamed)}")
    groups = table.set_index("file")
    named = groups.pop("label")
    if named.str.isdecimal().all():
        labels = named.astype(int)
        classes = tuple(map(str, range(labels.max() + 1)))
    else:
        classes = tuple(sorted(set(named)))
        labels = named.map(classes.index)
    return Listed(place(text).parent, labels, classes, groups)


def _groups(of: Listed, text: str) -> pd.DataFrame:
    file, column = file_and_column(text)
    needed = ("file",) if column is None else ("file", column)
    table = _table(file, "groups", needed).set_index("file")
    if column == "file" or not len(table.columns):
        raise RequestError(f"groups {text!r} has no column besides 'file' to group by")
    names = of.labels.index
    if not names.isin(table.index).any():
        raise RequestError(
            f"groups {text!r} names none of the images; its column 'file' is relative to {of.root},"
            f" such as {names[0]}"
        )
    return table[list(table) if column is None else [column]].reindex(names, fill_value="")


def file_and_column(groups: str) -> tuple[str, str | None]:
    """The parts of ``FILE.csv:COLUMN``; the second is None where only a file is named."""
    before, ending, column = groups.rpartition(".csv:")
    return (f"{before}.csv", column) if ending else (groups, None)


# --- predictions ---------------------------------------------------------------------------------


def predicted(text: str, images: Listed | None) -> tuple[Cast, ImageData, Listed, list[Tensor]]:
    """A table ``image,network,[label,]CLASS,CLASS,...`` with a row per image and network.

    network: teacher, student, independent, or several such as "student 2"; the columns of classes
    hold probabilities. Without ``images``, whose labels count, the table has a column label. The
    cast has no networks; the logits (N, classes) are in its order. Raises RequestError.
    """
    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast, Member

    needed = ("image", "network")
    table, file = _table(text, "predictions", needed, (*needed, "label")), Path(text).name
    classes = [name for name in table if name not in (*needed, "label")]
    if len(classes) < 2:
        raise RequestError(f"{file} has no columns with probabilities of two or more classes")
    names = list(dict.fromkeys(table["image"]))
    called: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
    for name, rows in table.groupby("network", sort=False):
        if not (parts := _NETWORK.fullmatch(str(name).lower())):
            raise RequestError(
                f"{file} has a network {str(name)!r}; they are called teacher, student, "
                'independent, or "student 2" and so on'
            )
        its = rows.set_index("image")[classes]
        called[parts[1]][int(parts[2] or 0)] = _probabilities(file, str(name), its, names)
    for arm, most in (("teacher", 1), ("student", len(table))):
        if not 1 <= (count := len(called[arm])) <= most:
            raise RequestError(f"{file} has {count} networks called {arm}; give one")
    listed = _labelled(file, table, names, classes, images)
    pixels, labels = torch.zeros(len(names), 3, 1, 1).byte(), torch.tensor([*listed.labels])
    data = ImageData(pixels, labels, listed.classes, torch.arange(len(names)))
    teacher, *members = (
        Member(arm, seed, torch.nn.Identity(), ())
        for arm, mine in called.items()
        for seed in range(len(mine))
    )
    values = [mine[number] for mine in called.values() for number in sorted(mine)]
    logits = [torch.from_numpy(np.log(np.maximum(each, 1e-30))).float() for each in values]
    return Cast(teacher, None, tuple(members), data.classes), data, listed, logits


def _probabilities(file: str, network: str, given: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Of one network (N, classes), in the order of the images."""
    if twice := sorted(given.index[given.index.duplicated()]):
        raise RequestError(f"{file} has {network} twice for {enumerated(twice)}")
    if lost := sorted(set(names) - set(given.index)):
        raise RequestError(f"{file} has nothing of {network} for {enumerated(lost)}")
    try:
        values = given.loc[names].replace("", "nan").to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{file} has probabilities of {network} that are no numbers") from error
    wrong = ~(abs(values.sum(1) - 1) < OF_SUM) | ~(values >= 0).all(1)
    if wrong.any():
        raise RequestError(
            f"{file}: what {network} has for {names[int(np.argmax(wrong))]} are no probabilities "
            "(0 to 1, adding up to 1); give softmax outputs, not logits"
        )
    return values


def _labelled(
    file: str, table: pd.DataFrame, names: list[str], classes: list[str], images: Listed | None
) -> Listed:
    """The images of a table with their labels as numbers of its classes."""
    kept = Listed(Path(), pd.Series(), (), pd.DataFrame(index=names))
    if images is not None:
        number = {name: at for at, name in enumerate(images.labels.index)}
        if lost := sorted(set(names) - set(number)):
            raise RequestError(f"{file} names images that are not in the data: {enumerated(lost)}")
        kept = images.at([number[name] for name in names])
        given = [kept.classes[at] for at in kept.labels]
    elif "label" in table:
        given = list(table.drop_duplicates("image")["label"])
    else:
        raise RequestError(f"{file} has no column 'label'; add it, or name the images with --data")
    if unknown := sorted(set(given) - set(classes)):
        raise RequestError(
            f"{file} has no column of probabilities for the labels {enumerated(unknown)}; its "
            f"classes: {enumerated(classes)}"
        )
    labels = pd.Series([classes.index(each) for each in given], names)
    return replace(kept, labels=labels, classes=tuple(classes))


# --- tables --------------------------------------------------------------------------------------


def place(text: str) -> Path:
    """Where a file or folder lies that was named on the command line."""
    return base_folder() / Path(text).expanduser()


def _table(
    text: str, option: str, needed: Sequence[str], texts: Sequence[str] = ()
) -> pd.DataFrame:
    """A CSV or parquet file, with its texts (by default all) without spaces around them.

    Cells that are empty are empty texts, and files are named in one way. Raises RequestError.
    """
    path, what = place(text), f"{text!r} (--{option})"
    if not path.is_file():
        raise RequestError(f"there is no file {what}")
    kinds: Any = dict.fromkeys(texts, str) or str
    options: dict[str, Any] = {"keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=kinds, skipinitialspace=True, **options)
    except (OSError, ValueError) as error:  # pandas' own errors are of the second kind
        raise RequestError(f"{what} cannot be read as csv or parquet: {error}") from error
    table.columns = [str(name).strip() for name in table.columns]
    for wanted in needed:
        if wanted not in table:
            there = enumerated(list(table.columns))
            raise RequestError(f"{what} has no column {wanted!r}; it has: {there}")
    if table.empty:
        raise RequestError(f"{what} has no rows")
    for name in table.columns.intersection(list(texts) or table.columns):
        table[name] = table[name].astype(object).fillna("").astype(str).str.strip()
    if "file" in needed:
        table["file"] = table["file"].str.replace("\\", "/", regex=False).str.removeprefix("./")
        if twice := sorted(table["file"][table["file"].duplicated()]):
            raise RequestError(f"{what} names files twice: {enumerated(twice)}")
    return table
