"""Networks: small preset nets from timm's blocks, any timm model, folding and feature taps.

Every network takes float images in [0, 1] and normalises inside, so that attacks and pictures
live in one space.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdnotes.errors import RequestError

_Network = TypeVar("_Network", bound=nn.Module)

TRAINED_HERE = "none"  # value of KDNOTES_WEIGHTS: use no published weights at all

# name -> (family, stage widths or width, convolutions or blocks per stage)
PRESET_NETS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "vgg-small": ("vgg", (16, 32, 64), (1, 1, 1)),
    "vgg-medium": ("vgg", (16, 64, 128), (1, 1, 2)),
    "vgg-large": ("vgg", (16, 64, 128), (1, 2, 2)),
    "vgg-small-blur": ("vgg-blur", (16, 32, 64), (1, 1, 1)),
    "vgg-large-blur": ("vgg-blur", (16, 48, 96), (1, 1, 1)),
    "resnet-small": ("resnet", (16, 32, 64, 64), (1, 1, 1, 1)),
    "resnet-large": ("resnet", (32, 64, 128, 128), (2, 2, 2, 2)),
    "vit-tiny": ("vit", (64,), (2,)),
    "vit-small": ("vit", (96,), (4,)),
    "vit-large": ("vit", (192,), (6,)),
    "paper-mnist": ("paper-mnist", (32, 64), (1, 1)),
    "paper-mnist-half": ("paper-mnist", (16, 32), (1, 1)),
}


class Normalized(nn.Module):
    """A network with its normalisation in front: [0, 1] images in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [0, 1] as the body wants them."""
        if not images.is_contiguous(memory_format=torch.channels_last):
            return (images - self.mean) / self.std
        # The same row by row: three numbers at a time would take several times as long.
        width, channels = images.shape[3], images.shape[1]
        rows = images.permute(0, 2, 3, 1).flatten(2)
        rows = rows - self.mean.flatten().repeat(width)
        rows = rows.div_(self.std.flatten().repeat(width))
        return rows.unflatten(2, (width, channels)).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.normalize(images))


class Composite(nn.Module):
    """Several networks as one: the mean of their logits with given shares, [0, 1] images in.

    ``mirrored``: over each image and its mirror image as well, so that a network and its mirror
    image cannot differ. It has no feature layers of its own.
    """

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


class SmallVGG(nn.Module):
    """A VGG-like net: stages that each halve the image first, global average pool, linear head.

    ``blur``: halve by timm's BlurPool behind an unstrided convolution (Zhang 2019, arXiv
    1904.11486), so that small shifts of the image change the maps less.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int,
        blur: bool = False,
    ) -> None:
        super().__init__()
        from timm.layers import BlurPool2d, ConvNormAct

        stages = []
        channels = 3
        for width, depth in zip(widths, depths, strict=True):
            blocks = []
            for position in range(depth):
                stride = 2 if position == 0 else 1
                blocks.append(
                    ConvNormAct(
                        channels, width, 3, stride=stride, aa_layer=BlurPool2d if blur else None
                    )
                )
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.num_features = channels
        self.head = nn.Linear(channels, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stages(images)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        # Not maps.mean((2, 3)): its gradient is not channels last, and slows all that follows.
        pooled = maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class PaperMNIST(nn.Module):
    """The study's MNIST network (that of the PyTorch MNIST example), with three input channels.

    ``widths`` (32, 64) are the study's; the hidden layer has twice the width of the second.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, widths[0], 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(widths[0], widths[1], 3), nn.ReLU()),
        )
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.25))
        self.resize = nn.AdaptiveAvgPool2d(12)
        self.num_features = 2 * widths[1]
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(144 * widths[1], self.num_features), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stages(images)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.pool(maps)
        if pooled.shape[2:] != (12, 12):  # images of another size than MNIST's
            pooled = self.resize(pooled)
        if pooled.requires_grad:  # flattening leaves it in an order that is slow behind
            pooled.register_hook(_channels_last)
        features = self.dropout(self.hidden(pooled))
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def check_name(name: str) -> None:
    """Raise RequestError unless the name is a preset net or one of timm's models."""
    if name in PRESET_NETS:
        return
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"; timm has {', '.join(near)}" if near else ""
        raise RequestError(
            f"unknown model {name!r}; known: {', '.join(PRESET_NETS)}, or any timm model{hint}"
        )


def build(
    name: str,
    num_classes: int,
    seed: int,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.25, 0.25, 0.25),
    small_images: bool = True,
    pretrained: bool = False,
) -> Normalized:
    """An initialised network; the same name, classes and seed give the same weights.

    ``small_images``: for timm's ResNets, a stride-1 stem without pooling, as is usual at 32 pixels.
    ``pretrained`` fetches timm's weights. Raises RequestError for an unknown name.
    """
    check_name(name)
    # Layers draw their first weights from the global generator: lend it, seeded, and restore it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = _build_body(name, num_classes, small_images, pretrained)
    return Normalized(body, mean, std)


def _build_body(name: str, num_classes: int, small_images: bool, pretrained: bool) -> nn.Module:
    if name not in PRESET_NETS:
        import timm

        body: Any = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
        if small_images and not pretrained and hasattr(body, "maxpool"):
            body.conv1 = _stem_like(body.conv1)
            body.maxpool = nn.Identity()
        return body
    family, widths, depths = PRESET_NETS[name]
    if family in ("vgg", "vgg-blur"):
        return SmallVGG(widths, depths, num_classes, blur=family == "vgg-blur")
    if family == "resnet":
        return _small_resnet(widths, depths, num_classes)
    if family == "vit":
        return _small_vit(widths[0], depths[0], num_classes)
    return PaperMNIST(widths, num_classes)


def _stem_like(conv: nn.Module) -> nn.Module:
    """A 3x3 stride-1 stem in place of a plain 7x7 stride-2 one; other stems stay."""
    if isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7):
        return nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
    return conv


def _small_resnet(widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock  # timm annotates an instance where it wants the class
    body: Any = ResNet(
        block,
        depths,
        num_classes=num_classes,
        channels=widths,
        output_stride=16,
        stem_type="deep",
        stem_width=16,
    )
    body.maxpool = nn.Identity()  # keeps a 4x4 last map at 32 pixels
    return body


def _small_vit(width: int, depth: int, num_classes: int) -> nn.Module:
    from timm.layers import ConvNormAct, HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    # Three strided convolutions instead of patches: a ViT on raw patches stays near chance
    # for the first minutes of training.
    stem = nn.Sequential(
        ConvNormAct(3, 32, 3, stride=2),
        ConvNormAct(32, 64, 3, stride=2),
        ConvNormAct(64, width, 3, stride=2),
    )
    return VisionTransformer(
        img_size=32,
        patch_size=1,
        num_classes=num_classes,
        global_pool="avg",
        class_token=False,
        embed_dim=width,
        depth=depth,
        num_heads=max(1, width // 32),
        embed_layer=partial(HybridEmbed, backbone=stem),
    )


def taps(network: Normalized | Composite) -> tuple[str, ...]:
    """Dotted paths of a network's stages, from shallow to deep; a composite has none."""
    if isinstance(network, Composite):
        return ()
    body = network.body
    for attribute in ("stages", "blocks", "layers", "features"):
        part = getattr(body, attribute, None)
        if isinstance(part, nn.Sequential | nn.ModuleList):
            return tuple(f"body.{attribute}.{index}" for index in range(len(part)))
    names = [f"layer{number}" for number in range(1, 5) if hasattr(body, f"layer{number}")]
    if names:
        return tuple(f"body.{name}" for name in names)
    raise RequestError(
        f"{type(body).__name__} has no stages that can be found; name the layers to look at"
    )


def taps_of(name: str) -> tuple[str, ...]:
    """The `taps` of a named network; preset nets are not built for it, which would take seconds."""
    if name not in PRESET_NETS:
        return taps(build(name, 10, seed=0))
    family, widths, depths = PRESET_NETS[name]
    if family == "resnet":
        return tuple(f"body.layer{number}" for number in range(1, len(widths) + 1))
    attribute, count = ("blocks", depths[0]) if family == "vit" else ("stages", len(widths))
    return tuple(f"body.{attribute}.{index}" for index in range(count))


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
        handle = network.get_submodule(path).register_forward_hook(stop)
        try:
            network(images)
        except _StopForward:
            pass
        finally:
            handle.remove()
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
    handles = [
        known[path].register_forward_hook(
            lambda module, inputs, output, path=path: outputs.__setitem__(path, output)
        )
        for path in paths
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def freeze(network: _Network) -> _Network:
    """A copy for measuring: evaluation mode, BatchNorm folded, no gradients, channels last.

    Folded logits equal the original's to about 1e-5. The original is left alone.
    """
    import copy

    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norm(frozen)
    return frozen.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm that follows a convolution into it, in place; evaluation mode only.

    Understands timm's ConvNormAct and BatchNormAct2d (whose activation is kept), and neighbours in
    a Sequential or in ResNet-style attribute pairs (conv1/bn1, ...).
    """
    for child in module.children():
        fold_batch_norm(child)
    for conv_name, norm_name in _conv_norm_pairs(module):
        holder, conv, norm = module, getattr(module, conv_name), getattr(module, norm_name)
        if isinstance(conv, nn.Sequential) and len(conv):  # a deep stem: its last convolution
            holder, conv_name, conv = conv, str(len(conv) - 1), conv[-1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(holder, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(module, norm_name, _what_remains(norm))


def _conv_norm_pairs(module: nn.Module) -> list[tuple[str, str]]:
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        return list(pairwise(names))
    pairs = [(f"conv{number}", f"bn{number}") for number in range(1, 4)]
    pairs.append(("conv", "bn"))
    return [pair for pair in pairs if hasattr(module, pair[0]) and hasattr(module, pair[1])]


def _what_remains(norm: nn.BatchNorm2d) -> nn.Module:
    """After folding: timm's fused norm keeps dropout and activation, plain BatchNorm nothing."""
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    if not rest:
        return nn.Identity()
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest)


def load_user_model(text: str, num_classes: int) -> Normalized:
    """One's own network: ``ARCH`` (timm's pretrained weights) or ``ARCH:FILE`` (a checkpoint).

    FILE is safetensors, or a PyTorch state dictionary (read with weights_only). A network saved
    without its normalisation gets that of timm's own weights. Raises
    RequestError for an unknown architecture, a missing or unfitting file, or other classes.
    """
    name, _, file = text.partition(":")
    check_name(name)
    mean, std = _pretrained_normalisation(name)
    if not file:
        return build(name, num_classes, 0, mean, std, small_images=False, pretrained=True)
    path = Path(file).expanduser()
    if not path.is_file():
        raise RequestError(f"no checkpoint {file!r}")
    state = read_state(path)
    problems = []
    for small_images in (True, False):
        network = build(name, num_classes, 0, mean, std, small_images)
        target = network if any(key.startswith("body.") for key in state) else network.body
        try:
            target.load_state_dict(state)
            return network
        except RuntimeError as error:
            problems.append(str(error).splitlines()[-1].strip())
    raise RequestError(
        f"checkpoint {path.name} does not fit {name} with {num_classes} classes: {problems[-1]}"
    )


def load_published(name: str, weights: str, num_classes: int) -> Normalized:
    """A timm architecture with published weights, in evaluation mode.

    ``weights``: timm's name with its tag, such as resnet50.tv_in1k, or that of a file. A file
    WEIGHTS.safetensors (or .pth, .pt, .bin) in the folder KDNOTES_WEIGHTS comes first, timm's hub
    second. Raises RequestError saying what to do when neither has them, or when they do not fit.
    """
    import timm

    check_name(name)
    folder = os.environ.get("KDNOTES_WEIGHTS", "")
    endings = (".safetensors", ".pth", ".pt", ".bin")
    files = [Path(folder).expanduser() / f"{weights}{ending}" for ending in endings]
    found = next((file for file in files if folder and file.is_file()), None)
    known = found is not None or timm.is_model_pretrained(weights)
    advice = (
        f"Put them as {weights}.safetensors (or .pth) into a folder and set KDNOTES_WEIGHTS to it, "
        f"or set KDNOTES_WEIGHTS={TRAINED_HERE} to train this network instead"
    )
    if not known:
        raise RequestError(f"timm has no weights {weights!r}. {advice}")
    overlay = {"state_dict": read_state(found)} if found else None
    try:
        # The body is named without the tag where the file's own name is not one of timm's.
        body: Any = timm.create_model(
            weights if timm.is_model(weights) else name,
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay=overlay,
        )
    except Exception as error:  # the hub's client raises a dozen kinds; the reason is in the text
        reason = " ".join(str(error).split())[:300]
        if found:
            raise RequestError(f"{found.name} does not fit {name}: {reason}") from error
        raise RequestError(
            f"weights {weights!r} could not be downloaded ({reason}). {advice}"
        ) from (error)
    configuration = body.pretrained_cfg
    return Normalized(body, tuple(configuration["mean"]), tuple(configuration["std"])).eval()


def _pretrained_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that timm's weights of a model expect; the preset nets' own otherwise."""
    import timm

    if name in PRESET_NETS:
        return (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    configuration = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if configuration is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return tuple(configuration.mean), tuple(configuration.std)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name; a nested ``state_dict`` or ``model`` entry is opened."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike: the file cannot be used
        raise RequestError(
            f"cannot read {path.name} as a checkpoint of tensors: {error}"
        ) from error
    for key in ("state_dict", "model"):
        if key in content and isinstance(content[key], dict):
            content = content[key]
    return {name.removeprefix("module."): value for name, value in content.items()}


def hint_layer(network: Normalized | Composite, where: str) -> str:
    """Dotted path of a layer: one already, "logits", or a depth as "2/3".

    "K/3" is the last of the network's stages (`taps`) in its K-th third.
    """
    part, slash, whole = where.partition("/")
    if not slash:
        return where
    stages = taps(network)
    return stages[max(0, round(int(part) * len(stages) / int(whole)) - 1)]


@lru_cache(maxsize=64)
def multiply_adds(name: str, size: int, small_images: bool = True) -> int:
    """Multiply-adds of one forward pass of one (3, size, size) image through a named model."""
    network = build(name, 10, seed=0, small_images=small_images).eval()
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            per_output = module.weight[0].numel()
            total += per_output * output.numel()

    handles = [module.register_forward_hook(count) for module in network.modules()]
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return total
