"""Likeness to the teacher on rendered images, recounted with scikit-learn."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from probe_nets import frozen, in_batches, member, net, related_cast, some_data, value_of, values_of
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

from kdnotes.data import renderings
from kdnotes.data.renderings import DOMAINS
from kdnotes.data.views import to_float
from kdnotes.probes import unseen_domains


class Always(nn.Module):
    """Gives one answer to everything."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([0.0, 0, 4, 0, 0]).expand(len(images), 5)


def turned(drawn: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """Drawings of light shapes in the negative."""
    light = [
        float(image.amax(0)[mask].mean()) > float(image.amax(0)[~mask].mean())
        for image, mask in zip(images, masks, strict=True)
    ]
    assert 0 < sum(light) < len(light)
    return torch.where(torch.tensor(light).view(-1, 1, 1, 1), 1 - drawn, drawn)


def answers_by_domain(network: nn.Module, seed: int = 3) -> dict[str, np.ndarray]:
    data = some_data()
    images, draws = to_float(data.images), renderings.draw(data.labels, seed)
    mask = data.masks["digit"]
    drawn = {
        "seen": images,
        "sketch": turned(renderings.sketch(images, draws.wobble), images, mask),
        "stylised": renderings.stylised(images, renderings.photo_patches(draws.photograph, 16, 16)),
        "silhouette": turned(1 - mask[:, None].float().expand(-1, 3, -1, -1), images, mask),
        "edge": renderings.edges(images),
        "cue-conflict": renderings.cue_conflict(
            images, images[draws.partner], renderings.noise(draws.noise, 16, 16)
        ),
    }
    return {name: network(each).argmax(1).numpy() for name, each in drawn.items()}


@pytest.mark.filterwarnings("ignore:A single label", "ignore:`y1`, `y2` and `labels`")
def test_measures_equal_a_direct_recount() -> None:
    data, cast = some_data(), related_cast()
    outcome = in_batches(13, unseen_domains.measure, cast, data, seed=3)
    labels = data.labels.numpy()
    teachers = answers_by_domain(cast.teacher.network)
    table = outcome.table
    for each in (cast.second_teacher, *cast.members):
        own = answers_by_domain(each.network)
        same = {name: own[name] == teachers[name] for name in own}
        same["unseen"] = np.mean([same[name] for name in DOMAINS], axis=0)
        key = each.arm, each.seed
        for name, values in same.items():
            found = value_of(table, *key, "consensus", f"domain={name}")
            assert found == pytest.approx(values.mean()), name
            items = values_of(outcome.items, *key, "consensus", f"domain={name}")
            assert items.to_numpy() == pytest.approx(values.astype(float))
        extra = same["unseen"].mean() - same["seen"].mean()
        assert value_of(table, *key, "extra_consensus") == pytest.approx(extra, abs=1e-6)
        kappas = []
        for name in own:
            wrong = teachers[name] != labels
            wanted = {
                "kappa": cohen_kappa_score(own[name], teachers[name]),
                "error_consistency": cohen_kappa_score(
                    own[name] == labels, teachers[name] == labels
                ),
                "consensus_on_teacher_errors": same[name][wrong].mean(),
                "accuracy": (own[name] == labels).mean(),
            }
            for measure, value in wanted.items():
                found = value_of(table, *key, measure, f"domain={name}")
                assert found == pytest.approx(value, nan_ok=True), (measure, name)
            if name != "seen":
                kappas.append(wanted["kappa"])
        unseen = value_of(table, *key, "kappa", "domain=unseen")
        assert unseen == pytest.approx(np.nanmean(kappas))
    assert value_of(table, "teacher", 0, "accuracy") == value_of(
        table, "teacher", 0, "accuracy", "domain=seen"
    )
    assert "teacher" not in set(table.query("measure == 'consensus'")["arm"])


def test_pairs_of_independent_students_give_the_spread_by_chance() -> None:
    cast = related_cast()
    table = unseen_domains.measure(cast, some_data(), seed=3).table
    students = {each.seed: answers_by_domain(each.network) for each in cast.arm("independent")}
    for first, second in itertools.combinations(students, 2):
        shares = {
            name: (students[first][name] == students[second][name]).mean()
            for name in students[first]
        }
        shares["unseen"] = np.mean([shares[name] for name in DOMAINS])
        for name, share in shares.items():
            condition = f"domain={name},against={second}"
            found = value_of(table, "independent", first, "consensus", condition)
            assert found == pytest.approx(share)
    assert table["condition"].str.contains("against").sum() == 3 * 7 * 2


def test_a_twin_agrees_everywhere_and_a_constant_network_not_beyond_chance() -> None:
    cast = related_cast()
    twin = member("kl", 8, cast.teacher.network)
    constant = member("kl", 9, frozen(Always()))
    cast = replace(cast, members=(*cast.members, twin, constant))
    table = unseen_domains.measure(cast, some_data()).table
    for name in ("seen", *DOMAINS, "unseen"):
        assert value_of(table, "kl", 8, "consensus", f"domain={name}") == 1
        assert value_of(table, "kl", 9, "kappa", f"domain={name}") == pytest.approx(0, abs=1e-9)
    assert value_of(table, "kl", 8, "extra_consensus") == 0


def test_without_a_mask_silhouettes_are_cut_by_brightness() -> None:
    data = some_data(12)
    draws = renderings.draw(data.labels, 0)
    places = torch.tensor([3, 8])
    bare = replace(data, masks={})
    found = unseen_domains.renderings_of(bare, places, draws)["silhouette"]
    assert torch.equal(found, renderings.silhouette(to_float(data.images[places])))
    masked = unseen_domains.renderings_of(data, places, draws, "light")["silhouette"]
    assert torch.equal(masked[:, 0] == 0, data.masks["digit"][places])


def test_answers_do_not_depend_on_batches_and_change_with_the_seed() -> None:
    cast, data = related_cast(), some_data()
    first, second = (in_batches(size, unseen_domains.measure, cast, data) for size in (60, 7))
    assert first.items["value"].tolist() == second.items["value"].tolist()
    other = unseen_domains.measure(cast, data, seed=1)
    assert other.items["value"].tolist() != first.items["value"].tolist()


def test_a_cast_without_second_teacher_and_networks_that_all_say_the_same() -> None:
    cast = replace(
        related_cast(),
        teacher=member("teacher", 0, frozen(Always())),
        second_teacher=None,
        members=(member("independent", 0, frozen(Always())), member("kl", 0, net(1))),
    )
    table = unseen_domains.measure(cast, some_data()).table
    assert value_of(table, "independent", 0, "consensus", "domain=unseen") == 1
    assert np.isnan(value_of(table, "independent", 0, "kappa", "domain=unseen"))
