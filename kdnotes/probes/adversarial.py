"""Do images crafted to fool the teacher fool the student too?

Attacks are foolbox's, untargeted, bounded in the maximum norm, on images in [0, 1]. Images are
crafted once for each attacked network, then shown to all others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.probes import base
from kdnotes.probes.base import Alike, Cast, Measure, Member, Outcome, Property, Recorder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnotes.data import ImageData

Method = Literal["i-fgsm", "pgd"]
NOT_SHOWN = -1  # in place of an answer, where an image was not kept


def condition(attack: str = "teacher", size: int | None = None, method: Method = "i-fgsm") -> str:
    """What is measured on images crafted on a network (or "noise"), at a size in 255ths.

    Without a size, at the primary one. Without an attack, what compares attacks.
    """
    at = "primary" if size is None else f"{size}/255"
    by = "" if method == "i-fgsm" else f"method={method}"
    return base.joined(f"attack={attack}" if attack else "", by, f"eps={at}")


def positions(sizes: Sequence[int], attack: str = "teacher") -> dict[str, float]:
    """Sizes of a change, as shares of the pixels' range, by their conditions."""
    return {condition(attack, size): size / 255 for size in sorted(sizes)}


ATTACKS = ("attack=*,eps=*", "attack=*,method=*,eps=*")
MEASURES = (
    Alike("fooling_rate", "is fooled by the same images", condition(), ATTACKS, True),
    Measure("fooling_rate", "is fooled by noise of that size", condition("noise"), reported=True),
    Alike("same_wrong_class", "is led to the teacher's own mistake", condition(), ATTACKS),
    Alike(
        "double_difference",
        "is fooled by its teacher's images more than by a foreign network's",
        condition(""),
        ("method=*,eps=*",),
        unit="difference of shares",
        low=-1.0,
        chance=0.0,
        twin=None,
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
    relative_step: float = 0.25,
    method: Method = "i-fgsm",
    foreign: Member | None = None,
    seed: int = 0,
    batch_size: int = base.BATCH_SIZE,
) -> Outcome:
    """Fooling rates of all networks on images crafted on the teacher, and on controls.

    eps: sizes of the change in 255ths; ``primary`` is the one fixed beforehand, added if it is not
    among them. An image is kept when it changes the answer of the network it was crafted on, right
    or wrong. Conditions: see `condition`; ``attack=teacher`` for every size, and at the primary
    size ``attack=second-teacher``, ``attack=foreign`` (crafted on the network ``foreign``, of the
    students' architecture) and ``attack=noise`` (random signs, on the images kept from the
    teacher's attack). Measures:

    - ``attack_success``: of the attacked network itself, share of all images that are kept.
    - ``fooling_rate``: of every other network, does its answer to a kept image differ from that to
      the clean one? (The paper's measure; the attacked network's is 1 by construction, and stands
      in the table only.)
    - ``same_wrong_class``: is its answer the very class that the attacked network was led to? Over
      kept images where that class is wrong.
    - ``double_difference`` (needs ``foreign``): fooled by the teacher's image less fooled by the
      foreign one, -1, 0 or 1, over images that all networks get right when clean and that are kept
      from both attacks: the same images for everyone, each crafted with success on its own network.
      Its mean for a distilled student less that for an independent one is the part of the transfer
      that belongs to this teacher.

    Raises RequestError when a size or the number of steps is out of range.
    """
    sizes = _checked_sizes(eps, primary, steps)
    sources = [("teacher", cast.teacher, size) for size in sizes]
    if cast.second_teacher is not None:
        sources.append(("second-teacher", cast.second_teacher, primary))
    if foreign is not None:
        sources.append(("foreign", foreign, primary))
    members = list(cast.everyone())
    shown_to = members if foreign is None else [*members, foreign]
    clean: list[list[Tensor]] = [[] for _ in shown_to]
    trials: dict[tuple[str, int], _Trial] = defaultdict(_Trial)
    generator = torch.Generator().manual_seed(seed)
    for indices, images in base.batches(data, base.device_of(cast.teacher.network), batch_size):
        labels = data.labels[indices].to(images.device)
        answers = [base.answers_of(member.network, images) for member in shown_to]
        for parts, each in zip(clean, answers, strict=True):
            parts.append(each)
        for name, attacked, size in sources:
            crafted = craft(
                attacked.network,
                images,
                labels,
                eps=size / 255,
                steps=steps,
                relative_step=relative_step,
                method=method,
                seed=seed + int(indices[0]),
            )
            led_to = base.answers_of(attacked.network, crafted)
            kept = led_to != answers[shown_to.index(attacked)]
            others = [member for member in members if member is not attacked]
            trials[name, size].add(crafted, kept, led_to, others)
            if (name, size) == ("teacher", primary):
                noisy = sign_noise(images, size / 255, generator)
                trials["noise", size].add(noisy, kept, led_to, members)
    given = {id(member): torch.cat(parts) for member, parts in zip(shown_to, clean, strict=True)}
    recorder = Recorder(data)
    for member in shown_to:
        recorder.add_accuracy(member, given[id(member)])
    for place, (name, attacked, size) in enumerate(sources):
        known_as = [size] if place < len(sizes) else []
        for at in (*known_as, None) if size == primary else known_as:
            where = condition(name, at, method)
            _record_trial(recorder, trials[name, size], attacked, members, given, where)
    where = condition("noise", method=method)
    _record_fooling(recorder, trials["noise", primary], members, given, where)
    if foreign is not None:
        pair = trials["teacher", primary], trials["foreign", primary]
        all_right = torch.stack([answers == data.labels for answers in given.values()]).all(0)
        where = condition("", method=method)
        _record_double_difference(recorder, pair, all_right, members[1:], given, where)
    return recorder.outcome()


def craft(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 5,
    relative_step: float = 0.25,
    method: Method = "i-fgsm",
    seed: int = 0,
) -> Tensor:
    """Images (N, 3, H, W) changed by at most eps so that the network's loss on the labels rises.

    images in [0, 1], labels int64 (N,), eps in units of the images, relative_step in units of eps.
    ``i-fgsm`` starts at the image (foolbox's LinfBasicIterativeAttack; Kurakin et al. 2017),
    ``pgd`` at a random point around it, drawn from the seed (LinfPGD; Madry et al. 2018). The
    gradient is of the cross-entropy, whatever the network answers.

    Raises ValueError when the network is in training mode or has parameters that take gradients:
    foolbox would fill them on every step.
    """
    import foolbox

    if network.training or any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("attacks need a frozen network: network.eval().requires_grad_(False)")
    attacks = {"i-fgsm": foolbox.attacks.LinfBasicIterativeAttack, "pgd": foolbox.attacks.LinfPGD}
    attack = attacks[method](rel_stepsize=relative_step, steps=steps)
    device = base.device_of(network)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    criterion = foolbox.criteria.Misclassification(labels)
    # foolbox draws starting points from the global generator: lend it, seeded, and restore it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        # run, not the call: the call spends one more forward pass on success, which we ask anyway
        return attack.run(model, images, criterion, epsilon=eps)


def sign_noise(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], each value moved up or down by eps at random, clipped."""
    up = torch.randint(2, images.shape, generator=generator, dtype=torch.int8).to(images.device)
    return (images + eps * (2 * up - 1)).clamp_(0, 1)


@dataclass
class _Trial:
    """One set of crafted images: who was led where, and what the others answered."""

    kept: list[Tensor] = field(default_factory=list)
    led_to: list[Tensor] = field(default_factory=list)
    answers: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, crafted: Tensor, kept: Tensor, led_to: Tensor, others: Sequence[Member]) -> None:
        self.kept.append(kept)
        self.led_to.append(led_to)
        # indexing gives up channels_last, and with it most of the speed
        shown = crafted[kept.to(crafted.device)].contiguous(memory_format=torch.channels_last)
        for member in others:
            answers = torch.full_like(led_to, NOT_SHOWN)
            if len(shown):
                answers[kept] = base.answers_of(member.network, shown)
            self.answers[id(member)].append(answers)

    def of(self, member: Member) -> Tensor:
        return torch.cat(self.answers[id(member)])


def _checked_sizes(eps: Sequence[int], primary: int, steps: int) -> list[int]:
    sizes = sorted({*eps, primary})
    wrong = [size for size in sizes if not 0 < size <= 255]
    if wrong:
        raise RequestError(f"eps is in 255ths, between 1 and 255: {wrong[0]} is not")
    if steps < 1:
        raise RequestError(f"an attack takes at least one step, not {steps}")
    return sizes


def _record_trial(
    recorder: Recorder,
    trial: _Trial,
    attacked: Member,
    members: Sequence[Member],
    clean: dict[int, Tensor],
    condition: str,
) -> None:
    kept, led_to = torch.cat(trial.kept), torch.cat(trial.led_to)
    recorder.add(attacked, "attack_success", kept, led_to, condition)
    by_construction = 1.0 if kept.any() else math.nan
    recorder.add_value(attacked, "fooling_rate", by_construction, condition)
    others = [member for member in members if member is not attacked]
    _record_fooling(recorder, trial, others, clean, condition)
    misled = (kept & (led_to != recorder.data.labels)).nonzero().flatten()
    for member in others:
        answers = trial.of(member)[misled]
        same = answers == led_to[misled]
        recorder.add(member, "same_wrong_class", same, answers, condition, items=misled)


def _record_fooling(
    recorder: Recorder,
    trial: _Trial,
    members: Sequence[Member],
    clean: dict[int, Tensor],
    condition: str,
) -> None:
    shown = torch.cat(trial.kept).nonzero().flatten()
    for member in members:
        answers = trial.of(member)[shown]
        fooled = answers != clean[id(member)][shown]
        recorder.add(member, "fooling_rate", fooled, answers, condition, items=shown)


def _record_double_difference(
    recorder: Recorder,
    pair: tuple[_Trial, _Trial],
    all_right: Tensor,
    students: Sequence[Member],
    clean: dict[int, Tensor],
    condition: str,
) -> None:
    items = (all_right & torch.cat(pair[0].kept) & torch.cat(pair[1].kept)).nonzero().flatten()
    for member in students:
        right = clean[id(member)][items]
        by_teacher, by_foreign = (trial.of(member)[items] for trial in pair)
        difference = (by_teacher != right).float() - (by_foreign != right).float()
        recorder.add(member, "double_difference", difference, by_teacher, condition, items=items)


PROPERTY = Property(
    "adversarial", "adversarial", measure, MEASURES, rank=4, needs=("gradients",), audited=True
)
