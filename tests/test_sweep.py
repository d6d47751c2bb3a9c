"""A chapter over a grid: here, on a scheduler, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_book
from tiny_book import kdnotes

from kdnotes.book import results, sweep
from kdnotes.errors import RequestError


@pytest.fixture
def make_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a book of one chapter that needs no networks, and use it."""
    return partial(tiny_book.use, tmp_path, monkeypatch)


def test_sweep_gathers_one_table_and_goes_on_where_it_stopped(
    make_book: Any, tmp_path: Path
) -> None:
    make_book()
    sweep_it = ("sweep", "scorecard", "--grid", "tau=1,2.5", "--preset", "smoke", "--out", "out")
    done = kdnotes(*sweep_it)
    assert done.exit_code == 0, done.output
    table = results.table("scorecard", tmp_path / "out")
    assert list(table.columns) == ["tau", *results.COLUMNS]
    assert table["tau"].tolist() == table["value"].tolist() == [1, 2.5]
    saved = results.load("scorecard", tmp_path / "out")
    assert [claim["point"] for claim in saved.claims] == [{"tau": "1"}, {"tau": "2.5"}]
    assert saved.parameters == {"preset": "smoke"}
    assert saved.seconds == 3
    first = tmp_path / "out" / "tau=1" / "scorecard.ipynb"
    changed = first.stat().st_mtime_ns
    (tmp_path / "out" / "tau=2.5" / "scorecard.csv").unlink()
    again = kdnotes(*sweep_it)
    assert "scorecard tau=1: " in again.stdout
    assert again.stdout.count("not executed again") == 1
    assert first.stat().st_mtime_ns == changed
    assert "warm tau=2.5" in kdnotes("show", "out").stdout


def test_sweep_on_a_dask_scheduler(make_book: Any, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    make_book()
    grid = ("sweep", "scorecard", "--grid", "tau=1,2", "--out", "out", "--scheduler")
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(threads_per_worker=2, **options) as cluster:
        wrong = kdnotes(*grid, cluster.scheduler_address)
        assert wrong.exit_code == 2
        assert "workers with 2 threads; start them with 'dask worker" in wrong.stderr
        assert not (tmp_path / "out").exists()
    with distributed.LocalCluster(threads_per_worker=1, **options) as cluster:
        done = kdnotes(*grid, cluster.scheduler_address)
        assert done.exit_code == 0, done.output
    assert results.table("scorecard", tmp_path / "out")["value"].tolist() == [1, 2]


def test_grid_points_are_the_product_in_order() -> None:
    points = sweep.grid_points({"tau": "1, 2", "methods": "kl;kl,crd"})
    assert points == [
        {"tau": "1", "methods": "kl"},
        {"tau": "1", "methods": "kl,crd"},
        {"tau": "2", "methods": "kl"},
        {"tau": "2", "methods": "kl,crd"},
    ]
    folders = [sweep.point_folder(Path("out"), point).name for point in points]
    assert folders[1] == "tau=1,methods=kl,crd"
    escaping = sweep.point_folder(Path("out"), {"dataset": "imagefolder:../x y"})
    assert escaping.parent == Path("out")


def test_points_that_share_a_folder_are_refused(make_book: Any, tmp_path: Path) -> None:
    make_book()
    for name in ("a b", "a-b"):
        (tmp_path / name).mkdir()
    points = [{"data_dir": "a b"}, {"data_dir": "a-b"}]
    with pytest.raises(RequestError, match="one folder"):
        sweep.runs("scorecard", {}, points, tmp_path)
