"""What a network computes on the way: its stages, and their outputs as maps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from kdnotes.errors import RequestError
from kdnotes.networks.architectures import Staged
from kdnotes.networks.wrapping import Composite, Normalized


def taps(network: Normalized | Composite) -> tuple[str, ...]:
    """Dotted paths of a network's stages, from shallow to deep; a composite has none.

    Those of timm's networks are what timm declares (``feature_info``), without the stem. Raises
    RequestError where nothing is declared.
    """
    if isinstance(network, Composite):
        return ()
    body: Any = network.body
    if isinstance(body, Staged):
        return tuple(f"body.stages.{index}" for index in range(len(body.stages)))
    declared = [stage["module"] for stage in getattr(body, "feature_info", ())]
    # A stem comes first, and is named unlike the stages: act1 before layer1, stem before s1.
    kinds = [re.sub(r"\d", "", name) for name in declared]
    stages = declared[1:] if len(kinds) > 1 and kinds[0] != kinds[1] else declared
    layers = {name for name, _ in body.named_modules()}
    if not stages or not layers.issuperset(stages):
        raise RequestError(
            f"{type(body).__name__} has no stages that can be found; name the layers to look at"
        )
    return tuple(f"body.{stage}" for stage in stages)


def hint_layer(network: Normalized | Composite, where: str) -> str:
    """Dotted path of a layer to match: ``logits``, a path as it is, or the end of a third.

    ``K/3`` is the last stage of the K-th third of a network's `taps`. Raises RequestError for
    another share, or where there are no stages.
    """
    third, slash, of = where.partition("/")
    if not slash:
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
    maps = body.forward_features(network.normalize(images))
    features = body.forward_head(maps, pre_logits=True)
    head = body.get_classifier() if hasattr(body, "get_classifier") else body.head
    return head(features), features


class _StopForward(Exception):  # noqa: N818 - not an error: the rest of the network is not needed
    pass


def features_at(network: nn.Module, images: Tensor, path: str) -> Tensor:
    """Output of one named layer, nothing behind it computed; raises RequestError as `tapped`."""

    def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        raise _StopForward

    with tapped(network, (path,)) as outputs:
        with network.get_submodule(path).register_forward_hook(stop), suppress(_StopForward):
            network(images)
        return outputs[path]


def as_map(network: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as a map (N, C, H, W), or as it is where it is none.

    Transformers give tokens (N, T, C), whose class token is dropped, or maps with channels last.
    """
    body: Any = getattr(network, "body", network)
    if output.ndim == 4 and getattr(body, "output_fmt", "NCHW") == "NHWC":
        return output.permute(0, 3, 1, 2)
    side = math.isqrt(output.shape[1])
    if output.ndim == 3 and output.shape[1] - side**2 == getattr(body, "num_prefix_tokens", 0):
        tokens = output[:, output.shape[1] - side**2 :]
        return tokens.transpose(1, 2).unflatten(2, (side, side))
    return output


@contextmanager
def tapped(network: nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named layers, refilled on every forward pass; hooks go when the block ends.

    Raises RequestError when there is no such layer.
    """
    known = dict(network.named_modules())
    unknown = [path for path in paths if path not in known]
    if unknown:
        near = ", ".join(name for name in known if name.count(".") <= 2 and name)
        raise RequestError(f"no layer {unknown[0]!r} in the network; it has {near}")
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(
                known[path].register_forward_hook(
                    lambda module, inputs, output, path=path: outputs.__setitem__(path, output)
                )
            )
        yield outputs
