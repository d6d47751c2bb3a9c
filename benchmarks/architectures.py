"""Are timm's networks read as they are? The smallest of each family, with random weights.

Run as ``python -m benchmarks.architectures [FAMILY ...]``. A family is a module of timm's. Of each,
the architecture with the fewest parameters is built with random weights and random BatchNorm
statistics, and what kdnotes says of it is compared with what it computes itself: its logits, as
they are and with BatchNorm folded, beside its features; and the map of its last stage with what
timm's own function gives for it. The table goes to results/architectures.csv, whose architectures
are taken again where it is there: looking through all of timm's takes longer than the rest.
"""

from __future__ import annotations

import copy
import gc
import re
import sys
from typing import Any

import pandas as pd
import timm
import torch
from torch import nn

from kdnotes import networks, paths
from kdnotes.errors import RequestError

CLASSES = 10
# Names that are never a family's smallest, passed over since building each takes time.
LARGE = re.compile(
    "base|large|huge|giant|enormous|so150m|so400m|101|152|200|269|384|448|512|_b[2-8]"
)
MOST_PARAMETERS = 400_000_000  # larger ones would need more memory than a laptop has
COLUMNS = (
    "family",
    "architecture",
    "accepted",
    "reason",
    "logits error",
    "folded error",
    "own rounding",
    "map",
)
PATH = paths.root() / "results" / "architectures.csv"


def main() -> None:
    """Choose, try each, write the table."""
    torch.set_num_threads(1)
    known = pd.read_csv(PATH).set_index("family") if PATH.exists() else None
    chosen = smallest() if known is None else known["architecture"].to_dict()
    rows = [] if known is None else known.reset_index().to_dict("records")
    found = {row["family"]: row for row in rows}
    for family in sys.argv[1:] or chosen:
        found[family] = {"family": family, "architecture": chosen[family]} | tried(chosen[family])
        print(*found[family].values(), flush=True)
        table = pd.DataFrame([found[each] for each in sorted(found)], columns=COLUMNS)
        table.to_csv(PATH, index=False)
        gc.collect()
    wrong = table["reason"].str.startswith("WRONG").sum()
    print(f"{int(table['accepted'].sum())} of {len(table)} are accepted, {wrong} wrong\n{PATH}")


def smallest() -> dict[str, str]:
    """Family -> its architecture with the fewest parameters, of those that are not too large."""
    found: dict[str, tuple[int, str]] = {}
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        for name in [each for each in names if not LARGE.search(each)] or names:
            try:
                with torch.device("meta"):
                    body: Any = timm.create_model(name, num_classes=CLASSES)
            except Exception:
                continue
            parameters = sum(each.numel() for each in body.parameters())
            if parameters < found.get(family, (MOST_PARAMETERS, ""))[0]:
                found[family] = parameters, name
    return {family: name for family, (_, name) in found.items()}


def randomised(body: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with random BatchNorm statistics and no weights of 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for values, low, high in (
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.2, 0.2),
                ):
                    if values is not None:
                        values.uniform_(low, high, generator=generator)
        for values in body.parameters():
            if (
                values.ndim > 1 and not values.any()
            ):  # a head that says 0 of all would prove nothing
                values.normal_(0, 0.02, generator=generator)
    return body.eval()


def tried(name: str) -> dict[str, Any]:
    """What is said of an architecture: a row of the table without its first two columns."""
    torch.manual_seed(0)
    body: Any = randomised(timm.create_model(name, num_classes=CLASSES))
    try:
        return {"accepted": True, "reason": ""} | measured(body)
    except RequestError as error:
        return {"accepted": False, "reason": str(error)}


def measured(body: Any) -> dict[str, Any]:
    """How far logits and maps are from the network's own. Raises RequestError if it is refused.

    Logits count as wrong from a relative 1e-5, maps from 1e-4. ``own rounding`` is how far the
    network's logits in float32 are from those in float64: with random weights a few are so
    sensitive that float32 does not determine their answer.
    """
    config = body.pretrained_cfg
    network = networks.Normalized(body, config["mean"], config["std"])
    images = networks.example(network)
    inputs = (images - network.mean) / network.std
    errors, sides = {}, {}
    with torch.no_grad():
        own = answer(body, inputs)
        exact = copy.deepcopy(body).double()(inputs.double())
        rounding = differ(own[0].double(), exact)
        for column, each in (("logits", network), ("folded", networks.freeze(network))):
            paths_of_stages = networks.taps(each)
            with networks.tapped(each, paths_of_stages) as outputs:
                logits, _ = networks.forward_with_features(each, images)
            found = logits, outputs[paths_of_stages[-1]]
            wrong = [differ(one, other) for one, other in zip(found, own, strict=True)]
            errors[f"{column} error"] = wrong[0]
            sides["map"] = "x".join(map(str, found[1].shape[2:]))
            if wrong[0] > 1e-5 or wrong[1] > 1e-4:
                sides["reason"] = f"WRONG: logits and last map are off by {wrong}"
    errors["own rounding"] = rounding
    return {name: f"{value:.1e}" for name, value in errors.items()} | sides


def answer(body: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the map of the last stage as timm's own function gives it."""
    maps = body.forward_intermediates(inputs, output_fmt="NCHW", intermediates_only=True)
    return body(inputs), maps[-1]


def differ(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far apart, as a share of the largest value; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
