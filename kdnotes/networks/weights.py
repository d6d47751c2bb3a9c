"""Networks as people name them: an architecture with its published weights or a checkpoint."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from kdnotes.errors import RequestError, brief
from kdnotes.networks import reading
from kdnotes.networks.building import (
    PRESET_NETS,
    TRAINED_HERE,
    _body,
    check_name,
    is_timms,
    unknown,
)
from kdnotes.networks.wrapping import Normalized, example, logits_once

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
SIDES = (32, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)
FORMS = "NAME, NAME:FILE, NAME:FILE#ENTRY or module:function"
_Triple = tuple[float, float, float]


class _MisfitError(RequestError):
    pass


@dataclass(frozen=True)
class Opened:
    """A network as somebody named it: [0, 1] images of ``size`` pixels in, logits out.

    size: None where any will do as far as is known; classes: how many it tells apart; file: what
    its weights were read from; notes: what was guessed, chosen or changed, a sentence each.
    """

    network: Normalized
    size: int | None
    classes: int
    file: Path | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Variant:
    """A way to build an architecture for a number of classes.

    make: builds it, given num_classes; said: what to say of it where it is not the one that the
    name means; guessed: from shapes alone.
    """

    make: Callable[..., nn.Module]
    mean: _Triple = (0.5, 0.5, 0.5)
    std: _Triple = (0.25, 0.25, 0.25)
    size: int | None = None
    said: str = ""
    guessed: bool = False


def open_network(text: str, classes: int | None = None, size: int | None = None) -> Opened:
    """The network that somebody names, in evaluation mode, tried on random images.

    text: NAME (an architecture of timm, torchvision or the book; its published weights), NAME:FILE
    (a checkpoint: safetensors or PyTorch), NAME:FILE#ENTRY (what stands before the names there), or
    module:function (that is run, and returns a network). classes: how many it must tell apart;
    size: of the images in pixels, where the network is not made for images of its own size.

    Nothing is downloaded. Raises RequestError saying what is wrong, before anything is computed.
    """
    name, _, file = text.partition(":")
    if not _is_architecture(name):
        parts = (*name.split("."), *file.split("."))
        if all(each.isidentifier() for each in parts) and Path(file).suffix not in ENDINGS:
            return _tried(_from_function(name, file), text, classes)
        if Path(text.partition("#")[0]).suffix in ENDINGS and not file:
            raise RequestError(f"{brief(_plain(text))}: say of which architecture, as {FORMS}")
        raise unknown(name)
    if file:
        path, _, entry = file.rpartition("#") if "#" in file else (file, "", "")
        return _tried(_from_file(name, Path(path).expanduser(), entry, size), text, classes)
    return _tried(_published(name, name), text, classes)


def load_published(name: str, weights: str, num_classes: int) -> Normalized:
    """A timm architecture with published weights, in evaluation mode.

    ``weights``: timm's name with its tag, such as resnet50.tv_in1k, or that of a file. A file
    WEIGHTS.safetensors (or .pth, .pt, .ckpt, .bin) in the folder KDNOTES_WEIGHTS comes first, what
    was downloaded before second; nothing is downloaded. Raises RequestError saying what to do where
    neither is there, or they do not fit.
    """
    check_name(name)
    try:
        return _tried(_published(name, weights), weights, num_classes).network
    except RequestError as error:
        here = f"KDNOTES_WEIGHTS={TRAINED_HERE} trains this network instead"
        raise RequestError(f"{error}; {here}") from error


def _tried(opened: Opened, text: str, classes: int | None) -> Opened:
    """The same, if it answers random images as it should; with the number of its classes."""
    network = opened.network.eval()
    logits = logits_once(network, example(network))
    if not bool(logits.isfinite().all()):
        raise RequestError(f"{brief(text)} answers with numbers that are not finite")
    found = logits.shape[1]
    if classes is not None and found != classes:
        raise RequestError(f"{brief(text)} has a head of {found} classes; {classes} are needed")
    size = opened.size and network.size  # the size that was tried
    return Opened(network, size, found, opened.file, opened.notes)


# --- where weights are ----------------------------------------------------------------------


def _published(name: str, weights: str) -> Opened:
    folder = os.environ.get("KDNOTES_WEIGHTS", "")
    places = [Path(folder).expanduser() / f"{weights}{each}" for each in ENDINGS if folder]
    config: Any = timm.get_pretrained_cfg(weights) if is_timms(weights) else None
    places += list(_downloaded(weights, config))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        folder_advice = f"put {weights}.safetensors (or .pth) into a folder KDNOTES_WEIGHTS"
        get = f"hf download {config.hf_hub_id}" if getattr(config, "hf_hub_id", None) else ""
        if not get and weights in _torchvision_names():
            get = f"call torchvision.models.get_model({weights!r}, weights='DEFAULT') once"
        if not get:
            raise RequestError(f"there are no weights {weights!r}; {folder_advice}")
        raise RequestError(
            f"no weights {weights!r} here, and none are downloaded unasked: {get}, or "
            f"{folder_advice}"
        )
    # The body is named without the tag where the file's own name is not one of timm's.
    known = weights if _is_architecture(weights) else name
    try:
        return _from_file(known, found, "", None)
    except _MisfitError as error:
        if config is None:
            raise
        try:  # published under other names, which timm knows how to change
            body: Any = timm.create_model(
                known, pretrained=True, pretrained_cfg_overlay={"file": str(found)}
            )
        except Exception:
            raise error from None
        _check_finite(body, found.name)
        variant = next(_variants(known, None))
        network = Normalized(body, variant.mean, variant.std, variant.size)
        return Opened(network, network.size, config.num_classes, found, ())


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


def _from_function(module: str, function: str) -> Opened:
    """What a function of the user's own returns; their code is run."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(module)
        for part in function.split("."):
            made = getattr(made, part)
        body = made()
    except Exception as error:  # whatever their code raises
        why = f"{type(error).__name__}: {brief(error)}"
        raise RequestError(f"{module}:{function} does not give a network ({why})") from error
    if not isinstance(body, nn.Module):
        kind = type(body).__name__
        raise RequestError(f"{module}:{function} returns a {kind}, not a torch.nn.Module")
    _check_finite(body, f"{module}:{function}")
    if isinstance(body, Normalized):
        return Opened(body, body.size, 0, None, ())
    known: Any = getattr(body, "pretrained_cfg", None)
    if known:
        network = Normalized(body, tuple(known["mean"]), tuple(known["std"]))
        return Opened(network, known["input_size"][-1], 0, None, ())
    said = f"{module}:{function}: its normalisation is not known, so that it gets images in [0, 1]"
    return Opened(Normalized(body, (0.0,) * 3, (1.0,) * 3), None, 0, None, (said,))


def _check_finite(body: nn.Module, name: str) -> None:
    bad = next((n for n, t in body.state_dict().items() if not bool(t.isfinite().all())), None)
    if bad is not None:
        raise RequestError(f"{brief(name)} has weights that are not finite numbers ({bad})")


def _from_file(name: str, path: Path, entry: str, size: int | None) -> Opened:
    """An architecture with the tensors of a file: the first way to build it that they fit."""
    tensors = reading.read(path)
    problem, named = "", True
    for variant in _variants(name, size):
        if variant.guessed and not named:
            continue
        wanted = _shapes(variant.make)
        found = reading.find(tensors, wanted, entry)
        if not found:
            if not problem:
                problem = reading.mismatch(tensors, wanted, entry)
                named = reading.names_fit(tensors, wanted, entry)
            continue
        weights = reading.choose(found, brief(path.name, 60))
        body = variant.make(num_classes=weights.classes)
        body.load_state_dict(weights.tensors, strict=False)  # what is missing was looked at
        notes = [f"{path.name}: {variant.said}"] if variant.said else []
        own = _normalisation(weights, tensors)
        if own is None and name not in PRESET_NETS:
            notes.append(
                f"{path.name}: images are scaled and normalised as for {name} as published"
            )
        mean, std = own or (variant.mean, variant.std)
        network = Normalized(body, mean, std, variant.size)
        return Opened(
            network,
            network.size if name not in PRESET_NETS else None,
            weights.classes,
            path,
            (*weights.notes, *notes),
        )
    shown = brief(path.name, 60)
    raise _MisfitError(f"{shown} does not fit {name}: {brief(_plain(problem), 150)}")


def _normalisation(weights: reading.Weights, tensors: Any) -> tuple[_Triple, _Triple] | None:
    """The mean and sd that the book's own networks are saved with."""
    before = weights.where.removesuffix("body.")
    found = [tensors.get(f"{before}{each}") for each in ("mean", "std")]
    if before == weights.where or any(each is None or each.numel() != 3 for each in found):
        return None
    mean, std = (tuple(each.flatten().tolist()) for each in found)
    return mean, std


# --- ways to build an architecture ----------------------------------------------------------


def _is_architecture(name: str) -> bool:
    return name in PRESET_NETS or is_timms(name) or name in _torchvision_names()


@lru_cache(maxsize=1)
def _torchvision_names() -> frozenset[str]:
    import torchvision

    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _variants(name: str, size: int | None) -> Iterator[_Variant]:
    """Ways to build an architecture, the one that is published first.

    Guesses come last: another size of image where that changes the weights, and the stem for small
    images.
    """
    if name in PRESET_NETS:
        yield _Variant(partial(_body, name, small_images=True), size=32)
        return
    is_timm = is_timms(name)
    config: Any = timm.get_pretrained_cfg(name) if is_timm else None
    known = config or timm.models.PretrainedCfg()
    about: dict[str, Any] = {"mean": tuple(known.mean), "std": tuple(known.std)}
    side = known.input_size[-1]
    make: Callable[..., nn.Module] = partial(timm.create_model, name)
    if is_timm:
        if size and known.fixed_input_size and size != side:
            yield _Variant(partial(make, img_size=size), **about, size=size)
        yield _Variant(make, **about, size=side)
    if name in _torchvision_names():
        yield _torchvision_variant(name, is_timm)
    if is_timm and known.fixed_input_size and not size:
        for other in (each for each in SIDES if each != side):
            said = f"the weights are those of {name} for images of {other} pixels"
            resized = partial(make, img_size=other)
            yield _Variant(resized, **about, size=other, said=said, guessed=True)
    if is_timm and not known.fixed_input_size:
        said = f"the weights fit {name} only with the stem for small images (stride 1, no pooling)"
        make = partial(_body, name, small_images=True)
        yield _Variant(make, **about, size=32, said=said, guessed=True)


def _torchvision_variant(name: str, also_timms: bool) -> _Variant:
    import torchvision

    shown: Any = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    make: Any = partial(torchvision.models.get_model, name, weights=None, **options)
    said = f"the weights are those of torchvision's {name}, not timm's" if also_timms else ""
    return _Variant(make, tuple(shown.mean), tuple(shown.std), shown.crop_size[0], said)


def _shapes(make: Callable[..., nn.Module]) -> reading.Shapes:
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


def _plain(text: str) -> str:
    return " ".join(text.split())
