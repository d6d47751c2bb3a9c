"""Is anything inherited where no accuracy is gained? Several properties beside accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdnotes import stats
from kdnotes.lazy import pandas as pd
from kdnotes.probes import accuracy, adversarial, base, color_invariance, cue_bias, fidelity
from kdnotes.probes.base import Cast, ImageData, Outcome

ON_CUES, ON_JITTER = "cast=cues", "cast=jitter"
TEACHER, SECOND = "teacher", "second-teacher"
# Measures whose values image by image are kept: those that contrasts are made of.
ITEMS_OF = (
    "accuracy",
    "agreement",
    "agreement_on_teacher_errors",
    "fooling_rate",
    "own_teacher_fooling",
    "follows_digit",
    "same_answer",
)
_CONFLICT, _CHANGED = f"{ON_CUES},conflict", f"{ON_JITTER},{color_invariance.condition()}"
# What is looked at beside accuracy: measure and condition, the condition of the accuracy that goes
# with it, and who is at the far end: a teacher is like itself, so pairs have the second one there.
PROPERTIES = {
    "fooled by the teacher's images": ("fooling_rate", adversarial.condition(), "", SECOND),
    "repeats the teacher's mistakes": ("agreement_on_teacher_errors", "", "", SECOND),
    "follows the digit, as the teacher": ("follows_digit", _CONFLICT, ON_CUES, TEACHER),
    "same answer after a change of colour": ("same_answer", _CHANGED, ON_JITTER, TEACHER),
}


def measure(
    plain: tuple[Cast, ImageData],
    cues: tuple[Cast, ImageData, ImageData] | None = None,
    jitter: tuple[Cast, ImageData] | None = None,
    *,
    eps: int = 4,
    steps: int = 5,
    strength: float = 0.4,
) -> Outcome:
    """Accuracy and, beside it, what was inherited, of every network of up to three casts.

    plain: a cast and its test images, measured by `fidelity` and by `adversarial` at one size
    ``eps`` in 255ths. cues: a cast, its test images, and such in which two cues name different
    classes (`cue_bias.follows`). jitter: a cast whose teacher was trained with changing colours,
    and its test images (`color_invariance`). Conditions of these begin with ``cast=cues`` or
    ``cast=jitter``. Raises RequestError as those probes do.
    """
    cast, images = plain
    fooling = adversarial.measure(cast, images, eps=(), primary=eps, steps=steps)
    parts = [
        fidelity.measure(cast, images).keep(lambda rows: rows["condition"] == ""),
        fooling.keep(lambda rows: rows["condition"].str.endswith("eps=primary")),
    ]
    if cues is not None:
        cast, images, conflicts = cues
        followed = cue_bias.follows(cast, conflicts)
        followed = followed.keep(lambda rows: rows["measure"] != "follows_marker")
        parts += [accuracy.measure(cast, images).under(ON_CUES), followed.under(ON_CUES)]
    if jitter is not None:
        steady = color_invariance.measure(*jitter, strengths=(), hue_angles=(), primary=strength)
        wanted = "", color_invariance.condition()
        parts.append(steady.keep(lambda rows: rows["condition"].isin(wanted)).under(ON_JITTER))
    return Outcome.combine(parts).keep_items(lambda items: items["measure"].isin(ITEMS_OF))


def gains(
    table: pd.DataFrame, measure: str, condition: str, beside: str, arms: Sequence[str]
) -> pd.DataFrame:
    """How much more accurate (under ``beside``) than the independent student of its seed each
    student is, and how much more of a measure it has: arm, seed, accuracy_gain and inheritance.

    An independent student is compared with the next seed's (the last with the first): what both
    look like by chance. Arms that were not measured are left out, as are seeds without a finite
    value of both. Raises NotMeasuredError where the table has no row of independent students.
    """
    reference, differences = "independent", {}
    columns = {"accuracy_gain": ("accuracy", beside), "inheritance": (measure, condition)}
    for name, where in columns.items():
        rows = base.rows_of(table, *where)
        values = rows.pivot(index="seed", columns="arm", values="value").astype(np.float64)
        if reference not in values:
            raise stats.NotMeasuredError(f"no '{where[0]}' for arm '{reference}'")
        own = values[reference].dropna()
        over = values.sub(own, axis=0)
        over[reference] = pd.Series(np.roll(own, -1), own.index) - own if len(own) > 1 else np.nan
        differences[name] = over.reindex(columns=list(arms)).unstack()
    found = pd.DataFrame(differences).replace([np.inf, -np.inf], np.nan).dropna()
    return found.rename_axis(["arm", "seed"]).reset_index()[["arm", "seed", *columns]]
