"""Which weight should Hint have at each depth? Chosen by accuracy, on development seeds.

Run as ``python -m benchmarks.hint_weights`` (some ten minutes on one core). At each of the four
depths that the chapter on colours compares, students are trained with several weights, and the
weight is taken at which they are right most often on test images as they are. How they answer when
colours change, which is what the depths are compared in, is not looked at. The table goes to
results/hint-weights.csv.
"""

from __future__ import annotations

import pandas as pd
import torch

from benchmarks.trained_out import accuracy
from kdnotes import paths
from kdnotes.book import running
from kdnotes.study import arms
from kdnotes.study.presets import DEVELOPMENT
from kdnotes.training import cache
from kdnotes.training.specification import NetworkSpec, Planned

SEEDS = 3
WEIGHTS: dict[str, tuple[float, ...]] = dict.fromkeys(
    ("1/3", "2/3", "3/3"), (1.0, 3.0, 10.0, 30.0, 100.0)
)
WEIGHTS["logits"] = (0.03, 0.1, 0.3, 1.0)


def main() -> None:
    """Train what is missing, measure, write the table."""
    torch.set_num_threads(1)
    asked = {"first_seed": str(DEVELOPMENT.first), "seeds": str(SEEDS)}
    study = running.request(running.chapter("color-invariance"), asked).study
    plan = study.plans["jitter"]
    teacher = next(item.spec for item in plan.planned if item.arm == "teacher")
    tried = {}
    for place, arm in arms.depths(plan.method("hint")).items():
        for weight in WEIGHTS[place]:
            one = arm.variant(f"weight-{weight:g}", f"weight {weight:g}", "", {"weight": weight})
            spec = plan.student(one, teacher)
            for seed in study.settings.seeds:
                tried[place, weight, seed] = spec.model_copy(update={"seed": seed})
    rows = [(*what, accuracy_of(spec)) for what, spec in tried.items()]
    table = pd.DataFrame(rows, columns=["depth", "weight", "seed", "accuracy"])
    means = table.groupby(["depth", "weight"])["accuracy"].mean()
    chosen = means.groupby("depth").idxmax().map(lambda best: best[1])
    table["chosen"] = table["weight"] == table["depth"].map(chosen)
    path = paths.root() / "results" / "hint-weights.csv"
    table.to_csv(path, index=False, float_format="%.4f")
    print(means.unstack().round(3).to_string(), f"\n{path}")


def accuracy_of(spec: NetworkSpec) -> float:
    """Of a student, trained if it is not there yet; 0 where its loss becomes infinite."""
    try:
        cache.ensure([Planned("hint", spec)])
    except FloatingPointError:
        return 0.0
    return accuracy(spec)


if __name__ == "__main__":
    main()
