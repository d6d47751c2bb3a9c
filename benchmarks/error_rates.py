"""How often would the book give a verdict on the primary claims where there is nothing to find?

Run as ``python -m benchmarks.error_rates FOLDER`` with the folder of a run. Twice: simulated, with
the variances and the number of seeds that each claim has in that run, the truth lying on its
margin; and with the run's own outcomes, the two arms of a claim exchanged at random image by image
within each seed. Claims that are no means over images (a slope over arms, the likeness of layers)
are in the first only. The table goes to results/error-rates.csv.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdnotes import paths, stats
from kdnotes.book import results
from kdnotes.stats import families

DRAWS = 40  # of exchanged images, for each claim
FAMILIES = 10_000  # of one such draw for every claim


def main() -> None:
    """Read the run, simulate, exchange, write the table."""
    folder = Path(sys.argv[1])
    found = [
        claim
        for path in sorted(folder.glob("*.json"))
        for claim in json.loads(path.read_text())["claims"]
        if claim.get("family") in stats.PRIMARIES and claim["p_agrees"] is not None
    ]
    claims = list({claim["id"]: claim for claim in found}.values())  # the scorecard has them again
    frame, rng = pd.DataFrame(claims), np.random.default_rng(0)
    frame = frame.sort_values("seed_sd").drop_duplicates("family")  # a primary needs all its parts
    sd, item, seeds = (frame[name] for name in ("seed_sd", "item_standard_error", "seeds"))
    family = len(families.PRIMARIES)
    simulated = stats.simulate_error_rate(sd, item, seeds, len(frame), rng, family=family)
    exchanged = [(claim["family"], p_values(claim, folder, rng)) for claim in claims]
    exchanged = [(name, found) for name, found in exchanged if len(found)]
    together = np.ones((FAMILIES, family))  # p-values of the twelve; of several parts the largest
    for place, name in enumerate(families.PRIMARIES):
        parts = [rng.choice(found, FAMILIES) for of, found in exchanged if of == name]
        together[:, place] = np.max(parts, axis=0) if parts else 1.0
    wrong = np.mean([families.holm(each).min() < families.FAMILY_LEVEL for each in together])
    single = float(np.mean([(each < families.FAMILY_LEVEL).mean() for _, each in exchanged]))
    alone = simulated.agrees + simulated.disagrees
    any_at_all = simulated.any_agrees + simulated.any_disagrees
    rows = [
        ("simulated at the margin", len(frame), alone, any_at_all),
        ("arms exchanged", len(exchanged), single, wrong),
    ]
    table = pd.DataFrame(rows, columns=["how", "claims", "one claim alone", "any, after Holm"])
    path = paths.root() / "results" / "error-rates.csv"
    table.to_csv(path, index=False, float_format="%.4f")
    print(table.to_string(), f"\n{path}")


def p_values(claim: dict, folder: Path, rng: np.random.Generator) -> NDArray[np.float64]:
    """Two-sided p-values of a claim with its arms exchanged; none without images."""
    run = results.load(claim["chapter"], folder)
    arms = claim["arm"], claim["reference"]
    table, items = (
        rows[
            (rows["measure"] == claim["measure"])
            & (rows["condition"] == claim["condition"])
            & rows["arm"].isin(arms)
        ]
        for rows in (run.table, run.items)
    )
    if set(items["arm"].astype(str)) != set(arms):
        return np.empty(0)
    found = []
    for _ in range(DRAWS):
        swapped = stats.with_arms_swapped(table, items, arms, rng)
        interval = stats.contrast(*swapped, claim["measure"], claim["condition"], *arms)
        found.append(min(1.0, 2 * min(stats.claim_p_values(interval, "greater", 0.0))))
    return np.array(found)


if __name__ == "__main__":
    main()
