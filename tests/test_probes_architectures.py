"""Pairs of architectures: nothing is lost on the way, and a transformer's map is the right one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from probe_nets import frozen, small_cast, some_data, value_of
from torch import nn

from kdnotes import networks, stats
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import (
    adversarial,
    architectures,
    cue_bias,
    fidelity,
    localization,
    representations,
)
from kdnotes.probes.architectures import ATTACK, MAP, PROPERTIES, extra_gains
from kdnotes.probes.base import Cast, Member, Outcome


def built(arm: str, seed: int, name: str) -> Member:
    network = networks.freeze(networks.build(name, 5, seed))
    return Member(arm, seed, network, networks.taps(network))


def cast_with_a_transformer() -> Cast:
    students = [built("independent", seed, "vgg-small") for seed in range(2)]
    students += [built("kl", seed, "vgg-small") for seed in (10, 11)]
    return Cast(built("teacher", 0, "vit-small"), None, tuple(students), tuple("abcde"))


def test_every_row_equals_that_of_the_probe_it_comes_from() -> None:
    data = some_data(40, 32)
    students = [built("independent", 0, "vgg-small"), built("independent", 1, "vgg-small")]
    teachers = built("teacher", 0, "vgg-medium"), built("second-teacher", 1, "vgg-medium")
    cast = Cast(*teachers, (*students, built("kl", 9, "vgg-small")), tuple("abcde"))
    outcome = architectures.measure(cast, data, pair="cnn-cnn", conflicts=data)
    whole = [
        representations.measure(cast, data),
        fidelity.measure(cast, data),
        adversarial.measure(cast, data, eps=(4,)),
        localization.measure(cast, data),
        cue_bias.follows(cast, data),
    ]
    rows = pd.concat([part.table for part in whole]).drop_duplicates(
        ["arm", "seed", "condition", "measure"]
    )
    rows["condition"] = [f"pair=cnn-cnn,{name}".rstrip(",") for name in rows["condition"]]
    both = outcome.table.merge(rows, on=["arm", "seed", "condition", "measure"], how="left")
    own = (both["arm"] == "teacher") & both["measure"].isin(["agreement", "kappa", "win_rate"])
    assert own.sum() == 3
    assert (both[own]["value_x"] == 1).all()
    # A second teacher is not attacked here, so its rows differ in nothing but their number.
    assert np.allclose(both[~own]["value_x"], both[~own]["value_y"], equal_nan=True)
    for name, condition in PROPERTIES.values():
        for arm, seed in (("teacher", 0), ("second-teacher", 1), ("independent", 1), ("kl", 9)):
            where = f"pair=cnn-cnn,{condition}".rstrip(",")
            value_of(outcome.table, arm, seed, name, where)
    items = outcome.items
    assert set(items["condition"].cat.categories) == set(items["condition"])
    assert {"predictive_kl", "same_wrong_class", "cka"}.isdisjoint(outcome.table["measure"])
    found = stats.contrast(
        outcome.table, items, "follows_digit", "pair=cnn-cnn,conflict", "kl", "independent"
    )
    assert found.n == 0  # no seed in common


def test_the_attack_and_the_layers_can_be_measured_on_fewer_images() -> None:
    data, cast = some_data(30, 32), cast_with_a_transformer()
    fewer = architectures.measure(cast, data, pair="x", attacked=12)
    first = architectures.measure(cast, data.subset(torch.arange(12)), pair="x").table
    rows = fewer.table.merge(first, on=["arm", "seed", "condition", "measure"])
    for name in ("cka_last", "fooling_rate"):
        mine = rows[rows["measure"] == name]
        assert np.allclose(mine["value_x"], mine["value_y"])
    shown = fewer.items.query("measure == 'attack_success'")
    assert (shown["item"] < 12).all()
    assert (fewer.items["measure"] == "accuracy").sum() == 30 * 5


def test_a_pair_with_a_transformer_and_without_cues() -> None:
    data = some_data(30, 32)
    table = architectures.measure(cast_with_a_transformer(), data, pair="vit-cnn").table
    assert "follows_digit" not in set(table["measure"])
    for name, condition in (("win_rate", MAP), ("fooling_rate", ATTACK), ("cka_last", "")):
        where = f"pair=vit-cnn,{condition}".rstrip(",")
        assert value_of(table, "teacher", 0, name, where) == pytest.approx(1)
        assert np.isfinite(value_of(table, "kl", 10, name, where))


def test_a_transformers_map_is_that_of_its_tokens() -> None:
    data = some_data(6, 32)
    images, labels = to_float(data.images), data.labels
    plain = built("teacher", 0, "vit-small")
    maps, _ = localization.grad_cam(plain.network, images, labels, plain.taps)
    assert [tuple(each.shape) for each in maps.values()] == [(6, 4, 4)] * 4
    # By hand, token by token, in the network as it was.
    block = plain.network.get_submodule(plain.taps[-2])
    kept = []

    def keep(_: nn.Module, __: object, tokens: torch.Tensor) -> torch.Tensor:
        kept.append(tokens.detach().requires_grad_())
        return kept[0]

    handle = block.register_forward_hook(keep)
    wanted = plain.network(images).gather(1, labels[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(wanted, kept)
    tokens = kept[0].detach()
    expected = torch.zeros(6, 4, 4)
    for row in range(4):
        for column in range(4):
            token = tokens[:, 4 * row + column]
            expected[:, row, column] = (gradient.mean(1) * token).sum(1).clamp(min=0)
    assert torch.allclose(maps[plain.taps[-2]], expected, atol=1e-6)


def test_networks_without_a_readable_map_are_left_out() -> None:
    import timm

    data = some_data(4, 32)
    body = timm.create_model(  # reads its class token
        "vit_tiny_patch16_224", num_classes=5, embed_dim=24, img_size=32, patch_size=8
    )
    network = frozen(networks.Normalized(body, (0.5,) * 3, (0.25,) * 3))
    each = Member("teacher", 0, network, networks.taps(network))
    with pytest.raises(RequestError, match="Grad-CAM needs maps"):
        localization.grad_cam(network, to_float(data.images), data.labels, each.taps)
    cast = replace(small_cast(), teacher=each, second_teacher=None)
    found = architectures.measure(cast, some_data(20, 32), pair="other", conflicts=None)
    assert "win_rate" not in set(found.table["measure"])


def test_channels_that_come_last_are_not_taken_for_cells() -> None:
    import timm

    size = {"img_size": 32, "patch_size": 2, "depths": (1, 1), "num_heads": (2, 2)}
    body = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, embed_dim=24, **size)
    network = frozen(networks.Normalized(body, (0.5,) * 3, (0.25,) * 3))
    data, taps = some_data(4, 32), networks.taps(network)
    maps, _ = localization.grad_cam(network, to_float(data.images), data.labels, taps)
    with torch.inference_mode(), networks.tapped(network, taps) as outputs:
        network(to_float(data.images))
        shown = [(len(outputs[tap]), *outputs[tap].shape[2:]) for tap in taps]
        assert [each.shape for each in maps.values()] == shown
        assert shown == [(4, 16, 16), (4, 8, 8)]


def test_extra_gains_are_differences_of_differences_by_seed() -> None:
    values = {
        ("cnn-cnn", "kl"): {0: 0.9, 1: 0.7, 2: 0.6},
        ("cnn-cnn", "independent"): {0: 0.2, 1: 0.1, 2: 0.1},
        ("vit-cnn", "kl"): {0: 0.3, 1: 0.4},
        ("vit-cnn", "independent"): {0: 0.2, 1: 0.1, 2: 0.1},
    }
    rows = [
        (arm, seed, f"pair={pair}", "agreement", value)
        for (pair, arm), by_seed in values.items()
        for seed, value in by_seed.items()
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "condition", "measure", "value"])
    empty = fidelity.measure(small_cast(), some_data(8)).items.iloc[:0]
    outcome = Outcome(table, empty)
    found = extra_gains(outcome, "cnn-cnn", "vit-cnn").table
    assert found["condition"].unique().tolist() == ["of=agreement"]
    assert dict(zip(found["seed"], found["value"], strict=True)) == pytest.approx({0: 0.6, 1: 0.3})
    whole = Outcome.combine([outcome, extra_gains(outcome, "cnn-cnn", "vit-cnn")])
    interval = stats.contrast(whole.table, None, "extra_gain", "of=agreement", "kl", 0.0)
    assert interval.estimate == pytest.approx(0.45)
    assert extra_gains(outcome, "cnn-cnn", "same").table.empty
    assert architectures.where("where it looks", "same") == ("energy_digit", f"pair=same,{MAP}")
    assert architectures.under("same") == "pair=same"
