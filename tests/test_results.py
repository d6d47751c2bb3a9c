"""Saved results are complete or absent, read back as they were, and name no place."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdnotes import paths
from kdnotes.book import results
from kdnotes.errors import RequestError
from kdnotes.probes.base import Outcome
from kdnotes.stats import claims

CLAIM: dict[str, Any] = {
    "id": "one",
    "measure": "agreement",
    "estimate": np.float64(0.5),
    "low": float("nan"),
    "high": 0.6,
    "criterion": "above 0",
    "verdict": "open",
    "paper": None,
}


def outcome() -> Outcome:
    table = pd.DataFrame(
        {
            "arm": ["teacher", "kl", "kl"],
            "seed": [0, 0, 1],
            "condition": ["", "", "eps=4/255"],
            "measure": ["accuracy", "accuracy", "fooling_rate"],
            "value": [1 / 3, 0.25, float("nan")],
        }
    )
    items = pd.DataFrame(
        {
            "item": np.arange(4, dtype=np.int32),
            "source": np.array([9, 9, 8, 8]),
            "arm": pd.Categorical(["kl"] * 4),
            "seed": [0] * 4,
            "condition": pd.Categorical([""] * 4),
            "prediction": np.array([1, 2, 3, 4], np.int16),
            "measure": pd.Categorical(["accuracy"] * 4),
            "value": np.array([0, 1, 0, np.nan], np.float32),
        }
    )
    return Outcome(table, items)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDNOTES_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def test_what_is_saved_is_read_back(out: Path) -> None:
    saved = outcome()
    results.save("fidelity", saved, [CLAIM], {"tau": 4.0, "seeds": (0, 1)}, 1.234)
    assert sorted(path.name for path in out.iterdir()) == [
        "fidelity.csv",
        "fidelity.items.parquet",
        "fidelity.json",
    ]
    table = results.table("fidelity")
    assert tuple(table.columns) == results.COLUMNS
    assert (table.pop("chapter") == "fidelity").all()
    # The empty condition is a text, not a missing value.
    pd.testing.assert_frame_equal(table, saved.table, check_dtype=False, rtol=1e-7)
    items = results.items("fidelity")
    pd.testing.assert_frame_equal(items, saved.items, check_categorical=False)
    assert items["prediction"].dtype == np.int16
    loaded = results.load("fidelity")
    assert loaded.claims == [CLAIM | {"estimate": 0.5, "low": None}]
    assert loaded.parameters == {"tau": 4.0, "seeds": [0, 1]}
    assert loaded.seconds == 1.23
    assert loaded.versions["numpy"] == np.__version__
    assert f"{os.cpu_count()} cores" in loaded.hardware
    assert loaded.training_seconds is None


def test_results_of_an_earlier_version_are_read(out: Path) -> None:
    results.save("a", outcome(), [CLAIM], {}, 1)
    content = json.loads((out / "a.json").read_text())
    for name in ("hardware", "training_seconds"):
        del content[name]
    (out / "a.json").write_text(json.dumps(content))
    assert results.load("a").training_seconds is None
    del content["seconds"]
    (out / "a.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"is not the result of a chapter: seconds: Field"):
        results.load("a")


def test_the_json_is_strict(out: Path) -> None:
    results.save("a", outcome(), [CLAIM], {"deep": {"x": [float("inf")]}}, 0)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (out / "a.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert list(content) == list(results.Saved.model_fields)
    assert content["parameters"] == {"deep": {"x": [None]}}


def test_a_chapter_that_measures_nothing_has_empty_tables(out: Path) -> None:
    results.save("b", outcome(), [CLAIM, CLAIM | {"id": "two"}], {}, 0)
    results.save("a", None, [CLAIM | {"id": "three"}], {}, 0)
    assert results.chapters() == ["a", "b"]
    assert tuple(results.table("a").columns) == results.COLUMNS
    assert tuple(results.items("a").columns) == results.ITEM_COLUMNS


def test_a_claim_is_read_back_as_it_was_found(out: Path) -> None:
    known = claims.load("fidelity")
    found = claims.evaluate(known, outcome())
    results.save("fidelity", outcome(), found, {}, 0)
    assert results.load("fidelity").claims == found
    assert set(results.CLAIM_KEYS) < set(found[0])


def test_versions_are_of_packages_that_the_code_uses() -> None:
    imported = set()
    for path in (Path(__file__).resolve().parents[1] / "kdnotes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    called = {"scikit-learn": "sklearn", "lightning-fabric": "lightning_fabric"}
    named = {called.get(name, name) for name in results.PACKAGES}
    assert named <= imported
    computing = {"torch", "torchvision", "timm", "lightning_fabric", "foolbox", "torchmetrics"}
    computing |= {"captum", "kornia", "numpy", "scipy", "pandas", "sklearn"}
    assert imported & computing <= named


def test_incomplete_claims_and_tables_are_refused_and_nothing_is_written(out: Path) -> None:
    short = {key: value for key, value in CLAIM.items() if key != "verdict"}
    with pytest.raises(ValueError, match="claim 'one' lacks verdict"):
        results.save("a", outcome(), [short], {}, 0)
    bad = Outcome(outcome().table.drop(columns="seed"), outcome().items)
    with pytest.raises(KeyError, match="seed"):
        results.save("a", bad, [CLAIM], {}, 0)
    assert not out.exists()


def test_no_absolute_path_is_written(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    monkeypatch.setenv("KDNOTES_BASE", str(base))
    home = Path.home()
    given = {
        "data_dir": str(tmp_path / "data"),
        "folder": tmp_path / "data",
        "dataset": f"imagefolder:{tmp_path}/photos",
        "teacher": "resnet18:~/weights.pt",
        "names": ["relative/path", "https://example.org/x", "vgg-small", "~67.2"],
    }
    results.save("a", None, [], given, 0)
    assert not re.search('["/:]/[a-z]', (out / "a.json").read_text().replace("https://", ""))
    read = results.load("a").parameters
    assert read["data_dir"] == read["folder"] == "../data"
    assert read["dataset"] == "imagefolder:../photos"
    prefix, _, weights = read["teacher"].partition(":")
    assert prefix == "resnet18"
    assert (base / weights).resolve() == (home / "weights.pt").resolve()
    assert read["names"] == given["names"]


def test_damaged_or_missing_results_are_named(out: Path) -> None:
    out.mkdir()
    for read in (results.load, results.table, results.items):
        with pytest.raises(RequestError, match="there is no"):
            read("a")
    (out / "a.json").write_text('{"chapter": "a"')
    with pytest.raises(RequestError, match=r"a\.json is not the result of a chapter"):
        results.load("a")
    (out / "a.json").write_text("[]")
    with pytest.raises(RequestError, match=r"a\.json is not the result of a chapter"):
        results.load("a")


def test_by_hand_results_go_into_the_build_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDNOTES_OUT", raising=False)
    monkeypatch.delenv("KDNOTES_BOOK", raising=False)
    repository = Path(__file__).resolve().parents[1]
    assert results.folder() == repository / "_build" / "runs" / "by-hand"
    assert paths.root() == repository
    assert os.access(repository / "_toc.yml", os.R_OK)
