"""Networks as people name them: an architecture with its published weights or a checkpoint.

Nothing in a file is run: PyTorch's restricted reader is given a short list of harmless kinds.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdnotes.errors import RequestError, brief
from kdnotes.networks import building
from kdnotes.networks.wrapping import Normalized, example, logits_once

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
SIDES = (32, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)
FORMS = "NAME, NAME:FILE, NAME:FILE#ENTRY or module:function"
# Entries of training scripts' files, the one that is meant unless another is asked for first.
ENTRIES = ("state_dict", "model", "net", "model_state_dict")
AVERAGED = ("ema", "swa", "averaged")  # in the name of an entry: weights averaged over training
BOOKKEEPING = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
_Triple = tuple[float, float, float]
_Shapes = Mapping[str, tuple[int | None, ...]]  # by name; None stands for the number of classes


class _MisfitError(RequestError):
    pass


@dataclass(frozen=True)
class Opened:
    """A network as somebody named it: [0, 1] images of ``size`` pixels in, logits out."""

    network: Normalized
    size: int | None  # None where any will do as far as is known
    classes: int = 0  # that it tells apart
    file: Path | None = None  # that its weights were read from
    notes: tuple[str, ...] = ()  # what was guessed, chosen or changed, a sentence each


@dataclass(frozen=True)
class _Variant:
    """A way to build an architecture."""

    make: Callable[..., nn.Module]  # given num_classes
    mean: _Triple = (0.5, 0.5, 0.5)
    std: _Triple = (0.25, 0.25, 0.25)
    size: int | None = None
    said: str = ""  # of it, where it is not the one that the name means
    guessed: bool = False  # from shapes alone


def open_network(text: str, classes: int | None = None, size: int | None = None) -> Opened:
    """The network that somebody names, in evaluation mode, tried on random images; no download.

    text: NAME (an architecture of timm, torchvision or the book; its published weights), NAME:FILE
    (a checkpoint: safetensors or PyTorch), NAME:FILE#ENTRY (what stands before the names there), or
    module:function (that is run, and returns a network). classes: how many it must tell apart;
    size: of the images in pixels, where the network is not made for images of its own size.
    Raises RequestError saying what is wrong, before anything is computed.
    """
    name, _, file = text.partition(":")
    if not _is_architecture(name):
        parts = (*name.split("."), *file.split("."))
        if all(each.isidentifier() for each in parts) and Path(file).suffix not in ENDINGS:
            return _tried(_from_function(text), text, classes)
        if Path(text.partition("#")[0]).suffix in ENDINGS and not file:
            raise RequestError(f"{brief(text)}: say of which architecture, as {FORMS}")
        raise building.unknown(name)
    if file:
        path, _, entry = file.rpartition("#") if "#" in file else (file, "", "")
        return _tried(_from_file(name, Path(path).expanduser(), entry, size), text, classes)
    return _tried(_published(name, name), text, classes)


def load_published(name: str, weights: str, num_classes: int) -> Normalized:
    """A timm architecture with published weights, in evaluation mode; nothing is downloaded.

    ``weights``: timm's name with its tag, such as resnet50.tv_in1k, or that of a file: of
    WEIGHTS.safetensors (or .pth, .pt, .ckpt, .bin) in the folder KDNOTES_WEIGHTS, else what was
    downloaded before. Raises RequestError saying what to do where neither is there or fits.
    """
    building.check_name(name)
    try:
        return _tried(_published(name, weights), weights, num_classes).network
    except RequestError as error:
        here = f"KDNOTES_WEIGHTS={building.TRAINED_HERE} trains this network instead"
        raise RequestError(f"{error}; {here}") from error


def _tried(opened: Opened, text: str, classes: int | None) -> Opened:
    """The same, if it answers random images as it should; with the number of its classes."""
    network, name = opened.network.eval(), brief(text)
    for key, values in network.body.state_dict().items():
        if not bool(values.isfinite().all()):
            raise RequestError(f"{name} has weights that are not finite numbers ({key})")
    logits = logits_once(network, example(network))
    if not bool(logits.isfinite().all()):
        raise RequestError(f"{name} answers with numbers that are not finite")
    found = logits.shape[1]
    if classes is not None and found != classes:
        raise RequestError(f"{name} has a head of {found} classes; {classes} are needed")
    return replace(opened, size=opened.size and network.size, classes=found)  # that was tried


# --- where weights are ----------------------------------------------------------------------


def _published(name: str, weights: str) -> Opened:
    folder = os.environ.get("KDNOTES_WEIGHTS", "")
    places = [Path(folder).expanduser() / f"{weights}{each}" for each in ENDINGS if folder]
    config: Any = timm.get_pretrained_cfg(weights) if building.is_timms(weights) else None
    places += _downloaded(weights, config)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        advice = f"put {weights}.safetensors (or .pth) into a folder KDNOTES_WEIGHTS"
        if getattr(config, "hf_hub_id", None):
            get = f"hf download {config.hf_hub_id}"
        elif weights in _torchvision_names():
            get = f"call torchvision.models.get_model({weights!r}, weights='DEFAULT') once"
        else:
            raise RequestError(f"there are no weights {weights!r}; {advice}")
        unasked = f"no weights {weights!r} here, and none are downloaded unasked"
        raise RequestError(f"{unasked}: {get}, or {advice}")
    # The body is named without the tag where the file's own name is not one of timm's.
    known = weights if _is_architecture(weights) else name
    try:
        return _from_file(known, found, "", None)
    except _MisfitError:
        if config is None:
            raise
        # Perhaps they are published under other names, which timm knows how to change.
        with suppress(Exception):
            overlay = {"file": str(found)}
            body = timm.create_model(known, pretrained=True, pretrained_cfg_overlay=overlay)
            variant = next(_variants(known, None))
            network = Normalized(body, variant.mean, variant.std, variant.size)
            return Opened(network, network.size, file=found)
        raise


def _downloaded(weights: str, config: Any) -> Iterator[Path]:
    """Where the libraries themselves leave what they download."""
    from huggingface_hub import try_to_load_from_cache

    hub = getattr(config, "hf_hub_id", None) or ""
    for name in ("model.safetensors", "pytorch_model.bin") if hub else ():
        with suppress(Exception):
            path = try_to_load_from_cache(hub, getattr(config, "hf_hub_filename", None) or name)
            yield from [Path(path)] if isinstance(path, str) else []
    if weights in _torchvision_names():
        import torchvision

        best: Any = torchvision.models.get_model_weights(weights).DEFAULT  # type: ignore[attr-defined]
        yield Path(torch.hub.get_dir()) / "checkpoints" / best.url.rsplit("/", 1)[-1]


def _from_function(name: str) -> Opened:
    """What module:function, of the user's own, returns; their code is run."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        body: Any = pkgutil.resolve_name(name)()
    except Exception as error:  # whatever their code raises
        why = f"{type(error).__name__}: {brief(error)}"
        raise RequestError(f"{name} does not give a network ({why})") from error
    if not isinstance(body, nn.Module):
        raise RequestError(f"{name} returns a {type(body).__name__}, not a torch.nn.Module")
    if isinstance(body, Normalized):
        return Opened(body, body.size)
    if known := getattr(body, "pretrained_cfg", None):
        network = Normalized(body, tuple(known["mean"]), tuple(known["std"]))
        return Opened(network, known["input_size"][-1])
    said = f"{name}: its normalisation is not known, so that it gets images in [0, 1]"
    return Opened(Normalized(body, (0.0,) * 3, (1.0,) * 3), None, notes=(said,))


def _from_file(name: str, path: Path, entry: str, size: int | None) -> Opened:
    """An architecture with the tensors of a file: the first way to build it that they fit."""
    tensors, shown = _read(path), brief(path.name, 60)
    problem, named = "", True
    for variant in _variants(name, size):
        if variant.guessed and not named:
            continue
        found, why, by_name = _find(tensors, _shapes(variant.make), entry)
        if found:
            break
        problem, named = (problem, named) if problem else (why, by_name)
    else:
        raise _MisfitError(f"{shown} does not fit {name}: {brief(problem, 150)}")
    values, notes = _chosen(found, shown)
    body = variant.make(num_classes=found[0].classes)
    body.load_state_dict(values, strict=False)  # what is missing was looked at
    notes += [f"{path.name}: {variant.said}"] if variant.said else []
    own = _normalisation(found[0].where, tensors)
    if own is None and name not in building.PRESET_NETS:
        notes.append(f"{path.name}: images are scaled and normalised as for {name} as published")
    network = Normalized(body, *(own or (variant.mean, variant.std)), variant.size)
    wanted = network.size if name not in building.PRESET_NETS else None
    return Opened(network, wanted, file=path, notes=tuple(notes))


def _normalisation(where: str, tensors: Mapping[str, Tensor]) -> tuple[_Triple, _Triple] | None:
    """The mean and sd that the book's own networks are saved with."""
    before = where.removesuffix("body.")
    found: list[Any] = [tensors.get(f"{before}{each}") for each in ("mean", "std")]
    if before == where or any(each is None or each.numel() != 3 for each in found):
        return None
    mean, std = (tuple(each.flatten().tolist()) for each in found)
    return mean, std


# --- ways to build an architecture ----------------------------------------------------------


def _is_architecture(name: str) -> bool:
    return name in building.PRESET_NETS or building.is_timms(name) or name in _torchvision_names()


@lru_cache(maxsize=1)
def _torchvision_names() -> frozenset[str]:
    import torchvision

    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _variants(name: str, size: int | None) -> Iterator[_Variant]:
    """Ways to build an architecture: as it is published first, guesses last."""
    if name in building.PRESET_NETS:
        yield _Variant(partial(building.body_of, name, small_images=True), size=32)
        return
    is_timm = building.is_timms(name)
    config: Any = timm.get_pretrained_cfg(name) if is_timm else None
    known = config or timm.models.PretrainedCfg()
    about: dict[str, Any] = {"mean": tuple(known.mean), "std": tuple(known.std)}
    side, fixed = known.input_size[-1], known.fixed_input_size
    make: Callable[..., nn.Module] = partial(timm.create_model, name)
    if is_timm:
        if size and fixed and size != side:
            yield _Variant(partial(make, img_size=size), **about, size=size)
        yield _Variant(make, **about, size=side)
    if name in _torchvision_names():
        from torchvision import models

        shown: Any = models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        theirs: Any = partial(models.get_model, name, weights=None, **options)
        said = f"the weights are those of torchvision's {name}, not timm's" if is_timm else ""
        yield _Variant(theirs, tuple(shown.mean), tuple(shown.std), shown.crop_size[0], said)
    if is_timm and fixed and not size:
        for other in (each for each in SIDES if each != side):
            said = f"the weights are those of {name} for images of {other} pixels"
            resized = partial(make, img_size=other)
            yield _Variant(resized, **about, size=other, said=said, guessed=True)
    if is_timm and not fixed:
        said = f"the weights fit {name} only with the stem for small images (stride 1, no pooling)"
        make = partial(building.body_of, name, small_images=True)
        yield _Variant(make, **about, size=32, said=said, guessed=True)


def _shapes(make: Callable[..., nn.Module]) -> _Shapes:
    """Shapes of a network's tensors, None where they are as long as there are classes."""
    try:
        with torch.device("meta"):
            few, many = (make(num_classes=number).state_dict() for number in (7, 11))
    except (NotImplementedError, RuntimeError):  # what cannot be laid out without being computed
        few, many = (make(num_classes=number).state_dict() for number in (7, 11))
    except (AssertionError, TypeError, ValueError):  # not one for such images
        return {}
    return {
        name: tuple(a if a == b else None for a, b in zip(t.shape, many[name].shape, strict=True))
        for name, t in few.items()
    }


# --- what is in a file ----------------------------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by their full names, entries and prefixes joined by dots."""
    if not path.is_file():
        text = str(path)
        named = text if len(text) <= 100 else f"...{text[-97:]}"  # its end tells most
        raise RequestError(f"no checkpoint {named!r}")
    name = brief(path.name, 60)
    with path.open("rb") as opened:
        start = opened.read(200)
    if not start:
        raise RequestError(f"{name} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise RequestError(f"{name} is a Git LFS pointer, not the weights; run git lfs pull")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            harmless: list[Any] = [(kind, known) for known, kind in _harmless().items()]
            with torch.serialization.safe_globals(harmless):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of several kinds, by what is damaged
        foreign: set[str] = set()
        with suppress(Exception):
            kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            foreign = set(kinds) - set(_harmless())
        said = "is no whole checkpoint (damaged, cut off, or of another kind); get it again"
        if foreign:
            objects = f"holds Python objects, which are not run ({_several(sorted(foreign))})"
            said = f"{objects}: save the network's state_dict() alone"
        raise RequestError(f"{name} {said}") from error
    tensors = dict(_named(content, "")) if isinstance(content, Mapping) else {}
    if not tensors:
        kind = type(content).__name__
        raise RequestError(f"{name} holds a {kind} with no tensors by name: save state_dict()")
    return tensors


def _harmless() -> dict[str, Any]:
    """Kinds beside tensors that training scripts leave in files, by every name they had."""
    plain: list[type] = [int, float, str, bool, list, dict, tuple, collections.defaultdict]
    plain += [argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.timedelta]
    plain += [np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
    known: dict[str, Any] = {f"{each.__module__}.{each.__name__}": each for each in plain}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[f"{module}._reconstruct"] = np.array([0]).__reduce__()[0]
        known[f"{module}.scalar"] = np.float32(0).__reduce__()[0]
    for module in ("pathlib", "pathlib._local"):
        known[f"{module}.PosixPath"] = pathlib.PosixPath
        known[f"{module}.PurePosixPath"] = pathlib.PurePosixPath
    return known


def _named(content: Mapping[Any, Any], before: str, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{before}{name}", value
        elif isinstance(value, Mapping) and depth:
            yield from _named(value, f"{before}{name}.", depth - 1)


class _Place(NamedTuple):
    """A network in a file."""

    where: str  # what stands before its tensors' names
    tensors: dict[str, Tensor]
    classes: int  # of its head

    @property
    def rank(self) -> tuple[bool, int]:
        """The most likely place comes first."""
        top = self.where.split(".")[0]
        place = ENTRIES.index(top) if top in ENTRIES else len(ENTRIES)
        averaged = any(each in self.where.lower() for each in AVERAGED)
        return averaged, place if self.where else -1

    def __str__(self) -> str:
        return self.where.rstrip(".") or "the names without a prefix"


def _find(
    tensors: Mapping[str, Tensor], wanted: _Shapes, entry: str
) -> tuple[list[_Place], str, bool]:
    """Where in a file a network lies; why not in the place that fits best; if there is one by name.

    A place counts where every tensor wanted is there in its shape, and none beside it; ``entry`` is
    part of what must stand before their names.
    """
    if entry and not any(f".{entry}." in f".{name}" for name in tensors):
        tops = sorted({name.split(".")[0] for name in tensors})
        return [], f"there is no entry {entry!r}; the file has {_several(tops)}", False
    must = [name for name in wanted if not name.endswith(BOOKKEEPING)]
    ends = [
        (n, key) for key in must[:1] + must[-1:] for n in tensors if f".{n}".endswith(f".{key}")
    ]
    found, named, best = [], False, (-1, "none of the network's tensors is in it")
    for where in dict.fromkeys(name.removesuffix(key) for name, key in ends):
        if entry and f".{entry}." not in f".{where}":
            continue
        below = {n.removeprefix(where): t for n, t in tensors.items() if n.startswith(where)}
        lacking = [name for name in must if name not in below]
        shapes = {n: (tuple(below[n].shape), wanted[n]) for n in wanted if n in below}
        unlike = [n for n in must if n in shapes and not _fits(*shapes[n])]
        extra = [n for n in below if n not in wanted and not n.endswith(BOOKKEEPING)]
        counts = {a for pair in shapes.values() for a, b in zip(*pair, strict=False) if b is None}
        named = named or not lacking
        if unlike:
            has, needs = shapes[unlike[0]]
            shown = tuple("classes" if each is None else each for each in needs)
            why = f"{unlike[0]} is {has}, not {shown}"
        elif lacking:
            why = f"{len(lacking)} tensors are missing, such as {lacking[0]}"
        elif extra:
            why = f"{len(extra)} tensors are too many, such as {brief(extra[0], 40)}"
        elif len(counts) != 1:
            why = f"its tensors are made for {len(counts)} numbers of classes"
        else:
            found.append(_Place(where, {name: below[name] for name in shapes}, counts.pop()))
            continue
        best = max(best, (len(must) - len(lacking) - len(unlike), why))
    return sorted(found, key=lambda each: each.rank), best[1], named


def _fits(has: tuple[int, ...], needs: tuple[int | None, ...]) -> bool:
    return len(has) == len(needs) and all(b in (a, None) for a, b in zip(has, needs, strict=True))


def _chosen(found: list[_Place], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the first place, in float32, with what is to be said about it."""
    first = found[0]
    equals = [each for each in found if each.rank == first.rank]
    for each in equals[1:]:
        if not all(torch.equal(t, each.tensors[key]) for key, t in first.tensors.items()):
            several = f"{name} holds several such networks ({first} and {each})"
            raise RequestError(f"{several}; write {name}#{first} for one of them")
    notes = [f"{name}: took {first}"] if first.where else []
    if others := [str(each) for each in found[len(equals) :]]:
        notes.append(f"{name}: also holds {_several(others)} (write {name}#{others[0]} to take it)")
    kinds = {t.dtype for t in first.tensors.values() if t.is_floating_point()}
    if narrow := sorted(str(each)[6:] for each in kinds - {torch.float32, torch.float64}):
        notes.append(f"{name}: weights of {_several(narrow)} are computed with in float32")
    for key, values in first.tensors.items():
        if values.is_quantized or values.layout != torch.strided:
            raise RequestError(f"{name} holds quantised or sparse weights ({key}); save plain ones")
    return {n: t.float() if t.is_floating_point() else t for n, t in first.tensors.items()}, notes


def _several(names: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(brief(each, 40) for each in names[:3]) + more
