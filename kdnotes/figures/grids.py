"""Figures made of cells: images with maps over them, and numbers as colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from pandas import DataFrame

from kdnotes.figures import drawing, looks
from kdnotes.figures.tables import NOTHING, number


@drawing.styled
def image_grid(
    images: Any,
    titles: Sequence[str],
    overlays: Any = None,
    columns: int = 5,
    overlay_label: str = "",
) -> Figure:
    """Images side by side, each under its title, with heat maps laid over them if given.

    ``images``: (N, 3, H, W), uint8 or float in [0, 1]; ``overlays``: (N, h, w), not negative, on
    one scale from 0 to the largest value of all. Raises ValueError where their numbers differ.
    """
    pictures = _pictures(images)
    maps = None if overlays is None else np.asarray(overlays, dtype=np.float64)
    for name, given in (("titles", titles), ("overlays", maps)):
        if given is not None and len(given) != len(pictures):
            raise ValueError(f"{len(given)} {name} for {len(pictures)} images")
    wide = min(columns, len(pictures))
    letters = int(drawing.WIDTH / wide * 72 / (0.62 * drawing.SMALL_FONT_SIZE))
    texts = [textwrap.wrap(title, letters) for title in titles]
    lines = sum(max(map(len, texts[at : at + wide])) for at in range(0, len(texts), wide))
    height, width = pictures.shape[1:3]
    each = drawing.WIDTH / wide * height / width + 0.05
    foot = 0.19 * lines + (0.0 if maps is None else 0.75)
    tints = mpl.colormaps["YlOrRd"](np.linspace(0.15, 1, 256))
    tints[:, 3] = np.linspace(0, 0.85, 256)  # the picture shows through where a value is small
    heat = ListedColormap(tints)
    figure, axes = drawing.subplots(foot, each, count=len(pictures), columns=wide)
    for place, axis in enumerate(axes):
        axis.set_axis_off()
        axis.set_title("\n".join(texts[place]), size=drawing.SMALL_FONT_SIZE, pad=3)
        if maps is None:
            axis.imshow(pictures[place], interpolation="nearest")
            continue
        axis.imshow(pictures[place].mean(axis=2), cmap="gray", vmin=0, vmax=1)
        scale = Normalize(0, float(maps.max()) or 1.0)
        whole = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(maps[place], heat, scale, extent=whole, interpolation="bilinear")
    if maps is not None:
        _colour_bar(figure, axes, axes[0].images[-1], overlay_label)
    return figure


def versions(columns: Mapping[str, Any]) -> Figure:
    """Images (N, 3, H, W), uint8 or in [0, 1], by version: a row per image, a column for each."""
    stacks = [_pictures(images).transpose(0, 3, 1, 2) for images in columns.values()]
    rows = np.stack(stacks, axis=1)
    titles = [*columns, *[""] * (len(columns) * (len(rows) - 1))]
    return image_grid(rows.reshape(-1, *rows.shape[2:]), titles, columns=len(columns))


@drawing.styled
def heatmap(
    panels: Mapping[str, DataFrame], xlabel: str, ylabel: str, colour_label: str, low: float = 0.0
) -> Figure:
    """A panel per frame, under its name: a number in every cell, as a colour from ``low`` to 1.

    Cells are numbers, or shares of a gap; NaN is grey, with a dash. Arms get their short names.
    """
    import seaborn as sns  # takes a second, and only this figure needs it

    alone, rows = len(panels) == 1, max(map(len, panels.values()))
    each = 0.9 + (0.5 if alone else 0.28) * rows
    figure, axes = drawing.subplots(0.8, each, count=len(panels), columns=2, sharey=True)
    colours = {"cmap": "PuOr_r" if low < 0 else "GnBu", "vmin": low, "vmax": 1.0, "cbar": False}
    size = {"fontsize": "medium" if alone else "small"}
    for place, (axis, (name, frame)) in enumerate(zip(axes, panels.items(), strict=True)):
        axis.set_facecolor("#EEEEEE")
        axis.grid(visible=False)
        values = frame.astype(float)
        texts = values.map(number).to_numpy()
        sns.heatmap(values, ax=axis, annot=texts, fmt="", linewidths=1, annot_kws=size, **colours)
        for row, column in zip(*np.nonzero(values.isna().to_numpy()), strict=True):
            axis.text(column + 0.5, row + 0.5, NOTHING, ha="center", va="center")
        axis.set(title=_short(name), xlabel=xlabel, ylabel="" if place % 2 else ylabel)
        angle, end = (0, "center") if alone else (30, "right")
        names = [textwrap.fill(_short(each), 9) for each in frame]
        axis.set_xticks(axis.get_xticks(), names, rotation=angle, ha=end, rotation_mode="anchor")
        names = [textwrap.fill(each, 16) for each in frame.index]
        axis.set_yticks(axis.get_yticks(), names, rotation=0)
    _colour_bar(figure, axes, axes[0].collections[0], colour_label)
    return figure


def _short(name: str) -> str:
    return looks.of(name).short if name in looks.order() else name


def _colour_bar(figure: Figure, axes: Sequence[Axes], drawn: Any, name: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
    bar.set_label(name)
    drawing.plain_ticks(bar.ax.xaxis)


def _pictures(images: Any) -> np.ndarray:
    """Images (N, 3, H, W) as float pictures (N, H, W, 3) in [0, 1]."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"need images of shape (N, 3, H, W), not {array.shape}")
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return np.clip(array.transpose(0, 2, 3, 1) / scale, 0.0, 1.0)
