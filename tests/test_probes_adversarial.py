"""Attacks against foolbox as it comes, a step by hand, and a plain recount of the rates."""

from __future__ import annotations

from dataclasses import replace

import foolbox
import numpy as np
import pytest
import torch
from probe_nets import (
    CLASSES,
    SmallNet,
    in_batches,
    member,
    net,
    related_cast,
    related_net,
    some_data,
    value_of,
    values_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import adversarial
from kdnotes.probes.adversarial import craft, sign_noise

EPS = 4 / 255
FOREIGN = member("foreign", 7, related_net(7, 0.2))


def labelled() -> ImageData:
    """Data whose labels are mostly what the related networks answer."""
    data = some_data(80)
    answers = related_cast().teacher.network(to_float(data.images)).argmax(1)
    answers[::9] = (answers[::9] + 1) % CLASSES
    return replace(data, labels=answers)


def answers_to(network: nn.Module, images: Tensor) -> np.ndarray:
    return network(images).argmax(1).numpy()


@pytest.mark.parametrize("method", ["i-fgsm", "pgd"])
def test_equals_foolbox_as_it_comes(method: str) -> None:
    data = labelled()
    images = to_float(data.images)
    unfrozen = SmallNet(3).eval()
    kind = {"i-fgsm": "LinfBasicIterativeAttack", "pgd": "LinfPGD"}[method]
    attack = getattr(foolbox.attacks, kind)(rel_stepsize=0.25, steps=5)
    torch.manual_seed(0)
    model = foolbox.PyTorchModel(unfrozen, bounds=(0, 1), device="cpu")
    _, expected, success = attack(model, images.contiguous(), data.labels, epsilons=EPS)
    crafted = craft(net(3), images, data.labels, eps=EPS, steps=5, method=method)
    # a gradient of nearly zero may change its sign with the order of additions
    same = (crafted - expected).abs() < 1e-5
    assert same.float().mean() > 0.999
    wrong = answers_to(net(3), crafted) != data.labels.numpy()
    assert wrong.mean() == success.float().mean()  # the same robust accuracy
    assert wrong.mean() > 0.5


def test_one_step_is_the_sign_of_the_gradient() -> None:
    data, network = labelled(), net(0)
    images = to_float(data.images).requires_grad_()
    F.cross_entropy(network(images), data.labels).backward()
    expected = (images + EPS / 4 * images.grad.sign()).clamp(0, 1).detach()
    found = craft(network, images.detach(), data.labels, eps=EPS, steps=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["i-fgsm", "pgd"])
@pytest.mark.parametrize("eps", [1 / 255, 16 / 255])
def test_bounds_are_kept_and_the_loss_rises(method: str, eps: float) -> None:
    data, network = labelled(), net(0)
    images = to_float(data.images)
    images[0], images[1] = 0, 1
    before = images.clone()
    crafted = craft(network, images, data.labels, eps=eps, method=method)
    assert (crafted - images).abs().max() <= eps + 1e-6
    assert (crafted - images).abs().max() > 0.9 * eps
    assert crafted.min() >= 0
    assert crafted.max() <= 1
    assert torch.equal(images, before)
    loss_after = F.cross_entropy(network(crafted), data.labels)
    assert loss_after > F.cross_entropy(network(images), data.labels)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_random_starts_are_always_the_same_and_draw_nothing_from_others() -> None:
    data, network = labelled(), net(0)
    images, found = to_float(data.images), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(craft(network, images, data.labels, eps=EPS, method="pgd"))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)
    assert not torch.equal(found[0], craft(network, images, data.labels, eps=EPS))


def test_only_frozen_networks_are_attacked() -> None:
    data = labelled()
    for network in (SmallNet(0).eval(), SmallNet(0).requires_grad_(False)):
        with pytest.raises(ValueError, match="frozen"):
            craft(network, to_float(data.images), data.labels, eps=EPS)


def test_noise_has_the_size_of_the_attack() -> None:
    images = to_float(some_data().images)
    moved = sign_noise(images, EPS, torch.Generator().manual_seed(0)) - images
    inside = (images > EPS) & (images < 1 - EPS)
    torch.testing.assert_close(
        moved[inside].abs(), torch.full((int(inside.sum()),), EPS), atol=1e-6, rtol=0
    )
    assert (moved[inside] > 0).float().mean() == pytest.approx(0.5, abs=0.01)
    assert (images + moved).min() >= 0
    assert (images + moved).max() <= 1


def test_rates_equal_a_plain_recount() -> None:
    data, cast = labelled(), related_cast()
    images, labels = to_float(data.images), data.labels.numpy()
    outcome = adversarial.measure(cast, data, eps=(2, 4), primary=4, foreign=FOREIGN)
    members = list(cast.everyone())
    clean = {id(each): answers_to(each.network, images) for each in [*members, FOREIGN]}
    attacked = [
        ("teacher", cast.teacher, 2, "2/255"),
        ("teacher", cast.teacher, 4, "4/255"),
        ("teacher", cast.teacher, 4, "primary"),
        ("second-teacher", cast.second_teacher, 4, "primary"),
        ("foreign", FOREIGN, 4, "primary"),
    ]
    shown = {}
    for name, source, size, text in attacked:
        condition = f"attack={name},eps={text}"
        crafted = craft(source.network, images, data.labels, eps=size / 255)
        led_to = answers_to(source.network, crafted)
        kept = np.flatnonzero(led_to != clean[id(source)])
        misled = kept[led_to[kept] != labels[kept]]
        assert 20 < len(misled) <= len(kept) < 80
        success = value_of(outcome.table, source.arm, source.seed, "attack_success", condition)
        assert success == pytest.approx(len(kept) / 80)
        for each in members:
            after = answers_to(each.network, crafted)
            shown[name, text, id(each)] = kept, after
            fooled = value_of(outcome.table, each.arm, each.seed, "fooling_rate", condition)
            assert fooled == pytest.approx((after != clean[id(each)])[kept].mean())
            if each is not source:
                same = value_of(outcome.table, each.arm, each.seed, "same_wrong_class", condition)
                assert same == pytest.approx((after == led_to)[misled].mean())
                items = values_of(outcome.items, each.arm, each.seed, "fooling_rate", condition)
                assert items.index.tolist() == kept.tolist()
    all_right = np.all([answers == labels for answers in clean.values()], axis=0)
    for each in members[1:]:
        by_teacher, by_foreign = (
            shown[name, "primary", id(each)] for name in ("teacher", "foreign")
        )
        both = np.intersect1d(by_teacher[0], by_foreign[0])
        items = both[all_right[both]]
        assert len(items) > 10
        expected = (by_teacher[1] != labels)[items].mean() - (by_foreign[1] != labels)[items].mean()
        found = value_of(outcome.table, each.arm, each.seed, "double_difference", "eps=primary")
        assert found == pytest.approx(expected, abs=1e-6)
    for each in members[2:]:
        trials = [shown[name, "primary", id(each)] for name in ("teacher", "second-teacher")]
        both = np.intersect1d(trials[0][0], trials[1][0])
        assert len(both) > 10
        own, others = ((after != clean[id(each)])[both].mean() for _, after in trials)
        found = value_of(outcome.table, each.arm, each.seed, "own_teacher_fooling", "eps=primary")
        assert found == pytest.approx((own - others) / 2, abs=1e-6)


def test_a_twin_of_the_teacher_is_fooled_into_the_same_answer() -> None:
    data, cast = labelled(), related_cast()
    twin = member("kl", 9, cast.teacher.network)
    outcome = adversarial.measure(replace(cast, members=(*cast.members, twin)), data, eps=(4,))
    for measure in ("fooling_rate", "same_wrong_class"):
        assert value_of(outcome.table, "kl", 9, measure, "attack=teacher,eps=primary") == 1


def test_noise_is_shown_on_the_images_kept_from_the_teachers_attack() -> None:
    data, cast = labelled(), related_cast()
    outcome = in_batches(32, adversarial.measure, cast, data, eps=(4,))
    noise = values_of(outcome.items, "kl", 0, "fooling_rate", "attack=noise,eps=primary")
    attack = values_of(outcome.items, "kl", 0, "fooling_rate", "attack=teacher,eps=primary")
    assert noise.index.tolist() == attack.index.tolist()
    assert noise.mean() < attack.mean()
    again = in_batches(80, adversarial.measure, cast, data, eps=(4,))
    same = values_of(again.items, "kl", 0, "fooling_rate", "attack=noise,eps=primary")
    assert same.tolist() == noise.tolist()


def test_conditions_of_a_bare_cast() -> None:
    data, cast = labelled(), replace(related_cast(), second_teacher=None)
    outcome = adversarial.measure(cast, data, eps=(2,), primary=4)
    assert set(outcome.table["condition"]) == {
        "",
        "attack=teacher,eps=2/255",
        "attack=teacher,eps=4/255",
        "attack=teacher,eps=primary",
        "attack=noise,eps=primary",
    }


def test_wrong_sizes_and_steps_are_refused() -> None:
    data, cast = labelled(), related_cast()
    with pytest.raises(RequestError, match="between 1 and 255: 0 is not"):
        adversarial.measure(cast, data, eps=(0, 4))
    with pytest.raises(RequestError, match="at least one step, not 0"):
        adversarial.measure(cast, data, steps=0)
