"""Five unseen domains made from images: sketch, stylised, silhouette, edge, cue-conflict.

Stand-ins for the sets of Geirhos et al. (2019): every image is drawn anew in five ways, so that its
class stays known. Pure functions of float images (N, 3, H, W) in [0, 1]; sizes in pixels are meant
for images of 32 and grow with them. What is random comes in `Draws`, however images are batched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from kdnotes.data import PerImage, drawing
from kdnotes.errors import RequestError

DOMAINS = ("sketch", "stylised", "silhouette", "edge", "cue-conflict")
GROUNDS = ("own", "light")
_MEANT_FOR = 32  # pixels along a side
_COARSE = 1.0  # pixels: what a blur of this width takes away counts as texture
_WOBBLE = 0.8  # pixels by which a sketch's lines go astray
_WEAK_EDGE, _STRONG_EDGE = 0.3, 0.6  # shares of an image's steepest gradient
_FAINTEST = 0.05  # gradients are no lines where the steepest is below this
_PALETTE_SMOOTHING = 0.1  # share of the pixels
_LEAST_SPREAD = 0.15  # standard deviation of brightness; a shape in plain sky would be lost
_LONG = 8  # reach in pixels beyond which a blur is a product of matrices
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Draws(PerImage):
    """What is random about the renderings of N images.

    wobble: (N, 2, 4, 4), normal; photograph: (N, 3) in [0, 1), which and where; partner: int64
    (N,), the place of an image of another class; noise: int64 (N,), seeds of textures.
    """

    wobble: Tensor
    photograph: Tensor
    partner: Tensor
    noise: Tensor


def draw(labels: Tensor, seed: int) -> Draws:
    """Draws for images with these labels (N,); the same seed gives the same ones."""
    generator, count = torch.Generator().manual_seed(seed), len(labels)
    return Draws(
        torch.randn(count, 2, 4, 4, generator=generator),
        torch.rand(count, 3, generator=generator),
        partners(labels, generator),
        torch.randint(2**62, (count,), generator=generator),
    )


def partners(labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each image the place of a random one of another class, if there is one, int64 (N,)."""
    count = len(labels)
    unit = torch.rand(count, generator=generator, dtype=torch.float64)
    order = labels.argsort(stable=True)
    in_order = labels[order].contiguous()
    start = torch.searchsorted(in_order, labels)
    length = torch.searchsorted(in_order, labels, right=True) - start
    others = count - length
    rank = (unit * torch.where(others > 0, others, count)).long()
    rank = torch.where((others > 0) & (rank >= start), rank + length, rank)
    return order[rank]


def render(
    images: Tensor, others: Tensor, draws: Draws, shapes: Tensor | None = None, ground: str = "own"
) -> dict[str, Tensor]:
    """Images (n, 3, H, W) in all five domains, by the names in `DOMAINS`.

    others: their partners' images; draws: theirs; shapes: bool (n, H, W), where the shape is, None
    where that is not known. Sketches and silhouettes are dark on ``light`` ground; with ``own``
    light on dark where the shape is known to be lighter than what surrounds it: networks that only
    know light shapes recognise nothing else. Raises RequestError for another ground.
    """
    if ground not in GROUNDS:
        raise RequestError(f"the ground is one of {', '.join(GROUNDS)}, not {ground!r}")
    height, width = images.shape[-2:]
    photographs = photo_patches(draws.photograph, height, width).to(images)
    textures = noise(draws.noise, height, width)
    lines, shape = sketch(images, draws.wobble), silhouette(images, shapes)
    if shapes is not None and ground == "own":
        inside, bright = shapes.to(images), images.amax(1)
        within, around = (
            (bright * part).sum((1, 2)) / part.sum((1, 2)).clamp(min=1)
            for part in (inside, 1 - inside)
        )
        light = (within > around).view(-1, 1, 1, 1)
        lines, shape = (torch.where(light, 1 - each, each) for each in (lines, shape))
    conflict = cue_conflict(images, others, textures)
    rendered = (lines, stylised(images, photographs), shape, edges(images), conflict)
    layout = {"memory_format": torch.channels_last}
    return {name: each.contiguous(**layout) for name, each in zip(DOMAINS, rendered, strict=True)}


def sketch(images: Tensor, wobble: Tensor) -> Tensor:
    """Soft dark lines on light paper where brightness changes; wobble (N, 2, h, w) moves them."""
    steepness = _gradient(_blur(images.amax(1, keepdim=True), 0.5))[0]
    full = torch.quantile(steepness.flatten(1), 0.95, dim=1).clamp(min=_FAINTEST)
    ink = (steepness / full[:, None, None, None]).clamp(0, 1)
    height, width = images.shape[-2:]
    astray = F.interpolate(wobble.to(images), (height, width), mode="bicubic", align_corners=True)
    size = torch.tensor([width, height]).to(images).view(1, 2, 1, 1)
    astray = astray * _WOBBLE * (width / _MEANT_FOR) * 2 / size
    still = torch.eye(2, 3).expand(len(images), 2, 3).to(images)
    grid = F.affine_grid(still, [len(images), 1, height, width], align_corners=False)
    grid = grid + astray.permute(0, 2, 3, 1)
    drawn = F.grid_sample(ink, grid, padding_mode="border", align_corners=False)
    return (0.97 - 0.87 * drawn).expand(-1, 3, -1, -1)


def stylised(images: Tensor, styles: Tensor) -> Tensor:
    """The coarse shape of an image in the colours of another, under the other's fine texture.

    A crude stand-in for style transfer; where the style is even, its brightness is stretched.
    """
    painted = repaint(_blur(images, _COARSE), styles)
    mean = painted.mean((2, 3), keepdim=True)
    spread = grey(painted).std((1, 2, 3), keepdim=True).clamp(min=1e-3)
    painted = mean + (painted - mean) * (_LEAST_SPREAD / spread).clamp(min=1)
    return (painted + styles - _blur(styles, _COARSE)).clamp(0, 1)


def silhouette(images: Tensor, shapes: Tensor | None = None) -> Tensor:
    """A black shape on white.

    shapes: bool (N, H, W); without them the image is cut in two by brightness (`otsu`), and the
    side that touches the border less is the shape, or the smaller one where both do alike.
    """
    if shapes is None:
        light = grey(images)[:, 0]
        bright = (light * 255).round() > otsu(light)[:, None, None]
        border = torch.ones_like(bright)
        border[:, 1:-1, 1:-1] = False
        outside = (bright & border).sum((1, 2)) * 2 - border.sum((1, 2))
        everywhere = bright.double().mean((1, 2)) * 2 - 1
        dark_shape = (outside > 0) | ((outside == 0) & (everywhere > 0))
        shapes = bright ^ dark_shape[:, None, None]
    white = (~shapes).to(images.device, images.dtype)
    return white[:, None].expand(-1, 3, -1, -1)


def edges(images: Tensor) -> Tensor:
    """Light lines on black, two pixels wide, where brightness changes: Canny's (1986) edges."""
    smooth = _blur(images.amax(1, keepdim=True), 0.7)  # whatever the colour
    steepest = _gradient(smooth)[0].amax((1, 2, 3)).clamp(min=_FAINTEST)
    thin = canny(smooth, _WEAK_EDGE * steepest, _STRONG_EDGE * steepest).to(images)
    return F.max_pool2d(F.pad(thin, (0, 1, 0, 1)), 2, 1).expand(-1, 3, -1, -1)


def cue_conflict(images: Tensor, others: Tensor, random: Tensor) -> Tensor:
    """The coarse shape of an image in the colours of another, with its detail in random places."""
    detail = scramble(others - _blur(others, _COARSE), random)
    return (repaint(_blur(images, _COARSE), others) + detail).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Brightness as people see it (N, 1, H, W)."""
    weights = torch.tensor(_GREY).to(images).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def otsu(light: Tensor) -> Tensor:
    """The threshold, 0 to 255, that best cuts each brightness (N, H, W) in two (Otsu 1979)."""
    levels = (light * 255).round().long().clamp(0, 255).flatten(1)
    counts = torch.zeros(len(light), 256, dtype=torch.float64, device=light.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    share = counts / counts.sum(1, keepdim=True)
    below = share.cumsum(1)
    sums = (share * torch.arange(256, device=light.device)).cumsum(1)
    room = below * (1 - below)
    between = (sums[:, -1:] * below - sums) ** 2 / room.clamp(min=1e-12)
    return torch.where(room > 1e-9, between, 0.0).argmax(1)


def canny(smooth: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
    """Edges, bool (N, 1, H, W), of smooth brightness (N, 1, H, W); thresholds (N,); Canny 1986.

    Gradients largest across their direction, above ``strong`` or connected and above ``weak``.
    """
    steepness, across, down = _gradient(smooth)
    direction = torch.round(torch.atan2(down, across) / (torch.pi / 4)).long() % 4
    padded = F.pad(steepness, (1, 1, 1, 1))
    height, width = smooth.shape[-2:]

    def neighbour(dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    is_peak = torch.zeros_like(steepness, dtype=torch.bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        larger = (steepness > neighbour(dy, dx)) & (steepness >= neighbour(-dy, -dx))
        is_peak |= (direction == number) & larger
    possible, sure = (
        (is_peak & (steepness > least.view(-1, 1, 1, 1)))[:, 0].cpu().numpy()
        for least in (weak, strong)
    )
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # the eight around a pixel, in its own image
    kept = ndimage.binary_propagation(sure & possible, touching, possible)
    return torch.from_numpy(kept)[:, None].to(smooth.device)


def repaint(images: Tensor, others: Tensor, smoothing: float = _PALETTE_SMOOTHING) -> Tensor:
    """Images (N, 3, H, W) in the colours of others of the same size, in order of brightness.

    The brightest pixel gets the colour of the other's brightest, and so on. ``smoothing``: share of
    the other's pixels that are averaged along the order.
    """
    own, order = (each.amax(1).flatten(1).argsort(dim=1, stable=True) for each in (images, others))
    palette = others.flatten(2).gather(2, order[:, None].expand(-1, 3, -1))
    count = palette.shape[2]
    reach = min(int(smoothing * count / 2), count - 1)
    if reach:
        sums = F.pad(palette.double(), (reach + 1, reach), mode="replicate").cumsum(2)
        palette = (sums[..., 2 * reach + 1 :] - sums[..., : -2 * reach - 1]) / (2 * reach + 1)
    painted = torch.empty_like(others, memory_format=torch.contiguous_format).flatten(2)
    painted.scatter_(2, own[:, None].expand(-1, 3, -1), palette.to(others.dtype))
    return painted.view(images.shape)


def scramble(images: Tensor, random: Tensor) -> Tensor:
    """Images with the phases of noise (N, 1, H, W) in place of their own (Galerne 2011)."""
    phases = torch.fft.fft2(random.to(images).double())
    phases = phases / phases.abs().clamp(min=1e-12)
    phases[..., 0, 0] = 1
    return torch.fft.ifft2(torch.fft.fft2(images.double()) * phases).real.to(images.dtype)


def noise(seeds: Tensor, height: int, width: int) -> Tensor:
    """White noise (N, 1, H, W), each image's from a seed of its own."""
    own = (torch.Generator().manual_seed(seed) for seed in seeds.tolist())
    return torch.stack([torch.randn(1, height, width, generator=each) for each in own])


def photo_patches(where: Tensor, height: int, width: int) -> Tensor:
    """Patches (N, 3, H, W) of scikit-learn's two photographs; where: (N, 3) in [0, 1).

    They cover half of a photograph's height, or more, to hold some of its structure.
    """
    photos, patches = drawing.photographs(), []
    for which, down, right in where.tolist():
        photo = photos[int(which * len(photos))]
        every = max(1, min(photo.shape[1] // (2 * height), photo.shape[2] // (2 * width), 4))
        tall, wide = min(every * height, photo.shape[1]), min(every * width, photo.shape[2])
        top = int(down * (photo.shape[1] - tall + 1))
        left = int(right * (photo.shape[2] - wide + 1))
        patch = photo[None, :, top : top + tall, left : left + wide]
        patches.append(F.interpolate(patch, (height, width), mode="area")[0])
    return torch.stack(patches)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W), mirrored at the borders; sigma as in images of 32 pixels."""
    sigma = sigma * (images.shape[-1] / _MEANT_FOR)
    reach = max(1, min(round(3 * sigma), min(images.shape[-2:]) - 1))
    steps = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    if reach > _LONG:
        down, across = (_blurring(weights, length) for length in images.shape[-2:])
        return down @ images.contiguous() @ across.T
    planes = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return planes.view(images.shape)


def _blurring(weights: Tensor, length: int) -> Tensor:
    """The matrix (length, length) that blurs a column, mirrored at its ends."""
    reach = len(weights) // 2
    places = torch.arange(length, device=weights.device)[:, None]
    seen = F.pad(places.T.to(weights), (reach, reach), mode="reflect")[0].long()
    windows = seen[places + torch.arange(len(weights), device=weights.device)]
    matrix = torch.zeros(length, length).to(weights)
    return matrix.scatter_add_(1, windows, weights.expand_as(windows))


def _gradient(light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sobel's gradient of (N, 1, H, W): its length, and its parts to the right and down."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(light) / 8
    both = torch.stack([kernel, kernel.T])[:, None]
    across, down = F.conv2d(F.pad(light, (1, 1, 1, 1), mode="replicate"), both).split(1, 1)
    return (across**2 + down**2).sqrt(), across, down
