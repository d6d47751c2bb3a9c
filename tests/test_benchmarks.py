"""The benchmarks: the timing helper by hand, the form of the table, and peers where they are."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import timing  # noqa: E402
from benchmarks.setting import DisagreementError, Setting  # noqa: E402
from benchmarks.timing import Contender, Row  # noqa: E402
from kdnotes import networks  # noqa: E402
from kdnotes.book import page_tables  # noqa: E402
from kdnotes.data import DataSpec  # noqa: E402
from kdnotes.methods.kl import KL  # noqa: E402
from kdnotes.training import cache  # noqa: E402
from kdnotes.training.cache import Planned  # noqa: E402
from kdnotes.training.specification import NetworkSpec, Recipe  # noqa: E402


def ticking(times: list[float]) -> Iterator[float]:
    yield from times


def test_contenders_take_turns_and_preparing_is_not_timed() -> None:
    calls: list[str] = []
    now = [0.0]

    def working(name: str, seconds: float) -> Contender:
        def run() -> str:
            calls.append(name)
            now[0] += seconds
            return f"{name} in round {calls.count(name)}"

        def prepare() -> None:
            calls.append(f"prepare {name}")
            now[0] += 100.0

        return Contender(name, run, prepare)

    seconds, results = timing.interleave(
        [working("slow", 3.0), working("fast", 1.5)], 2, clock=lambda: now[0]
    )
    assert calls == ["prepare slow", "slow", "prepare fast", "fast"] * 2
    assert seconds == {"slow": [3.0, 3.0], "fast": [1.5, 1.5]}
    assert results == {"slow": "slow in round 2", "fast": "fast in round 2"}


def test_minimum_median_and_speedup_by_hand() -> None:
    # Started at 0, 10, 20, ... ; lasted 4, 2, 3, 1, 8, 2: reference 4, 3, 8 and other 2, 1, 2.
    times = ticking([0, 4, 10, 12, 20, 23, 30, 31, 40, 48, 50, 52])
    contenders = [Contender("reference", lambda: None), Contender("other", lambda: None)]
    seconds, _ = timing.interleave(contenders, 3, clock=lambda: next(times))
    assert seconds == {"reference": [4, 3, 8], "other": [2, 1, 2]}
    assert timing.rows("work", seconds, "reference") == [
        Row("work", "reference", 3, 4, 1.0),
        Row("work", "other", 1, 2, 3.0),
    ]


def test_two_contenders_of_one_name_and_no_round_are_refused() -> None:
    same = [Contender("one", lambda: None)] * 2
    with pytest.raises(ValueError, match="names of their own: one, one"):
        timing.interleave(same, 1)
    with pytest.raises(ValueError, match="at least one round"):
        timing.interleave(same[:1], 0)


def test_the_table_as_csv_and_as_text(tmp_path: Path) -> None:
    lines = [Row("c: PGD", "foolbox", 1.23456, 1.5, 1.0), Row("c: PGD", "kdnotes", 0.5, 0.6, 2.469)]
    path = tmp_path / "new" / "cpu.csv"
    timing.write(path, lines)
    with path.open(newline="") as file:
        found = list(csv.reader(file))
    assert found == [
        ["work", "contender", "seconds_min", "seconds_median", "speedup"],
        ["c: PGD", "foolbox", "1.235", "1.5", "1.00"],
        ["c: PGD", "kdnotes", "0.5", "0.6", "2.47"],
    ]
    texts = timing.as_text(lines).splitlines()
    assert len(texts) == 3
    assert len({len(text) for text in texts}) == 1


def test_a_published_table_has_the_columns() -> None:
    published = list((ROOT / "results" / "benchmarks").glob("*.csv"))
    assert published
    for path in published:
        assert path.read_text().splitlines()[0] == ",".join(timing.COLUMNS)


def test_the_table_on_the_site(tmp_path: Path) -> None:
    assert page_tables.benchmarks(tmp_path) == page_tables.NOT_TIMED
    timing.write(tmp_path / "cpu.csv", [Row("c: PGD", "kdnotes", 0.5, 0.6, 2.469)])
    assert page_tables.benchmarks(tmp_path).splitlines() == [
        "On the processor:",
        "",
        "| work | contender | least seconds | median | speed-up |",
        "|:--|:--|--:|--:|--:|",
        "| c: PGD | kdnotes | 0.5 | 0.6 | 2.47 |",
    ]


def test_results_that_differ_are_no_benchmark() -> None:
    setting = Setting()
    setting.check(True, "the same")
    with pytest.raises(DisagreementError, match="not the same"):
        setting.check(False, "not the same")
    assert setting.checks == ["the same"]


def test_a_peer_that_is_missing_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert Setting().with_peer("no_such_peer", lambda: Contender("never", print)) == []
    assert "no_such_peer is not installed" in capsys.readouterr().err


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_help_has_examples() -> None:
    said = command("--help")
    assert said.returncode == 0
    assert "python -m benchmarks --only c,d,e" in said.stdout


def test_an_unknown_work_is_named() -> None:
    said = command("--only", "a,z")
    assert said.returncode != 0
    assert "no work 'z'" in said.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_grad_cam") is None,
    reason="grad-cam is not installed: it is among benchmarks/requirements.txt",
)
def test_a_quick_run_writes_the_table(tmp_path: Path) -> None:
    path = tmp_path / "quick.csv"
    said = command("--quick", "--only", "d", "--device", "cpu", "--out", str(path))
    assert said.returncode == 0, said.stderr
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contender"] for row in rows] == ["grad-cam", "captum", "kdnotes"]
    assert rows[0]["speedup"] == "1.00"
    assert "maps are captum's" in said.stdout


def test_the_profile_counts_every_network_once_and_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "cache"))
    data = DataSpec(name="scenes", split="train", count=10)
    common = {"model": "vgg-small", "num_classes": 10, "data": data, "recipe": Recipe(epochs=1)}
    teacher = NetworkSpec(role="teacher", **common)
    alone = NetworkSpec(role="student", **common)
    taught = NetworkSpec(role="student", **common, teacher=teacher, method=KL())
    for spec, seconds in ((teacher, 40.0), (alone, 6.0), (taught, 14.0)):
        cache.save(Planned("any", spec), networks.build("vgg-small", 10, 0), [], seconds)
    runs = []
    for name, specs, durations, whole in (
        ("first", (alone, taught), (1.0, 20.0, 4.0), 28.0),
        ("second", (taught,), (9.0, None), 12.0),
    ):
        cells = [
            {"metadata": {"papermill": {"duration": value}} if value else {}} for value in durations
        ]
        notebook = tmp_path / f"{name}.ipynb"
        content = {"cells": cells, "metadata": {"papermill": {"duration": whole}}}
        notebook.write_text(json.dumps(content))
        study = SimpleNamespace(networks=[Planned("any", spec) for spec in specs])
        run = SimpleNamespace(notebook=notebook, request=SimpleNamespace(study=study))
        runs.append(SimpleNamespace(run=run, seconds=whole))
    assert page_tables.profile(runs).splitlines()[2:] == [  # type: ignore[arg-type]
        "| training teachers | 1 | 40 | 40% |",
        "| chapters: measuring | 2 | 29 | 29% |",
        "| training students by KL | 1 | 14 | 14% |",
        "| training students without a teacher | 1 | 6 | 6% |",
        "| chapters: kernels, notebooks read and written | 2 | 6 | 6% |",
        "| chapters: figures, tables and verdicts | 2 | 5 | 5% |",
        "| **all** |  | 100 | 100% |",
    ]
    assert page_tables.profile([]) == page_tables.NOT_MEASURED
