"""Do images crafted to fool the teacher fool the student too?

Attacks are foolbox's, untargeted, bounded in the maximum norm, on images in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, Cast, ImageData, Measure, Member, Outcome, Recorder

NOT_SHOWN = -1  # in place of an answer, where an image was not kept


def condition(attack: str = "teacher", size: int | None = None) -> str:
    """What is measured on images crafted on a network (or "noise"), by default at the primary size.

    size: in 255ths; without an attack, what compares attacks.
    """
    at = "eps=primary" if size is None else f"eps={size}/255"
    return base.joined(attack and f"attack={attack}", at)


ATTACKS = ("attack=*,eps=*",)
MORE = "is fooled by its teacher's images more than by a"
HALF = "half the difference of shares"
_More = partial(base.Difference, condition=condition(""), chance=0.0, of="pair")
MEASURES = (
    # Its own images fool the teacher; how often they fool a second one is no upper end.
    Alike(
        "fooling_rate", "is fooled by the same images", condition(), ATTACKS, True, end="teacher"
    ),
    Measure("fooling_rate", "is fooled by noise of that size", condition("noise"), reported=True),
    Alike("same_wrong_class", "is led to the teacher's own mistake", condition(), ATTACKS),
    _More("double_difference", f"{MORE} foreign network's"),
    _More("own_teacher_fooling", f"{MORE} second teacher's", unit=HALF, low=-0.5, high=0.5),
    Measure("attack_success", "is misled by the attack on itself", condition(), ATTACKS),
)


class _Trial(NamedTuple):
    """Images (N,) crafted on a network: which were shown, what it took them for, and by network the
    answers to them (NOT_SHOWN where not ``kept``) and to the images as they are (``clean``)."""

    kept: torch.Tensor
    led_to: torch.Tensor
    clean: Mapping[Member, torch.Tensor]
    answers: Mapping[Member, torch.Tensor]


def measure(
    cast: Cast,
    data: ImageData,
    *,
    eps: Sequence[int] = (2, 4, 8),
    primary: int = 4,
    steps: int = 5,
    foreign: Member | None = None,
) -> Outcome:
    """Fooling rates of all networks on images crafted on the teacher, and on controls.

    eps: sizes of the change in 255ths. At the ``primary`` one images are also crafted on the second
    teacher and on a network ``foreign`` of the students' architecture, and noise is added to those
    kept from the teacher. An image is kept when it changes the answer of the network it was crafted
    on, right or wrong. Raises RequestError when a size or the number of steps is out of range.

    - ``fooling_rate``, over kept images: is the answer another than to the clean image? (1 by
      construction for the attacked network, in the table only.)
    - ``same_wrong_class``: over kept images that lead the attacked network to a wrong class.
    - ``double_difference``: fooled by the teacher's image less fooled by the foreign one, over
      images kept from both that all networks get right when clean.
    - ``own_teacher_fooling``: half of (fooled by the teacher's image less fooled by the second
      teacher's), over images kept from both. A student's less that of a student of the second
      teacher is half of what either's images gain by meeting its own student.
    """
    sizes = sorted({*eps, primary})
    for size in sizes:
        if not 0 < size <= 255:
            raise RequestError(f"eps is in 255ths, between 1 and 255: {size} is not")
    if steps < 1:
        raise RequestError(f"an attack takes at least one step, not {steps}")
    sources = [("teacher", cast.teacher, size) for size in sizes]
    others = {"second-teacher": cast.second_teacher, "foreign": foreign}
    sources += [(name, member, primary) for name, member in others.items() if member]
    members, recorder = cast.everyone(), Recorder(data)
    watching = [*members, foreign] if foreign else members
    clean = dict(zip(watching, base.all_answers(watching, data), strict=True))
    for member, answers in clean.items():
        recorder.add_accuracy(member, answers)

    def show(attacked: Member, change: Callable, wanted: torch.Tensor | None = None) -> _Trial:
        """Changed images, shown to all where ``wanted``: by default where the attack succeeds."""
        before = clean[attacked]
        led_to, kept = torch.empty_like(before), torch.empty_like(before, dtype=torch.bool)
        answers = {member: torch.full_like(before, NOT_SHOWN) for member in members}
        for indices, images in base.batches(data, base.device_of(attacked.network)):
            changed = change(images, data.labels[indices].to(images.device))
            led_to[indices] = base.answers_of(attacked.network, changed)
            succeeds = led_to[indices] != before[indices]
            kept[indices] = keep = succeeds if wanted is None else wanted[indices]
            # indexing gives up channels_last, and with it most of the speed
            shown = changed[keep.to(changed.device)].contiguous(memory_format=torch.channels_last)
            for member in members if len(shown) else ():
                answers[member][indices[keep]] = base.answers_of(member.network, shown)
        return _Trial(kept, led_to, clean, answers)

    trials = {}
    for name, attacked, size in sources:
        trial = show(attacked, partial(craft, attacked.network, eps=size / 255, steps=steps))
        trials[name, size] = trial
        if name == "teacher":
            _record(recorder, trial, condition(name, size), attacked)
        if size == primary:
            _record(recorder, trial, condition(name), attacked)
    noise = partial(sign_noise, eps=primary / 255, generator=torch.Generator().manual_seed(0))
    own = trials["teacher", primary]
    noisy = show(cast.teacher, lambda images, _: noise(images), own.kept)
    _record(recorder, noisy, condition("noise"))
    if cast.second_teacher:
        other = trials["second-teacher", primary]
        _compare(recorder, "own_teacher_fooling", own, other, cast.members, 0.5)
    if foreign:
        right = torch.stack([answers == data.labels for answers in clean.values()]).all(0)
        other = trials["foreign", primary]
        own = own._replace(kept=own.kept & right)
        _compare(recorder, "double_difference", own, other, members[1:], 1.0)
    return recorder.outcome()


def _record(recorder: Recorder, trial: _Trial, where: str, attacked: Member | None = None) -> None:
    """Who was fooled and, where it was an attack, into what."""
    shown = trial.kept.nonzero().flatten()
    others = {member: its for member, its in trial.answers.items() if member is not attacked}
    if attacked:
        recorder.add(attacked, "attack_success", trial.kept, trial.led_to, where)
        by_construction = 1.0 if len(shown) else math.nan
        recorder.add_value(attacked, "fooling_rate", by_construction, where)
    for member, its in others.items():
        fooled = its[shown] != trial.clean[member][shown]
        recorder.add(member, "fooling_rate", fooled, its[shown], where, shown)
    misled = shown[trial.led_to[shown] != recorder.data.labels[shown]]
    for member, its in others.items() if attacked else ():
        same = its[misled] == trial.led_to[misled]
        recorder.add(member, "same_wrong_class", same, its[misled], where, misled)


def _compare(
    recorder: Recorder,
    measure: str,
    own: _Trial,
    other: _Trial,
    students: Sequence[Member],
    share: float,
) -> None:
    """A share of how much more students are fooled in one trial than in another, of images kept."""
    items = (own.kept & other.kept).nonzero().flatten()
    for member in students:
        after = [trial.answers[member][items] for trial in (own, other)]
        by_own, by_other = ((each != own.clean[member][items]).float() for each in after)
        recorder.add(member, measure, share * (by_own - by_other), after[0], condition(""), items)


def craft(
    network: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    eps: float,
    steps: int = 5,
    method: Literal["i-fgsm", "pgd"] = "i-fgsm",
) -> torch.Tensor:
    """Images (N, 3, H, W) changed by at most eps so that the network's loss on the labels rises.

    images in [0, 1], labels int64 (N,), eps in units of the images; a step is a quarter of it.
    ``i-fgsm`` is foolbox's LinfBasicIterativeAttack (Kurakin et al. 2017), ``pgd`` its LinfPGD from
    a random start, always the same (Madry et al. 2018). Raises ValueError when the network is in
    training mode or takes gradients, which foolbox would fill on every step.
    """
    import foolbox

    if network.training or any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("attacks need a frozen network: network.eval().requires_grad_(False)")
    attacks = {"i-fgsm": foolbox.attacks.LinfBasicIterativeAttack, "pgd": foolbox.attacks.LinfPGD}
    attack = attacks[method](rel_stepsize=0.25, steps=steps)
    device = base.device_of(network)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    # foolbox draws starting points from the global generator: lend it, seeded, and restore it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        # run, not the call: the call spends one more forward pass on success, which we ask anyway
        return attack.run(model, images, foolbox.criteria.Misclassification(labels), epsilon=eps)


def sign_noise(images: torch.Tensor, eps: float, generator: torch.Generator) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1], each value moved up or down by eps at random, clipped."""
    up = torch.randint(2, images.shape, generator=generator, dtype=torch.int8).to(images.device)
    return (images + eps * (2 * up - 1)).clamp_(0, 1)


PROPERTY = base.Audited(
    "adversarial",
    "adversarial",
    measure,
    MEASURES,
    4,
    ("gradients",),
    brief={"eps": ()},
    passes=20.0,
)
