"""Probabilities that networks of any framework gave, for the measures that need no network."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdnotes.audit.inputs import Listed
from kdnotes.data.folders import enumerated
from kdnotes.errors import RequestError
from kdnotes.lazy import pandas as pd
from kdnotes.lazy import torch
from kdnotes.paths import base_folder
from kdnotes.store import checksum

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast

ARMS = ("teacher", "student", "independent")
OF_SUM = 1e-3  # by how much probabilities may miss 1, as rounded ones do
_NETWORK = re.compile(rf"({'|'.join(ARMS)})[ _-]?(\d*)")


def read(text: str, images: Listed | None) -> tuple[Cast, ImageData, Listed, list[Tensor]]:
    """A table ``image,network,[label,]CLASS,CLASS,...`` with a row per image and network.

    network: teacher, student, independent, or several such as "student 2"; the columns of classes
    hold probabilities. Without ``images``, whose labels count, the table has a column label. The
    cast has no networks; the logits (N, classes) are in its order. Raises RequestError.
    """
    from kdnotes.data import ImageData
    from kdnotes.probes.base import Cast, Member

    path = base_folder() / Path(text).expanduser()
    table = _table(path)
    classes = [name for name in table.columns if name not in ("image", "network", "label")]
    if len(classes) < 2:
        raise RequestError(f"{path.name} has no columns with probabilities of two or more classes")
    names = list(dict.fromkeys(table["image"]))
    called: dict[tuple[str, int], Any] = {}
    for name, rows in table.groupby("network", sort=False):
        if not (parts := _NETWORK.fullmatch(str(name).strip().lower())):
            raise RequestError(
                f"{path.name} has a network {str(name)!r}; they are called teacher, student, "
                'independent, or "student 2" and so on'
            )
        called[parts[1], int(parts[2] or 0)] = _probabilities(path.name, str(name), rows, names)
    for arm in ("teacher", "student"):
        if (count := sum(each == arm for each, _ in called)) < 1 or (
            arm == "teacher" and count > 1
        ):
            raise RequestError(f"{path.name} has {count} networks called {arm}; give one")
    labelled = _labelled(path.name, table, names, classes, images)
    labelled = replace(labelled, files=labelled.files | {path.name: checksum(path)})
    data = ImageData(
        torch.zeros(len(names), 3, 1, 1, dtype=torch.uint8),
        torch.tensor(labelled.labels),
        tuple(classes),
        torch.arange(len(names)),
    )
    order = sorted(called, key=lambda each: (ARMS.index(each[0]), each[1]))
    seeds = {arm: [each for each in order if each[0] == arm] for arm in ARMS}
    members = [
        Member(each[0], seeds[each[0]].index(each), torch.nn.Identity(), ()) for each in order
    ]
    cast = Cast(members[0], None, tuple(members[1:]), data.classes)
    logits = [torch.from_numpy(np.log(np.maximum(called[each], 1e-30))).float() for each in order]
    return cast, data, labelled, logits


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise RequestError(f"there is no file {path.name!r} (--predictions)")
    try:
        text = dict.fromkeys(("image", "network", "label"), str)
        table = (
            pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=text)
        )
    except (OSError, ValueError) as error:
        raise RequestError(f"{path.name} cannot be read as csv or parquet: {error}") from error
    for wanted in ("image", "network"):
        if wanted not in table:
            there = ", ".join(map(str, table.columns[:8]))
            raise RequestError(f"{path.name} has no column {wanted!r}; it has: {there}")
    return table.rename(columns=str).astype(dict.fromkeys(("image", "network"), str))


def _probabilities(file: str, network: str, rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Of one network (N, classes), in the order of the images."""
    if twice := sorted(rows["image"][rows["image"].duplicated()]):
        raise RequestError(f"{file} has {network} twice for {enumerated(twice)}")
    if lost := sorted(set(names) - set(rows["image"])):
        raise RequestError(f"{file} has nothing of {network} for {enumerated(lost)}")
    given = rows.set_index("image").loc[names].drop(columns=["network", "label"], errors="ignore")
    try:
        values = given.to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{file} has probabilities of {network} that are no numbers") from error
    sums = values.sum(1)
    if not (np.isfinite(values).all() and (values >= 0).all() and (abs(sums - 1) < OF_SUM).all()):
        at = names[int(np.argmax(~(abs(sums - 1) < OF_SUM) | (values < 0).any(1)))]
        raise RequestError(
            f"{file}: what {network} has for {at} are no probabilities (0 to 1, adding up to 1); "
            "give softmax outputs, not logits"
        )
    return values


def _labelled(
    file: str, table: pd.DataFrame, names: list[str], classes: list[str], images: Listed | None
) -> Listed:
    """The images of a table with their labels as numbers of its classes."""
    if images is not None:
        place = {name: at for at, name in enumerate(images.names)}
        if lost := sorted(set(names) - set(place)):
            raise RequestError(f"{file} names images that are not in the data: {enumerated(lost)}")
        kept = images.at([place[name] for name in names])
        given = [kept.classes[at] for at in kept.labels]
    elif "label" in table:
        given = list(table.drop_duplicates("image")["label"].astype(str))
        kept = Listed(Path(), tuple(names), (), ())
    else:
        raise RequestError(f"{file} has no column 'label'; add it, or name the images with --data")
    known = {name: at for at, name in enumerate(classes)}
    if unknown := sorted(set(given) - set(known)):
        raise RequestError(
            f"{file} has no column of probabilities for the labels {enumerated(unknown)}; its "
            f"classes: {enumerated(classes)}"
        )
    return replace(kept, labels=tuple(known[label] for label in given), classes=tuple(classes))
