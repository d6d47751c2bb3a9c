"""The audit through the command line: what is measured, kept, refused, and said."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import shlex
import sqlite3
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta
from tiny_book import kdnotes

import kdnotes as kd
from kdnotes import networks, probes
from kdnotes.audit import answers, inputs, judging, report, running
from kdnotes.book import results
from kdnotes.data import ImageData
from kdnotes.errors import RequestError
from kdnotes.probes.base import Cast, Measure, Member, Outcome, Recorder
from kdnotes.stats import Interval, format_number

FILES = ["audit.changes.csv", "audit.csv", "audit.items.parquet", "audit.json", "report.html"]


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

    save_file(networks.build("vgg-small", classes, seed).body.state_dict(), path)
    return f"vgg-small:{path}"


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]


def written(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_file())


def test_all_that_is_measured(tmp_path: Path, photos: Path, models: list[str]) -> None:
    out = tmp_path / "out"
    asked = ("--teacher", models[0], "--data", photos, "--out", out)
    # The teacher as its own student: agreement is 1 whatever the networks are.
    done = kdnotes("audit", *asked, "--student", models[0], "--independent", models[1])
    assert done.exit_code == 0, done.output
    assert written(out) == FILES
    table = results.table("audit", out).set_index(["arm", "condition", "measure"])["value"]
    assert table["student", "", "agreement"] == 1
    assert table["student", "", "predictive_kl"] == pytest.approx(0, abs=1e-6)
    assert table["teacher", "", "accuracy"] == table["student", "", "accuracy"]
    assert {"win_rate", "fooling_rate", "same_answer"} <= set(table.index.get_level_values(2))
    assert table["student", "domain=unseen", "consensus"] == 1
    assert table["student", "", "cka_last"] == pytest.approx(1)
    saved = results.load("audit", out)
    by_id = {claim["id"]: claim for claim in saved.claims}
    expected = 1 - table["independent", "", "agreement"]
    assert by_id["audit-agreement"]["estimate"] == pytest.approx(expected)
    offered = {each.name for each in probes.properties() if each.audited} | {"accuracy"}
    # Where no attack succeeds on these networks, which were never trained, nothing is compared.
    found = {claim["property"] for claim in saved.claims}
    succeeded = table["teacher", "attack=teacher,eps=primary", "attack_success"] > 0
    assert found == offered - (set() if succeeded else {"adversarial"})
    for path in out.iterdir():
        if path.is_file():
            assert not re.search(rf"[\s`:\"]{tmp_path}".encode(), path.read_bytes())
    page = (out / "report.html").read_text()
    assert "<script" not in page
    right = table["teacher", "", "accuracy"]
    assert f"teacher {format_number(right, 3)}; student {format_number(right, 3)}" in page
    assert "object at 0x" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_without_a_twin_it_says_what_cannot_be_told(
    tmp_path: Path, photos: Path, models: list[str]
) -> None:
    out = tmp_path / "out"
    asked = ("--teacher", models[0], "--student", models[1], "--data", photos, "--out", out)
    done = kdnotes("audit", *asked, "--only", "fidelity,representations")
    assert done.exit_code == 0, done.output
    table = results.table("audit", out)
    assert set(table["arm"]) == {"teacher", "student"}
    assert {claim["verdict"] for claim in results.load("audit", out).claims} == {""}
    page = unescape((out / "report.html").read_text())
    assert "train the student's architecture once more" in page
    assert "it was not asked for (--only)" in page


def test_a_stopped_audit_goes_on(
    tmp_path: Path, photos: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fidelity", "color_invariance")
    request = running.Request(models[0], (models[1],), (models[2],), str(photos), only=names)
    real, asked = running._measure, []

    def measure(which: object, *rest: object) -> Outcome:
        asked.append(which.name)  # type: ignore[attr-defined]
        if which.name == stop:  # type: ignore[attr-defined]
            raise error
        return real(which, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "_measure", measure)
    stop, error = "color_invariance", BaseException("killed")
    with pytest.raises(BaseException, match="killed"):
        running.run(request, tmp_path / "out")
    assert asked == list(names)
    answers = tmp_path / "out" / running.PARTS
    assert len(list(answers.glob(f"{running.ANSWERS}*"))) == 3
    stop = ""
    running.run(request, tmp_path / "out")
    assert asked == [*names, "color_invariance"]  # fidelity was kept
    assert not list(answers.glob(f"{running.ANSWERS}*"))
    running.run(request, tmp_path / "whole")
    first, second = ((tmp_path / each / "audit.csv").read_text() for each in ("out", "whole"))
    assert first == second
    # Other images, other numbers: nothing of before is taken for theirs.
    asked.clear()
    next((photos / "test" / "dark").iterdir()).unlink()
    running.run(request, tmp_path / "out")
    assert asked == list(names)


def test_a_property_that_fails_costs_no_other(
    tmp_path: Path, photos: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Outcome:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("kdnotes.data.colors.jitter", fail)
    asked = ("--teacher", models[0], "--student", models[1], "--data", photos)
    more = ("--only", "color_invariance,fidelity", "--out", tmp_path / "out")
    done = kdnotes("audit", *asked, *more)
    assert done.exit_code == 1
    assert "colour invariance (RuntimeError: out of luck)" in done.stderr
    assert written(tmp_path / "out") == FILES
    assert "out of luck" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--student": "OTHER"}, "has a head of 3 classes; 2 are needed"),
        ({"--student": "BROKEN"}, "weights that are not finite"),
        ({"--independent": "vgg-small:none.pt"}, "--independent: no checkpoint 'none.pt'"),
        ({"--teacher": "no-such-net"}, "--teacher: unknown model 'no-such-net'"),
        ({"--data": "none"}, "there is no folder"),
        ({"--images": "0"}, "images must be 1 or more"),
        ({"--only": "colour"}, "unknown property 'colour'"),
        ({"--gradient-images": "0"}, "--gradient-images must be 1 or more"),
        ({"--mean": ".5,.5"}, "--mean is three numbers"),
        ({"--predictions": "table.csv"}, "not both"),
        ({"--fail-if": "agreement"}, "is no condition"),
        ({"--fail-if": "agreement > many"}, "'many' is no number"),
        ({"--fail-if": "agreement > nan"}, "'nan' is no number"),
        ({"--fail-if": "agreemnt > .5"}, "no measure 'agreemnt'"),
        ({"--fail-if": "agreement:diff > .5"}, "needs an --independent"),
        ({"--fail-if": "same_answer > .5"}, "same_answer[kind=crop,scale=primary]"),
    ],
)
def test_what_cannot_be_right_is_refused_before_work(
    tmp_path: Path, photos: Path, models: list[str], changes: dict[str, str], said: str
) -> None:
    from safetensors.torch import load_file, save_file

    broken = {name: value.clone() for name, value in load_file(tmp_path / "1.safetensors").items()}
    broken["head.weight"][0, 0] = math.nan
    save_file(broken, tmp_path / "broken.safetensors")
    texts = {
        "OTHER": checkpoint(tmp_path / "other.safetensors", 1, classes=3),
        "BROKEN": f"vgg-small:{tmp_path / 'broken.safetensors'}",
    }
    options = {"--teacher": models[0], "--student": models[1], "--data": str(photos)}
    options |= {name: texts.get(value, value) for name, value in changes.items()}
    words = [word for pair in options.items() for word in pair]
    done = kdnotes("audit", *words, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert len(done.stderr) < 500
    assert not (tmp_path / "out").exists()


def test_several_networks_a_side(tmp_path: Path, photos: Path, models: list[str]) -> None:
    asked = ("--teacher", models[0], "--data", photos, "--only", "fidelity")
    pairs = ("--student", models[1], "--student", models[2])
    alone = checkpoint(tmp_path / "4.safetensors", 4), checkpoint(tmp_path / "5.safetensors", 5)
    out = tmp_path / "out"
    both = ("--independent", alone[0], "--independent", alone[1])
    assert kdnotes("audit", *asked, *pairs, *both, "--out", out).exit_code == 0
    table = results.table("audit", out)
    rows = table[(table["measure"] == "agreement") & (table["condition"] == "")]
    means = rows.groupby("arm")["value"].mean()
    claim = {each["id"]: each for each in results.load("audit", out).claims}["audit-agreement"]
    assert claim["criterion"] == "95% interval over networks and images"
    assert claim["estimate"] == pytest.approx(means["student"] - means["independent"])
    # Both students are compared with the only one trained alone.
    assert kdnotes("audit", *asked, *pairs, *both[:2], "--out", out).exit_code == 0
    rows = results.table("audit", out).query("measure == 'agreement' and condition == ''")
    means = rows.groupby("arm")["value"].mean()
    claim = {each["id"]: each for each in results.load("audit", out).claims}["audit-agreement"]
    assert claim["estimate"] == pytest.approx(means["student"] - means["independent"])
    three = (*both, "--independent", models[0])
    done = kdnotes("audit", *asked, *pairs, *three, "--out", out)
    assert done.exit_code == 2
    assert "2 students and 3 independent" in done.stderr


# --- images --------------------------------------------------------------------------------------


def test_a_table_of_images_with_groups(tmp_path: Path, photos: Path, models: list[str]) -> None:
    files = sorted((photos / "test").rglob("*.png"))
    rows = [(path.relative_to(photos), path.parent.name, path.stem) for path in files]
    table = pd.DataFrame(rows, columns=["file", "label", "shot"])
    table["shot"] = ["early" if int(shot) < 6 else "la`te\n<b>" for shot in table["shot"]]
    table["unknown"] = ""
    table.to_csv(photos / "images.csv", index=False)
    asked = ("--teacher", models[0], "--student", models[1], "--only", "fidelity")
    for data, out in ((photos, "folder"), (photos / "images.csv", "table")):
        done = kdnotes("audit", *asked, "--data", data, "--out", tmp_path / out)
        assert done.exit_code == 0, done.output
    first, second = (results.table("audit", tmp_path / each) for each in ("folder", "table"))
    assert first.equals(second)
    page = (tmp_path / "table" / "report.html").read_text()
    assert "la`te\n&lt;b&gt;" in page
    assert "<b>\n" not in page
    changed = pd.read_csv(tmp_path / "table" / "audit.changes.csv")
    assert dict(changed.groupby("by")["images"].sum()) == {"class": 24, "shot": 24}
    groups = table.rename(columns={"shot": "when", "unknown": "self"})[["file", "when", "self"]]
    groups["file"] = groups["file"].astype(str).str.removeprefix("test/")
    groups.to_csv(tmp_path / "groups.csv", index=False)
    found = inputs.listed(str(photos / "test"), groups=str(tmp_path / "groups.csv"))
    assert sorted(set(found.groups["when"])) == ["early", "la`te\n<b>"]
    assert set(found.groups["self"]) == {""}
    for column, said in (("", "no column ''"), ("file", "no column besides 'file'")):
        with pytest.raises(RequestError, match=said):
            inputs.listed(str(photos / "test"), groups=f"{tmp_path / 'groups.csv'}:{column}")


def test_damaged_files_are_named_and_left_out_on_request(
    tmp_path: Path, photos: Path, models: list[str]
) -> None:
    (photos / "test" / "dark" / "3.png").write_bytes(b"no image")
    asked = ("--teacher", models[0], "--student", models[1], "--data", photos, "--only", "fidelity")
    done = kdnotes("audit", *asked, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "1 of 24 files cannot be read: test/dark/3.png" in done.stderr
    done = kdnotes("audit", *asked, "--out", tmp_path / "out", "--skip-damaged")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 files could not be read" in page
    assert "test/dark/3.png" in page
    parameters = results.load("audit", tmp_path / "out").parameters
    assert parameters["measured_images"] == 23
    for name in ("1", "2"):
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        marks = {Path(file).stem: mark for file, mark in parameters["sha256"].items()}
        assert marks[name] == hashlib.sha256(content).hexdigest()


def test_all_images_of_a_folder_without_splits_are_measured(photos: Path) -> None:
    assert len(inputs.listed(str(photos / "test")).labels) == 24
    some = inputs.listed(str(photos), count=5)
    assert len(some.labels) == 5
    assert some.labels.equals(inputs.listed(str(photos), count=5).labels)


def test_classes_are_mapped(tmp_path: Path) -> None:
    def columns(text: str) -> tuple[int, ...]:
        (tmp_path / "map.csv").write_text(text)
        return inputs.columns(str(tmp_path / "map.csv"), ("dark", "light"))

    assert columns("class,label\n1,dark\n0,light\n2,\n3,dark\n") == (1, 0, -1, 0)
    for text, said in (
        ("class,label\n0,dark\n", "maps no class onto light"),
        ("class,label\n0,dark\n2,light\n", "one row for each class"),
        ("class,label\n0,dark\n1,grey\n", "labels that the images do not have: grey"),
        ("number,label\n0,dark\n", "no column 'class'"),
    ):
        with pytest.raises(RequestError, match=said):
            columns(text)


def test_probabilities_of_mapped_classes_add_up() -> None:
    from kdnotes.audit.members import member

    module = networks.build("vgg-small", 4, 0).eval()
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mapped = member("student", 0, module, columns=(1, 0, -1, 0)).network
    with torch.no_grad():
        own = module(images).softmax(1)
        theirs = mapped(images).softmax(1)
    expected = torch.stack([own[:, 1] + own[:, 3], own[:, 0]], 1)
    torch.testing.assert_close(theirs, expected / expected.sum(1, keepdim=True), atol=1e-5, rtol=0)


def test_each_network_gets_its_own_size_and_is_asked_once() -> None:
    from kdnotes.audit.members import member

    module = networks.build("vgg-small", 4, 0).eval()
    images = torch.rand(20, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    network = member("student", 0, module, side=32).network
    passes: list[float] = []
    network.report = passes.append
    small = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = module(small)
        for _ in range(2):
            torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)
    assert sum(passes) == 20
    asked = images.clone().requires_grad_()
    network(asked).sum().backward()
    assert asked.grad is not None


def test_what_was_answered_outlives_its_process(tmp_path: Path) -> None:
    """Each time with another network object and another table, as after a kill."""
    from kdnotes.audit.members import Answers, member

    module = networks.build("vgg-small", 4, 0).eval()
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "answers"

    def ask(some: torch.Tensor) -> tuple[torch.Tensor, float]:
        network: Any = member("student", 0, module).network
        passes: list[float] = []
        network.answers, network.report = Answers(path), passes.append
        with torch.inference_mode():
            return network(some), sum(passes)

    first, count = ask(images[:12])
    assert count == 12
    again, count = ask(images)
    assert count == 8
    assert torch.equal(again[:12], first)
    with sqlite3.connect(path) as table:  # a flipped bit in one, two answers exchanged
        marks = table.execute("SELECT mark, said FROM answers LIMIT 3").fetchall()
        (one, said), (two, its), (three, other) = marks
        for mark, damaged in ((one, bytes([said[0] ^ 1]) + said[1:]), (two, other), (three, its)):
            table.execute("UPDATE answers SET said = ? WHERE mark = ?", (damaged, mark))
    healed, count = ask(images)
    assert count == 3
    torch.testing.assert_close(healed, again)
    content = bytearray(path.read_bytes())
    for damaged in (b"no table", content[: len(content) // 2], content[:100] + b"x" * 4000):
        path.write_bytes(damaged)
        anew, count = ask(images)
        assert count == 20
        torch.testing.assert_close(anew, again)


def test_answers_are_remembered_as_they_were(tmp_path: Path) -> None:
    """Of another precision too, and where what they are written to is gone."""
    from kdnotes.audit.members import Answers

    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = networks.build("vgg-small", 4, 0).body

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images).double()

    network: Any = kd.cast(Doubled().eval(), []).teacher.network
    network.answers = Answers(tmp_path / "answers")
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = networks.build("vgg-small", 4, 0).eval().body(images)
        for asked in (images[:10], images[:10]):
            torch.testing.assert_close(network(asked), expected[:10], atol=1e-5, rtol=1e-5)
        (tmp_path / "answers").unlink()
        for _ in range(2):
            torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("side", "fewest", "most"), [(32, 100, 250), (224, 1, 6)])
def test_a_pass_is_of_many_small_images_or_few_large_ones(
    side: int, fewest: int, most: int
) -> None:
    """Small ones come in batches like the chapters', whose logits round in the same way."""
    from kdnotes.audit.members import member

    network: Any = member("student", 0, networks.build("vgg-small", 4, 0)).network
    passes: list[float] = []
    network.report = passes.append
    with torch.inference_mode():
        network(torch.rand(250 if side == 32 else 9, 3, side, side))
    assert fewest <= min(passes)
    assert max(passes) <= most


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_networks_from_python_are_shown_images_as_they_are(name: str) -> None:
    import timm

    torch.manual_seed(0)
    size = 224 if name.startswith("vit") else 48  # neither what is tried first nor what is declared
    module = timm.create_model(name, num_classes=4).eval()
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    network = kd.audit.cast(module, module).teacher.network
    with torch.inference_mode():
        torch.testing.assert_close(network(images), module(images), atol=1e-4, rtol=1e-4)


# --- predictions ---------------------------------------------------------------------------------


def predicted(tmp_path: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for network in ("teacher", "student 1", "student 2", "independent"):
        sure = rng.dirichlet((1, 1, 1), 40).round(6)
        for place, values in enumerate(sure):
            rows.append((f"{place}.png", network, "abc"[place % 3], *values))
    return pd.DataFrame(rows, columns=["image", "network", "label", "a", "b", "c"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_predictions_are_enough_for_what_answers_tell(tmp_path: Path, kind: str) -> None:
    table, path = predicted(tmp_path), tmp_path / f"table.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    done = kdnotes("audit", "--predictions", path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    said = {name: rows[["a", "b", "c"]].to_numpy() for name, rows in table.groupby("network")}
    found = results.table("audit", tmp_path / "out")
    found = found[(found["condition"] == "") & (found["arm"] == "student")]
    values = found.set_index(["measure", "seed"])["value"]
    teacher, student = said["teacher"], said["student 1"]
    same = (teacher.argmax(1) == student.argmax(1)).mean()
    assert values["agreement", 0] == pytest.approx(same)
    divergence = (teacher * np.log(teacher / student)).sum(1).mean()
    assert values["predictive_kl", 0] == pytest.approx(divergence, rel=1e-3)
    labels = np.arange(40) % 3
    lost = (teacher.argmax(1) == labels) & (student.argmax(1) != labels)
    assert values["lost_answers", 0] == pytest.approx(lost.mean())
    alone = said["independent"].argmax(1)
    taken = (alone == labels) & (teacher.argmax(1) != labels)
    taken &= student.argmax(1) == teacher.argmax(1)
    assert values["mistakes_inherited", 0] == pytest.approx(taken.mean())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "it needs the networks themselves" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.assign(a=t["a"] + 1), "are no probabilities"),
        (lambda t: t.assign(a=t["a"].where(t.index > 0)), "are no probabilities"),
        (lambda t: t.assign(b="x"), "no numbers"),
        (lambda t: t.drop(columns="label"), "no column 'label'"),
        (lambda t: t.drop(columns="network"), "no column 'network'"),
        (lambda t: t[t["network"] != "teacher"], "0 networks called teacher"),
        (lambda t: t.iloc[1:], "has nothing of teacher for 0.png"),
        (lambda t: pd.concat([t, t]), "twice"),
        (lambda t: t.assign(label="d"), "no column of probabilities for the labels d"),
        (lambda t: t.replace({"network": {"student 1": "pupil"}}), "has a network 'pupil'"),
        (lambda t: t[["image", "network", "label", "a"]], "two or more classes"),
    ],
)
def test_predictions_that_cannot_be_right(tmp_path: Path, change: object, said: str) -> None:
    change(predicted(tmp_path)).to_csv(tmp_path / "table.csv", index=False)  # type: ignore[operator]
    done = kdnotes("audit", "--predictions", tmp_path / "table.csv", "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


# --- intervals -----------------------------------------------------------------------------------


RATE = Measure("agreement", "gives the teacher's answer", of="pair", twin=1.0)


def outcome(count: int, **values: np.ndarray) -> Outcome:
    data = ImageData(None, torch.zeros(count).long(), ("a",), torch.arange(count))
    recorder = Recorder(data)
    for arm, its in values.items():
        member = Member(arm, 0, torch.nn.Identity(), ())
        recorder.add(member, "agreement", its, np.zeros(count))
    return recorder.outcome()


@pytest.mark.parametrize("count", [2, 3, 9, 10, 24, 1000])
@pytest.mark.parametrize("ends", [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_intervals_of_rates_are_possible_or_unknown(count: int, ends: tuple[int, int]) -> None:
    its = [np.full(count, float(end)) for end in ends]
    its[0][0] = 1.0
    found = outcome(count, student=its[0], independent=its[1])
    for reference, least in (("independent", -1.0), (0.0, 0.0)):
        made = judging.difference(found, RATE, "student", reference)
        if count < judging.FEWEST:
            assert math.isnan(made.low)
            assert math.isnan(made.high)
        else:
            assert least <= made.low <= made.estimate <= made.high <= 1
            assert made.high > made.low  # never certain


def test_an_interval_covers_what_it_says_on_few_images() -> None:
    """Of shares of rates near 1, against the exact interval of Clopper and Pearson (1934)."""
    for count, right in ((20, 20), (20, 19), (50, 48), (200, 190)):
        values = np.r_[np.ones(right), np.zeros(count - right)]
        made = judging.difference(outcome(count, student=values), RATE, "student", 0.0)
        low = beta.ppf(0.025, right, count - right + 1)
        assert made.low == pytest.approx(low, abs=0.05)


@pytest.mark.parametrize(("share", "beyond"), [(-0.76, -1), (0.0, 0), (1.2, 0), (1.9, 1)])
def test_what_lies_off_the_drawing_points_there(share: float, beyond: int) -> None:
    axis = report._axis(Interval(share, share - 0.1, share + 0.1, 1, 0, math.nan), "")
    assert axis["beyond"] == beyond
    # Else it stands where its share is: 0 at one trained alone, 1 at the teacher.
    if not beyond:
        way = axis["one"] - axis["zero"]
        assert axis["dot"] == pytest.approx(axis["zero"] + share * way, abs=0.1)


def test_a_share_of_the_way() -> None:
    rng = np.random.default_rng(0)
    alone = (rng.random(2000) < 0.6).astype(float)
    student = np.maximum(alone, rng.random(2000) < 0.5)  # half of the way from .6 to 1
    found = judging.share(outcome(2000, student=student, independent=alone), RATE)
    assert found.ratio is not None
    expected = (student.mean() - alone.mean()) / (1 - alone.mean())
    assert found.ratio.estimate == pytest.approx(expected, abs=1e-6)
    # The share is that of the images wrong alone which the student has: a binomial one.
    wrong = int((alone == 0).sum())
    half = 1.96 * math.sqrt(expected * (1 - expected) / wrong)
    assert found.ratio.high - found.ratio.low == pytest.approx(2 * half, rel=0.1)
    few = judging.share(outcome(5, student=np.ones(5), independent=np.zeros(5)), RATE)
    assert few.ratio is None
    none = judging.share(outcome(500, student=np.ones(500), independent=np.ones(500)), RATE)
    assert none.word == "no gap to close"
    alone_only = judging.share(outcome(500, student=np.ones(500)), RATE)
    assert alone_only.word == judging.NO_TWIN


# --- what follows from answers -------------------------------------------------------------------


def answered(labels: list[int], **said: list[int]) -> tuple[Cast, ImageData, list[torch.Tensor]]:
    members = [Member(arm, 0, torch.nn.Identity(), ()) for arm in said]
    data = ImageData(
        torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8),
        torch.tensor(labels),
        ("a", "b", "c"),
        torch.arange(len(labels)),
    )
    logits = [3.0 * torch.nn.functional.one_hot(torch.tensor(its), 3) for its in said.values()]
    return Cast(members[0], None, tuple(members[1:]), data.classes), data, logits


def test_flips_and_changes_by_class() -> None:
    labels = [0] * 10 + [1] * 4
    said = answered(
        labels,
        teacher=[1] * 8 + [0] * 2 + [1] * 4,
        student=[1] * 8 + [0] * 2 + [1] * 4,
        independent=[0] * 10 + [1, 1, 2, 2],
    )
    found = answers.measure(*said)
    values = found.table[found.table["arm"] == "student"].set_index("measure")["value"]
    assert values["mistakes_inherited"] == pytest.approx(8 / 14)
    assert values["corrections_inherited"] == pytest.approx(2 / 14)
    assert values["negative_flips"] == pytest.approx(8 / 14)
    assert values["positive_flips"] == pytest.approx(2 / 14)
    assert values["lost_answers"] == 0
    table = answers.by_name(found, ["a"] * 10 + ["b"] * 4).set_index("name")
    # Exact sign test: 2 / 2^8 and 2 / 2^2; Holm doubles the smaller one.
    assert table.loc["a", "p"] == pytest.approx(2 / 2**8)
    assert table.loc["a", "p_holm"] == pytest.approx(4 / 2**8)
    assert table.loc["b", "p_holm"] == pytest.approx(0.5)
    assert table.loc["b", ["gained", "lost"]].tolist() == [2, 0]


def test_calibration_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    cast, data, _ = answered([0, 1, 2] * 30, teacher=[0] * 90, student=[0] * 90)
    logits = [2 * torch.randn(90, 3, generator=generator) for _ in range(2)]
    found = answers.measure(cast, data, logits)
    error = multiclass_calibration_error(logits[1].softmax(1), data.labels, 3, n_bins=15)
    made = answers.calibration(found)["student"]
    assert made.estimate == pytest.approx(float(error), abs=1e-6)
    assert 0 <= made.low < made.estimate < made.high <= 1
    assert sum(images for _, _, images in answers.reliability(found, "student")) == 90


# --- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("agreement > .5", 3),
        ("agreement >= .999", 0),  # the interval reaches below
        ("agreement < .5", 0),
        ("lost_answers < .3", 3),
        ("cka_last > .5", 0),  # no interval: not decided
    ],
)
def test_conditions_for_scripts(
    tmp_path: Path, photos: Path, models: list[str], condition: str, status: int
) -> None:
    asked = ("--teacher", models[0], "--student", models[0], "--data", photos)
    only = ("--only", "fidelity,representations", "--out", tmp_path / "out")
    done = kdnotes("audit", *asked, *only, "--fail-if", condition)
    assert done.exit_code == status, done.output
    assert condition in done.output
    assert written(tmp_path / "out") == FILES


def test_a_network_at_chance_is_called_so(tmp_path: Path, photos: Path, models: list[str]) -> None:
    asked = ("--teacher", models[0], "--student", models[1], "--data", photos, "--only", "fidelity")
    assert kdnotes("audit", *asked, "--out", tmp_path / "out").exit_code == 0
    right = results.table("audit", tmp_path / "out").query("measure == 'accuracy'")["value"]
    assert (right == 0.5).any()  # an untrained network says the same of all
    assert "no more often than by guessing" in (tmp_path / "out" / "report.html").read_text()


# --- parts of probes -----------------------------------------------------------------------------


def test_shifts_grow_with_the_images() -> None:
    from kdnotes.probes import crop_shift

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
    brief = crop_shift.measure(cast, images, curves=False).table
    same = found.merge(brief, on=["arm", "seed", "measure", "condition"])
    assert len(same) == len(brief)
    assert (same["value_x"] == same["value_y"]).all()


def test_the_answer_counts_every_property_once() -> None:
    from kdnotes.audit.report import answer

    def share(word: str, low: float) -> judging.Share:
        ratio = None if math.isnan(low) else Interval(low, low, 1.0, 1, 0, math.nan)
        return judging.Share(ratio, word, (0.0, 1.0))

    told = [share("most", 0.6), share("most", 0.6), share("the opposite", -0.4)]
    unknown = [share("no gap to close", math.nan), share("cannot tell", -0.1)]
    assert answer(told + unknown) == (
        "Of what the teacher has beyond a student trained alone, the student took most of it in 2, "
        "the opposite in 1 of 5 properties; in 1 there is no gap to close; of 1 it cannot be told."
    )
    assert answer(told).endswith("the opposite in 1 of 3 properties.")
    assert answer(unknown) == (
        "What was inherited cannot be told: of properties measured (2), 1 leave no gap to close, "
        "1 no certain share of one."
    )


def test_networks_without_stages_are_told_apart() -> None:
    from dataclasses import replace

    network = networks.freeze(networks.build("vgg-small", 2, 0))
    member = Member("teacher", 0, network, ())
    cast = Cast(member, None, (replace(member, arm="student"),), ("even", "odd"))
    images = kd.images(pixels=torch.zeros(4, 3, 32, 32), labels=torch.arange(4) % 2)
    asked = [probes.localization.PROPERTY, probes.representations.PROPERTY]
    with pytest.raises(RequestError, match="no stages with feature maps"):
        kd.measure(cast, images, [which.name for which in asked])


def test_the_items_of_a_sample_keep_their_numbers() -> None:
    module = networks.build("vgg-small", 2, 0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(40, 3, 32, 32, generator=generator)
    images = kd.images(pixels=pixels, labels=torch.arange(40) % 2)
    cast = kd.cast(module, networks.build("vgg-small", 2, 1))
    found = kd.measure(cast, images, ["fidelity", "adversarial"], gradient_images=10)
    items = found.outcome.items
    success = items[(items["measure"] == "attack_success") & (items["arm"] == "teacher")]
    success = success[success["condition"] == "attack=teacher,eps=primary"]
    assert len(success) == 10
    assert success["item"].is_monotonic_increasing
    assert success["item"].max() >= 10
    assert (success["item"] == success["source"]).all()


def test_the_commands_of_the_readme(
    tmp_path: Path, photos: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    table = predicted(tmp_path)
    table.to_csv("predictions.csv", index=False)
    (photos / "test").rename("imagenet-samples")
    names = [*re.findall(r"[a-z0-9_]+:\w+\.(?:pt|safetensors)", text)]
    commands = re.findall(r"^kdnotes audit ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        for place, name in enumerate(dict.fromkeys(names)):
            command = command.replace(name, models[place % 3])
        command = command.replace("--data photos", "--data imagenet-samples")
        words = shlex.split(command.replace("\\\n", " "))
        done = kdnotes("audit", *words, "--only", "fidelity")
        assert done.exit_code == 0, done.output


def test_weights_of_the_readme_fit_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from safetensors.torch import load_file

    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    code = next(
        each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "lite" in each
    )
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    theirs = {f"_{place}": value for place, value in enumerate(own.values())}
    torch.save(theirs, "model.pth")
    monkeypatch.setattr("sys.argv", ["lite.py", "model.pth", "0"])
    exec(compile(code, "lite.py", "exec"), {})
    written = load_file("lite0.safetensors")
    assert all(torch.equal(written[name], value) for name, value in own.items())


def test_the_command_is_told_again(tmp_path: Path) -> None:
    given = running.Request("a:x y.pt", ("b", "c"), only=("fidelity",), images=7, skip_damaged=True)
    words = shlex.split(running.command_of(given, Path("out")))
    assert words == [
        *("kdnotes", "audit", "--teacher", "a:x y.pt", "--student", "b", "--student", "c"),
        *("--only", "fidelity", "--images", "7", "--skip-damaged", "--out", "out"),
    ]


def test_audit_json_is_strict(tmp_path: Path, photos: Path, models: list[str]) -> None:
    asked = ("--teacher", models[0], "--student", models[1], "--data", photos)
    out = tmp_path / "out"
    assert kdnotes("audit", *asked, "--only", "fidelity", "--out", out).exit_code == 0
    again = json.loads((out / "audit.json").read_text())["command"]
    assert again.startswith("kdnotes audit --teacher ")
    assert again in html.unescape((out / "report.html").read_text())

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((out / "audit.json").read_text(), parse_constant=refuse)
