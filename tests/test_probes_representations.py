"""Likeness of layers, against the dense formulas in double precision and against known cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from probe_nets import TAPS, frozen, in_batches, member, net, small_cast, some_data, value_of
from scipy.stats import spearmanr
from torch import Tensor, nn

from kdnotes import networks
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import representations
from kdnotes.probes.base import Member, Outcome
from kdnotes.probes.representations import alignment, corresponding, gram, layers_of


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(first: Tensor, second: Tensor, debiased: bool = True) -> float:
    """Linear CKA of two layers' outputs for the same images."""
    centred = representations.u_centred if debiased else representations.doubly_centred
    return alignment(centred(gram(first)), centred(gram(second)))


def hsic_of_song(first: NDArray, second: NDArray) -> float:
    """The unbiased estimate of Song et al. (2012), as it is printed."""
    n = len(first)
    k, el = (inner - np.diag(np.diag(inner)) for inner in (first, second))
    one = np.ones(n)
    return float(
        np.trace(k @ el)
        + (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ el @ one)
    ) / (n * (n - 3))


def products(layer: Tensor) -> NDArray:
    flat = layer.flatten(1).double().numpy()
    return flat @ flat.T


def test_the_debiased_value_is_that_of_the_printed_formula() -> None:
    first, second = random(9, 5) + 2, random(9, 2, 3, seed=1)
    second = second + first[:, :3].reshape(9, 1, 3)
    k, el = products(first), products(second)
    expected = hsic_of_song(k, el) / np.sqrt(hsic_of_song(k, k) * hsic_of_song(el, el))
    assert cka(first, second) == pytest.approx(expected, abs=1e-12)


def test_the_biased_value_is_that_of_kornblith() -> None:
    x, y = random(9, 5) + 2, random(9, 4, seed=1)
    y = y + x[:, :4]
    a, b = (each.numpy() - each.numpy().mean(0) for each in (x, y))
    lengths = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    expected = np.linalg.norm(b.T @ a) ** 2 / lengths
    assert cka(x, y, debiased=False) == pytest.approx(expected, abs=1e-12)


def test_four_images_by_hand() -> None:
    # With inner products 1 for the pairs (1,2) and (3,4), 0 for all others, U-centring takes 1/2
    # from each row twice and gives 2/3 back: 2/3 in the pairs, -1/3 elsewhere. The other
    # pairing (1,3), (2,4) has 2/3 and -1/3 in other places: 4 cells hold 2/3 * -1/3, another 4
    # the same, and the last 4 hold 1/9, which makes -12/9; a pairing with itself 4 * 4/9 + 8/9.
    pairs = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    others = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert cka(pairs, others) == pytest.approx((-12 / 9) / (24 / 9))
    assert cka(pairs, others, debiased=False) == pytest.approx(0, abs=1e-12)
    assert cka(pairs, pairs) == pytest.approx(1)


@pytest.mark.parametrize("debiased", [True, False])
def test_rotation_scale_and_shift_do_not_matter_but_other_maps_do(debiased: bool) -> None:
    x, y = random(12, 6), random(12, 6, seed=1)
    rotation = torch.linalg.qr(random(6, 6, seed=2)).Q
    same = cka(x, y, debiased)
    assert cka(x @ rotation * 7.5 + 3, y, debiased) == pytest.approx(same, abs=1e-10)
    assert cka(x, x @ rotation * 0.1, debiased) == pytest.approx(1)
    stretched = x * torch.tensor([9.0, 1, 1, 1, 1, 1])
    assert abs(cka(stretched, y, debiased) - same) > 0.01
    far = 1e6  # a mean a million times the spread leaves the value as it is
    assert cka(x + far, y, debiased) == pytest.approx(same, abs=1e-5)


def test_few_images_inflate_the_biased_value_only() -> None:
    values = [
        [cka(random(20, 300, seed=i), random(20, 300, seed=100 + i), way) for i in range(30)]
        for way in (True, False)
    ]
    assert np.mean(values[0]) == pytest.approx(0, abs=0.03)
    assert np.mean(values[1]) > 0.8


@pytest.mark.parametrize("shape", [(7, 5), (6, 3, 4, 4)])
def test_products_in_single_precision_are_those_in_double(shape: tuple[int, ...]) -> None:
    layer = random(*shape)
    inner = representations.gram(layer.float())
    assert torch.equal(inner, inner.T)
    assert torch.allclose(inner, representations.gram(layer), rtol=1e-5, atol=1e-5)


def test_a_layer_that_says_nothing_has_no_value() -> None:
    assert np.isnan(cka(torch.ones(6, 3), random(6, 3)))


def test_the_measures_equal_the_dense_formula_over_batches() -> None:
    data, cast = some_data(), small_cast()
    size = 25  # batches of 25, 25 and 10
    table = in_batches(size, representations.measure, cast, data).table
    images = to_float(data.images)
    student = cast.arm("kl")[0]
    shared, own = np.zeros((4, 4)), np.zeros((2, 4))
    for part in images.split(size):
        grams = [[products(each) for each in layers_of(m, part)] for m in (cast.teacher, student)]
        for i in range(4):
            own[:, i] += [len(part) * hsic_of_song(each[i], each[i]) for each in grams]
            for j in range(4):
                shared[i, j] += len(part) * hsic_of_song(grams[0][i], grams[1][j])
    expected = shared / np.sqrt(np.outer(own[0], own[1]))
    names = ["1", "2", "features", "logits"]
    for i, teacher_layer in enumerate(names):
        for j, student_layer in enumerate(names):
            condition = f"teacher_layer={teacher_layer},student_layer={student_layer}"
            found = value_of(table, "kl", 0, "cka", condition)
            assert found == pytest.approx(expected[i, j], abs=1e-6), condition
    found = value_of(table, "kl", 0, "cka_diagonal", "layers=all")
    assert found == pytest.approx(np.diag(expected).mean(), abs=1e-6)
    found = value_of(table, "kl", 0, "cka_diagonal", "layers=hidden")
    assert found == pytest.approx(np.diag(expected)[:3].mean(), abs=1e-6)
    assert value_of(table, "kl", 0, "cka_last") == pytest.approx(expected[1, 1], abs=1e-6)
    assert value_of(table, "kl", 0, "cka_logits") == pytest.approx(expected[3, 3], abs=1e-6)


def test_a_network_with_itself_is_one_in_any_order_of_images() -> None:
    data, cast = some_data(), small_cast()
    cast = replace(cast, members=(*cast.members, member("kl", 9, cast.teacher.network)))
    table = in_batches(13, representations.measure, cast, data).table
    for layer in ("1", "2", "features", "logits"):
        condition = f"teacher_layer={layer},student_layer={layer}"
        assert value_of(table, "teacher", 0, "cka", condition) == pytest.approx(1)
        assert value_of(table, "kl", 9, "cka", condition) == pytest.approx(1)
    assert value_of(table, "kl", 9, "cka_diagonal", "layers=all") == pytest.approx(1)
    assert (table.query("arm == 'teacher'")["measure"] != "cka_diagonal").all()
    # Both networks always see the same images, so their order matters through the batches only.
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    whole, mixed = (
        in_batches(60, representations.measure, cast, each).table["value"]
        for each in (data, data.subset(order))
    )
    assert np.allclose(whole, mixed, atol=1e-6)


def test_means_by_layer_in_one_of_several_casts() -> None:
    cast = small_cast()
    outcome = representations.measure(cast, some_data())
    arm = cast.arms[0]
    frame = representations.by_layer(outcome.under("pair=x"), cast, arm, "pair=x")
    assert list(frame.index) == list(frame) == ["1", "2", "features", "logits"]
    rows = outcome.table.query("arm == @arm and measure == 'cka'")
    there = rows[rows["condition"] == "teacher_layer=2,student_layer=logits"]
    assert len(there) == len(cast.arm(arm))
    assert frame.loc["2", "logits"] == pytest.approx(there["value"].mean())


def test_left_over_images_count_for_accuracy_only() -> None:
    data, cast = some_data(), small_cast()
    outcome = in_batches(29, representations.measure, cast, data)  # 29, 29 and 2
    fewer = in_batches(29, representations.measure, cast, data.subset(torch.arange(58)))
    rows = outcome.table["measure"].str.startswith("cka")
    assert np.allclose(outcome.table[rows]["value"], fewer.table[rows]["value"])
    assert (outcome.items["measure"] == "accuracy").all()
    assert len(outcome.items) == 60 * len(list(cast.everyone()))


def test_penultimate_features_are_what_the_head_reads() -> None:
    images = to_float(some_data(12, 32).images)
    for name in ("vgg-small", "vit-small", "resnet-small", "paper-mnist"):
        network = networks.freeze(networks.build(name, 5, seed=0))
        layers = layers_of(Member("kl", 0, network, networks.taps(network)), images)
        logits, features = networks.forward_with_features(network, images)
        assert torch.allclose(layers[-1], logits, atol=1e-5), name
        assert torch.allclose(layers[-2], features, atol=1e-5), name
        assert len(layers) == len(networks.taps(network)) + 2
    small = member("kl", 0, net(0))
    layers = layers_of(small, to_float(some_data(12).images))
    assert torch.allclose(layers[-2], layers[-3].mean((2, 3)), atol=1e-6)


def test_networks_of_other_depth_are_matched_by_relative_depth() -> None:
    assert corresponding(3, 3) == [0, 1, 2]
    assert corresponding(3, 4) == [0, 2, 3]
    assert corresponding(4, 3) == [0, 1, 1, 2]
    assert corresponding(1, 4) == [3]
    cast = small_cast()
    shallow = Member("kl", 9, net(9), TAPS[1:])
    cast = replace(cast, members=(*cast.members, shallow))
    table = representations.measure(cast, some_data()).table
    with_last = value_of(table, "kl", 9, "cka", "teacher_layer=2,student_layer=1")
    assert value_of(table, "kl", 9, "cka_last") == with_last


def test_the_number_of_images_moves_the_biased_value() -> None:
    data, cast = some_data(), small_cast()
    counted = in_batches(17, representations.by_count, cast, data, counts=(10, 20, 5000))
    Outcome.combine([representations.measure(cast, data), counted])
    table = counted.table
    assert set(table["condition"]) == {"images=10", "images=20", "images=60"}
    assert set(table["arm"]) == {"independent"}
    images = to_float(data.images[:20])
    teacher, student = (layers_of(each, images)[1] for each in (cast.teacher, cast.members[0]))
    for name, way in (("cka_biased", False), ("cka_debiased", True)):
        found = value_of(table, "independent", 0, name, "images=20")
        assert found == pytest.approx(cka(teacher, student, way), abs=1e-6)
    means = table.groupby(["measure", "condition"])["value"].mean()
    biased, debiased = (
        means[f"cka_{name}_shuffled", "images=10"] for name in ("biased", "debiased")
    )
    assert biased > debiased
    with pytest.raises(RequestError, match="at least 4 images"):
        representations.by_count(cast, data, counts=(2,))


def test_too_few_images_and_networks_without_a_head_are_refused() -> None:
    with pytest.raises(RequestError, match="at least 4 images, not 3"):
        representations.measure(small_cast(), some_data(3))
    with pytest.raises(RequestError, match="no last layer"):
        layers_of(member("kl", 0, frozen(nn.Flatten()), ()), to_float(some_data(4).images))


def test_the_relation_between_two_measures_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for place, arm in enumerate(("independent", "kl", "hint", "crd")):
        for seed in range(5):
            x = place + rng.normal()
            rows += [(arm, seed, "", "cka_last", x), (arm, seed, "at", "y", x + rng.normal())]
    rows.append(("kl", 9, "", "cka_last", 0.0))  # has no y
    table = pd.DataFrame(rows, columns=["arm", "seed", "condition", "measure", "value"])
    items = representations.measure(small_cast(), some_data()).items
    found = representations.relation(
        Outcome(table, items), ("cka_last", ""), ("y", "at"), ("independent", "kl", "hint", "crd")
    )
    assert set(found.table["arm"]) == {"all-arms"}
    assert set(found.table["condition"]) == {"of=cka_last,with=y"}
    wide = table[table["seed"] < 9].pivot(index="arm", columns=["seed", "measure"], values="value")
    for seed in range(5):
        expected = spearmanr(wide[seed]["cka_last"], wide[seed]["y"]).statistic
        value = value_of(found.table, "all-arms", seed, "rank_correlation", "of=cka_last,with=y")
        assert value == pytest.approx(expected)
    both = [wide.xs(name, level="measure", axis=1) for name in ("cka_last", "y")]
    expected = spearmanr(*[each.mean(axis=1) for each in both]).statistic
    where = ("all-arms", 0, "rank_correlation_of_means", "of=cka_last,with=y")
    assert value_of(found.table, *where) == pytest.approx(expected)
    left = [each.sub(each.mean(axis=1), axis=0).to_numpy().ravel() for each in both]
    where = ("all-arms", 0, "rank_correlation_within", "of=cka_last,with=y")
    assert value_of(found.table, *where) == pytest.approx(spearmanr(*left).statistic)
    few = representations.relation(
        Outcome(table, items), ("cka_last", ""), ("y", "at"), ("independent", "kl")
    ).table
    assert few.loc[few["measure"] == "rank_correlation", "value"].isna().all()
    Outcome.combine([Outcome(table, items), found])
