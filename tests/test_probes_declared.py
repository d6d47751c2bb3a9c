"""What probes declare of their measures, held against what they measure."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from probe_nets import (
    CLASSES,
    lookup_cast,
    member,
    numbered_data,
    related_net,
    small_cast,
    some_data,
)
from tiny_book import chapter, kdnotes, make

from kdnotes import probes
from kdnotes.errors import RequestError
from kdnotes.probes import (
    accuracy,
    adversarial,
    architectures,
    boundaries,
    color_invariance,
    crop_shift,
    cue_bias,
    domain_accuracy,
    fidelity,
    group_accuracy,
    identifiability,
    localization,
    matched,
    representations,
)
from kdnotes.probes.base import Cast, Measure, Outcome, Property
from kdnotes.stats import claims

TWIN = 9  # the seed of a copy of the teacher


def with_a_twin() -> Cast:
    cast = small_cast()
    return replace(cast, members=(*cast.members, member("kl", TWIN, cast.teacher.network)))


def measured() -> dict[str, list[Outcome]]:
    """What every probe finds on networks with a copy of the teacher among them, by property."""
    cast, data = with_a_twin(), some_data()
    groups = torch.arange(len(data)) % 3
    grouped = replace(data, factors=data.factors | {"group": groups})
    foreign = member("foreign", 7, related_net(7, 0.2))
    pair = [architectures.measure(cast, data, pair=name, conflicts=data) for name in ("x", "y")]
    layers = representations.measure(cast, data)
    colour = color_invariance.measure(cast, data, hue_angles=(90,))
    rising = color_invariance.condition(), ["kl", "independent"], "hint-depths", "depth_slope"
    with_options = {
        "accuracy": [accuracy.measure(cast, data), accuracy.measure(cast, data).under("ordinary")],
        "adversarial": [
            adversarial.measure(cast, data, eps=(4, 16), primary=16, foreign=foreign),
        ],
        "color_invariance": [colour, colour.slope("same_answer", *rising)],
        "crop_shift": [
            crop_shift.measure(cast, data),
            crop_shift.measure_mirrors(cast, cast, data),
        ],
        "cue_bias": [cue_bias.measure(cast, data), cue_bias.follows(cast, data)],
        "domain_accuracy": [
            domain_accuracy.measure(cast, {"a": data}, grey_arms=["kl"]),
            domain_accuracy.measure(cast, {"a": data}, factor="folder"),
        ],
        "boundaries": [boundaries.measure(cast, {"a": data}, triplets=4, grid=6)],
        "representations": [
            layers,
            representations.by_count(cast, data, counts=(20, 50), arms=("kl",)),
            representations.relation(
                layers, ("cka_last", ""), ("accuracy", ""), ("kl", "independent")
            ),
        ],
        "group_accuracy": [group_accuracy.measure(cast, grouped, unseen=1, names="abc")],
        "identifiability": [
            identifiability.first_layers(cast),
            identifiability.recovery(range(2)),
            identifiability.grey_lessons([0], data, data, data),
        ],
        "architectures": [*pair, architectures.extra_gains(Outcome.combine(pair), "x", "y")],
        "matched": [matched.measure((cast, data), (cast, data, data), (cast, data))],
    }
    others = (each for each in probes.properties() if each.name not in with_options)
    return with_options | {each.name: [each.measure(cast, data)] for each in others}


@pytest.fixture(scope="module")
def found() -> dict[str, pd.DataFrame]:
    """Tables by property."""
    return {
        name: pd.concat([part.table for part in parts]).drop_duplicates()
        for name, parts in measured().items()
    }


def rows_of(table: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    rows = table[table["measure"] == measure.name]
    return rows[[measure.is_measured_under(condition) for condition in rows["condition"]]]


EVERY = [(each, measure) for each in probes.properties() for measure in each.measures]
NAMES = [f"{each.name}-{measure.name}-{measure.condition}" for each, measure in EVERY]


def test_every_probe_is_found_and_reading_declarations_loads_no_torch() -> None:
    assert {each.name for each in probes.properties()} >= {"fidelity", "localization", "boundaries"}
    assert len({(measure.name, measure.condition, each.name) for each, measure in EVERY}) == len(
        EVERY
    )
    asked = "import sys; from kdnotes import probes; probes.check_measure('agreement')"
    said = "print([name for name in ('torch', 'torchvision', 'timm') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{asked}; {said}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_value_is_declared(found: dict[str, pd.DataFrame]) -> None:
    for table in found.values():
        for name, condition in {*zip(table["measure"], table["condition"], strict=True)}:
            probes.check_measure(name, condition)


@pytest.mark.parametrize(("which", "measure"), EVERY, ids=NAMES)
def test_values_lie_in_the_declared_range(
    which: Property, measure: Measure, found: dict[str, pd.DataFrame]
) -> None:
    values = rows_of(found[which.name], measure)["value"]
    assert len(values), "declared, and never measured"
    slack = 1e-6  # of float32
    assert values.dropna().between(measure.low - slack, measure.high + slack).all()


@pytest.mark.parametrize(("which", "measure"), EVERY, ids=NAMES)
def test_a_copy_of_the_teacher_has_the_declared_value(
    which: Property, measure: Measure, found: dict[str, pd.DataFrame]
) -> None:
    if measure.twin is None:
        return
    rows = rows_of(found[which.name], replace(measure, others=()))
    values = rows[(rows["arm"] == "kl") & (rows["seed"] == TWIN)]["value"].dropna()
    assert len(values)
    assert values.to_numpy() == pytest.approx(measure.twin, abs=1e-5)


def test_networks_that_only_guess_agree_as_chance_declares() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(8, 250, CLASSES, generator=generator)
    students = {("independent", seed): tables[seed] for seed in range(6)}
    cast = lookup_cast({("teacher", 0): tables[6], ("kl", 0): tables[7], **students})
    labels = torch.randint(CLASSES, (250,), generator=generator)
    data = numbered_data(labels, group=torch.arange(250) % 2)
    tables_by_name = {
        "fidelity": fidelity.measure(cast, data).table,
        "domain_accuracy": domain_accuracy.measure(cast, {"a": data}).table,
        "group_accuracy": group_accuracy.measure(cast, data, unseen=0, names="ab").table,
    }
    for each, measure in EVERY:
        if each.name in tables_by_name and measure.chance is not None:
            values = rows_of(tables_by_name[each.name], measure)["value"]
            assert values.mean() == pytest.approx(measure.chance, abs=0.05), measure


def declared(name: str) -> Measure:
    return next(measure for _, measure in EVERY if measure.name == name)


def test_what_compares_networks_of_no_teacher_is_at_its_declared_chance() -> None:
    cast, data = small_cast(), some_data()
    maps = localization.measure(cast, data).table
    wins = maps[(maps["measure"] == "win_rate") & (maps["arm"] == "independent")]
    wins = wins[wins["condition"].str.startswith("layer=last,class=true,against=")]
    assert wins["value"].mean() == pytest.approx(declared("win_rate").chance)
    even = localization.energy_ratio(torch.ones(2, 4, 4), data.masks["digit"][:2])
    assert even.tolist() == pytest.approx([declared("energy_digit").chance] * 2)
    mirrors = crop_shift.measure_mirrors(cast, cast, data).table
    same = mirrors[mirrors["measure"] == "learned_minus_exact"]["value"]
    assert same.tolist() == [declared("learned_minus_exact").chance] * len(same)
    shuffled = representations.by_count(cast, data, counts=(60,)).table
    shuffled = shuffled[shuffled["measure"] == "cka_debiased_shuffled"]["value"]
    assert shuffled.mean() == pytest.approx(declared("cka_last").chance, abs=0.1)
    itself = replace(cast.teacher, arm="foreign", seed=7)  # two attacks on one network
    attacks = adversarial.measure(cast, data, eps=(), primary=16, foreign=itself).table
    differences = attacks[attacks["measure"] == "double_difference"]["value"].dropna()
    assert differences.tolist() == [declared("double_difference").chance] * len(differences)


def test_a_declaration_reads_as_a_sentence_and_as_an_axis() -> None:
    for _, measure in EVERY:
        assert measure.sentence[0].islower()
        assert not measure.sentence.endswith(".")
        assert measure.label.endswith(f"({measure.unit})")
        assert math.isfinite(measure.low) or measure.low < measure.high
    fooled = declared("fooling_rate")
    assert f"A student {fooled.sentence}." == "A student is fooled by the same images."
    assert fooled.label == "Is fooled by the same images (share)"


def test_conditions_are_made_in_one_place() -> None:
    cast, data = small_cast(), some_data()
    attacks = adversarial.measure(cast, data, eps=(2,), primary=16, steps=1).table
    assert {adversarial.condition(size=size) for size in (2, 16)} <= set(attacks["condition"])
    assert {adversarial.condition(), adversarial.condition("noise")} <= set(attacks["condition"])
    colour = color_invariance.measure(cast, data, strengths=(0.2,), hue_angles=(90,)).table
    conditions = color_invariance.condition
    wanted = {conditions(), conditions(0.2), conditions(0.4), conditions(hue=90)}
    assert wanted <= set(colour["condition"])
    for kind, size, primary in (("crop", 0.3, 0.5), ("shift", 1, 4)):
        views = crop_shift.measure_views(cast, data, kind, (size,), primary).table
        wanted = {crop_shift.condition(kind, each) for each in (size, primary, None)}
        assert wanted <= set(views["condition"])
    assert crop_shift.condition("shift") == "kind=shift,max=primary"


def test_all_claims_of_the_book_are_about_declared_measures() -> None:
    for claim in claims.load():
        probes.check_measure(claim.measure, claim.condition)


def test_what_is_not_declared_is_named_with_what_is_near() -> None:
    with pytest.raises(RequestError, match="no probe measures 'agrement'; declared: agreement"):
        probes.check_measure("agrement")
    with pytest.raises(RequestError, match="'deficit' is not measured under 'side=unseen'; it is"):
        probes.check_measure("deficit", "side=unseen")
    probes.check_measure("deficit", "cast=fair")
    probes.check_measure("follows_digit", "pair=vit-cnn,conflict")
    with pytest.raises(RequestError, match="not measured under 'strength=half,twice'"):
        probes.check_measure("same_answer", "strength=half,twice")


def test_a_claim_about_an_undeclared_measure_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "book", {"01-fidelity": chapter("fidelity")})
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "cache"))
    text = (
        "- {id: odd, chapter: fidelity, section: x, statement: x, measure: agrement, arm: kl, "
        "direction: greater, paper: {text: x, numbers: not reported}}\n"
    )
    (root / "book" / "claims.yml").write_text(text)
    for more in ((), ("--dry-run",)):
        done = kdnotes("run", "fidelity", "--preset", "smoke", "--out", tmp_path / "out", *more)
        assert done.exit_code == 2, done.output
        assert "claim 'odd': no probe measures 'agrement'; declared: agreement" in done.stderr
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "cache").exists()
    (root / "book" / "claims.yml").write_text(text.replace("agrement", "agreement"))
    done = kdnotes("run", "fidelity", "--preset", "smoke", "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
