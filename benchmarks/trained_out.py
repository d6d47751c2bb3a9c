"""Is every world trained out? What doubling the epochs would add, on development seeds.

Run as ``python -m benchmarks.trained_out`` (about an hour on two cores; it goes on where it was
stopped). Every chapter's casts are planned at the preset `laptop` with two development seeds. For
each kind of teacher and of student without one, a network is trained for the epochs that it has in
the book and for twice as many, and its accuracy is measured on test images like those it was
trained on. Of the students by each method it is noted how much of the method's own loss is left.
The table goes to results/trained-out.csv; with a chapter and parameters, as in
``python -m benchmarks.trained_out unseen-domains dataset=imagefolder:pacs unseen=photo``, it is
about these images at the preset `published`, and goes to results/published/IMAGES/trained-out.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch

from kdnotes import networks, paths
from kdnotes.book import parameters, running
from kdnotes.data import load, with_fingerprint
from kdnotes.probes.base import Member, all_answers
from kdnotes.study import Plan
from kdnotes.study.presets import DEVELOPMENT
from kdnotes.training import cache
from kdnotes.training.specification import NetworkSpec, Planned

SEEDS = 2
TEST_IMAGES = 2000


def main(arguments: Sequence[str]) -> None:
    """Train what is missing, measure, write the table."""
    torch.set_num_threads(1)
    asked = {"first_seed": str(DEVELOPMENT.first), "seeds": str(SEEDS)}
    path = paths.root() / "results" / "trained-out.csv"
    chapters = running.chapters(arguments[:1])
    if arguments:
        asked |= {"preset": "published", "teacher_count": "1"}
        asked |= parameters.assignments(arguments[1:], "-p")
    plans: dict[str, Plan] = {}  # by what is trained in them: chapters share casts
    for chapter in chapters:
        study = running.request(chapter, asked).study
        if arguments:
            path = path.with_name("published") / study.settings.images / path.name
        for plan in study.plans.values():
            plans.setdefault("|".join(sorted(item.spec.key for item in plan.planned)), plan)
    write(list(plans.values()), path)


def write(plans: Sequence[Plan], path: Path) -> None:
    """Train what the plans and their doubles lack, and write the table of them."""
    alone = {spec.key: (plan, arm, spec) for plan in plans for arm, spec in untaught(plan)}
    doubled = [Planned(arm, twice(spec)) for _, arm, spec in alone.values()]
    once = [Planned(arm, spec) for _, arm, spec in alone.values()]
    taught = [item for plan in plans for item in plan.planned if is_main(plan, item)]
    cache.ensure([*once, *taught, *doubled])
    rows = [
        {
            "world": plan.world.label,
            "who": arm,
            "network": spec.model,
            "images": spec.data.count or "all",
            "epochs": spec.recipe.epochs,
            "seed": spec.seed,
            "accuracy": accuracy(spec),
            "doubled": accuracy(twice(spec)),
        }
        for plan, arm, spec in alone.values()
    ]
    for plan in plans:
        for item in plan.planned:
            if is_main(plan, item) and item.spec.method is not None:
                past = cache.history(item.spec)
                left = past[-1][item.spec.method.name] / past[0]["start"]
                rows.append(
                    {
                        "world": plan.world.label,
                        "who": item.arm,
                        "network": item.spec.model,
                        "images": item.spec.data.count or "all",
                        "epochs": item.spec.recipe.epochs,
                        "seed": item.spec.seed,
                        "loss left": left,
                    }
                )
    table = pd.DataFrame(rows).drop_duplicates()
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4f")
    print(table.to_string(), f"\n{path}")


def untaught(plan: Plan) -> Iterator[tuple[str, NetworkSpec]]:
    """Networks that learn from labels alone, teachers and students, once for each seed."""
    varied = ("second-teacher", "foreign", "images", "epochs", "matched", "same-start")
    for item in plan.planned:
        spec = item.spec
        if spec.method is None and not spec.parts and not any(word in item.arm for word in varied):
            yield item.arm, spec


def is_main(plan: Plan, item: Planned) -> bool:
    """Whether a network is a student by one of the methods, and has the first seed."""
    first = item.spec.seed == plan.study.settings.first_seed
    return first and item.arm in plan.study.settings.methods


def twice(spec: NetworkSpec) -> NetworkSpec:
    """The same network, trained for twice as many epochs."""
    recipe = spec.recipe.model_copy(update={"epochs": 2 * spec.recipe.epochs})
    return spec.model_copy(update={"recipe": recipe})


def accuracy(spec: NetworkSpec) -> float:
    """Share of right answers to test images like those the network was trained on."""
    asked = spec.data.model_copy(update={"split": "test", "count": TEST_IMAGES})
    images = load(with_fingerprint(asked, None), None)
    network = networks.freeze(cache.load(spec))
    (answers,) = all_answers([Member("", spec.seed, network, ())], images)
    return float((answers == images.labels).double().mean())


if __name__ == "__main__":
    main(sys.argv[1:])
