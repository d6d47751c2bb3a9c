"""Does an answer survive a change of colour?

Each image is changed once per strength, by factors of its own, and shown to all networks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes.base import PROBABILITIES, Audited, Cast, ImageData, Measure, Outcome
from kdnotes.probes.changes import Change, Distance, Margin, measure_changes

if TYPE_CHECKING:
    from kdnotes.data.colors import JitterFactors

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6)
HUE_ANGLES = (45, 90, 135, 180, 225, 270, 315)


def condition(strength: float | None = None, hue: float | None = None) -> str:
    """What is measured after a turn of the hue by degrees, or a change of a (primary) strength."""
    if hue is not None:
        return f"hue={hue:g}"
    return "strength=primary" if strength is None else f"strength={strength:g}"


DEEPER = "gives the same answer more often, the deeper its Hint"
WHERE = condition(), ("strength=*", "hue=*")
MEASURES = (
    Measure("same_answer", "gives the same answer when colours change", *WHERE, True),
    Measure("accuracy_after", "is right after colours change", *WHERE, True),
    Measure("depth_slope", DEEPER, condition(), unit="share per depth", low=-1.0),
    Margin(*WHERE),
    Distance("changes its probabilities when colours change", *WHERE),
    *PROBABILITIES,
)


def measure(
    cast: Cast,
    data: ImageData,
    *,
    strengths: Sequence[float] = STRENGTHS,
    hue_angles: Sequence[float] = HUE_ANGLES,
    primary: float = 0.4,
    primary_only: Collection[str] = (),
    seed: int = 0,
) -> Outcome:
    """Answers of every network before and after a change of colour: see `measure_changes`.

    The ``primary`` strength, fixed beforehand, stands once more as ``strength=primary``; arms in
    ``primary_only`` are shown nothing else. A stronger jitter is the weaker one of the same image
    scaled up. Raises RequestError for a strength outside 0 to 1.
    """
    from kdnotes.data.colors import jitter, rotate_hue

    for strength in (*strengths, primary):
        if not 0 < strength <= 1:
            raise RequestError(f"a jitter's strength lies between 0 and 1, not {strength:g}")
    amounts = sorted({*strengths, primary})
    factors = {condition(each): jitter_factors(len(data), each, seed) for each in amounts}
    turns = {condition(hue=degrees): degrees / 360 for degrees in hue_angles}

    def views(name: str, images: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor]:
        if name in turns:
            changed = rotate_hue(images, turns[name])
        else:
            changed = jitter(images, factors[name][places])
        return (changed.contiguous(memory_format=torch.channels_last),)

    changes = []
    for name in (*factors, *turns):
        is_primary = name == condition(primary)
        names = (name, condition()) if is_primary else (name,)
        every = torch.arange(len(data))
        changes.append(Change(names, partial(views, name), every, names, is_primary))
    return measure_changes(cast, data, changes, primary_only, in_double=False)


def jitter_factors(count: int, strength: float, seed: int) -> JitterFactors:
    """The changes of colour that go with a strength, one for each of ``count`` images.

    Hue changes by up to half of it in turns: the ratio of the paper's teacher (.4 and .2), whose
    tests do not name the hue's.
    """
    from kdnotes.data.colors import draw_jitter

    generator = torch.Generator().manual_seed(seed)
    return draw_jitter(count, strength, strength, strength, min(0.5, strength / 2), generator)


BRIEF = {"strengths": (), "hue_angles": ()}
PROPERTY = Audited("color_invariance", "colour invariance", measure, MEASURES, 5, brief=BRIEF)
