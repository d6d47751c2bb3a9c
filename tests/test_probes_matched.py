"""Inheritance beside accuracy: the rows of the other probes, and gains worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from probe_nets import related_cast, small_cast, some_data, value_of

from kdnotes import stats
from kdnotes.probes import (
    accuracy,
    adversarial,
    color_invariance,
    cue_bias,
    fidelity,
    matched,
)


def test_rows_are_those_of_the_other_probes() -> None:
    cast, data, other = related_cast(), some_data(), some_data(seed=1)
    outcome = matched.measure((cast, data), (cast, data, other), (cast, other), eps=16, steps=3)
    table = outcome.table
    parts = (
        (fidelity.measure(cast, data).table, "agreement", "", ""),
        (fidelity.measure(cast, data).table, "kappa", "", ""),
        (
            adversarial.measure(cast, data, eps=(), primary=16, steps=3).table,
            "fooling_rate",
            "attack=teacher,eps=primary",
            "",
        ),
        (fidelity.measure(cast, data).table, "accuracy", "", "cast=cues"),
        (cue_bias.follows(cast, other).table, "follows_digit", "conflict", "cast=cues"),
        (fidelity.measure(cast, other).table, "accuracy", "", "cast=jitter"),
        (
            color_invariance.measure(cast, other, hue_angles=(), primary=0.4).table,
            "same_answer",
            "strength=primary",
            "cast=jitter",
        ),
    )
    for expected, measure, condition, name in parts:
        under = ",".join(part for part in (name, condition) if part)
        for arm, seed in (("kl", 0), ("kl", 1), ("independent", 2), ("second-teacher", 1)):
            found = value_of(table, arm, seed, measure, under)
            assert found == value_of(expected, arm, seed, measure, condition), (measure, arm)
    for measure, condition, accuracy_condition, end in matched.PROPERTIES.values():
        assert len(matched.gains(table, measure, condition, accuracy_condition, ["kl"]))
        assert end in set(table["arm"])
    assert set(outcome.items["condition"]) <= set(table["condition"])
    assert set(outcome.items["measure"]) == set(matched.ITEMS_OF)
    mine = outcome.items.astype({"arm": str, "condition": str, "measure": str})
    means = mine.groupby(["arm", "seed", "condition", "measure"])["value"].mean()
    for (arm, seed, condition, measure), value in means.items():
        if value == value:
            found = value_of(table, arm, seed, measure, condition)
            assert found == pytest.approx(value, abs=1e-6)


def test_casts_can_be_left_out() -> None:
    table = matched.measure((small_cast(), some_data()), steps=1).table
    assert not table["condition"].str.startswith("cast=").any()
    assert {"accuracy", "agreement", "fooling_rate"} <= set(table["measure"])


def make_table(rows: dict[tuple[str, int], tuple[float, float]]) -> pd.DataFrame:
    found = []
    for (arm, seed), values in rows.items():
        for measure, value in zip(("accuracy", "agreement"), values, strict=True):
            found.append((arm, seed, "", measure, value))
    return pd.DataFrame(found, columns=["arm", "seed", "condition", "measure", "value"])


def test_gains_are_paired_by_seed() -> None:
    table = make_table(
        {
            ("independent", 0): (0.80, 0.50),
            ("independent", 1): (0.84, 0.53),
            ("independent", 2): (0.82, float("nan")),
            ("kl", 0): (0.79, 0.60),
            ("kl", 1): (0.90, 0.51),
            ("kl", 2): (0.90, 0.70),  # its partner has no agreement
            ("hint", 1): (0.84, 0.63),
        }
    )
    rows = matched.gains(table, "agreement", "", "", ("independent", "kl", "hint", "crd"))

    by = rows.set_index(["arm", "seed"])
    assert by.loc[("kl", 0)].tolist() == pytest.approx([-0.01, 0.10])
    assert by.loc[("kl", 1)].tolist() == pytest.approx([0.06, -0.02])
    assert by.loc[("hint", 1)].tolist() == pytest.approx([0, 0.10])
    assert ("kl", 2) not in by.index
    assert "crd" not in set(rows["arm"])


def test_the_reference_is_compared_with_its_next_seed() -> None:
    table = make_table({("independent", s): (0.8 + s / 10, 0.5 - s / 20) for s in range(3)})
    rows = matched.gains(table, "agreement", "", "", ("independent",))
    assert rows["accuracy_gain"].tolist() == pytest.approx([0.1, 0.1, -0.2])
    assert rows["inheritance"].tolist() == pytest.approx([-0.05, -0.05, 0.1])
    assert rows[["accuracy_gain", "inheritance"]].sum().tolist() == pytest.approx([0, 0])
    single = make_table({("independent", 0): (0.8, 0.5), ("kl", 0): (0.8, 0.6)})
    rows = matched.gains(single, "agreement", "", "", ("independent", "kl"))
    assert rows["arm"].tolist() == ["kl"]
    with pytest.raises(stats.NotMeasuredError, match="no 'accuracy' for arm 'independent'"):
        matched.gains(single[single["arm"] == "kl"], "agreement", "", "", ("kl",))


def test_gains_of_a_measured_cast() -> None:
    cast = small_cast()
    twin = replace(cast, members=(*cast.members[:3], replace(cast.members[0], arm="kl")))
    table = accuracy.measure(twin, some_data()).table.query("measure == 'accuracy'")
    table = pd.concat([table, table.assign(measure="agreement")], ignore_index=True)
    rows = matched.gains(table, "agreement", "", "", ("kl",))
    assert rows[["accuracy_gain", "inheritance"]].to_numpy().tolist() == [[0, 0]]
