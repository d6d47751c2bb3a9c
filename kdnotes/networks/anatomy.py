"""Which layers of a network give its stages' maps, found by what they give, not by their names.

Random images are shown once. timm says itself what its stages give (`forward_intermediates`); the
layers whose outputs are these very numbers are its stages, whatever their names and the order of
their axes. Elsewhere a stage is the last layer that gives a map before its side shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdnotes.errors import RequestError, brief
from kdnotes.networks.architectures import Staged
from kdnotes.networks.wrapping import Normalized, evaluating, example, logits_once

Axes = Literal["NCHW", "NHWC", "NTC", "other"]


@dataclass(frozen=True)
class Layout:
    """Where in a layer's output its map (N, C, H, W) is.

    part: which of several tensors; axes: their order, T for a transformer's tokens, behind
    ``prefix`` tokens that are no part of the image; copied: what follows works in place, so that
    the output has to be copied at once.
    """

    axes: Axes = "NCHW"
    prefix: int = 0
    part: int | None = None
    copied: bool = False

    def tensor(self, output: Any) -> Tensor:
        """The tensor of an output that holds the map."""
        return output if self.part is None else output[self.part]

    def map(self, tensor: Tensor) -> Tensor:
        """The map (N, C, H, W) in that tensor, or its gradient; what is none stays as it is."""
        if self.axes == "NHWC":
            return tensor.permute(0, 3, 1, 2)
        if self.axes == "NTC":
            side = math.isqrt(tensor.shape[1] - self.prefix)
            return tensor[:, self.prefix :].transpose(1, 2).unflatten(2, (side, side))
        return tensor


_Given = tuple[int, Layout]  # which map it is (the number of the declared one, or the side), where
_Chosen = tuple[str, Layout]  # the path of the layer that gives it, where in what it gives


@dataclass(frozen=True)
class Anatomy:
    """Layouts of a network's stages by dotted path, from shallow to deep; path of its last layer.

    The last layer is the one whose input are the penultimate features, "" where none is found.
    """

    stages: dict[str, Layout]
    head: str


def anatomy_of(network: nn.Module) -> Anatomy:
    """The stages and the last layer of a network, found once; raises as `logits_once`."""
    if network.__dict__.get("anatomy") is None:
        body = getattr(network, "body", None)
        if isinstance(network, Normalized) and isinstance(body, Staged):
            stages = {f"body.stages.{index}": Layout() for index in range(len(body.stages))}
            found = Anatomy(stages, "body.head")
        else:
            found = _found(network)
        network.__dict__["anatomy"] = found
    return network.__dict__["anatomy"]


def layout_of(network: nn.Module, path: str) -> Layout:
    """Where the map is in the output of one named layer, a stage or another.

    Raises RequestError where there is no such layer, or it gives no numbers.
    """
    layouts: dict[str, Layout] = network.__dict__.setdefault("layouts", {})
    if path not in layouts:
        stages = anatomy_of(network).stages
        layouts[path] = stages.get(path) or _looked_at(network, path)
    return layouts[path]


def _looked_at(network: nn.Module, path: str) -> Layout:
    known = dict(network.named_modules())
    if not path or path not in known:
        import difflib

        names = [name for name in known if name]
        near = difflib.get_close_matches(path, names, 4) or names[:4]
        raise RequestError(
            f"no layer {brief(repr(path), 60)} in the network; it has {', '.join(near)}"
        )
    images = example(network)
    found: list[tuple[int | None, Tensor, Tensor]] = []  # a layer that is never reached: nothing

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found[:] = [(part, tensor.clone(), tensor) for part, tensor in _tensors(output)]

    with known[path].register_forward_hook(note), evaluating(network):
        network(images)
    if not found:
        raise RequestError(f"layer {path!r} gives nothing: name another one")
    shaped = [(_by_shape(kept, images.shape[-1]), part, kept, now) for part, kept, now in found]
    layout, part, kept, now = next((each for each in shaped if each[0]), shaped[0])
    return replace(layout or Layout("other"), part=part, copied=not _equal(kept, now))


def _found(network: nn.Module) -> Anatomy:
    images = example(network)
    reference = _declared_maps(network, images) if isinstance(network, Normalized) else []
    names = [f"body.{each}" for each in _declared_names(getattr(network, "body", None))]
    found, head = _run(network, images, lambda tensor: _by_value(tensor, reference))
    last = len(reference) - 1
    if any(number == last for given in found.values() for number, _ in given):
        chosen = _by_key(found, names, len(reference))
    else:  # nothing is declared, or what no layer gives
        found, head = _run(network, images, lambda tensor: _by_side(tensor, images.shape[-1]))
        chosen = _last_of_each_side(found, network)
    return Anatomy(dict(chosen), head)


def _run(
    network: nn.Module, images: Tensor, matches: Callable[[Tensor], list[tuple[int, Layout]]]
) -> tuple[dict[str, list[_Given]], str]:
    """What layers give that matches, in the order in which they last give it; the last layer."""
    # With a copy of each tensor, and the tensor that what follows may change in place.
    seen: dict[str, list[tuple[_Given, Tensor, Tensor]]] = {}
    outputs: dict[str, Tensor] = {}

    def note(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.pop(path, None)  # of a layer that is called again, the last call counts
        outputs.pop(path, None)
        given = [
            ((key, replace(layout, part=part)), tensor.clone(), tensor)
            for part, tensor in _tensors(output)
            for key, layout in matches(tensor)
        ]
        if given:
            seen[path] = given
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            outputs[path] = output

    with ExitStack() as hooks:
        for path, module in network.named_modules():
            if path not in ("", "body"):
                hooks.enter_context(module.register_forward_hook(partial(note, path)))
        logits = logits_once(network, images)
    found = {
        path: [
            (key, replace(layout, copied=not _equal(kept, now)))
            for (key, layout), kept, now in given
        ]
        for path, given in seen.items()
    }
    return found, _head(network, outputs, logits)


def _tensors(output: Any) -> list[tuple[int | None, Tensor]]:
    if isinstance(output, Tensor):
        return [(None, output)]
    several = output if isinstance(output, tuple | list) else ()
    return [(part, each) for part, each in enumerate(several) if isinstance(each, Tensor)]


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and (first.is_meta or torch.equal(first, second))


# --- timm's networks ------------------------------------------------------------------------


def _declared_maps(network: Normalized, images: Tensor) -> list[Tensor]:
    """What timm gives for a network's stages, from shallow to deep; nothing for others."""
    body: Any = network.body
    if not hasattr(body, "forward_intermediates"):
        return []
    options = {"intermediates_only": True, "output_fmt": "NCHW"}
    try:
        with evaluating(network):
            maps = body.forward_intermediates(network.normalize(images), **options)
    except Exception:
        return []
    return [each for each in maps if isinstance(each, Tensor) and each.ndim == 4]


def _declared_names(body: Any) -> list[str]:
    info = getattr(body, "feature_info", ())
    listed = info.get_dicts() if hasattr(info, "get_dicts") else info
    return [stage["module"] for stage in listed if "module" in stage]


def _by_value(tensor: Tensor, reference: list[Tensor]) -> list[tuple[int, Layout]]:
    """The numbers of the maps that a tensor holds, and how."""
    if tensor.ndim not in (3, 4):
        return []
    found = []
    for number, wanted in enumerate(reference):
        prefix = tensor.shape[1] - wanted.shape[2] * wanted.shape[3] if tensor.ndim == 3 else 0
        if tensor.ndim == 3 and (prefix < 0 or wanted.shape[2] != wanted.shape[3]):
            continue
        axes: tuple[Axes, ...] = ("NTC",) if tensor.ndim == 3 else ("NCHW", "NHWC")
        for layout in (Layout(each, prefix) for each in axes):
            if _equal(layout.map(tensor), wanted):
                found.append((number, layout))
                break
    return found


def _by_key(found: dict[str, list[_Given]], names: list[str], count: int) -> list[_Chosen]:
    """For each map one of the layers that give it: the declared one, else the outermost.

    Where two maps are the same numbers, as those of blocks that do nothing yet, each has its own.
    """
    by_number: dict[int, list[_Chosen]] = {}
    for path, given in found.items():
        for number, layout in given:
            by_number.setdefault(number, []).append((path, layout))
    declared = dict(enumerate(names)) if len(names) == count else {}
    chosen: dict[str, _Chosen] = {}
    for number in sorted(by_number):

        def rank(each: _Chosen, number: int = number) -> tuple:
            path = each[0]
            return path != declared.get(number), path in chosen, path not in names, path.count(".")

        best = min(by_number[number], key=rank)
        chosen[best[0]] = best
    return _without_stem(list(chosen.values()))


# --- all others -----------------------------------------------------------------------------


def _by_shape(tensor: Tensor, size: int) -> Layout | None:
    """How a tensor holds a map of at least 2 x 2 cells of square images, if it does."""
    shape = tensor.shape
    if tensor.ndim == 4 and shape[2] == shape[3] and 1 < shape[2] <= size:
        return Layout()
    if tensor.ndim == 4 and shape[1] == shape[2] and 1 < shape[1] <= size:
        return Layout("NHWC")
    for prefix in (0, 1, 2) if tensor.ndim == 3 else ():
        side = math.isqrt(max(0, shape[1] - prefix))
        if side > 1 and side**2 == shape[1] - prefix and size % side == 0:
            return Layout("NTC", prefix)
    return None


def _by_side(tensor: Tensor, size: int) -> list[tuple[int, Layout]]:
    layout = _by_shape(tensor, size)
    return [] if layout is None else [(layout.map(tensor).shape[2], layout)]


def _last_of_each_side(found: dict[str, list[_Given]], network: nn.Module) -> list[_Chosen]:
    """The last layer that gives a map of each side, while sides shrink; none that is a stem's.

    Of layers made of others if one gives such a map: pooling and norms come behind them.
    """
    last: dict[int, _Chosen] = {}
    blocks = {path for path in found if any(network.get_submodule(path).children())}
    for path, given in found.items():
        side, layout = given[0]
        if side not in last and last and side > min(last):
            continue
        if side not in last or path in blocks or last[side][0] not in blocks:
            last[side] = path, layout
    chosen = list(last.values())
    several = len([each for each in chosen if each[0] in blocks]) > 1
    return [each for each in chosen if not several or each[0] in blocks]


def _without_stem(chosen: list[_Chosen]) -> list[_Chosen]:
    """Without a stem, which comes first and is named unlike the stages: stem, then s1, s2, ..."""
    kinds = ["".join(c for c in path if not c.isdigit()) for path, _ in chosen]
    return chosen[1:] if len(kinds) > 1 and kinds[0] != kinds[1] else chosen


def _head(network: nn.Module, outputs: dict[str, Tensor], logits: Tensor) -> str:
    """The last layer with weights whose output are the logits, or whose output they come from."""
    body: Any = getattr(network, "body", network)
    known = {module: path for path, module in network.named_modules()}
    leaves = {
        path: given
        for path, given in outputs.items()
        if given.ndim > 1 and _is_layer_with_weights(network.get_submodule(path))
    }
    wide = [path for path, given in leaves.items() if given.shape[-1] == logits.shape[1]]
    exact = [path for path in wide if _equal(leaves[path], logits)]
    named = body.get_classifier() if hasattr(body, "get_classifier") else None
    first = named[0] if isinstance(named, tuple | list) and named else named
    asked = [known[first]] if first in known and known[first] in outputs else []
    convolutions = [path for path, given in leaves.items() if _equal(given.flatten(1), logits)]
    likely = (*exact[-1:], *convolutions[-1:], *asked, *wide[-1:])
    return likely[0] if likely else ""


def _is_layer_with_weights(module: nn.Module) -> bool:
    return not any(module.children()) and isinstance(getattr(module, "weight", None), Tensor)
