"""Findings against values worked by hand, and what they say where something is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest
from scipy import stats as scipy_stats

import kdnotes as kd
from kdnotes import methods
from kdnotes.probes import adversarial, wording
from kdnotes.probes.base import ITEM_COLUMNS, Measure, Outcome
from kdnotes.probes.wording import Text
from kdnotes.stats import VERDICTS
from kdnotes.study import arms

for name in ("kl", "hint", "crd"):
    arms.taught_by(methods.get(name)())  # declares how they are called

SAME = Measure("same", "gives the same answer", "changed")
PAIR = Measure("alike", "gives the teacher's answer", of="pair")
Values = Mapping[str, Sequence[float]]

# Teacher .90 and independent .50, so the gap is .40; KL is half way, Hint .15 of it, CRD nowhere.
FULL = {
    "teacher": [0.90],
    "independent": [0.50, 0.51, 0.49, 0.50, 0.50],
    "kl": [0.70, 0.72, 0.68, 0.71, 0.69],
    "hint": [0.56, 0.58, 0.57, 0.55, 0.54],
    "crd": [0.50, 0.52, 0.48, 0.49, 0.51],
}


def rows(values: Values, measure: str = "same", condition: str = "changed") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "condition": condition, "measure": measure, "value": value}
            for arm, each in values.items()
            for seed, value in enumerate(each)
        ],
        columns=["arm", "seed", "condition", "measure", "value"],
    )


def found(*tables: pd.DataFrame, measure: Measure = SAME, **options: Any) -> kd.Findings:
    outcome = Outcome(pd.concat(tables, ignore_index=True), pd.DataFrame(columns=ITEM_COLUMNS))
    return kd.Findings(outcome, measure, options.pop("methods", ("kl", "hint", "crd")), **options)


def claim(arm: str, verdict: str, **about: Any) -> dict[str, Any]:
    base = {"arm": arm, "measure": "same", "condition": "changed", "reference": "independent"}
    return base | {"verdict": verdict} | about


def test_kl_stands_for_the_taught_students_where_it_was_run() -> None:
    assert found(rows(FULL)).pupil == "kl"
    assert found(rows(FULL), methods=("crd", "hint")).pupil == "crd"


def test_the_picture_of_shares_says_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(kd.figures, "closed", lambda *given: asked.append(given))
    run = found(rows(FULL))
    run.closed()
    run.about(PAIR).closed(["kl"])
    (shares, gap), (kl, headroom) = asked
    assert list(shares) == ["kl", "hint", "crd"]
    assert shares["kl"] == run.share("kl")
    assert list(kl) == ["kl"]
    assert (gap, headroom) == ("Share of the gap closed", "Share of the headroom closed")


# --- numbers --------------------------------------------------------------------------------


def test_means_and_values() -> None:
    full = found(rows(FULL), rows({"kl": [0.8, 0.9]}, "accuracy", ""))
    assert full.mean("kl") == ".70"
    assert full.mean("kl", "accuracy", "") == ".85"
    assert full.means(["kl", "hint"]) == "KL .70, Hint .56"
    assert full.values("hint").to_dict() == dict(enumerate(FULL["hint"]))


def test_a_difference_is_students_interval_over_seeds() -> None:
    by_seed = [a - b for a, b in zip(FULL["kl"], FULL["independent"], strict=True)]
    mean = sum(by_seed) / 5
    low, high = scipy_stats.t.interval(0.95, 4, mean, scipy_stats.sem(by_seed))
    difference = found(rows(FULL)).difference("kl")
    assert [difference.estimate, difference.low, difference.high] == pytest.approx(
        [mean, low, high]
    )
    text = f"KL: .20 [{low:.2f}, {high:.2f}]".replace("0.", ".")
    assert found(rows(FULL)).differences(["kl"]) == text
    each = found(rows(FULL)).differences(["kl", "hint"], {"kl": "hint", "hint": "independent"})
    assert [part[:8] for part in each.split("; ")] == ["KL: .14 ", "Hint: .0"]


def test_differences_from_a_constant_and_from_another_reference() -> None:
    full = found(rows(FULL))
    assert full.difference("kl", 0.0).estimate == pytest.approx(0.70)
    assert full.difference("kl", 0.0, "no such measure").n == 0
    beyond_hint = full.against("hint")
    assert beyond_hint.difference("kl").estimate == pytest.approx(0.70 - 0.56)
    assert beyond_hint.share("kl").gap.estimate == pytest.approx(0.90 - 0.56)


def test_a_share_is_the_way_from_the_reference_to_the_end() -> None:
    full = found(rows(FULL))
    share = full.share("kl").ratio
    assert share is not None
    assert share.estimate == pytest.approx((0.70 - 0.50) / (0.90 - 0.50))
    further = full.share("hint", "kl").gap
    assert further.estimate == pytest.approx(0.20)
    assert full.shares(["kl"]).startswith("KL: .50 [.4")
    # All of the way to itself, and .08 / .20 of the way to KL would be .4: ends differ by arm.
    assert full.shares(["kl", "hint"], {"kl": "kl", "hint": "kl"}).startswith("KL: 1.00 [")


def test_a_measure_of_a_pair_ends_at_the_second_teacher() -> None:
    values = {"second-teacher": [0.9], "independent": [0.5, 0.5, 0.5], "kl": [0.8, 0.8, 0.8]}
    pair = found(rows(values, "alike", ""), measure=PAIR)
    assert pair.end == "second-teacher"
    share = pair.share("kl").ratio
    assert share is not None
    assert share.estimate == pytest.approx(0.75)
    assert pair.sentence().startswith(
        "A student gives the teacher's answer: KL hands on most of it"
    )


def test_the_same_run_by_another_measure_and_on_some_images() -> None:
    accuracy = Measure("accuracy", "is right")
    full = found(rows(FULL), rows({"kl": [0.8, 0.9]}, "accuracy", ""))
    assert full.about(accuracy).mean("kl") == full.mean("kl", "accuracy", "") == ".85"

    there = full.about(SAME.at("elsewhere", "stays put"))
    assert there.sentence().startswith("A student stays put, as its teacher does: ")
    assert (there.mean("kl"), SAME.at("elsewhere").sentence) == ("not measured", SAME.sentence)

    right = {0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 0)}  # by place, of KL's two seeds
    items = [
        {"item": item, "arm": "kl", "seed": seed, "value": float(value)}
        for item, values in right.items()
        for seed, value in enumerate(values)
    ]
    frame = pd.DataFrame(items).assign(condition="", measure="accuracy", source=0, prediction=0)
    frame = frame.astype(dict.fromkeys(("arm", "condition", "measure"), "category"))
    some = kd.Findings(Outcome(rows(FULL), frame), accuracy, ("kl",)).on([0, 1])
    assert some.values("kl").to_dict() == {0: 0.5, 1: 1.0}
    assert set(some.outcome.items["item"]) == {0, 1}


def test_the_method_that_gains_most() -> None:
    assert found(rows(FULL)).gains_most() == "kl"
    less = Measure("same", "gives another answer", "changed", direction="down")
    assert found(rows(FULL), measure=less).gains_most() == "crd"
    without = {arm: FULL[arm] for arm in ("independent", "hint")}
    assert found(rows(without)).gains_most() == "hint"


def test_strangers_are_pairs_of_independent_students() -> None:
    ones = [
        rows({"independent": [alike]}, "alike", f"against={seed}")
        for seed, alike in ((1, 0.6), (2, 0.8))
    ]
    pair = found(rows({"independent": [0.5]}, "alike", ""), *ones, measure=PAIR)
    assert list(pair.strangers()) == [0.6, 0.8]
    assert list(pair.strangers("other")) == []
    there = rows({"independent": [0.7]}, "same", "changed,against=1")
    assert list(found(there, rows(FULL)).strangers()) == [0.7]


def test_images_apart() -> None:
    kept = {0: (2, 0), 1: (1, 1), 2: (0, 2), 3: (2, 1)}  # KL, independent of two seeds each
    items = [
        {"item": item, "arm": arm, "seed": seed, "value": float(seed < number)}
        for item, numbers in kept.items()
        for arm, number in zip(("kl", "independent"), numbers, strict=True)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(items).assign(
        condition="changed", measure="same", source=0, prediction=0, arm=lambda f: f["arm"]
    )
    frame["arm"] = frame["arm"].astype("category")
    apart = kd.Findings(Outcome(rows(FULL), frame), SAME).apart("kl", count=1)
    assert list(apart[["kl", "independent"]].itertuples(name=None)) == [(0, 2, 0), (2, 0, 2)]
    assert list(apart["said"]) == ["KL 2/2, Independent 0/2", "KL 0/2, Independent 2/2"]
    assert found(rows(FULL)).apart("kl").empty


# --- text -----------------------------------------------------------------------------------


def test_tables() -> None:
    full = found(rows(FULL), rows({"kl": [0.8], "hint": [0.6]}, "accuracy", ""))
    lines = full.table(["kl", "hint"], {"it": "same", "right": ("accuracy", "")})
    assert lines.splitlines()[0] == "|  | it | right |"
    assert lines.splitlines()[2:] == [
        "| KL (soft labels) | .70 | .80 |",
        "| Hint (feature maps) | .56 | .60 |",
    ]
    differences = full.table(["kl", "control-smoothed"], reference="independent").splitlines()
    assert differences[2].startswith("| KL (soft labels) | .20 [.1")
    assert differences[3].endswith("| not measured |")
    following = full.table(["kl", "hint"], (), {"kl": "hint", "hint": "crd"}).splitlines()
    assert [line.split(" | ")[1][:3] for line in following[2:]] == [".14", ".06"]
    networks = pd.DataFrame({"arm": ["kl"], "epochs": [9], "images": [100]})
    assert full.trained(networks).splitlines()[0] == "|  | test accuracy |"
    assert "| .800 |" in full.trained(networks)
    assert "| .700 |" in found(rows(FULL, "accuracy", "cast=x")).trained(networks, "cast=x")


def test_markdown_is_shown_as_such() -> None:
    text = found(rows(FULL)).table(["kl"])
    assert isinstance(text, Text)
    assert text._repr_markdown_() == str(text)


def test_the_sentence_gives_each_method_its_word() -> None:
    says = found(rows(FULL)).sentence()
    assert says.startswith("A student gives the same answer, as its teacher does: KL hands on part")
    assert " of it, .50 [." in says
    assert "; Hint a little, .15 [.1" in says
    assert "; CRD none to speak of, " in says


def test_the_verb_goes_with_the_first_that_hands_on_anything() -> None:
    unsure = FULL | {"kl": [0.30, 0.70, 0.50, 0.75, 0.40]}
    says = found(rows(unsure)).sentence()
    assert ": KL: cannot tell; Hint hands on a little, .15 [" in says


def test_no_gap_and_one_too_uncertain_are_told_apart() -> None:
    none = found(rows(FULL | {"teacher": [0.51]}))
    alone = none.differences(none.methods).replace(": ", " minus alone ")
    assert none.sentence() == (
        f"A student gives the same answer, as its teacher does: {alone}. For a share of the way "
        "there is no gap to close (Teacher .51 minus Independent .50: .01 [.00, .02])."
    )
    wide = FULL | {"independent": [0.40, 0.60, 0.50, 0.65, 0.35], "teacher": [0.80]}
    says = found(rows(wide)).sentence()
    assert "gap too small or too uncertain to divide by (Teacher .80 minus Independent .50" in says
    assert "| KL | gap too small | difference .20 [" in found(rows(wide)).first_screen().answer
    assert "KL: no gap to close (difference .20 [" in none.shares(["kl"])
    answer = none.first_screen().answer
    assert "| KL | no gap to close | difference .20 [.1" in answer
    assert "] (share) | – |" in answer


# --- the first screen -----------------------------------------------------------------------


def test_the_first_screen_of_a_full_table() -> None:
    claims = [
        claim("kl", "agrees", measure="other"),
        claim("kl", "disagrees", condition=""),
        claim("kl", "agrees"),
        claim("kl", "open"),
        claim("hint", "disagrees"),
    ]
    there = found(rows({arm: FULL[arm] for arm in ("teacher", "independent", "kl")})).answers()
    screen = found(rows(FULL), claims=claims, elsewhere={"CIFAR-10": there}).first_screen()
    sentence, table, reading = screen.answer.split("\n\n")
    assert reading == (
        "<small>In brackets: 95% intervals; of the gap: the way from one trained alone (0) to its "
        "teacher (1); a word holds for all of its interval; –: the paper says nothing of it."
        "</small>"
    )
    gap = screen.sure.split("\n\n")[0]
    assert sentence == found(rows(FULL)).sentence()
    kl, hint, crd = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    )
    assert kl[:2] == ["KL", "part"]
    assert kl[2].startswith(".50 [.4")
    assert kl[2].endswith("] of the gap")
    assert kl[3] == "CIFAR-10: part"
    assert kl[4] == f"{VERDICTS['agrees']} agrees"
    assert hint[3:] == ["not measured", f"{VERDICTS['disagrees']} disagrees"]
    assert crd[4] == "–"
    assert " | published runs | as in the paper? |" in table
    alone = found(rows(FULL), claims=claims).first_screen().answer
    assert " | amount | as in the paper? |" in alone
    assert "; no other run of this is published; –:" in alone
    assert gap == "*The gap (share):* Teacher .90 minus Independent .50: .40 [.39, .41]."
    # A symbol answers the second question only.
    assert not any(mark in sentence + gap for mark in (VERDICTS["agrees"], "\N{BALLOT X}"))
    assert "students: 5 KL, 5 Hint, 5 CRD (seeds 0 to 4); teachers: 1; no single images" in (
        screen.sure
    )
    assert "how students of different seeds differ (KL, Hint, CRD)" in screen.sure
    assert screen.picture is not None


def test_a_picture_of_every_network_leaves_out_what_was_not_measured() -> None:
    full = found(rows(FULL))
    figure = full.points(["independent", "kl", "control-smoothed"])
    assert figure is not None
    axis = figure.axes[0]
    assert len(axis.get_yticks()) == 2
    assert axis.get_xlabel() == "Gives the same answer (share)"
    assert full.points(["control-smoothed"]) is None
    lined = full.points(["kl"], {"chance": 0.1})
    assert lined is not None
    assert "chance" in [line.get_label() for line in lined.axes[0].get_lines()]
    as_row = full.points(["teacher", "kl"])
    assert as_row is not None
    assert as_row.axes[0].get_yticklabels()[0].get_text() == "Teacher"


def test_images_limit_where_their_choice_weighs_more() -> None:
    values = {"teacher": [1.0], "independent": [0.5, 0.5], "kl": [0.75, 0.75]}
    right = {"teacher": (1, 1, 1, 1), "independent": (1, 1, 0, 0), "kl": (1, 1, 1, 0)}
    items = [
        {"item": item, "source": item // 2, "arm": arm, "seed": seed, "value": float(value)}
        for arm, kept in right.items()
        for seed in range(len(values[arm]))
        for item, value in enumerate(kept)
    ]
    frame = pd.DataFrame(items).assign(condition="changed", measure="same", prediction=0)
    sure = kd.Findings(Outcome(rows(values), frame), SAME, ("kl",)).first_screen().sure
    assert "test images: 4, made from 2 originals" in sure
    assert "which images were tested (KL)" in sure
    planes = Measure("same", "gives the same answer", "changed", items="planes")
    sure = kd.Findings(Outcome(rows(values), frame), planes, ("kl",)).first_screen().sure
    assert "test planes: 4" in sure
    assert "which planes were tested (KL)" in sure


@pytest.mark.parametrize(
    ("values", "says", "row"),
    [
        (
            {"teacher": [0.9], "independent": [0.5], "kl": [0.7]},
            "KL: cannot tell, difference .20 [no interval]",
            "| KL | cannot tell | difference .20 [no interval] (share) |",
        ),
        (
            {"independent": [0.5, 0.5, 0.6], "kl": [0.7, 0.6, 0.8]},
            "KL: cannot tell, difference .17 [",
            "| KL | cannot tell | difference .17 [",
        ),
        ({"kl": [0.7]}, "KL: not measured", "| KL | not measured | – |"),
        ({}, "KL: not measured", "| KL | not measured | – |"),
    ],
)
def test_a_crippled_table_is_said_in_words(values: Values, says: str, row: str) -> None:
    crippled = found(rows(values), methods=("kl", "hint"))
    screen = crippled.first_screen()
    assert says in screen.answer
    assert row in screen.answer
    assert "; Hint: not measured." in screen.answer
    assert "| Hint | not measured | – | – |" in screen.answer
    assert "0 Hint" in screen.sure
    assert (screen.picture is None) == (not values)
    assert crippled.means(["hint"]) == "Hint not measured"
    assert crippled.differences(["hint"]) == "Hint: not measured"
    assert crippled.shares(["hint"]) == "Hint: not measured"
    assert crippled.share("hint").format() == "not measured"
    assert crippled.difference("hint").n == 0


def test_one_student_and_no_method() -> None:
    one = found(rows({"teacher": [0.9], "independent": [0.5], "kl": [0.7]}), methods=("kl",))
    sure = one.first_screen().sure
    assert "students: 1 KL (seed 0); " in sure
    assert "there being one student only (KL)" in sure
    assert "no way of teaching was compared" in found(rows(FULL), methods=()).sentence()


def test_verdicts_are_those_of_the_claims() -> None:
    claims = kd.claims.evaluate(kd.claims.load("color-invariance"), found(rows(FULL)).outcome)
    table = found(rows(FULL), claims=claims).verdicts()
    assert table == kd.claims.verdict_table(claims)
    assert len(table.splitlines()) == 2 + len(claims)


def test_a_verdict_on_another_comparison_is_not_the_answer() -> None:
    elsewhere = found(rows(FULL), claims=[claim("kl", "agrees", reference="kl-tau-1")])
    assert "agrees" not in elsewhere.first_screen().answer


# Students alone around .50 and a teacher at .90: each row is KL's students, the word that these
# give, and what the take-away makes of it.
BRANCHES = [
    (
        [0.80, 0.82, 0.78, 0.81, 0.79],
        "most",
        "most of the way from one trained alone to its teacher",
    ),
    ([0.66, 0.68, 0.64, 0.67, 0.65], "part", "part of the way from one trained alone"),
    ([0.57, 0.53, 0.55, 0.60, 0.54], "a little", "stays nearer to one trained alone"),
    ([0.54, 0.84, 0.62, 0.80, 0.62], "some, how much is open", "only more could"),
    ([0.50, 0.51, 0.49, 0.50, 0.50], "none to speak of", "would be without a teacher"),
    ([0.40, 0.42, 0.38, 0.41, 0.39], "the opposite", "further from its teacher"),
    ([0.30, 0.90, 0.50, 0.70, 0.40], "cannot tell", "only more students could tell"),
]


@pytest.mark.parametrize(("values", "word", "says"), BRANCHES)
def test_the_take_away_has_a_branch_for_each_outcome(
    values: list[float], word: str, says: str
) -> None:
    run = found(rows(FULL | {"kl": values}), methods=("kl",))
    assert wording.word(run.share("kl")) == word
    assert (
        str(run.take_away()) == f"**Here.** KL: {wording.LESSONS[word].format(end='its teacher')}."
    )
    assert says in run.take_away()


def test_the_take_away_where_there_is_no_gap_or_nothing() -> None:
    alone = FULL["independent"]
    none = found(rows({"teacher": [0.5], "independent": alone, "kl": alone}), methods=("kl",))
    assert "no gap to close" in none.take_away()
    small = found(rows(FULL | {"teacher": [0.555]}), methods=("kl",))
    assert "too little apart from its teacher for a share" in small.take_away()
    assert "not measured" in found(rows(FULL), methods=("dkd",)).take_away()
    assert set(wording.LESSONS) >= {word for _, word, _ in BRANCHES}
    twins = rows({"second-teacher": [0.9]} | FULL, "alike", "")
    assert "to a teacher of the same kind." in found(twins, measure=PAIR).take_away()


def test_the_take_away_says_what_other_images_say_to_it() -> None:
    cases = {
        "CIFAR-10": ("the opposite", -0.07, -0.11, -0.03),
        "PACS": ("part", 0.4, 0.3, 0.5),
    }
    elsewhere = {
        name: {
            "measure": "same",
            "condition": "changed",
            "methods": {
                "kl": {"word": word, "amount": f"{value}", "low": low, "high": high, "share": True}
            },
        }
        for name, (word, value, low, high) in cases.items()
    }
    elsewhere["Faces"] = elsewhere["PACS"] | {"condition": "else"}
    claims = [claim("kl", "agrees"), claim("hint", "open")]
    text = found(rows(FULL), claims=claims, elsewhere=elsewhere).take_away()
    mark, doubt = VERDICTS["agrees"], VERDICTS["open"]
    assert f"**As in the paper?** KL: {mark} agrees; Hint: {doubt} open." in text
    assert "**On CIFAR-10.** KL: the opposite, -0.07. Not so here: KL." in text
    assert "**On PACS.** KL: part, 0.4." in text
    assert "On PACS.** KL: part, 0.4. Not so" not in text
    assert "Faces" not in text


def test_a_measure_may_name_its_end() -> None:
    """All of the teacher's images fool the teacher: a share of the way there is out of 1."""
    fooled = {"teacher": [1.0], "second-teacher": [0.3], "independent": [0.2] * 4 + [0.21]}
    measure = Measure("same", "is fooled", "changed", of="pair", end="teacher")
    run = found(rows(fooled | {"kl": [0.6, 0.61, 0.59, 0.6, 0.6]}), measure=measure)
    assert run.end == "teacher" == adversarial.MEASURES[0].end
    assert float(run.share("kl")) == pytest.approx((0.6 - 0.202) / (1 - 0.202))
    assert "Teacher 1.00 minus Independent .20" in str(run.first_screen().sure)
