"""Reading checkpoints as training scripts write them: named tensors, wherever in the file they are.

Nothing in a file is run: PyTorch's restricted reader is given a short list of harmless kinds.
"""

from __future__ import annotations

import argparse
import pathlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdnotes.errors import RequestError, brief

# Entries of training scripts' files, the one that is meant unless another is asked for first.
ENTRIES = ("state_dict", "model", "net", "model_state_dict")
AVERAGED = ("ema", "swa", "averaged")  # in the name of an entry: weights averaged over training
BOOKKEEPING = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
POINTER = b"version https://git-lfs"
Shapes = Mapping[str, tuple[int | None, ...]]  # by name; None stands for the number of classes


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of one network in a file: float32, by the network's own names.

    where: what stands before each name in the file; around: the file's other tensors; notes: what
    was chosen or changed; classes: how many its head has.
    """

    tensors: dict[str, Tensor]
    classes: int
    where: str
    around: Mapping[str, Tensor]
    notes: tuple[str, ...]


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by their full names, entries and prefixes joined by dots.

    Raises RequestError for a file that holds none, or is none of PyTorch's or safetensors.
    """
    if not path.is_file():
        raise RequestError(f"no checkpoint {_short(path)!r}")
    name = brief(path.name, 60)
    with path.open("rb") as opened:
        start = opened.read(200)
    if not start:
        raise RequestError(f"{name} is empty")
    if start.startswith(POINTER):
        raise RequestError(f"{name} is a Git LFS pointer, not the weights; run git lfs pull")
    content = (_safetensors if path.suffix == ".safetensors" else _torch)(path, name)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise RequestError(f"{name} holds a {kind}, not tensors by name: save state_dict()")
    tensors = dict(_named(content, ""))
    if not tensors:
        raise RequestError(f"{name} holds no tensors by name: save state_dict()")
    return tensors


def _safetensors(path: Path, name: str) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of several kinds, by what is damaged
        raise RequestError(f"{name} is no whole safetensors file; get it again") from error


def _torch(path: Path, name: str) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        try:
            kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:
            kinds = []
        allowed = {each[1] if isinstance(each, tuple) else "" for each in _harmless()}
        foreign = sorted(each for each in kinds if each not in allowed)
        if foreign:
            raise RequestError(
                f"{name} holds Python objects, which are not run ({brief_list(foreign)}): "
                "save the network's state_dict() alone"
            ) from error
        raise RequestError(
            f"{name} is no whole checkpoint of PyTorch (damaged, cut off, or of another kind)"
        ) from error


def _harmless() -> list[Any]:
    """Kinds beside tensors that training scripts leave in files, under every name they had."""
    import collections
    import datetime

    import numpy as np

    array: Any = np.array([0])
    one: Any = np.float32(0)
    rebuild, scalar = array.__reduce__()[0], one.__reduce__()[0]
    plain: list[type] = [int, float, str, bool, list, dict, tuple, collections.defaultdict]
    plain += [argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.timedelta]
    plain += [np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
    return [
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (pathlib.PosixPath, "pathlib.PosixPath"),
        (pathlib.PosixPath, "pathlib._local.PosixPath"),
        (pathlib.PurePosixPath, "pathlib.PurePosixPath"),
        (pathlib.PurePosixPath, "pathlib._local.PurePosixPath"),
        *((each, f"{each.__module__}.{each.__name__}") for each in plain),
    ]


def _named(content: Mapping[Any, Any], before: str, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{before}{name}", value
        elif isinstance(value, Mapping) and depth:
            yield from _named(value, f"{before}{name}.", depth - 1)


def find(tensors: Mapping[str, Tensor], wanted: Shapes, entry: str = "") -> list[Weights]:
    """Where in a file the tensors of a network lie, the most likely place first.

    wanted: the network's own; entry: part of what must stand before the names. A place counts where
    every tensor is there in its shape, and none beside it that the network lacks.
    """
    must = _needed(wanted)
    found = []
    for where in _places(tensors, must[0] if must else "", entry):
        below = {n[len(where) :]: t for n, t in tensors.items() if n.startswith(where)}
        extra = [n for n in below if n not in wanted and not n.endswith(BOOKKEEPING)]
        if extra or not all(n in below and _fits(below[n], wanted[n]) for n in must):
            continue
        if len(counts := _classes(below, wanted)) == 1:
            chosen = {name: below[name] for name in wanted if name in below}
            around = {n: t for n, t in tensors.items() if not n.startswith(where)}
            found.append(Weights(chosen, counts.pop(), where, around, ()))
    return sorted(found, key=lambda each: _rank(each.where))


def names_fit(tensors: Mapping[str, Tensor], wanted: Shapes, entry: str = "") -> bool:
    """Whether all of a network's tensors are somewhere in a file by name, of any shape."""
    must = _needed(wanted)
    places = _places(tensors, must[0], entry) if must else []
    return any(all(f"{where}{name}" in tensors for name in must) for where in places)


def _needed(wanted: Shapes) -> list[str]:
    return [name for name in wanted if not name.endswith(BOOKKEEPING)]


def _fits(values: Tensor, shape: tuple[int | None, ...]) -> bool:
    pairs = zip(values.shape, shape, strict=False)
    return values.ndim == len(shape) and all(b in (a, None) for a, b in pairs)


def _classes(below: Mapping[str, Tensor], wanted: Shapes) -> set[int]:
    heads = ((below[n].shape, shape) for n, shape in wanted.items() if None in shape and n in below)
    return {a for shape, free in heads for a, b in zip(shape, free, strict=False) if b is None}


def _places(tensors: Mapping[str, Tensor], first: str, entry: str) -> list[str]:
    """All that stands before a name somewhere in a file, the entry asked for among it."""
    ends = [n[: len(n) - len(first)] for n in tensors if n == first or n.endswith(f".{first}")]
    asked = f".{entry}." if entry else ""
    return [where for where in ends if asked in f".{where}"]


def _rank(where: str) -> tuple[bool, int]:
    top = where.split(".")[0]
    place = ENTRIES.index(top) if top in ENTRIES else len(ENTRIES)
    return any(each in where.lower() for each in AVERAGED), place if where else -1


def choose(found: list[Weights], name: str) -> Weights:
    """One of the places where a network's tensors lie, with what is to be said about it.

    Raises RequestError where several are as likely, such as a teacher and a student, and for
    tensors that are not finite.
    """
    first = found[0]
    equals = [each for each in found if _rank(each.where) == _rank(first.where)]
    distinct = [each for each in equals[1:] if not _alike(each.tensors, first.tensors)]
    if distinct:
        several = " and ".join(_said(each.where) for each in (first, distinct[0]))
        raise RequestError(
            f"{name} holds several such networks ({several}); write {name}#"
            f"{_said(first.where)} for one of them"
        )
    notes = []
    if first.where:
        notes.append(f"{name}: took {_said(first.where)}")
    others = [each for each in found[1:] if each not in equals]
    if others:
        notes.append(
            f"{name}: also holds {brief_list([_said(each.where) for each in others])} "
            f"(write {name}#{_said(others[0].where)} to take it)"
        )
    kinds = {t.dtype for t in first.tensors.values() if t.is_floating_point()}
    if narrow := sorted(str(each)[6:] for each in kinds - {torch.float32, torch.float64}):
        notes.append(f"{name}: weights of {brief_list(narrow)} are computed with in float32")
    tensors = {}
    for key, values in first.tensors.items():
        if values.is_quantized or values.layout != torch.strided:
            raise RequestError(f"{name} holds quantised or sparse weights ({key}); save plain ones")
        if not bool(values.isfinite().all()):
            raise RequestError(f"{name} has weights that are not finite numbers ({key})")
        tensors[key] = values.float() if values.is_floating_point() else values
    return Weights(tensors, first.classes, first.where, first.around, tuple(notes))


def _said(where: str) -> str:
    return where.rstrip(".") or "the names without a prefix"


def _alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(values, second[name]) for name, values in first.items())


def mismatch(tensors: Mapping[str, Tensor], wanted: Shapes, entry: str = "") -> str:
    """Why no place in a file fits a network, of the place that fits best."""
    must = _needed(wanted)
    best: tuple[int, str] = (-1, "none of the network's tensors is in it")
    if entry and not any(f".{entry}." in f".{name}" for name in tensors):
        tops = sorted({name.split(".")[0] for name in tensors})
        return f"there is no entry {entry!r}; the file has {brief_list(tops)}"
    places = {w for name in must[:1] + must[-1:] for w in _places(tensors, name, entry)}
    for where in sorted(places):
        below = {n[len(where) :]: t for n, t in tensors.items() if n.startswith(where)}
        shared = [name for name in must if name in below]
        lacking = [name for name in must if name not in below]
        unlike = [name for name in shared if not _fits(below[name], wanted[name])]
        extra = [n for n in below if n not in wanted and not n.endswith(BOOKKEEPING)]
        if unlike:
            name = unlike[0]
            shape = tuple("classes" if each is None else each for each in wanted[name])
            why = f"{name} is {tuple(below[name].shape)}, not {shape}"
        elif lacking:
            why = f"{len(lacking)} tensors are missing, such as {lacking[0]}"
        else:
            why = f"{len(extra)} tensors are too many, such as {brief_list(extra[:1])}"
        best = max(best, (len(shared) - len(unlike), why))
    return best[1]


def brief_list(names: list[str]) -> str:
    """A few names, and how many more there are."""
    shown = [each if len(each) <= 40 else f"{each[:37]}..." for each in names[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown) + more


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 100 else f"...{text[-97:]}"
