"""How likely is each primary claim to be decided, if it is as development runs found it?

Run as ``python -m benchmarks.power FOLDER`` with the folder of runs on development seeds; the table
goes to results/power.csv. For each part of a primary, differences of seeds are drawn with the mean
and the variances that were found there, and judged as the first step of Holm over twelve judges.
It is an estimate from a few seeds, made to choose the number of seeds and not to report an effect.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from kdnotes import paths, stats

DRAWS = 2000


def main() -> None:
    """Read the runs, draw, write the table."""
    rows = []
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        for claim in json.loads(path.read_text())["claims"]:
            if claim.get("family") in stats.PRIMARIES and claim["p_agrees"] is not None:
                where = {"primary": claim["family"], "claim": claim["id"]}
                numbers = {name: claim[name] for name in ("estimate", "seed_sd", "seeds")}
                rows.append(
                    where | {"images": claim["dataset"]} | numbers | {"power": power(claim)}
                )
    table = pd.DataFrame(rows).sort_values("claim")
    path = paths.root() / "results" / "power.csv"
    table.to_csv(path, index=False, float_format="%.4f")
    print(table.to_string(), f"\n{path}")


def power(claim: dict) -> float:
    """Share of draws in which the claim would agree at the first step of Holm over the twelve."""
    rng, level = np.random.default_rng(0), 0.05 / 2 / len(stats.PRIMARIES)
    item, decided = claim["item_standard_error"], 0
    for _ in range(DRAWS):
        values = rng.normal(claim["estimate"], claim["seed_sd"], claim["seeds"])
        found = stats.paired_difference(values + rng.normal(0, item), 0.0, item)
        margin = claim["margin"]
        decided += stats.claim_p_values(found, claim["direction"], margin)[0] < level
    return decided / DRAWS


if __name__ == "__main__":
    main()
