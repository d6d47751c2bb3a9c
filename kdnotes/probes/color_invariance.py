"""Does an answer survive a change of colour?

Each image is changed once per strength, by factors of its own, and shown to all networks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from kdnotes.data import ImageData
from kdnotes.data.colors import JitterFactors, draw_jitter, jitter, rotate_hue
from kdnotes.errors import RequestError
from kdnotes.probes.cast import Cast
from kdnotes.probes.forward import BATCH_SIZE, batches, device_of, logits_of, record_accuracy
from kdnotes.probes.outcome import Outcome, Recorder
from kdnotes.probes.wording import Measure

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6)
HUE_ANGLES = (45, 90, 135, 180, 225, 270, 315)

MEASURES = (
    Measure("same_answer", "gives the same answer when colours change", "strength=primary"),
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
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Answers of every network before and after a change of colour.

    Conditions: ``strength=S`` (see `jitter_factors`) and ``hue=A`` (hue turned by A degrees);
    the rows of the ``primary`` strength, fixed beforehand, stand there once more as
    ``strength=primary``. Arms in ``primary_only`` are shown that strength and nothing else. The
    factors are drawn once for each image: all networks see the same changes, and a stronger jitter
    is the weaker one of the same image scaled up. Measures, per image:

    - ``same_answer``: is the answer the same, right or wrong? (the paper's agreement score)
    - ``accuracy_after``: is the answer after the change right?
    - ``margin_after`` (table only): probability of the first answer less that of the second, after
      the change. Answers can be stable because margins are wide.
    - ``softmax_distance`` (table only): Euclidean distance between the probabilities before and
      after (the invariance measure of Odagiu et al. 2024); 0 for an invariant network.
    - ``accuracy`` (no condition), before the change.

    Raises RequestError when a strength is not between 0 and 1.
    """
    for strength in (*strengths, primary):
        if not 0 < strength <= 1:
            raise RequestError(f"a jitter's strength lies between 0 and 1, not {strength:g}")
    members = list(cast.everyone())
    strengths = sorted({*strengths, primary})
    factors = {value: jitter_factors(len(data), value, seed) for value in strengths}
    answers: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
    margins: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
    distances: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
    for indices, images in batches(data, device_of(cast.teacher.network), batch_size):
        before = [logits_of(member.network, images).softmax(1) for member in members]
        for number, probabilities in enumerate(before):
            answers[number, ""].append(probabilities.argmax(1))
        for condition, changed in _changes(images, indices, factors, hue_angles):
            for number, member in enumerate(members):
                if member.arm in primary_only and condition != f"strength={primary:g}":
                    continue
                after = logits_of(member.network, changed).softmax(1)
                best = after.topk(2, dim=1)
                answers[number, condition].append(best.indices[:, 0])
                margins[number, condition].append(best.values[:, 0] - best.values[:, 1])
                distances[number, condition].append((after - before[number]).norm(dim=1))
    recorder = Recorder(data)
    given = {key: torch.cat(parts) for key, parts in answers.items()}
    for (number, condition), after in given.items():
        member = members[number]
        if condition == "":
            record_accuracy(recorder, member, after)
            continue
        same = after == given[number, ""]
        right = after == data.labels
        names = [condition]
        if condition == f"strength={primary:g}":
            names.append("strength=primary")
        for name in names:
            recorder.add(member, "same_answer", same, after, name)
            recorder.add(member, "accuracy_after", right, after, name)
            for label, parts in (("margin_after", margins), ("softmax_distance", distances)):
                mean = float(torch.cat(parts[number, condition]).double().mean())
                recorder.add_summary(member.arm, member.seed, label, mean, name)
    return recorder.outcome()


def jitter_factors(count: int, strength: float, seed: int) -> JitterFactors:
    """The changes of colour that go with a strength, one for each of ``count`` images.

    Brightness, contrast and saturation change by up to ``strength``, hue by up to half of it in
    turns: the ratio of the paper's teacher (.4 and .2), whose tests do not name the hue's.
    """
    generator = torch.Generator().manual_seed(seed)
    return draw_jitter(count, strength, strength, strength, min(0.5, strength / 2), generator)


def _changes(
    images: Tensor,
    indices: Tensor,
    factors: dict[float, JitterFactors],
    hue_angles: Sequence[float],
) -> Iterator[tuple[str, Tensor]]:
    for strength, each in factors.items():
        changed = jitter(images, each[indices])
        yield f"strength={strength:g}", changed.contiguous(memory_format=torch.channels_last)
    for angle in hue_angles:
        changed = rotate_hue(images, angle / 360)
        yield f"hue={angle:g}", changed.contiguous(memory_format=torch.channels_last)
