"""The cache of networks: complete or absent, checked on read, safe under kill -9 and company."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kdnotes import networks
from kdnotes.data import DataSpec
from kdnotes.errors import RequestError
from kdnotes.methods.kl import KL
from kdnotes.training import cache
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec, Recipe

DATA = DataSpec(name="scenes", split="train", count=200)


def planned(seeds: tuple[int, ...] = (0, 1), epochs: int = 1) -> list[Planned]:
    recipe = Recipe(epochs=epochs, batch=50)
    teacher = NetworkSpec(
        role="teacher", model="vgg-small", num_classes=10, data=DATA, recipe=recipe
    )
    students = [teacher.model_copy(update={"role": "student", "seed": seed}) for seed in seeds]
    taught = [
        student.model_copy(update={"method": KL(), "teacher": teacher}) for student in students
    ]
    return [Planned("independent", s) for s in students] + [Planned("kl", s) for s in taught]


def contents(items: list[Planned]) -> dict[str, bytes]:
    return {
        item.spec.key: (cache.folder_of(item.spec) / "weights.safetensors").read_bytes()
        for item in cache.with_teachers(items)
    }


def test_teachers_come_first_and_nothing_is_trained_twice() -> None:
    items = planned()
    wanted = cache.missing(items)
    assert [item.arm for item in wanted] == ["independent", "independent", "teacher", "kl", "kl"]
    assert cache.ensure(items, jobs=2) == 5
    before = {k: (cache.networks_folder() / k).stat().st_mtime_ns for k in contents(items)}
    assert cache.ensure(items, jobs=2) == 0
    assert before == {k: (cache.networks_folder() / k).stat().st_mtime_ns for k in contents(items)}


def test_loading_gives_the_trained_network() -> None:
    item = planned()[0]
    cache.train_one(item, "cpu", None)
    network = cache.load(item.spec)
    assert not network.training
    fresh = networks.build("vgg-small", 10, item.spec.initialisation_seed)
    assert not torch.equal(network.body.head.weight, fresh.body.head.weight)
    assert len(cache.history(item.spec)) == 1


def test_everything_that_matters_changes_the_name() -> None:
    spec = planned()[2].spec
    changed = [
        spec.model_copy(update={"seed": 7}),
        spec.model_copy(update={"model": "vgg-medium"}),
        spec.model_copy(update={"data": DATA.model_copy(update={"fingerprint": "other"})}),
        spec.model_copy(update={"recipe": Recipe(epochs=2, batch=50)}),
        spec.model_copy(update={"method": KL(tau=5.0)}),
        spec.model_copy(update={"labels": "permuted"}),
        spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"seed": 3})}),
    ]
    assert len({spec.key, *(s.key for s in changed)}) == 8


@pytest.mark.parametrize("damage", ["truncated", "altered", "manifest", "gone"])
def test_damage_is_noticed_named_and_mended(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    item = planned()[0]
    cache.train_one(item, "cpu", None)
    whole = contents([item])
    file = cache.folder_of(item.spec) / "weights.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "altered":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "gone":
        file.unlink()
    else:
        (cache.folder_of(item.spec) / "manifest.json").write_text("{")
    assert item.spec.key in cache.verify()[0]
    with pytest.raises(cache.DamagedError, match=item.spec.key):
        cache.load(item.spec)
    assert cache.ensure([item], jobs=1) == 1
    assert item.spec.key in capsys.readouterr().err
    assert cache.verify() == []
    assert contents([item]) == whole


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_zoo import planned
from kdnotes.training import cache
if __name__ == "__main__":
    cache.ensure(planned((0, 1, 2), epochs=3), jobs=2)
"""


def start(tmp_path: Path, cache: str) -> subprocess.Popen[bytes]:
    script = tmp_path / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parent)))
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"KDNOTES_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_killed_run_resumes_to_the_same_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = planned((0, 1, 2), epochs=3)
    process = start(tmp_path, "killed")
    killed = tmp_path / "killed" / "networks"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and len(list(killed.glob("*/manifest.json"))) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "killed"))
    finished = {
        path.parent.name: path.stat().st_mtime_ns for path in killed.glob("*/manifest.json")
    }
    assert 2 <= len(finished) < 7
    assert cache.ensure(items, jobs=2) == 7 - len(finished)
    for key, changed in finished.items():
        assert (killed / key / "manifest.json").stat().st_mtime_ns == changed
    resumed = contents(items)
    # Two runs at once on one fresh cache: the same networks again, and neither harms the other.
    both = [start(tmp_path, "shared"), start(tmp_path, "shared")]
    assert [process.wait(400) for process in both] == [0, 0]
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "shared"))
    assert contents(items) == resumed
    assert cache.verify() == []


def test_archive_carries_networks_to_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = planned()[0]
    cache.train_one(item, "cpu", None)
    sent = contents([item])
    assert cache.export(tmp_path / "class.tar") == 1
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "laptop"))
    assert cache.import_(tmp_path / "class.tar") == 1
    assert cache.import_(tmp_path / "class.tar") == 0
    assert contents([item]) == sent
    assert [entry.key for entry in cache.entries()] == [item.spec.key]
    assert cache.clear() > 0
    assert cache.entries() == []


def test_unusable_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no archive"):
        cache.import_(tmp_path / "none.tar")
    (tmp_path / "bad.tar").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"bad\.tar is no archive"):
        cache.import_(tmp_path / "bad.tar")
    with pytest.raises(RequestError, match="nothing to export"):
        cache.export(tmp_path / "out.tar")
    item = planned()[0]
    cache.train_one(item, "cpu", None)
    manifest = cache.folder_of(item.spec) / "manifest.json"
    content = json.loads(manifest.read_text())
    content["spec"]["seed"] = 99
    manifest.write_text(json.dumps(content))
    cache.export(tmp_path / "renamed.tar")
    cache.clear()
    with pytest.raises(RequestError, match="another version"):
        cache.import_(tmp_path / "renamed.tar")


def test_failing_network_stops_the_run_and_says_why() -> None:
    good = planned()[0]
    bad = Planned(
        "kl",
        good.spec.model_copy(update={"data": DataSpec(name="imagefolder:/none", split="train")}),
    )
    with pytest.raises(RequestError, match="/none"):
        cache.ensure([bad], jobs=1)
