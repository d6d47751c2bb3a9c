"""A plan as a picture: who teaches whom, and on which images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdnotes import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdnotes.study.plans import Plan
    from kdnotes.training.specification import NetworkSpec


def picture(plan: Plan) -> Figure:
    """The arms of a plan, teachers above students, with arrows from whom they are taught by."""
    firsts = {item.arm: item.spec for item in reversed(plan.planned)}
    firsts = {arm: firsts[arm] for arm in plan.arms}  # in the order of their declaration
    numbers = Counter(item.arm for item in plan.planned)
    known = {arm: spec for arm, spec in firsts.items() if spec.role == "teacher"}
    elsewhere = {
        f"{other.name} {item.arm}": item.spec  # whose outputs a teacher of this plan is made of
        for other in plan.study.plans.values()
        for item in other.planned
        if item.spec not in known.values()
        and any(item.spec in spec.parts for spec in known.values())
    }
    known = elsewhere | known
    usual = {spec.role: spec for spec in reversed(firsts.values())}
    kinds: dict[str, list[figures.Kind]] = {"teacher": [], "student": []}
    for arm, spec in (elsewhere | firsts).items():
        whose = (*spec.parts, *([spec.teacher] if spec.labels != "smoothed" else []))
        by = tuple(name for name, each in known.items() if each in whose)
        said = ", ".join([_taught(spec), *_unlike(spec, usual[spec.role])])
        kinds[spec.role].append(figures.Kind(arm, numbers[arm], said, by))
    see = {
        role: f"{role.capitalize()}s see {plan.world.label}"
        + _options(plan.world.options(role), plan.world.options(other))
        for role, other in (("teacher", "student"), ("student", "teacher"))
    }
    return figures.taught(kinds["teacher"], kinds["student"], see["teacher"], see["student"])


def _taught(spec: NetworkSpec) -> str:
    if spec.parts:
        return "mean with its mirror image" if spec.mirrored else "mean of the logits"
    seen = {
        "in changing colours": spec.recipe.jitter,
        "cropped": spec.recipe.crops,
        "mirrored at random": spec.recipe.views.flip and spec.role == "teacher",
    }
    return ", ".join([describe(spec), *(how for how, is_so in seen.items() if is_so)])


def describe(spec: NetworkSpec) -> str:
    """What a network is trained on in a line, for tables."""
    if spec.method is None:
        return "labels only"
    kind = {"teacher": "", "smoothed": "no teacher", "permuted": "permuted in class"}
    return spec.method.describe(kind[spec.labels])


def _unlike(spec: NetworkSpec, usual: NetworkSpec) -> list[str]:
    """How else a network differs from the first of its role."""
    if spec.parts or usual.parts:
        return []
    differs = {
        spec.model: spec.model != usual.model,
        f"{spec.data.count} images": spec.data.count != usual.data.count,
        f"epochs: {spec.recipe.epochs}": spec.recipe.epochs != usual.recipe.epochs,
        "the teacher's start": spec.start_seed is not None,
    }
    return [said for said, is_so in differs.items() if is_so]


def _options(these: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The options of images that are not those of the others, in brackets."""
    own = {name: value for name, value in these.items() if others.get(name) != value}
    said = []
    for name, value in own.items():
        values = value if isinstance(value, tuple | list) else (value,)
        texts = (f"{each:g}" if isinstance(each, float) else str(each) for each in values)
        said.append(f"{name.replace('_', ' ')} {', '.join(texts)}")
    return f" ({'; '.join(said)})" if said else ""
