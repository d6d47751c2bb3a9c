"""Do images crafted to fool the teacher fool the student too?

Attacks are foolbox's, untargeted, bounded in the maximum norm, on images in [0, 1]. Images are
crafted once for each attacked network, then shown to all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, Cast, Measure, Member, Outcome, Property, Recorder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnotes.data import ImageData

    _Change = Callable[[Tensor, Tensor], Tensor]

Method = Literal["i-fgsm", "pgd"]
NOT_SHOWN = -1  # in place of an answer, where an image was not kept


def condition(attack: str = "teacher", size: int | None = None) -> str:
    """What is measured on images crafted on a network (or "noise"), at a size in 255ths.

    Without a size, at the primary one; without an attack, what compares attacks.
    """
    at = "eps=primary" if size is None else f"eps={size}/255"
    return f"attack={attack},{at}" if attack else at


ATTACKS = ("attack=*,eps=*",)
MEASURES = (
    # Its own images fool the teacher; how often they fool a second one is no upper end.
    Alike(
        "fooling_rate", "is fooled by the same images", condition(), ATTACKS, True, end="teacher"
    ),
    Measure("fooling_rate", "is fooled by noise of that size", condition("noise"), reported=True),
    Alike("same_wrong_class", "is led to the teacher's own mistake", condition(), ATTACKS),
    Alike(
        "double_difference",
        "is fooled by its teacher's images more than by a foreign network's",
        condition(""),
        unit="difference of shares",
        low=-1.0,
        chance=0.0,
        twin=None,
    ),
    Measure(
        "own_teacher_fooling",
        "is fooled by its teacher's images more than by a second teacher's",
        condition(""),
        unit="half the difference of shares",
        low=-0.5,
        high=0.5,
        chance=0.0,
        of="pair",
    ),
    Measure("attack_success", "is misled by the attack on itself", condition(), ATTACKS),
)


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

    eps: sizes of the change in 255ths; ``primary`` is the one fixed beforehand, added if it is not
    among them. An image is kept when it changes the answer of the network it was crafted on, right
    or wrong. At the primary size images are also crafted on the second teacher and on a network
    ``foreign`` of the students' architecture, and noise is added to those kept from the teacher.

    - ``fooling_rate``, over kept images: is the answer another than to the clean image? (The
      paper's measure; 1 by construction for the attacked network, in the table only.)
    - ``same_wrong_class``: over kept images that lead the attacked network to a wrong class.
    - ``double_difference``: fooled by the teacher's image less fooled by the foreign one, over
      images that all networks get right when clean and that are kept from both attacks. A distilled
      student's less an independent one's is what of the transfer is this teacher's.
    - ``own_teacher_fooling``: half of (fooled by the teacher's image less fooled by the second
      teacher's), over images kept from both attacks. A student's less that of a student of the
      second teacher is the cross-over of two teachers and their students: half of what either's
      images gain by meeting its own student.

    Raises RequestError when a size or the number of steps is out of range.
    """
    sizes = sorted({*eps, primary})
    for size in sizes:
        if not 0 < size <= 255:
            raise RequestError(f"eps is in 255ths, between 1 and 255: {size} is not")
    if steps < 1:
        raise RequestError(f"an attack takes at least one step, not {steps}")
    others = {"second-teacher": cast.second_teacher, "foreign": foreign}
    sources = [("teacher", cast.teacher, size) for size in sizes]
    sources += [(name, member, primary) for name, member in others.items() if member is not None]
    members = list(cast.everyone())
    shown_to = members if foreign is None else [*members, foreign]
    clean = dict(zip(map(id, shown_to), base.all_answers(shown_to, data), strict=True))
    recorder = Recorder(data)
    for member in shown_to:
        recorder.add_accuracy(member, clean[id(member)])

    def show(attacked: Member, change: _Change, wanted: Tensor | None = None) -> _Trial:
        """Changed images, shown to all where ``wanted``: by default where the attack succeeds."""
        before = clean[id(attacked)]
        led_to, kept = torch.empty_like(before), torch.empty_like(before, dtype=torch.bool)
        answers = {id(member): torch.full_like(before, NOT_SHOWN) for member in members}
        for indices, images in base.batches(data, base.device_of(attacked.network)):
            changed = change(images, data.labels[indices].to(images.device))
            led_to[indices] = base.answers_of(attacked.network, changed)
            succeeds = led_to[indices] != before[indices]
            kept[indices] = keep = succeeds if wanted is None else wanted[indices]
            # indexing gives up channels_last, and with it most of the speed
            shown = changed[keep.to(changed.device)].contiguous(memory_format=torch.channels_last)
            for member in members if len(shown) else ():
                answers[id(member)][indices[keep]] = base.answers_of(member.network, shown)
        return _Trial(members, kept, led_to, clean, answers)

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
    if cast.second_teacher is not None:
        _record_own_teacher(recorder, own, trials["second-teacher", primary])
    if foreign is not None:
        _record_double_difference(recorder, own, trials["foreign", primary])
    return recorder.outcome()


def craft(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 5,
    method: Method = "i-fgsm",
) -> Tensor:
    """Images (N, 3, H, W) changed by at most eps so that the network's loss on the labels rises.

    images in [0, 1], labels int64 (N,), eps in units of the images; a step is a quarter of it.
    ``i-fgsm`` is foolbox's LinfBasicIterativeAttack (Kurakin et al. 2017), ``pgd`` its LinfPGD from
    a random start, always the same (Madry et al. 2018). Raises ValueError when the network is in
    training mode or has parameters that take gradients: foolbox would fill them on every step.
    """
    import foolbox

    if network.training or any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("attacks need a frozen network: network.eval().requires_grad_(False)")
    attacks = {"i-fgsm": foolbox.attacks.LinfBasicIterativeAttack, "pgd": foolbox.attacks.LinfPGD}
    attack = attacks[method](rel_stepsize=0.25, steps=steps)
    device = base.device_of(network)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    criterion = foolbox.criteria.Misclassification(labels)
    # foolbox draws starting points from the global generator: lend it, seeded, and restore it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        # run, not the call: the call spends one more forward pass on success, which we ask anyway
        return attack.run(model, images, criterion, epsilon=eps)


def sign_noise(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], each value moved up or down by eps at random, clipped."""
    up = torch.randint(2, images.shape, generator=generator, dtype=torch.int8).to(images.device)
    return (images + eps * (2 * up - 1)).clamp_(0, 1)


class _Trial(NamedTuple):
    """Images crafted on a network: which were shown, and what was answered.

    Tensors (N,), by the networks' identity: ``answers`` is NOT_SHOWN where not ``kept``.
    """

    members: Sequence[Member]
    kept: Tensor
    led_to: Tensor
    clean: Mapping[int, Tensor]
    answers: Mapping[int, Tensor]


def _record(recorder: Recorder, trial: _Trial, where: str, attacked: Member | None = None) -> None:
    """Who was fooled and, where it was an attack, into what."""
    shown = trial.kept.nonzero().flatten()
    misled = shown[trial.led_to[shown] != recorder.data.labels[shown]]
    others = [member for member in trial.members if member is not attacked]
    if attacked is not None:
        recorder.add(attacked, "attack_success", trial.kept, trial.led_to, where)
        by_construction = 1.0 if len(shown) else math.nan
        recorder.add_value(attacked, "fooling_rate", by_construction, where)
    for member in others:
        answers = trial.answers[id(member)][shown]
        fooled = answers != trial.clean[id(member)][shown]
        recorder.add(member, "fooling_rate", fooled, answers, where, shown)
    for member in others if attacked is not None else ():
        answers = trial.answers[id(member)][misled]
        same = answers == trial.led_to[misled]
        recorder.add(member, "same_wrong_class", same, answers, where, misled)


def _record_double_difference(recorder: Recorder, own: _Trial, foreign: _Trial) -> None:
    """Fooled by the teacher's image less fooled by the foreign one, where all are right before."""
    labels = recorder.data.labels
    right = [answers == labels for answers in own.clean.values()]
    items = torch.stack([*right, own.kept, foreign.kept]).all(0).nonzero().flatten()
    for member in own.members[1:]:
        answers = [trial.answers[id(member)][items] for trial in (own, foreign)]
        by_teacher, by_foreign = ((each != labels[items]).float() for each in answers)
        more = by_teacher - by_foreign
        recorder.add(member, "double_difference", more, answers[0], condition(""), items)


def _record_own_teacher(recorder: Recorder, first: _Trial, second: _Trial) -> None:
    """Half of how much more students are fooled by the first teacher's images than the second's."""
    items = (first.kept & second.kept).nonzero().flatten()
    for member in first.members[2:]:
        before = first.clean[id(member)][items]
        answers = [trial.answers[id(member)][items] for trial in (first, second)]
        fooled = [(each != before).float() for each in answers]
        half = (fooled[0] - fooled[1]) / 2
        recorder.add(member, "own_teacher_fooling", half, answers[0], condition(""), items)


PROPERTY = Property(
    "adversarial",
    "adversarial",
    measure,
    MEASURES,
    rank=4,
    needs=("gradients",),
    audited=True,
    brief={"eps": ()},
    passes=20.0,
)
