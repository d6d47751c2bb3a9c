"""What chapters say in the same way: here and in a published run, side by side."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from asked import study_of

from kdnotes import stats
from kdnotes.book import report, results, running
from kdnotes.errors import RequestError
from kdnotes.probes import accuracy
from kdnotes.probes.base import ITEM_COLUMNS, Outcome
from kdnotes.probes.findings import Findings
from kdnotes.stats import claims
from kdnotes.study import Study


def outcome(**values: list[float]) -> Outcome:
    """Accuracies by arm, one per seed, and one value under a condition that is not asked for."""
    rows = [
        (arm.replace("_", "-"), seed, "", "accuracy", value)
        for arm, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    rows.append(("kl", 0, "other", "accuracy", 0.0))
    table = pd.DataFrame(rows, columns=["arm", "seed", "condition", "measure", "value"])
    return Outcome(table, pd.DataFrame(columns=list(ITEM_COLUMNS)))


def a_claim(**about: str) -> claims.Claim:
    return claims.Claim(
        id="one",
        chapter="distillation",
        section="1",
        statement="KL gains.",
        measure="accuracy",
        arm="kl",
        direction="greater",
        paper=claims.Paper(text="It does.", numbers="not reported"),
        **about,
    )


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty book."""
    monkeypatch.setenv("KDNOTES_BOOK", str(tmp_path))
    return tmp_path


def test_a_published_run_on_other_images_stands_beside_this_one(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(report, "say", said.append)
    smoke = study_of("distillation", preset="smoke")
    here = Findings(
        outcome(teacher=[1.0], independent=[0.5, 0.52], kl=[0.7, 0.74]),
        accuracy.MEASURES[0],
        ["kl"],
    )
    report.beside(smoke, here)
    assert said == ["No other run of this chapter is published with this version of the book."]
    there = outcome(teacher=[1.0], independent=[0.5, 0.52], kl=[0.3, 0.34])
    full = study_of("distillation", preset="published", seeds=2, teacher="vgg-large")
    results.save(
        "distillation",
        there,
        [],
        full.parameters(),
        1.0,
        book / "results" / "published" / "cifar10",
        answers=Findings(there, accuracy.MEASURES[0], ["kl"]).answers(),
        command="kdnotes run distillation --preset published -p seeds=2",
    )
    report.beside(smoke, here)
    text = said[1]
    assert text.startswith("### On CIFAR-10\n\nA student is right")
    assert "**This is not what this page says of KL**" in text
    assert "| KL (soft labels) | .72 | .32 |" in text
    assert "| Independent (no teacher) | .51 | .51 |" in text
    assert "the teacher `vgg-large`" in text
    assert "`kdnotes run distillation --preset published -p seeds=2`" in text
    # A run on the same images is told apart, and not told of itself.
    assert list(report.published(smoke)) == ["CIFAR-10"]
    same = report.published(study_of("distillation", dataset="cifar10", preset="smoke"))
    assert list(same) == ["the same images, 2 seeds"]
    assert not report.published(study_of("distillation", dataset="cifar10", preset="published"))


def test_the_number_of_students_is_that_of_most_claims() -> None:
    assert report.students(pd.Series([5] * 79 + [10] * 2)) == "5 (2 of 81 claims: 10)"
    assert report.students(pd.Series([2, 5, 5, 10, 0])) == "5 (2 of 4 claims: 2 to 10)"
    assert report.students(pd.Series([5, 5])) == "5"
    assert report.students(pd.Series([0, 0])) == "none"


def test_a_list_of_numbers_in_one_parameter() -> None:
    assert report.numbers("band", "2, 4,8", int) == [2, 4, 8]
    assert report.numbers("strengths", ".2,1", float) == [0.2, 1.0]
    with pytest.raises(RequestError, match=r"'band' must be whole numbers .* not '2,4.5'"):
        report.numbers("band", "2,4.5", int)
    with pytest.raises(RequestError, match="'strengths' must be numbers"):
        report.numbers("strengths", "", float)


def test_a_page_that_judges_other_chapters(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = a_claim()
    other = claimed.model_copy(update={"id": "two", "chapter": "fidelity"})
    monkeypatch.setattr(claims, "load", lambda chapter=None: (other, claimed))
    monkeypatch.setattr(
        running, "chapter_paths", lambda: dict.fromkeys(("distillation", "fidelity"), book)
    )
    monkeypatch.setenv("KDNOTES_OUT", str(book / "runs"))
    study = Study("scorecard", {"preset": "smoke", "device": "cpu"})
    with pytest.raises(RequestError, match=r"no chapter's results in .*runs"):
        report.gather(study)
    measured = outcome(kl=[0.9, 0.92, 0.91, 0.9, 0.92], independent=[0.5, 0.51, 0.5, 0.52, 0.5])
    found = claims.evaluate([claimed], measured)
    ran = study.parameters() | {"tau": 2.0}
    results.save("distillation", measured, found, ran, 1.0)

    runs = report.gather(study)
    assert list(runs) == ["distillation"]
    assert report.gather(study, book / "nowhere") == {}
    pd.testing.assert_frame_equal(
        results.load("distillation").outcome.table, results.table("distillation")
    )
    judged = report.judged(runs)
    assert judged["verdict"].tolist() == ["agrees"]
    assert report.judged({}).empty
    assert report.not_like(study, runs) == [
        "- `fidelity` has not been run: do `kdnotes run fidelity`, then this page again.",
        "- Run with other settings than this page: `distillation` (tau 2.0).",
    ]
    (again,) = claims.records(judged)
    assert again["equivalence_margin"] is None
    assert claims.said(again).startswith("**agrees** (difference .40 [")
    assert "`scorecard.json`" in report.finish(study, [again])
    saved = results.load("scorecard")
    assert [each["id"] for each in saved.claims] == ["one"]
    assert saved.seconds > 0
    assert results.table("scorecard").empty


def test_a_primary_is_decided_by_the_published_run_of_its_images(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = a_claim(family="C1", decided_on="cifar10")
    monkeypatch.setattr(claims, "load", lambda chapter=None: (claimed,))
    alone = [0.50, 0.51, 0.50, 0.52, 0.50]
    drawn = outcome(kl=[0.9, 0.92, 0.91, 0.9, 0.92], independent=alone)
    photos = outcome(kl=[0.3, 0.32, 0.31, 0.3, 0.32], independent=alone)
    places = {"runs": ("scenes", drawn), "results/published/cifar10": ("cifar10", photos)}
    for place, (images, found) in places.items():
        study = study_of("distillation", preset="smoke")
        entries = claims.evaluate([claimed], found, images)
        if images == "cifar10":
            before = report.judged({"distillation": results.load("distillation", book / "runs")})
            assert before["is_primary"].tolist() == [False]
            assert "C1 ? open** (decided on CIFAR-10, not run there yet)" in report.beside_paper(
                before, stats.primaries(before)
            )
        folder = book / place
        results.save("distillation", found, entries, study.parameters(), 1.0, folder)
    judged = report.judged({"distillation": results.load("distillation", book / "runs")})
    assert judged[["dataset", "is_primary", "verdict_alone"]].to_numpy().tolist() == [
        ["cifar10", True, "disagrees"],
        ["scenes", False, "agrees"],
    ]
    first = stats.primaries(judged).iloc[0]
    assert (first["verdict"], first["reason"].count("the interval")) == ("disagrees", 1)
    drawn_only = judged.assign(verdict=["open", "not applicable"], p_agrees=[None, 0.1])
    drawn_only["reason"] = ["the two teachers differ", "nothing to measure"]
    undecided = stats.primaries(drawn_only).iloc[0]
    assert (undecided["verdict"], undecided["reason"]) == ("open", "the two teachers differ")
    text = report.beside_paper(judged, stats.primaries(judged)).splitlines()[0]
    assert text.startswith(
        f"- **C1 {stats.VERDICTS['disagrees']} disagrees** (decided on CIFAR-10)."
    )
    assert "-.20 [" in text
    assert "**C1** It does." in report.beside_paper(judged, stats.primaries(judged))
    assert "Published" not in text  # it is what decides


def test_a_run_that_decides_has_the_published_one_beside_it(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = a_claim(family="C1", decided_on="scenes")
    monkeypatch.setattr(claims, "load", lambda chapter=None: (claimed,))
    alone = [0.50, 0.51, 0.50, 0.52, 0.50]
    more = outcome(kl=[0.8, 0.82, 0.81, 0.8, 0.82], independent=alone)
    mine = outcome(kl=[0.9, 0.92, 0.91, 0.9, 0.92], independent=alone)
    told = {}
    for place, found in {"results/published/scenes": more, "runs": mine}.items():
        entries = claims.evaluate([claimed], found, "scenes")
        parameters = study_of("distillation", preset="smoke").parameters()
        results.save("distillation", found, entries, parameters, 1.0, book / place)
        judged = report.judged({"distillation": results.load("distillation", book / place)})
        told[place] = report.beside_paper(judged, stats.primaries(judged)).splitlines()[0]
    assert "Published" not in told["results/published/scenes"]
    assert "(difference .40 [" in told["runs"]
    assert "Published: with 5 seeds **agrees** (difference .30 [" in told["runs"]
