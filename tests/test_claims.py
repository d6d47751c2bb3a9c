"""The file of claims, and what tables of known truth make of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from asked import NOTEBOOKS, study_of

from kdnotes import stats
from kdnotes.errors import RequestError
from kdnotes.probes.base import Outcome
from kdnotes.stats import claims

# Standard deviation of paired seed differences, as a share of images: the median of the claims of
# the published laptop run.
SEED_SD = 0.018

# Arms that chapters make up themselves, besides the networks that were trained for them.
MADE_UP = {"distilled-few", "distilled-enough", "hint-depths"}

ENTRY: dict[str, Any] = {
    "id": "test-kl",
    "chapter": "test",
    "section": "4.2",
    "statement": "The student is fooled.",
    "measure": "fooling_rate",
    "arm": "kl",
    "reference": "independent",
    "direction": "greater",
    "margin": 0.04,
    "why": "A reason.",
    "paper": {"text": "It was.", "numbers": "not reported"},
}


def claim(**changes: Any) -> claims.Claim:
    return claims.Claim.model_validate({**ENTRY, **changes})


def written(tmp_path: Path, *entries: Any) -> Path:
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def outcome_of(
    values: dict[tuple[str, str, str], np.ndarray], sources: np.ndarray | None = None
) -> Outcome:
    """Tables from values per (arm, measure, condition): (seeds,), or (items, seeds)."""
    table, items = [], []
    for (arm, measure, condition), given in values.items():
        for seed, value in enumerate(np.atleast_1d(given if given.ndim == 1 else given.mean(0))):
            table.append((arm, seed, condition, measure, value))
        if given.ndim == 2:
            assert sources is not None
            block = {
                "item": np.tile(np.arange(len(given)), given.shape[1]),
                "source": np.tile(sources, given.shape[1]),
                "arm": arm,
                "seed": np.repeat(np.arange(given.shape[1]), len(given)),
                "condition": condition,
                "prediction": np.int16(0),
                "measure": measure,
                "value": given.T.ravel().astype(np.float32),
            }
            items.append(pd.DataFrame(block))
    names = ["arm", "seed", "condition", "measure", "value"]
    joined = pd.concat(items, ignore_index=True) if items else pd.DataFrame()
    for name in ("arm", "condition", "measure") if items else ():
        joined[name] = joined[name].astype("category")
    return Outcome(pd.DataFrame(table, columns=names), joined)


# --- the book's claims ----------------------------------------------------------------------------


def test_the_books_claims_name_known_arms_and_chapters() -> None:
    found = claims.load()
    chapters = {claim.chapter for claim in found}
    assert chapters == set(NOTEBOOKS)
    for chapter in chapters:
        asked = study_of(chapter, preset="published")
        seeds: dict[str, set[int]] = {}
        for plan in asked.plans.values():
            for item in plan.planned:
                seeds.setdefault(item.arm, set()).add(item.spec.seed)
        for each in found:
            if each.chapter != chapter:
                continue
            named = {arm for arm in (each.arm, each.reference) if isinstance(arm, str)} - MADE_UP
            assert each.ceiling in seeds, each.id
            # A verdict takes all seeds: an arm with those of the controls alone gives none.
            assert all(seeds[arm] == set(asked.settings.seeds) for arm in named), each.id
            assert each.arm != each.reference, each.id


def test_every_primary_claim_is_there_once_or_in_two_parts() -> None:
    parts = Counter(each.family for each in claims.load() if each.family in stats.PRIMARIES)
    assert parts == dict.fromkeys(stats.PRIMARIES, 1) | dict.fromkeys(
        ("C3", "C6", "C8", "C9", "C10", "C11"), 2
    )


def test_the_books_claims_of_one_chapter() -> None:
    found = claims.load("adversarial")
    assert {each.arm for each in found} == {"kl", "hint", "crd"}
    assert all(each.chapter == "adversarial" for each in found)
    assert claims.load("no-such-chapter") == ()


def test_every_number_of_the_paper_is_given_or_said_to_be_missing() -> None:
    for each in claims.load():
        numbers = each.paper.numbers
        if numbers != "not reported":
            assert all(re.search(r"\d", text) for text in numbers.values()), each.id


def test_the_margins_of_the_papers_numbers_point_the_claimed_way() -> None:
    # The paper's own values must satisfy each of our criteria, or the claim is not the paper's.
    found = {each.id: each for each in claims.load()}
    assert 100 * found["matched-accuracy-kl"].margin > 69.23 - 70.03
    assert found["shape-crd-weak"].margin > (0.24 - 0.21) / (0.81 - 0.21)
    for arm, gain in (("kl", 1.61), ("hint", 0.89), ("crd", 2.76)):
        bound = found[f"fidelity-agreement-{arm}"].equivalence_margin
        assert bound is not None
        assert gain < 100 * bound


# --- reading the file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "bigger"}, r"claim 'test-kl': field 'direction': .*'greater', 'less'"),
        ({"marginn": 0.1}, r"unknown field 'marginn'; known: id, chapter"),
        ({"margin": "a lot"}, r"field 'margin': .*number"),
        ({"id": "Test KL"}, r"field 'id': .*pattern"),
        ({"direction": "equivalent"}, r"needs an equivalence_margin and no margin"),
        ({"equivalence_margin": 0.05}, r"goes with direction 'equivalent' only"),
        ({"direction": "equivalent", "margin": 0, "equivalence_margin": -1}, r"greater than 0"),
        ({"kind": "gap closed", "reference": 0.5}, r"needs an arm as reference"),
        ({"why": ""}, r"'why' must say the reason for a direction or a margin of its own"),
        ({"family": "C13"}, r"field 'family': .*pattern"),
        ({"paper": {"text": "It was."}}, r"field 'paper.numbers': Field required"),
    ],
)
def test_a_wrong_claim_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        claims.load(path=written(tmp_path, {**ENTRY, **changes}))
    assert str(caught.value).startswith("claims.yml, claim '")


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="more than one claim has the id test-kl"):
        claims.load(path=written(tmp_path, ENTRY, ENTRY))
    with pytest.raises(RequestError, match="claim number 2: field 'id'"):
        claims.load(path=written(tmp_path, ENTRY, {"chapter": "test"}))
    with pytest.raises(RequestError, match="must be a list of claims"):
        claims.load(path=written(tmp_path, "kl is best"))
    with pytest.raises(RequestError, match=r"no file of claims at absent\.yml"):
        claims.load(path=tmp_path / "absent.yml")
    broken = tmp_path / "claims.yml"
    broken.write_text("- id: [")
    with pytest.raises(RequestError, match="not valid YAML"):
        claims.load(path=broken)


def test_criteria_read_as_sentences() -> None:
    assert claim(condition="attack=teacher,eps=primary").criterion == (
        "fooling_rate (attack=teacher,eps=primary) of kl minus independent: "
        "the 95% interval lies above .04."
    )
    assert claim(
        kind="gap closed", measure="same_answer", direction="less", margin=0
    ).criterion == (
        "share of the gap from independent to teacher in same_answer that kl closes: "
        "the 95% interval lies below 0."
    )
    equivalent = claim(direction="equivalent", margin=0, equivalence_margin=0.05, reference=0.5)
    assert equivalent.criterion == (
        "fooling_rate of kl minus .50: the 95% interval lies inside -.05 to .05."
    )


# --- verdicts on tables of known truth ------------------------------------------------------------

INDEPENDENT = np.array([0.40, 0.42, 0.39, 0.43, 0.41])


def result_for(each: claims.Claim, **arms: np.ndarray) -> dict[str, Any]:
    values = {(arm.replace("_", "-"), each.measure, ""): given for arm, given in arms.items()}
    return claims.evaluate([each], outcome_of(values))[0]


def test_a_clear_difference() -> None:
    student = INDEPENDENT + np.array([0.10, 0.12, 0.11, 0.09, 0.13])
    result = result_for(claim(), kl=student, independent=INDEPENDENT)
    expected = stats.paired_difference(student, INDEPENDENT)
    assert result["verdict"] == "agrees"
    assert (result["estimate"], result["low"]) == (expected.estimate, expected.low)
    assert result["seeds"] == 5
    assert result["seed_sd"] == pytest.approx(np.std([0.10, 0.12, 0.11, 0.09, 0.13], ddof=1))
    less = result_for(claim(direction="less"), kl=student, independent=INDEPENDENT)
    assert less["verdict"] == "disagrees"
    bounds = {"direction": "equivalent", "margin": 0, "equivalence_margin": 0.05}
    assert result_for(claim(**bounds), kl=student, independent=INDEPENDENT)["verdict"] == (
        "disagrees"
    )


def test_a_gap_closed() -> None:
    each = claim(kind="gap closed", margin=0.3)
    student = INDEPENDENT + np.array([0.26, 0.24, 0.25, 0.27, 0.25])
    found = result_for(each, kl=student, independent=INDEPENDENT, teacher=np.array([0.9]))
    assert (found["verdict"], found["kind"]) == ("agrees", "gap closed")
    assert found["estimate"] == pytest.approx((student - INDEPENDENT).mean() / (0.9 - 0.41))
    none = result_for(each, kl=student, independent=INDEPENDENT, teacher=np.array([0.43]))
    assert (none["verdict"], none["kind"]) == ("not applicable", "difference")
    assert none["reason"].startswith("no gap to close: teacher minus independent is .02 [.0")
    assert none["estimate"] == pytest.approx(0.254)
    assert none["p_agrees"] is None
    assert (found["margin"], none["margin"]) == (0.3, None)


def test_a_gap_that_is_there_but_uncertain_is_told_from_none() -> None:
    # .20 [.10, .30]: there is something to close, but three spreads between seeds are .24.
    each = claim(kind="gap closed", margin=0.3)
    spread = np.array([0.60, 0.80, 0.70, 0.75, 0.65])
    found = result_for(each, kl=spread + 0.1, independent=spread, teacher=np.array([0.9]))
    assert (found["verdict"], found["kind"]) == ("not applicable", "difference")
    assert found["reason"] == (
        "a gap too small or too uncertain to divide by: teacher minus independent is .20 [.10, .30]"
    )


@pytest.mark.parametrize(
    ("arms", "verdict", "reason"),
    [
        ({"independent": INDEPENDENT}, "not applicable", "not measured of all"),
        ({"kl": INDEPENDENT[:4] + 0.2, "independent": INDEPENDENT}, "open", "fewer than 5"),
        ({"kl": INDEPENDENT * np.nan, "independent": INDEPENDENT}, "not applicable", "no seed has"),
        ({"kl": INDEPENDENT[:1], "independent": INDEPENDENT[:1]}, "open", "fewer than 5"),
    ],
)
def test_claims_without_the_networks_for_a_verdict(
    arms: dict[str, np.ndarray], verdict: str, reason: str
) -> None:
    result = result_for(claim(), **arms)
    assert result["verdict"] == verdict
    assert reason in result["reason"]
    json.dumps(result, allow_nan=False)


def test_the_gap_of_too_few_seeds_stays_open() -> None:
    each = claim(kind="gap closed", margin=0.3)
    one = result_for(each, kl=np.array([0.6]), independent=np.array([0.4]), teacher=np.array([0.9]))
    assert one["verdict"] == "open"
    assert one["reason"].startswith("needs two seeds")


def test_results_survive_json_and_make_a_scorecard() -> None:
    student = INDEPENDENT + np.array([0.10, 0.12, 0.11, 0.09, 0.13])
    values = {("kl", "fooling_rate", ""): student, ("independent", "fooling_rate", ""): INDEPENDENT}
    written_claims = [claim(), claim(id="test-hint", arm="hint"), claim(id="test-0", margin=0.1)]
    results = claims.evaluate(written_claims, outcome_of(values))
    again = json.loads(json.dumps(results, allow_nan=False))
    assert again == results
    card = stats.scorecard_verdicts(again)
    assert list(card["verdict"]) == ["agrees", "not applicable", "open"]
    assert list(card["margin"]) == [0.04, 0.04, 0.1]
    assert card.loc[0, "p_adjusted"] == pytest.approx(2 * card.loc[0, "p_two_sided"])


# --- how often a verdict is wrong -----------------------------------------------------------------


def test_win_rates_are_compared_with_independent_students_and_not_with_one_half() -> None:
    # All students are compared with the same independent ones, whose luck the spread between
    # students does not show; paired differences with the independent ones' own rates do show it.
    rng = np.random.default_rng(0)
    repetitions, seeds = 3000, 5
    wrong = {"independent": 0, "constant": 0}
    for _ in range(repetitions):
        student, independent = SEED_SD * rng.normal(size=(2, seeds))
        wins = 0.5 + (student[:, None] - independent).mean(axis=1)
        own = 0.5 + (independent[:, None] - independent).sum(axis=1) / (seeds - 1)
        wrong["independent"] += stats.paired_difference(wins, own).low > 0
        wrong["constant"] += stats.paired_difference(wins, 0.5).low > 0
    assert wrong["independent"] <= 0.03 * repetitions
    assert wrong["constant"] > 0.05 * repetitions
    for each in claims.load():
        if each.measure == "win_rate":
            assert each.reference == "independent"


def test_items_drawn_under_the_null_are_rarely_said_to_agree() -> None:
    """From per-item answers, through the file's criteria, to the corrected scorecard."""
    each_claim = [
        claim(),
        claim(id="test-hint", measure="agreement", arm="hint", margin=0),
        claim(id="test-crd", measure="same_answer", arm="crd", kind="gap closed", margin=0.3),
    ]
    truth = {
        ("kl", "fooling_rate", ""): 0.44,
        ("independent", "fooling_rate", ""): 0.40,
        ("hint", "agreement", ""): 0.80,
        ("independent", "agreement", ""): 0.80,
        ("crd", "same_answer", ""): 0.62,
        ("independent", "same_answer", ""): 0.50,
        ("teacher", "same_answer", ""): 0.90,
    }
    rng = np.random.default_rng(1)
    items, sources = 160, np.repeat(np.arange(40), 4)
    outcome = outcome_of(
        {key: np.zeros((items, 1 if key[0] == "teacher" else 5)) for key in truth}, sources
    )
    repetitions, alone, together, without_gap = 100, 0, 0, 0
    for _ in range(repetitions):
        drawn = []
        for (arm, _, _), mean in truth.items():
            # Seeds and glyphs move the chance of each answer; renderings add noise of their own.
            luck = SEED_SD / 2**0.5 * rng.normal(size=5) if arm != "teacher" else np.zeros(1)
            glyphs = 0.1 * rng.uniform(-1, 1, size=40)[sources, None]
            drawn.append((rng.random((items, len(luck))) < mean + luck + glyphs).astype(float))
        outcome.table["value"] = np.concatenate([each.mean(axis=0) for each in drawn])
        outcome.items["value"] = np.concatenate([each.T.ravel() for each in drawn])
        results = claims.evaluate(each_claim, outcome)
        without_gap += results[2]["verdict"] == "not applicable"
        alone += sum(result["verdict"] == "agrees" for result in results)
        together += (stats.scorecard_verdicts(results)["verdict"] == "agrees").any()
    assert alone <= 0.05 * repetitions * len(each_claim)
    assert together <= 0.05 * repetitions
    assert without_gap <= 0.1 * repetitions


def test_the_same_tables_give_the_same_results() -> None:
    rng = np.random.default_rng(2)
    values = {
        (arm, "fooling_rate", ""): (rng.random((60, 5)) < 0.5).astype(float)
        for arm in ("kl", "independent")
    }
    outcome = outcome_of(values, np.repeat(np.arange(20), 3))
    assert claims.evaluate([claim()], outcome) == claims.evaluate([claim()], outcome)
    assert claims.evaluate([claim()], outcome)[0]["item_standard_error"]


def test_where_two_teachers_differ_in_sign_a_claim_is_open() -> None:
    agreed = {"verdict": "agrees", "direction": "greater", "margin": 0.0, "estimate": 0.2}
    agreed |= {"p_agrees": 0.001, "p_disagrees": 0.999, "reason": "the interval lies above 0"}
    (kept,) = claims.by_teacher([agreed], [[{"estimate": 0.1}], [{"estimate": 0.3}]])
    assert kept["verdict"] == "agrees"
    assert kept["by_teacher"] == [0.1, 0.3]
    (opened,) = claims.by_teacher([agreed], [[{"estimate": 0.5}], [{"estimate": -0.1}]])
    assert opened["verdict"] == "open"
    assert opened["p_agrees"] == 1
    assert opened["reason"] == "the students of the two teachers differ in sign: .50 and -.10"
    (beyond,) = claims.by_teacher(
        [agreed | {"margin": 0.2}], [[{"estimate": 0.5}], [{"estimate": 0.1}]]
    )
    assert beyond["verdict"] == "open"


def test_published_results_were_judged_by_the_primaries_of_the_book() -> None:
    folder = Path(__file__).resolve().parents[1] / "results"
    judged = {
        path: json.loads(path.read_text())
        for path in [*folder.glob("laptop*/*.json"), *folder.glob("published/*/*.json")]
    }
    assert judged
    for path, saved in judged.items():
        assert saved["primaries"] == claims.digest(), path
