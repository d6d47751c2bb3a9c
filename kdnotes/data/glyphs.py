"""Real handwritten digits, the raw material of every scene: images, labels and a fixed split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

SPLIT_SEED = 20531  # one split for all, so that no test glyph is ever seen in training
TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Glyphs:
    """Handwritten digits: images float [0, 1] (N, 1, h, w), labels (N,), ids (N,)."""

    images: Tensor
    labels: Tensor
    ids: Tensor


@lru_cache(maxsize=8)
def load(origin: Literal["bundled", "mnist"], split: str, data_dir: Path | None) -> Glyphs:
    """Glyphs of one split; train and test share none.

    ``bundled`` are scikit-learn's 1,797 digits (Alpaydin and Kaynak 1998), split by class with a
    fixed seed; ``mnist`` is MNIST with its own split. Raises RequestError if MNIST is missing.
    """
    if origin == "mnist":
        from kdnotes.data import folders

        data = folders.load("mnist", split, data_dir, {})
        ids = torch.arange(len(data)) + (0 if split == "train" else 1_000_000)
        return Glyphs(data.images[:, :1].float() / 255, data.labels, ids)
    images, labels = _bundled()
    chosen = []
    order_generator = np.random.default_rng(SPLIT_SEED)
    for digit in range(10):
        of_class = order_generator.permutation(np.flatnonzero(labels == digit))
        first_train = round(len(of_class) * TEST_SHARE)
        chosen.append(of_class[:first_train] if split == "test" else of_class[first_train:])
    rows = np.sort(np.concatenate(chosen))
    return Glyphs(
        torch.from_numpy(images[rows][:, None]),
        torch.from_numpy(labels[rows]).long(),
        torch.from_numpy(rows).long(),
    )


def fingerprint(origin: str, data_dir: Path | None) -> str:
    """Name of the content behind an origin, for cache keys."""
    if origin == "mnist":
        from kdnotes.data import folders

        return folders.fingerprint("mnist", "train", data_dir, {})
    images, labels = _bundled()
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _bundled() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


@lru_cache(maxsize=1)
def photographs() -> tuple[Tensor, ...]:
    """The two photographs that come with scikit-learn, float [0, 1] (3, H, W)."""
    from sklearn.datasets import load_sample_images

    return tuple(
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        for image in load_sample_images().images
    )
