"""The probes on networks from outside, through the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_book import files_under, kdnotes

from kdnotes import results


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Test images of two classes that differ in brightness."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, brightness in (("dark", 60), ("light", 190)):
        folder = tmp_path / "photos" / "test" / label
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.normal(brightness, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def checkpoint(path: Path, seed: int, classes: int = 2) -> str:
    from safetensors.torch import save_file

    from kdnotes import models

    save_file(models.build("vgg-small", classes, seed).body.state_dict(), path)
    return f"vgg-small:{path}"


def test_audit(tmp_path: Path, photos: Path) -> None:
    teacher, student = (checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    out = tmp_path / "out"
    models = ("--teacher", teacher, "--data", photos, "--out", out)
    # The teacher as its own student: agreement is 1 whatever the networks are.
    done = kdnotes("audit", *models, "--student", teacher, "--independent", student)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert files_under(out) == ["audit.csv", "audit.items.parquet", "audit.json", "audit.md"]
    table = results.table("audit", out).set_index(["arm", "condition", "measure"])["value"]
    assert table["student", "", "agreement"] == 1
    assert table["student", "", "predictive_kl"] == pytest.approx(0, abs=1e-6)
    assert table["teacher", "", "accuracy"] == table["student", "", "accuracy"]
    assert {"win_rate", "fooling_rate", "same_answer"} <= set(table.index.get_level_values(2))
    saved = results.load("audit", out)
    by_id = {claim["id"]: claim for claim in saved.claims}
    agreement = by_id["audit-agreement"]
    expected = 1 - table["independent", "", "agreement"]
    assert agreement["estimate"] == pytest.approx(expected)
    assert saved.parameters["images"] == 24
    for path in out.iterdir():
        assert not re.search(rf"[\s`:\"]{tmp_path}".encode(), path.read_bytes())

    alone = kdnotes("audit", *models, "--student", student)
    assert alone.exit_code == 0, alone.output
    table = results.table("audit", out)
    assert "win_rate" not in set(table["measure"])
    assert set(table["arm"]) == {"teacher", "student"}
    assert "no independent student" in alone.stdout
    assert {claim["verdict"] for claim in results.load("audit", out).claims} == {""}


def test_audit_refuses_what_does_not_fit(tmp_path: Path, photos: Path) -> None:
    good = checkpoint(tmp_path / "good.safetensors", 1)
    other = checkpoint(tmp_path / "other.safetensors", 1, classes=3)
    out = tmp_path / "out"
    for changes, message in [
        ({"--student": other}, "--student: checkpoint other.safetensors does not fit"),
        ({"--independent": "vgg-small:none.pt"}, "--independent: no checkpoint 'none.pt'"),
        ({"--teacher": "no-such-net"}, "--teacher: unknown model 'no-such-net'"),
        ({"--data": str(tmp_path / "none")}, "there is no folder"),
        ({"--images": "0"}, "--images must be 1 or more"),
    ]:
        options = {"--teacher": good, "--student": good, "--data": str(photos), "--out": str(out)}
        words = [word for pair in (options | changes).items() for word in pair]
        done = kdnotes("audit", *words)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
        assert not out.exists()
