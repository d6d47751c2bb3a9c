"""What was changed in a run, what that changed, and claims in a reader's words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdnotes import probes
from kdnotes.book import report
from kdnotes.cli import app
from kdnotes.probes import wording
from kdnotes.stats import claims

LAPTOP = Path(__file__).resolve().parents[1] / "results" / "laptop"


def answer(estimate: float, word: str) -> dict[str, Any]:
    amount = f"{estimate:.2f} of the gap".replace("0.", ".")
    return {"word": word, "amount": amount, "share": True, "estimate": estimate}


def run_of(folder: Path, tau: float, share: float, word: str, verdict: str) -> Path:
    run = json.loads((LAPTOP / "fidelity.json").read_text())
    run["parameters"]["tau"] = tau
    run["claims"] = run["claims"][:1]
    run["claims"][0]["verdict"] = verdict
    about = {"measure": "agreement", "condition": "", "sentence": "A student does: KL."}
    run["answers"] = about | {"methods": {"kl": answer(share, word)}}
    folder.mkdir()
    run.pop("seal")  # changed by hand
    (folder / "fidelity.json").write_text(json.dumps(run))
    shutil.copy(LAPTOP / "fidelity.csv", folder)
    return folder


def test_show_names_what_differs_from_the_preset(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "warm", 8.0, 0.77, "most", "agrees")
    shown = CliRunner().invoke(app, ["show", str(folder)])
    assert shown.exit_code == 0
    assert "preset laptop: tau 8, preset 4\n" in shown.stdout
    assert "KL  most  .77 of the gap" in shown.stdout
    assert "agrees" in shown.stdout
    assert "train_count" not in shown.stdout
    as_published = CliRunner().invoke(app, ["show", str(LAPTOP)])
    assert "tau 8, preset" not in as_published.stdout


def test_compare_says_what_differs_side_by_side(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", 4.0, 0.75, "most", "agrees")
    other = run_of(tmp_path / "other", 8.0, 0.4, "part", "open")
    shown = CliRunner().invoke(app, ["compare", str(one), str(other)])
    assert shown.exit_code == 0
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "tau 4 8" in lines
    assert "KL most, .75 of the gap \N{RIGHTWARDS ARROW} part, .40 of the gap" in lines
    assert "verdicts: 1 of 1 differ" in lines
    assert not any(line.startswith("seeds") for line in lines)
    same = CliRunner().invoke(app, ["compare", str(one), str(one)])
    assert "the same parameters" in same.stdout
    assert "0 of 1 differ" in same.stdout


def test_folders_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", 4.0, 0.75, "most", "agrees")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(LAPTOP / "bias.json", other)
    for folder, said in (
        (other, "no results of the same chapter"),
        (tmp_path / "none", "no folder"),
    ):
        refused = CliRunner().invoke(app, ["compare", str(one), str(folder)])
        assert refused.exit_code != 0
        assert said in str(refused.exception) + refused.output


def test_what_a_change_changed_is_told_where_the_same_was_asked() -> None:
    here = {"measure": "m", "condition": "", "methods": {"kl": answer(0.77, "most")}}
    there = {"measure": "m", "condition": "", "methods": {"kl": answer(0.75, "part")}}
    arrow = report.ARROW
    told = f".75 of the gap {arrow} .77 of the gap (part {arrow} most)"
    assert report.effects(here, there) == {"kl": told}
    there["methods"]["kl"] |= {"word": "most", "amount": ".75 [.70, .80] of the gap"}
    assert report.effects(here, there) == {"kl": f".75 of the gap {arrow} .77 of the gap"}
    assert report.effects(here | {"condition": "elsewhere"}, there) == {}
    assert report.said({"tau": (8.0, 4.0)}) == "tau 8, preset 4"


def test_no_claim_is_told_in_the_names_of_tables() -> None:
    for claim in claims.load():
        told = wording.asked(claim.model_dump())
        assert "_" not in told, told
        assert "=" not in told, told
        for words in re.findall(r"\[(.*?)\]", told):
            assert set(words.split(", ")) <= set(wording._CONDITIONS.values()), told
        if claim.reference == "independent":
            assert "independent" not in told
    (claim,) = (each for each in claims.load() if each.id == "fidelity-agreement-kl")
    told = wording.asked(claim.model_dump() | {"arm": "independent", "reference": "teacher"})
    assert told.startswith("Gives the teacher's answer (share): ")
    assert told.endswith("lies between -.05 and .05.")


@pytest.mark.parametrize("condition", ["domain=color", "domain=m"])
def test_a_measure_is_told_by_the_probe_whose_condition_it_is(condition: str) -> None:
    assert probes.check_measure("accuracy", condition).condition == "domain=*"
