"""What a network computes on the way: its stages, and their outputs as maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

from kdnotes.errors import RequestError
from kdnotes.networks.anatomy import Layout, anatomy_of, layout_of
from kdnotes.networks.architectures import Staged
from kdnotes.networks.wrapping import Composite, Normalized


def taps(network: nn.Module) -> tuple[str, ...]:
    """Dotted paths of a network's stages, from shallow to deep; a composite has none.

    Each gives a map (N, C, H, W) by `tapped`. Raises RequestError where no layer does.
    """
    if isinstance(network, Composite):
        return ()
    stages = tuple(anatomy_of(network).stages)
    if not stages:
        raise RequestError(
            f"{type(getattr(network, 'body', network)).__name__} has no stages that can be found; "
            "name the layers to look at"
        )
    return stages


@lru_cache(maxsize=64)
def hint_layer(network: Normalized | Composite, where: str) -> str:
    """Dotted path of a layer to match: ``logits``, a path as it is, or the end of a third.

    ``K/3`` is the last stage of the K-th third of a network's `taps`. Raises RequestError for
    another share, a layer that is not there, or where there are no stages.
    """
    third, slash, of = where.partition("/")
    if not slash:
        if where != "logits":
            layout_of(network, where)  # or it is refused
        return where
    if of != "3" or third not in ("1", "2", "3"):
        raise RequestError(f"a layer is 1/3, 2/3, 3/3, logits or a dotted path, not {where!r}")
    stages = taps(network)
    if not stages:
        raise RequestError(f"a mean of networks has no layers of its own; use logits, not {where}")
    return stages[max(0, round(int(third) * len(stages) / 3) - 1)]


def forward_with_features(network: Normalized | Composite, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and the penultimate, pooled features (N, D) of one forward pass.

    A composite has no features: its logits stand in for them.
    """
    if isinstance(network, Composite):
        logits = network(images)
        return logits, logits
    body: Any = network.body
    if isinstance(body, Staged):
        features = body.forward_head(
            body.forward_features(network.normalize(images)), pre_logits=True
        )
        return body.head(features), features  # type: ignore[operator]
    with features_of(network) as found:
        logits = network(images)
    return logits, found[-1]


@contextmanager
def features_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """The input (N, D) of the last layer on every forward pass; hooks go when the block ends.

    Raises RequestError when there is no such layer.
    """
    head = anatomy_of(network).head
    if not head:
        kind = type(getattr(network, "body", network)).__name__
        raise RequestError(f"{kind} has no last layer that gives its logits")
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


@contextmanager
def tapped(network: nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Maps (N, C, H, W) of the named layers, refilled on every forward pass.

    What is no map, such as the input of a last layer, stays a vector (N, D). Hooks go when the
    block ends. Raises RequestError when there is no such layer.
    """
    outputs: dict[str, Tensor] = {}

    def keep(path: str, layout: Layout, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = layout.tensor(output)
        outputs[path] = layout.map(tensor.clone() if layout.copied else tensor)

    with _seen_by(network, paths, keep):
        yield outputs


@contextmanager
def _seen_by(network: nn.Module, paths: tuple[str, ...], see: Callable[..., Any]) -> Iterator[None]:
    """Have ``see`` as a forward hook of each layer, given its path and layout first.

    Hooks go when the block ends.
    """
    with ExitStack() as hooks:
        for path in paths:
            hook = partial(see, path, layout_of(network, path))
            hooks.enter_context(network.get_submodule(path).register_forward_hook(hook))
        yield


@contextmanager
def differentiable(
    network: nn.Module, paths: tuple[str, ...]
) -> Iterator[dict[str, tuple[Tensor, Layout]]]:
    """What the named layers give, as the network goes on with it, so that gradients can be taken.

    With the layout that makes a map of it, and of its gradient. Parameters may be frozen.
    """
    outputs: dict[str, tuple[Tensor, Layout]] = {}

    def keep(path: str, layout: Layout, module: nn.Module, inputs: Any, output: Any) -> Any:
        tensor = layout.tensor(output)
        tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        outputs[path] = tensor, layout
        onwards = tensor.clone()  # what follows may work in place
        if layout.part is None:
            return onwards
        several = [onwards if n == layout.part else x for n, x in enumerate(output)]
        return type(output)(several)

    with _seen_by(network, paths, keep):
        yield outputs
