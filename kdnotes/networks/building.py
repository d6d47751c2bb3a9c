"""Networks by name: the book's own, known without torch since planning asks, and timm's."""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdnotes.errors import RequestError, brief

if TYPE_CHECKING:
    from torch import nn

    from kdnotes.networks.wrapping import Normalized

TRAINED_HERE = "none"  # value of KDNOTES_WEIGHTS: use no published weights at all


@dataclass(frozen=True)
class PresetNet:
    """One of the book's own: widths and blocks of its stages, multiply-adds at 32 pixels."""

    family: Literal["vgg", "vgg-blur", "resnet", "vit", "paper-mnist"]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    multiply_adds: int


PRESET_NETS: dict[str, PresetNet] = {
    "vgg-small": PresetNet("vgg", (16, 32, 64), (1, 1, 1), 701_056),
    "vgg-medium": PresetNet("vgg", (16, 64, 128), (1, 1, 2), 4_240_640),
    "vgg-large": PresetNet("vgg", (16, 64, 128), (1, 2, 2), 6_599_936),
    "vgg-small-blur": PresetNet("vgg-blur", (16, 32, 64), (1, 1, 1), 2_866_816),
    "vgg-large-blur": PresetNet("vgg-blur", (16, 48, 96), (1, 1, 1), 4_945_344),
    "resnet-small": PresetNet("resnet", (16, 32, 64, 64), (1, 1, 1, 1), 6_795_904),
    "vit-tiny": PresetNet("vit", (64,), (2,), 3_695_232),
    "vit-small": PresetNet("vit", (96,), (4,), 9_708_480),
    "paper-mnist": PresetNet("paper-mnist", (32, 64), (1, 1), 16_409_216),
    "paper-mnist-half": PresetNet("paper-mnist", (16, 32), (1, 1), 4_297_024),
}


def check_name(name: str) -> None:
    """Raise RequestError unless the name is a preset net or one of timm's models."""
    known = name.partition(".")[0] in timm_names()
    if name not in PRESET_NETS and not (known and ("." not in name or is_timms(name))):
        raise unknown(name)


def is_timms(name: str) -> bool:
    """Whether timm has an architecture, and weights of the tag if the name has one."""
    import timm

    return timm.is_model(name) and ("." not in name or timm.get_pretrained_cfg(name) is not None)


def unknown(name: str) -> RequestError:
    """What to say of a name that no network has."""
    near = difflib.get_close_matches(name, [*PRESET_NETS, *timm_names()], 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(PRESET_NETS)
    return RequestError(
        f"unknown model {brief(name, 40)!r}; known: {known}, or any timm model{hint}"
    )


@lru_cache(maxsize=1)
def timm_names() -> frozenset[str]:
    """The names of timm's models, read in its sources: to import it takes seconds."""
    found: Any = importlib.util.find_spec("timm")
    sources = Path(found.origin).with_name("models").glob("*.py")
    registered = re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE)
    return frozenset(
        name for path in sources for name in registered.findall(path.read_text(encoding="utf-8"))
    )


def build(
    name: str,
    num_classes: int,
    seed: int,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.25, 0.25, 0.25),
    small_images: bool = True,
) -> Normalized:
    """An initialised network; the same name, classes and seed give the same weights.

    ``small_images``: timm's ResNets get a stride-1 stem without pooling, as is usual at 32 pixels.
    Raises RequestError for an unknown name.
    """
    import torch

    from kdnotes.networks.wrapping import Normalized

    check_name(name)
    # Layers draw their first weights from the global generator: lend it, seeded, and restore it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = body_of(name, num_classes, small_images)
    return Normalized(body, mean, std, 32 if name in PRESET_NETS else None)


def body_of(name: str, num_classes: int, small_images: bool) -> nn.Module:
    """An architecture, its weights drawn from the global generator; else as `build`."""
    import timm
    from torch import nn

    from kdnotes.networks import architectures

    if net := PRESET_NETS.get(name):
        if net.family == "resnet":
            return architectures.small_resnet(net.widths, net.depths, num_classes)
        if net.family == "vit":
            return architectures.small_vit(net.widths[0], net.depths[0], num_classes)
        if net.family == "paper-mnist":
            return architectures.PaperMNIST(net.widths, num_classes)
        return architectures.SmallVGG(net.widths, net.depths, num_classes, net.family == "vgg-blur")
    body: Any = timm.create_model(name, num_classes=num_classes)
    if small_images and hasattr(body, "maxpool"):
        body.maxpool = nn.Identity()
        stem = body.conv1
        if isinstance(stem, nn.Conv2d) and stem.kernel_size == (7, 7):  # not a deep one
            body.conv1 = nn.Conv2d(3, stem.out_channels, 3, padding=1, bias=False)
    return body


@lru_cache(maxsize=64)
def multiply_adds(name: str, size: int, small_images: bool = True) -> int:
    """Multiply-adds of one forward pass of one (3, size, size) image through a named model."""
    if name in PRESET_NETS:  # they grow with the area of the image
        return round(PRESET_NETS[name].multiply_adds * (size / 32) ** 2)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = build(name, 10, seed=0, small_images=small_images).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


@lru_cache(maxsize=64)
def map_sides(name: str, size: int) -> tuple[int, ...]:
    """Cells on a side of each stage's map for images of a size (0: no map), or RequestError."""
    net = PRESET_NETS.get(name)
    if net is None:
        return _timm_map_sides(name, size)
    if net.family == "vit":
        if not 24 < size <= 32:
            raise RequestError(f"{name} takes images of 32 pixels, not of {size}: name another one")
        return (4,) * net.depths[0]
    if net.family == "paper-mnist":
        return (size - 2, size - 4)
    halved = [math.ceil(size / 2**times) for times in range(1, 4)]
    return (*halved, halved[-1]) if net.family == "resnet" else tuple(halved)


def _timm_map_sides(name: str, size: int) -> tuple[int, ...]:
    import torch

    from kdnotes.networks.features import tapped, taps
    from kdnotes.networks.wrapping import evaluating, example

    network = build(name, 10, seed=0)
    network.size = size
    try:
        paths = taps(network)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error
    with evaluating(network), torch.inference_mode(), tapped(network, paths) as outputs:
        network(example(network))
    return tuple(min(outputs[path].shape[2:]) for path in paths)
