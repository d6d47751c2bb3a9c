"""What a network computes on the way: its stages, found by what they give, and their maps.

Random images are shown once. timm says what its stages give (`forward_intermediates`): they are the
layers that give these very numbers, whatever their names and the order of their axes. Elsewhere a
stage is the last layer that gives a map before its side shrinks.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdnotes.errors import RequestError, brief
from kdnotes.networks.architectures import Staged
from kdnotes.networks.wrapping import Composite, Normalized, evaluating, example, logits_once


@dataclass(frozen=True)
class Layout:
    """Where in a layer's output its map (N, C, H, W) is."""

    axes: Literal["NCHW", "NHWC", "NTC", "other"] = "NCHW"  # T: a transformer's tokens
    prefix: int = 0  # tokens in front that are no part of the image
    part: int | None = None  # which of several tensors
    copied: bool = False  # at once, as what follows works in place

    def map(self, tensor: Tensor) -> Tensor:
        """The map (N, C, H, W) in that tensor, or its gradient; what is none stays as it is."""
        if self.axes == "NHWC":
            return tensor.permute(0, 3, 1, 2)
        if self.axes == "NTC":
            side = math.isqrt(tensor.shape[1] - self.prefix)
            return tensor[:, self.prefix :].transpose(1, 2).unflatten(2, (side, side))
        return tensor


@dataclass(frozen=True)
class _Anatomy:
    stages: tuple[str, ...]  # paths, from shallow to deep
    head: str  # path of the layer whose input are the penultimate features, "" where none is found
    layouts: dict[str, Layout]  # those known, by path


_anatomies: WeakKeyDictionary[nn.Module, _Anatomy] = WeakKeyDictionary()
# By path, what a layer gives: which map it is (the number of the declared one, or the side), where.
_Given = dict[str, list[tuple[int, Layout]]]


def taps(network: nn.Module) -> tuple[str, ...]:
    """Dotted paths of the stages that give maps, shallow ones first, () for a composite's.

    Raises RequestError where no layer does.
    """
    if isinstance(network, Composite):
        return ()
    if not (stages := _anatomy_of(network).stages):
        none = f"{_kind(network)} has no stages that can be found"
        raise RequestError(f"{none}; name the layers to look at")
    return stages


def hint_layer(network: Normalized | Composite, where: str) -> str:
    """Dotted path of a layer to match: ``logits``, a path as it is, or the end of a third.

    ``K/3`` is the last stage of the K-th third of a network's `taps`. Raises RequestError for
    another share, a layer that is not there, or where there are no stages.
    """
    if where == "logits":
        return where
    if "/" not in where:
        layout_of(network, where)  # or it is refused
        return where
    if where not in ("1/3", "2/3", "3/3"):
        raise RequestError(f"a layer is 1/3, 2/3, 3/3, logits or a dotted path, not {where!r}")
    stages = taps(network)
    if not stages:
        raise RequestError(f"a mean of networks has no layers of its own; use logits, not {where}")
    return stages[max(0, round(int(where[0]) * len(stages) / 3) - 1)]


def forward_with_features(network: Normalized | Composite, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and penultimate features (N, D), of a composite its logits again."""
    if isinstance(network, Composite):
        logits = network(images)
        return logits, logits
    with features_of(network) as found:
        logits = network(images)
    return logits, found[-1]


@contextmanager
def features_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """The input (N, D) of the last layer on every forward pass; RequestError if none is found."""
    if not (head := _anatomy_of(network).head):
        raise RequestError(f"{_kind(network)} has no last layer that gives its logits")
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Convolutions see maps of one cell, and heads over tokens are pooled behind them.
        given = inputs[0].flatten(2).mean(2) if inputs[0].ndim == 4 else inputs[0]
        found.append(given.mean(1) if given.ndim == 3 else given)

    with network.get_submodule(head).register_forward_pre_hook(keep):
        yield found


class _StopForward(Exception):  # noqa: N818 - not an error: the rest of the network is not needed
    pass


def features_at(network: nn.Module, images: Tensor, path: str) -> Tensor:
    """What one named layer gives, as `tapped`, nothing behind it computed."""

    def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        raise _StopForward

    with tapped(network, (path,)) as outputs:
        with network.get_submodule(path).register_forward_hook(stop), suppress(_StopForward):
            network(images)
        return outputs[path]


def tapped(network: nn.Module, paths: tuple[str, ...]) -> AbstractContextManager[dict[str, Tensor]]:
    """Maps (N, C, H, W) or vectors (N, D) of named layers on every pass; or RequestError."""

    def see(layout: Layout, tensor: Tensor) -> tuple[Tensor, None]:
        return layout.map(tensor.clone() if layout.copied else tensor), None

    return _seen(network, paths, see)


def differentiable(
    network: nn.Module, paths: tuple[str, ...]
) -> AbstractContextManager[dict[str, tuple[Tensor, Layout]]]:
    """What named layers give, to take gradients of, with the layout that makes a map of it."""

    def see(layout: Layout, tensor: Tensor) -> tuple[tuple[Tensor, Layout], Tensor]:
        tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        return (tensor, layout), tensor.clone()  # what follows may work in place

    return _seen(network, paths, see)


@contextmanager
def _seen(
    network: nn.Module, paths: tuple[str, ...], see: Callable[[Layout, Tensor], tuple[Any, Any]]
) -> Iterator[dict[str, Any]]:
    """By path what ``see`` makes of outputs, first of its pair; second: what goes on in place."""
    seen: dict[str, Any] = {}
    layouts = {path: layout_of(network, path) for path in paths}

    def hook(path: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        part = layouts[path].part
        seen[path], onwards = see(layouts[path], output if part is None else output[part])
        if part is None or onwards is None:
            return onwards
        return type(output)([onwards if n == part else each for n, each in enumerate(output)])

    with _hooked(network, paths, hook):
        yield seen


@contextmanager
def _hooked(network: nn.Module, paths: Collection[str], hook: Callable[..., Any]) -> Iterator[None]:
    """Have a hook called behind each of the named layers, with its path first."""
    with ExitStack() as hooks:
        for path in paths:
            own = partial(hook, path)
            hooks.enter_context(network.get_submodule(path).register_forward_hook(own))
        yield


# --- how stages are found -------------------------------------------------------------------


def _kind(network: nn.Module) -> str:
    return type(getattr(network, "body", network)).__name__


def _anatomy_of(network: nn.Module) -> _Anatomy:
    """The stages and the last layer of a network, found once; raises as `logits_once`."""
    if network not in _anatomies:
        layouts, head = _found(network)
        _anatomies[network] = _Anatomy(tuple(layouts), head, layouts)
    return _anatomies[network]


def layout_of(network: nn.Module, path: str) -> Layout:
    """Where the map is in the output of a named layer; RequestError where it gives no numbers."""
    layouts = _anatomy_of(network).layouts
    if path in layouts:
        return layouts[path]
    names = [name for name, _ in network.named_modules() if name]
    if path not in names:
        near = ", ".join(difflib.get_close_matches(path, names, 4) or names[:4])
        raise RequestError(f"no layer {brief(repr(path), 60)} in the network; it has {near}")
    images = example(network)

    def matches(tensor: Tensor) -> list[tuple[int, Layout]]:
        return [(0, _by_shape(tensor, images.shape[-1]) or Layout("other"))]

    found, _ = _run(network, images, matches, (path,))
    if path not in found:
        raise RequestError(f"layer {path!r} gives nothing: name another one")
    given = [layout for _, layout in found[path]]
    layouts[path] = next((each for each in given if each.axes != "other"), given[0])
    return layouts[path]


def _found(network: nn.Module) -> tuple[dict[str, Layout], str]:
    body = getattr(network, "body", None)
    if isinstance(network, Normalized) and isinstance(body, Staged):
        return {f"body.stages.{n}": Layout() for n in range(len(body.stages))}, "body.head"
    images = example(network)
    reference = _declared_maps(network, images) if isinstance(network, Normalized) else []
    names = [name for name, _ in network.named_modules() if name not in ("", "body")]
    found, head = _run(network, images, partial(_by_value, reference), names)
    if any(number == len(reference) - 1 for given in found.values() for number, _ in given):
        return _by_number(found, _declared_names(network), len(reference)), head

    # Nothing is declared, or what no layer gives.
    def by_side(tensor: Tensor) -> list[tuple[int, Layout]]:
        layout = _by_shape(tensor, images.shape[-1])
        return [] if layout is None else [(layout.map(tensor).shape[2], layout)]

    found, head = _run(network, images, by_side, names)
    return _last_of_each_side(found, network), head


def _run(
    network: nn.Module,
    images: Tensor,
    matches: Callable[[Tensor], list[tuple[int, Layout]]],
    paths: Collection[str],
) -> tuple[_Given, str]:
    """What layers give that matches, in the order in which they last give it; the last layer."""
    # With a copy of each tensor: what follows may change it in place.
    seen: dict[str, list[tuple[int, Layout, Tensor, Tensor]]] = {}
    outputs: dict[str, Tensor] = {}

    def note(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.pop(path, None)  # of a layer that is called again, the last call counts
        outputs.pop(path, None)
        several = output if isinstance(output, tuple | list) else ()
        parts = [(None, output), *enumerate(several)]
        if given := [
            (key, replace(layout, part=part), tensor, tensor.clone())
            for part, tensor in parts
            if isinstance(tensor, Tensor)
            for key, layout in matches(tensor)
        ]:
            seen[path] = given
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            outputs[path] = output

    with _hooked(network, paths, note):
        logits = logits_once(network, images)
    found = {
        path: [
            (key, replace(layout, copied=not _equal(tensor, kept)))
            for key, layout, tensor, kept in given
        ]
        for path, given in seen.items()
    }
    return found, _head(network, outputs, logits)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and (first.is_meta or torch.equal(first, second))


def _head(network: nn.Module, outputs: dict[str, Tensor], logits: Tensor) -> str:
    """The last layer with weights whose output are the logits, or whose output they come from."""
    layers = dict(network.named_modules())
    weights = {path: getattr(layers[path], "weight", None) for path in outputs}
    leaves = {
        path: given
        for path, given in outputs.items()
        if given.ndim > 1 and isinstance(weights[path], Tensor) and not any(layers[path].children())
    }
    exact = [path for path, given in leaves.items() if _equal(given.flatten(1), logits)]
    named: Any = getattr(getattr(network, "body", network), "get_classifier", tuple)()
    asked = next(iter(named), None) if isinstance(named, tuple | list) else named
    known = [path for path in outputs if layers[path] is asked]
    wide = [path for path, given in leaves.items() if given.shape[-1] == logits.shape[1]]
    return next(iter((*exact[-1:], *known, *wide[-1:])), "")


def _declared_maps(network: Normalized, images: Tensor) -> list[Tensor]:
    """What timm gives for a network's stages, from shallow to deep; nothing for others."""
    body: Any = network.body
    options = {"intermediates_only": True, "output_fmt": "NCHW"}
    try:
        with evaluating(network):
            maps = body.forward_intermediates(network.normalize(images), **options)
    except Exception:  # it has no such method, or not for such images
        return []
    return [each for each in maps if isinstance(each, Tensor) and each.ndim == 4]


def _declared_names(network: nn.Module) -> list[str]:
    info: Any = getattr(network.body, "feature_info", ())
    listed = info.get_dicts() if hasattr(info, "get_dicts") else info
    return [f"body.{stage['module']}" for stage in listed if "module" in stage]


def _by_value(reference: list[Tensor], tensor: Tensor) -> list[tuple[int, Layout]]:
    """The numbers of the maps that a tensor holds, and how."""
    found = []
    for number, wanted in enumerate(reference):
        height, width = wanted.shape[2:]
        layouts = [Layout(), Layout("NHWC")] if tensor.ndim == 4 else []
        if tensor.ndim == 3 and height == width and tensor.shape[1] >= height * width:
            layouts = [Layout("NTC", tensor.shape[1] - height * width)]
        found += [(number, each) for each in layouts if _equal(each.map(tensor), wanted)][:1]
    return found


def _by_number(found: _Given, names: list[str], count: int) -> dict[str, Layout]:
    """For each map one of the layers that give it: the declared one, else the outermost.

    Where two maps are the same numbers, as those of blocks that do nothing yet, each has its own.
    """
    chosen: dict[str, Layout] = {}
    for number in range(count):
        declared = names[number] if len(names) == count else ""
        ranked = [
            ((path != declared, path in chosen, path not in names, path.count(".")), path, layout)
            for path, given in found.items()
            for key, layout in given
            if key == number
        ]
        if ranked:
            _, path, layout = min(ranked, key=itemgetter(0))
            chosen[path] = layout
    kinds = [re.sub(r"\d", "", path) for path in chosen]
    if len(kinds) > 1 and kinds[0] != kinds[1]:  # a stem comes first: stem, then s1, s2, ...
        del chosen[next(iter(chosen))]
    return chosen


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


def _last_of_each_side(found: _Given, network: nn.Module) -> dict[str, Layout]:
    """The last layer that gives a map of each side, while sides shrink; none that is a stem's.

    Of layers made of others if one gives such a map: pooling and norms come behind them.
    """
    last: dict[int, tuple[str, Layout]] = {}
    blocks = {path for path in found if any(network.get_submodule(path).children())}
    for path, given in found.items():
        side, layout = given[0]
        shrinks = side in last or not last or side < min(last)
        if shrinks and (side not in last or path in blocks or last[side][0] not in blocks):
            last[side] = path, layout
    of_blocks = {path: layout for path, layout in last.values() if path in blocks}
    return of_blocks if len(of_blocks) > 1 else dict(last.values())
