"""The probes on networks from outside, through the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_book import files_under, kdnotes

import kdnotes as kd
from kdnotes import data, probes
from kdnotes.book import results
from kdnotes.errors import RequestError


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

    from kdnotes import networks

    save_file(networks.build("vgg-small", classes, seed).body.state_dict(), path)
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
    assert table["student", "domain=unseen", "consensus"] == 1
    assert table["student", "", "cka_last"] == pytest.approx(1)
    for condition in ("kind=crop,scale=primary", "kind=shift,max=primary"):
        twins = (table[arm, condition, "same_answer"] for arm in ("teacher", "student"))
        assert len(set(twins)) == 1
    saved = results.load("audit", out)
    by_id = {claim["id"]: claim for claim in saved.claims}
    agreement = by_id["audit-agreement"]
    expected = 1 - table["independent", "", "agreement"]
    assert agreement["estimate"] == pytest.approx(expected)
    measured = {(each.name, each.condition) for each in probes.measures() if each.reported}
    assert {(claim["measure"], claim["condition"]) for claim in saved.claims} == measured
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
        ({"--images": "0"}, "images must be 1 or more"),
    ]:
        options = {"--teacher": good, "--student": good, "--data": str(photos), "--out": str(out)}
        words = [word for pair in (options | changes).items() for word in pair]
        done = kdnotes("audit", *words)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
        assert not out.exists()


def test_damaged_files_are_left_out_only_on_request(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[data.DataSpec] = []

    def load(spec: data.DataSpec) -> data.ImageData:
        asked.append(spec)
        raise RequestError("that is all")

    monkeypatch.setattr(data, "load", load)
    model = checkpoint(tmp_path / "net.safetensors", 1)
    words = ("--teacher", model, "--student", model, "--data", photos, "--out", tmp_path / "out")
    for more in ((), ("--skip-damaged", "--size", "16")):
        assert kdnotes("audit", *words, *more).exit_code == 2
    assert [spec.options for spec in asked] == [{}, {"size": 16, "skip_damaged": True}]


def test_shifts_grow_with_the_images() -> None:
    from kdnotes import networks
    from kdnotes.data import ImageData
    from kdnotes.probes import crop_shift
    from kdnotes.probes.base import Cast, Member

    pixels = torch.randint(256, (10, 3, 96, 96), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10) % 2
    images = ImageData(pixels.to(torch.uint8), labels, ("even", "odd"), torch.arange(10), {}, {})
    built = [networks.freeze(networks.build("vgg-small", 2, seed)) for seed in (1, 2)]
    teacher, student = (
        Member(arm, 0, network, networks.taps(network))
        for arm, network in zip(("teacher", "student"), built, strict=True)
    )
    cast = Cast(teacher, None, (student,), images.classes)
    found = crop_shift.measure(cast, images).table
    expected = crop_shift.measure_views(cast, images, "shift", (3, 6, 12, 24), 12).table
    shifts = expected[expected["measure"] == "same_answer"]
    conditions = {f"kind=shift,max={pixels}" for pixels in (3, 6, 12, 24, "primary")}
    assert set(shifts["condition"]) == conditions
    merged = found.merge(shifts, on=["arm", "seed", "measure", "condition"])
    assert len(merged) == len(shifts)
    assert (merged["value_x"] == merged["value_y"]).all()


def test_networks_without_stages_are_told_apart() -> None:
    from dataclasses import replace

    from kdnotes import networks
    from kdnotes.probes.base import Cast, Member

    network = networks.freeze(networks.build("vgg-small", 2, 0))
    member = Member("teacher", 0, network, ())
    cast = Cast(member, None, (replace(member, arm="student"),), ("even", "odd"))
    images = kd.images(pixels=torch.zeros(4, 3, 32, 32), labels=torch.arange(4) % 2)
    asked = [probes.localization.PROPERTY, probes.representations.PROPERTY]
    with pytest.raises(RequestError, match="no stages with feature maps"):
        kd.measure(cast, images, [which.name for which in asked])
