"""Answers in several domains, recounted directly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from probe_nets import frozen, in_batches, member, net, small_cast, some_data, value_of
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

from kdnotes.data import ImageData
from kdnotes.data.views import to_float
from kdnotes.errors import RequestError
from kdnotes.probes import domain_accuracy


def two_domains() -> dict[str, ImageData]:
    """One domain with colours, one whose images are grey."""
    coloured, other = some_data(seed=1), some_data(seed=2)
    grey = other.images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return {"color": coloured, "orig": replace(other, images=grey)}


class BrightnessOnly(nn.Module):
    """Sees the mean of the three channels and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.mean(1, keepdim=True).expand(-1, 3, -1, -1))


def test_measures_equal_a_direct_recount() -> None:
    cast, domains = small_cast(), two_domains()
    outcome = in_batches(13, domain_accuracy.measure, cast, domains, grey_arms=("kl",))
    for name, data in domains.items():
        images, labels = to_float(data.images), data.labels
        where = f"domain={name}"
        teachers = cast.teacher.network(images).argmax(1)
        for each in cast.everyone():
            answers = each.network(images).argmax(1)
            key = (outcome.table, each.arm, each.seed)
            right = (answers == labels).double().mean().item()
            assert value_of(*key, "accuracy", where) == pytest.approx(right)
            if each is cast.teacher:
                continue
            same = (answers == teachers).double().mean().item()
            assert value_of(*key, "agreement", where) == pytest.approx(same)
            kappa = cohen_kappa_score(answers, teachers)
            assert value_of(*key, "kappa", where) == pytest.approx(kappa)
        first, second = (cast.arm("independent")[n].network(images).argmax(1) for n in (0, 2))
        pair = value_of(outcome.table, "independent", 0, "agreement", f"{where},against=2")
        assert pair == pytest.approx((first == second).double().mean().item())
    assert not (
        (outcome.table["arm"] == "teacher") & outcome.table["measure"].isin(["agreement", "kappa"])
    ).any()


def test_images_in_grey_are_shown_to_the_arms_named_and_only_where_there_is_colour() -> None:
    cast, domains = small_cast(), two_domains()
    cast = replace(cast, members=(*cast.members, member("kl", 9, frozen(BrightnessOnly()))))
    table = domain_accuracy.measure(cast, domains, grey_arms=("kl",)).table
    greyed = table[table["condition"].str.contains("grey")]
    assert set(greyed["arm"]) == {"kl"}
    assert set(greyed["condition"]) == {"domain=color,colours=grey"}
    images = domain_accuracy.grey(to_float(domains["color"].images))
    assert torch.equal(images[:, 0], images[:, 2])
    answers = cast.arm("kl")[0].network(images).argmax(1)
    right = (answers == domains["color"].labels).double().mean().item()
    found = value_of(table, "kl", 0, "accuracy", "domain=color,colours=grey")
    assert found == pytest.approx(right)
    # A network that does not see colour is exactly as good without it.
    blind = [value_of(table, "kl", 9, "accuracy", c) for c in ("domain=color", found_at(greyed))]
    assert blind[0] == blind[1]


def found_at(rows) -> str:  # type: ignore[no-untyped-def]
    return str(rows["condition"].iloc[0])


def test_batches_without_colour_do_not_lose_images() -> None:
    coloured, grey = two_domains().values()
    mixed = replace(
        coloured,
        images=torch.cat([grey.images[:30], coloured.images[30:]]),
        labels=coloured.labels,
    )
    cast = small_cast()
    tables = [
        in_batches(size, domain_accuracy.measure, cast, {"m": mixed}, grey_arms=("kl",)).table
        for size in (10, 60)
    ]
    assert tables[0].equals(tables[1])


def test_items_carry_the_answers_and_a_missing_domain_is_refused() -> None:
    cast, domains = small_cast(), two_domains()
    items = domain_accuracy.measure(cast, domains).items
    rows = items.query("arm == 'kl' and seed == 1 and condition == 'domain=orig'")
    answers = cast.arm("kl")[1].network(to_float(domains["orig"].images)).argmax(1)
    for measure in ("accuracy", "agreement"):
        mine = rows[rows["measure"] == measure]
        assert mine["prediction"].tolist() == answers.tolist()
        assert mine["source"].tolist() == domains["orig"].sources.tolist()
    with pytest.raises(RequestError, match="no domain"):
        domain_accuracy.measure(cast, {})
