"""What chapters cost: networks by the way they were taught, whatever that is called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kdnotes.book import costs
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
    assert costs.profile(done).splitlines() == [
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
    assert costs.profile([]) == costs.NOT_MEASURED


def test_networks_that_chapters_share_count_once_in_the_last_row(done: list[Any]) -> None:
    assert costs.table(done).splitlines()[2:] == [
        "| first | 3 | 6.0 min of one core | 30 s |",
        "| second | 2 | 3.0 min of one core | 30 s |",
        "| **all** | 3 | 6.0 min of one core | 60 s |",
    ]
    assert costs.table([]) == costs.NOT_MEASURED
