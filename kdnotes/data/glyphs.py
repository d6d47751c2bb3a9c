"""Real handwritten digits, the raw material of every scene: images, labels and a fixed split."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdnotes.data.registry import NoOptions
from kdnotes.data.sources import torchvision_sets
from kdnotes.data.spec import DataSpec
from kdnotes.lazy import torch
from kdnotes.store import checksum

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

REVISION = 1  # raise it when the same options give other pixels: cached networks depend on them
SPLIT_SEED = 20531  # one split for all, so that no test glyph is ever seen in training
TEST_SHARE = 1 / 3
CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Glyphs:
    """Handwritten digits: images float [0, 1] (N, 1, h, w), labels (N,), ids (N,)."""

    images: Tensor
    labels: Tensor
    ids: Tensor


@lru_cache(maxsize=8)
def load(
    origin: Literal["bundled", "mnist"], split: Literal["train", "test"], data_dir: Path | None
) -> Glyphs:
    """Glyphs of one split; train and test share none.

    ``bundled`` are scikit-learn's 1,797 digits (Alpaydin and Kaynak 1998), split by class with a
    fixed seed; ``mnist`` is MNIST with its own split. Raises RequestError if MNIST is missing.
    """
    import numpy as np

    if origin == "mnist":
        data = torchvision_sets.load(DataSpec(name="mnist", split=split), NoOptions(), data_dir)
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


def fingerprint(spec: DataSpec, options: Any, data_dir: Path | None) -> str:
    """Name of the drawing code and of the glyphs, which are an option, for cache keys."""
    if options.glyphs == "mnist":
        mnist = spec.model_copy(update={"name": "mnist"})
        return f"{REVISION}-{torchvision_sets.fingerprint(mnist, NoOptions(), data_dir)}"
    images, labels = _bundled()
    return f"{REVISION}-{checksum(images.tobytes() + labels.tobytes())[:16]}"


@lru_cache(maxsize=1)
def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn's load_digits reads, without the two seconds that importing it takes."""
    import numpy as np

    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 8x8 pixels from 0 to 16, then the digit
    images = (table[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32)
    return images, table[:, -1].astype(np.int64)


@lru_cache(maxsize=1)
def photographs() -> tuple[Tensor, ...]:
    """The two photographs that come with scikit-learn, float [0, 1] (3, H, W)."""
    import numpy as np
    from sklearn.datasets import load_sample_images

    return tuple(
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        for image in load_sample_images().images
    )
