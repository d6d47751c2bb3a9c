"""What chapters cost: networks by the way they were taught, whatever that is called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdnotes.book import page_tables, results
from kdnotes.training import cache


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[Any]:
    """Two finished runs that share two networks, one of them taught in a way of one's own."""
    monkeypatch.setattr(cache, "seconds", lambda spec: spec.seconds)
    taught = SimpleNamespace(short="telepathy")
    specs = [
        SimpleNamespace(
            key=str(number),
            role=role,
            method=method,
            teacher=None,
            parts=(),
            trained_before=(),
            seconds=60.0 * number,
        )
        for number, (role, method) in enumerate(
            [("teacher", None), ("student", None), ("student", taught)], start=1
        )
    ]
    notebook = tmp_path / "any.ipynb"
    notebook.write_text(
        '{"cells": [{"metadata": {"papermill": {"duration": 20.0}}},'
        ' {"metadata": {"papermill": {"duration": 4.0}}}, {"metadata": {}}],'
        ' "metadata": {"papermill": {"duration": 30.0}}}'
    )
    runs = []
    for name, wanted in (("first", specs), ("second", specs[:2])):
        networks = [SimpleNamespace(arm="any", spec=spec) for spec in wanted]
        request = SimpleNamespace(
            chapter=SimpleNamespace(name=name), study=SimpleNamespace(networks=networks)
        )
        runs.append(
            SimpleNamespace(run=SimpleNamespace(request=request, notebook=notebook), seconds=30.0)
        )
    return runs


def test_the_profile_names_a_method_that_the_package_does_not_know(done: list[Any]) -> None:
    assert page_tables.profile(done).splitlines() == [
        "| what | how many | seconds of one core | share |",
        "|:--|--:|--:|--:|",
        "| training students by telepathy | 1 | 180 | 43% |",
        "| training students without a teacher | 1 | 120 | 29% |",
        "| training teachers | 1 | 60 | 14% |",
        "| chapters: measuring | 2 | 40 | 10% |",
        "| chapters: kernels, notebooks read and written | 2 | 12 | 3% |",
        "| chapters: figures, tables and verdicts | 2 | 8 | 2% |",
        "| **all** |  | 420 | 100% |",
    ]
    assert page_tables.profile([]) == page_tables.NOT_MEASURED


def test_networks_that_chapters_share_count_once_in_the_last_row(done: list[Any]) -> None:
    assert page_tables.table(done).splitlines()[2:] == [
        "| first | 3 | 6.0 min of one core | 30 s |",
        "| second | 2 | 3.0 min of one core | 30 s |",
        "| **all** | 3 | 6.0 min of one core | 60 s |",
    ]
    assert page_tables.table([]) == page_tables.NOT_MEASURED


def test_what_doubling_adds_is_a_mean_over_seeds(tmp_path: Path) -> None:
    path = tmp_path / "trained-out.csv"
    assert "not measured" in page_tables.trained_out(path)
    path.write_text(
        "world,who,network,images,epochs,seed,accuracy,doubled,loss left\n"
        "scenes,independent,vgg-small,4000,9,100,.909,.929,\n"
        "scenes,independent,vgg-small,4000,9,101,.921,.927,\n"
        "scenes,crd,vgg-small,4000,9,100,,,.2531\n"
    )
    published = tmp_path / "published" / "cifar10" / path.name
    published.parent.mkdir(parents=True)
    published.write_text(
        "world,who,network,images,epochs,seed,accuracy,doubled,loss left\n"
        "scenes,independent,vgg-small,4000,9,100,.5,.6,\n"
    )
    head, _, alone, taught, photos = page_tables.trained_out(path).splitlines()
    assert head == "| images | who | network | epochs | right | doubling adds | own loss left |"
    assert alone == "| scenes | Independent | vgg-small | 9 | .915 | .013 |  |"
    assert taught.endswith("| vgg-small | 9 |  |  | 25% |")
    assert photos == "| CIFAR-10 | Independent | vgg-small | 9 | .500 | .100 |  |"  # its own row


def test_verdicts_of_both_editions_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "first-edition.csv"
    assert "do not come" in page_tables.changed(path, tmp_path)
    path.write_text(
        "claim,verdict,estimate,low,high,kind\n"
        "kept,inconclusive,.1,-.1,.3,difference\ngone,reproduced,.2,.1,.3,difference\n"
    )
    claim = {"measure": "m", "low": 0.05, "high": 0.15, "criterion": "c", "paper": None}
    claim |= {"estimate": 0.1, "kind": "difference", "verdict": "agrees", "reason": "r"}
    both = [claim | {"id": "kept"}, claim | {"id": "new"}]
    results.save("scorecard", None, both, {}, 1.0, tmp_path)
    assert page_tables.changed(path, tmp_path).splitlines()[2:] == [
        "| `kept` | inconclusive | **agrees** (difference .10 [.05, .15]) |",
        "| `gone` | reproduced | no longer asked |",
        "| `new` | not asked | **agrees** (difference .10 [.05, .15]) |",
    ]


def test_two_runs_are_compared_by_their_verdicts(tmp_path: Path) -> None:
    def run(name: str, *verdicts: str) -> Path:
        claims = [
            dict.fromkeys(results.CLAIM_KEYS, 0)
            | {"id": f"c{number}", "verdict": verdict, "measure": "any", "criterion": "any"}
            for number, verdict in enumerate(verdicts)
        ]
        results.save("scorecard", None, claims, {}, 1.0, tmp_path / name)
        return tmp_path / name

    assert page_tables.again(run("a"), tmp_path / "none").startswith(
        "The laptop edition was not run"
    )
    said = page_tables.again(
        run("b", "agrees", "open", "agrees", "agrees"),
        run("c", "agrees", "agrees", "disagrees", "open"),
    )
    assert "Of 4 verdicts 3 differ; 1 of these are firm in both, and opposite." in said
