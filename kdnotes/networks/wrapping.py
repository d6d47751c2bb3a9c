"""Networks as they are used: [0, 1] images in, and frozen with BatchNorm folded for measuring."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdnotes.errors import RequestError, brief

_Network = TypeVar("_Network", bound=nn.Module)
Numbers = tuple[float, ...]
SIZES = (32, 224, 64, 28, 96, 128, 256, 384)  # tried where nothing is known of a network's images
SAME = 1e-5  # of the largest logit: how far apart logits are that count as the same


class Normalized(nn.Module):
    """A network with its normalisation in front: [0, 1] images in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: nn.Module, mean: Numbers, std: Numbers, size: int | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.size = size  # of images in pixels, None until one is known that it takes
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [0, 1] as the body wants them."""
        if not images.is_contiguous(memory_format=torch.channels_last):
            return (images - self.mean) / self.std
        # The same row by row: three numbers at a time would take several times as long.
        width, channels = images.shape[3], images.shape[1]
        rows = images.permute(0, 2, 3, 1).flatten(2) - self.mean.flatten().repeat(width)
        rows = rows.div_(self.std.flatten().repeat(width))
        return rows.unflatten(2, (width, channels)).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        answer: Any = self.body(self.normalize(images))
        if isinstance(answer, Tensor):
            return answer
        named = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
        if isinstance(named.get("logits"), Tensor):  # as Hugging Face's networks answer
            return named["logits"]
        kind = type(answer).__name__
        raise RequestError(f"the network answers with a {kind}; logits (N, classes) are needed")


class Composite(nn.Module):
    """The mean of several networks' logits, with shares; ``mirrored``: of mirror images, too."""

    def __init__(
        self, parts: list[Normalized], shares: tuple[float, ...] = (), mirrored: bool = False
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shares = shares or (1 / len(parts),) * len(parts)
        self.mirrored = mirrored

    def forward(self, images: Tensor) -> Tensor:
        seen = (images, images.flip(3)) if self.mirrored else (images,)
        logits = [
            share * part(view) / len(seen)
            for share, part in zip(self.shares, self.parts, strict=True)
            for view in seen
        ]
        return torch.stack(logits).sum(0)


def freeze(network: _Network) -> _Network:
    """A copy for measuring: evaluation mode, no gradients, channels last, BatchNorm folded.

    The last two only where they leave logits of random images as they were, to a relative 1e-5.
    """
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    with suppress(RequestError):  # no images to try it on
        images = example(frozen)
        plain = logits_once(frozen, images)
        for change in (_fold_batch_norm, _channels_last):
            changed = copy.deepcopy(frozen)
            with suppress(RequestError):  # the change has broken it
                change(changed, images)
                if differ(logits_once(changed, images), plain) <= SAME:
                    frozen = changed
    return frozen.requires_grad_(False)


def _channels_last(network: nn.Module, images: Tensor) -> None:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Fold each BatchNorm that is seen to be given what a convolution gave into that, in place.

    What timm's fused norms do besides (drop out, activate) is kept.
    """
    given: dict[int, Any] = {}  # convolution, tensor (kept, else ids come again), its version
    pairs: dict[nn.Module, nn.Conv2d] = {}
    calls: Counter[nn.Module] = Counter()

    def gave(conv: Any, inputs: Any, output: Tensor) -> None:
        calls[conv] += 1
        given[id(output)] = conv, output, output._version

    def takes(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        conv, output, version = given.get(id(inputs[0]), (None, inputs[0], -1))
        if output._version == version:  # nothing has changed it in place since
            pairs[norm] = conv

    with ExitStack() as hooks:
        for each in network.modules():
            if isinstance(each, nn.Conv2d):
                hooks.enter_context(each.register_forward_hook(gave))
            elif isinstance(each, nn.BatchNorm2d):
                hooks.enter_context(each.register_forward_pre_hook(takes))
        logits_once(network, images)
    for holder in list(network.modules()):
        children: list[tuple[str, Any]] = list(holder.named_children())
        for name, norm in children:
            if (conv := pairs.get(norm)) and calls[conv] == calls[norm] == 1:
                folded = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = folded.weight, folded.bias
                rest = (getattr(norm, part, nn.Identity()) for part in ("drop", "act"))
                kept = [part for part in rest if not isinstance(part, nn.Identity)]
                setattr(holder, name, kept[0] if len(kept) == 1 else nn.Sequential(*kept))


def example(network: nn.Module) -> Tensor:
    """Two random images (2, 3, S, S) of a size that a network takes, or RequestError."""
    wrapped = [each for each in network.modules() if isinstance(each, Normalized)]
    known = [each.size for each in wrapped if each.size]
    if known:
        return _random(known[0], network)
    declared: Any = [getattr(each.body, "pretrained_cfg", None) for each in wrapped]
    likely = [each["input_size"][-1] for each in declared if each]
    problems = []
    for size in (*likely[:1], *SIZES):
        images = _random(size, network)
        try:
            logits_once(network, images)
        except RequestError as error:
            problems.append(error)
        else:
            for each in wrapped:
                each.size = size
            return images
    raise problems[0]


def _random(size: int, network: nn.Module) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    images = torch.rand((2, 3, size, size), generator=generator, device="cpu")
    return images.to(next(network.parameters(), images).device)


def logits_once(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, classes) in evaluation mode. Raises RequestError where there are none."""
    try:
        with evaluating(network):
            logits = network(images)
    except (RequestError, FloatingPointError):
        raise
    except Exception as error:  # of any library, at any layer
        pixels = f"{images.shape[-1]} x {images.shape[-1]} pixels"
        said = f"the network cannot be shown images of {pixels} ({brief(error)})"
        raise RequestError(f"{said}; another size may be right") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(getattr(logits, "shape", ()))
        raise RequestError(f"the network answers with {shape}; logits (N, classes) are needed")
    return logits


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for a while; each part is then as it was."""
    training = [each for each in network.modules() if each.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each in training:
            each.training = True


def differ(found: Tensor, expected: Tensor) -> float:
    """How far apart two tensors are, as a share of the second's largest value; 0 for none."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().max() / largest)
