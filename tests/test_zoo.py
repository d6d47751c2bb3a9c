"""The cache of networks: complete or absent, checked on read, safe under kill -9 and company."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import run_on

from kdnotes import networks, store
from kdnotes.data import DataSpec
from kdnotes.errors import RequestError
from kdnotes.methods.kl import KL
from kdnotes.training import cache, specification
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


def stored(items: list[Planned] | None = None) -> list[Planned]:
    """Networks in the cache that were never trained, each with weights of its own."""
    items = items or planned((0, 1))
    for number, item in enumerate(items):
        spec = item.spec
        network = networks.build(spec.model, spec.num_classes, seed=number)
        cache.save(item, network, [{"loss": 0.5}], 1.25)
    return items


def folders(items: list[Planned]) -> list[Path]:
    return [cache.folder_of(item.spec) for item in items]


def exchange(first: Path, second: Path) -> None:
    between = first.with_name("between")
    first.rename(between)
    second.rename(first)
    between.rename(second)


def refused_everywhere(item: Planned, what: str) -> None:
    """A cached network is named as damaged by whatever reads it."""
    key = item.spec.key
    (said,) = [line for line in cache.verify() if key in line.partition(":")[0]]
    assert what in said
    with pytest.raises(cache.DamagedError, match=key):
        cache.load(item.spec)
    if "weights" not in what:
        with pytest.raises(cache.DamagedError, match=key):
            cache.history(item.spec)


def test_a_network_under_anothers_name_is_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = planned((0, 1))[:2]
    for item in items:
        cache.train_one(item, "cpu", None)
    whole = contents(items)
    exchange(*folders(items))
    for item in items:
        refused_everywhere(item, "is not what its name says")
    with pytest.raises(RequestError, match="nothing to export"):
        cache.export(tmp_path / "x.tar")
    # Alone, weights that match the manifest beside them prove no more.
    exchange(*(folder / cache.WEIGHTS for folder in folders(items)))
    assert len(cache.verify()) == 2
    assert cache.ensure(items, jobs=1) == 2
    said = capsys.readouterr().err
    assert all(f"{item.spec.key}: is not what its name says" in said for item in items)
    assert contents(items) == whole
    assert cache.verify() == []


def test_weights_that_do_not_fit_are_damage() -> None:
    item = planned()[0]
    others = {
        "another architecture": networks.build("vgg-medium", 10, seed=0),
        "other classes": networks.build("vgg-small", 9, seed=0),
        "another precision": networks.build("vgg-small", 10, seed=0).double(),
    }
    for network in others.values():
        cache.save(item, network, [], 1.0)
        refused_everywhere(item, "weights do not fit vgg-small")
    (cache.folder_of(item.spec) / cache.WEIGHTS).write_bytes(content := b"no safetensors")
    manifest = json.loads((cache.folder_of(item.spec) / cache.MANIFEST).read_bytes())
    manifest |= {"sha256": store.checksum(content)}
    store.write_json(cache.folder_of(item.spec) / cache.MANIFEST, manifest)
    assert item.spec.key in cache.verify()[0]
    assert cache.ensure([item], jobs=1) == 1
    assert cache.verify() == []


def other_shapes(manifest: dict[str, Any]) -> dict[str, bytes]:
    """Manifests that are none."""
    spec = manifest["spec"]
    changed = {
        "list": [],
        "number": 3,
        "null": None,
        "empty": {},
        "spec a list": manifest | {"spec": [1]},
        "seconds a text": manifest | {"seconds": "long"},
        "negative seconds": manifest | {"seconds": -1.0},
        "history a number": manifest | {"history": 1},
        "history of texts": manifest | {"history": [{"loss": "x"}]},
        "one more": manifest | {"more": 1},
        "method without a name": manifest | {"spec": spec | {"method": {}, "teacher": spec}},
        "method a list": manifest | {"spec": spec | {"method": {"name": []}, "teacher": spec}},
        "unknown method": manifest | {"spec": spec | {"method": {"name": "x"}, "teacher": spec}},
        "another seed": manifest | {"spec": spec | {"seed": 9}},
        "unsealed": {**manifest, "seconds": 7.0},
        "seal of no use": {**manifest, "seal": 3},
    }
    found = {name: json.dumps(value).encode() for name, value in changed.items()}
    found["nothing"], found["no text"] = b"", b"\xff\xfe{}"
    found["deep"] = b"[" * 200_000
    found["infinite"] = json.dumps(manifest).encode().replace(b"1.25", b"Infinity")
    return found


def test_manifests_of_another_shape_are_damage_and_never_a_traceback(tmp_path: Path) -> None:
    (item,) = stored(planned()[2:3])
    path = cache.folder_of(item.spec) / cache.MANIFEST
    whole = path.read_bytes()
    for name, content in other_shapes(json.loads(whole)).items():
        path.write_bytes(content)
        assert len(cache.verify()) == 1, name
        assert cache.entries() == [], name
        refused_everywhere(item, "")
    altered = whole.replace(b'"loss": 0.5', b'"loss": 0.6')
    assert altered != whole
    path.write_bytes(altered)
    refused_everywhere(item, "manifest.json is altered")
    path.write_bytes(whole)
    assert cache.verify() == []
    # Networks of earlier versions have no seal, and are as good.
    early = json.loads(whole)
    del early["seal"]
    path.write_text(json.dumps(early))
    assert cache.verify() == []
    assert cache.history(item.spec) == [{"loss": 0.5}]


def test_a_file_or_a_link_in_a_networks_place_is_replaced(tmp_path: Path) -> None:
    items = planned((0, 1, 2))[:3]
    whole = stored(items) and contents(items)
    file, linked, emptied = folders(items)
    for folder in (file, linked, emptied):
        shutil.rmtree(folder)
    file.write_text("x")
    linked.symlink_to(tmp_path)
    emptied.mkdir()
    assert len(cache.verify()) == 3
    stored(items)
    assert contents(items) == whole
    assert cache.verify() == []


# --- archives ---------------------------------------------------------------------------------


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
    assert [entry.spec.key for entry in cache.entries()] == [item.spec.key]
    assert cache.clear() > 0
    assert cache.entries() == []


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_who_may_read_a_cache_is_up_to_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        stored(planned()[:1])
        cache.export(tmp_path / "x.tar")
        cache.clear()
        cache.import_(tmp_path / "x.tar")
    finally:
        os.umask(before)
    for path in (*cache.networks_folder().rglob("*"), *cache.cache_folder().iterdir()):
        usual = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == usual & ~mask, path


def test_a_damaged_network_is_left_out_of_an_archive_and_replaced_from_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = stored()
    whole = contents_of(items)
    assert cache.export(tmp_path / "all.tar") == 4
    exchange(*folders(items[:2]))
    (folders(items)[2] / cache.MANIFEST).write_text("[]")
    assert cache.export(tmp_path / "one.tar") == 1
    assert capsys.readouterr().err.count("left out") == 3
    assert cache.import_(tmp_path / "one.tar") == 0
    assert cache.import_(tmp_path / "all.tar") == 3
    assert contents_of(items) == whole
    assert cache.verify() == []


def contents_of(items: list[Planned]) -> list[bytes]:
    return [(folder / cache.WEIGHTS).read_bytes() for folder in folders(items)]


def member(name: str, content: bytes = b"", **about: Any) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in about.items():
        setattr(header, key, value)
    return header, content


def hostile(tmp_path: Path, spec: NetworkSpec) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Members of archives that must be refused, by what is wrong with them."""
    folder = cache.networks_folder() / spec.key
    manifest, weights = ((folder / n).read_bytes() for n in (cache.MANIFEST, cache.WEIGHTS))
    names = [f"networks/{spec.key}/{name}" for name in (cache.MANIFEST, cache.WEIGHTS)]
    good = [member(names[0], manifest), member(names[1], weights)]
    wide = json.loads(manifest)
    wide["spec"] |= {"num_classes": 10**9}
    del wide["seal"]
    wide_key = NetworkSpec.model_validate(wide["spec"]).key
    inside = f"networks/{wide_key}"
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "block device": tarfile.BLKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "folder": tarfile.DIRTYPE,
        "sparse": tarfile.GNUTYPE_SPARSE,
    }
    found = {
        f"{what} for weights": [good[0], member(names[1], type=kind, linkname="/etc/passwd")]
        for what, kind in kinds.items()
    }
    found |= {
        f"{what} for a manifest": [member(names[0], type=kind, linkname=str(folder)), good[1]]
        for what, kind in kinds.items()
    }
    return found | {
        "upwards": [member(f"networks/../{tmp_path.name}", b"x"), *good],
        "upwards with a key": [member(f"../networks/{spec.key}/{cache.MANIFEST}", manifest)],
        "absolute": [member(str(tmp_path / "escaped"), b"x"), *good],
        "absolute with a key": [member(f"/{names[0]}", manifest), good[1]],
        "more": [*good, member("networks/README", b"x")],
        "more of one": [*good, member(f"networks/{spec.key}/more", b"x")],
        "two of one": [*good, *good],
        "weights first": good[::-1],
        "no weights": good[:1],
        "no manifest": good[1:],
        "nothing": [],
        "weights too large": [good[0], member(names[1], bytes(20_000_000))],
        "a manifest too large": [member(names[0], manifest + b" " * 20_000_000), good[1]],
        "weights altered": [good[0], member(names[1], weights[:-1] + b"x")],
        "another name": [
            member(f"networks/{'0' * 20}/{cache.MANIFEST}", manifest),
            member(f"networks/{'0' * 20}/{cache.WEIGHTS}", weights),
        ],
        "a network beyond memory": [
            member(f"{inside}/{cache.MANIFEST}", json.dumps(wide).encode()),
            member(f"{inside}/{cache.WEIGHTS}", weights),
        ],
        "a sound one before": [*good, member("networks/x/manifest.json", b"[]")],
    }


def test_hostile_archives_are_refused_and_nothing_of_them_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = stored(planned()[:1])
    cases = hostile(tmp_path, item.spec)
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "victim"))
    before = sorted(tmp_path.rglob("*"))
    archive = tmp_path / "hostile.tar"
    for what, members in cases.items():
        with tarfile.open(archive, "w") as written:
            for header, content in members:
                written.addfile(header, io.BytesIO(content))
        with pytest.raises(RequestError, match=r"hostile\.tar is no archive of sound networks: "):
            cache.import_(archive)
        archive.unlink()
        assert sorted(tmp_path.rglob("*")) == before, what


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    (item,) = stored(planned()[:1])
    name = f"networks/{item.spec.key}/{cache.WEIGHTS}"
    manifest = (cache.folder_of(item.spec) / cache.MANIFEST).read_bytes()
    bomb = tmp_path / "bomb.tar"
    with tarfile.open(bomb, "w") as written:
        header, content = member(f"networks/{item.spec.key}/{cache.MANIFEST}", manifest)
        written.addfile(header, io.BytesIO(content))
        header, _ = member(name)
        header.size = 3_000_000_000
        start = written.fileobj.tell() + tarfile.BLOCKSIZE  # type: ignore[union-attr]
        written.addfile(header)
    with bomb.open("r+b") as file:
        file.truncate(start + header.size)  # takes no room here, and would in memory
    cache.clear()
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"has 3000000000 bytes, more than the \d+ that it can"):
        cache.import_(bomb)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    packed = tmp_path / "bomb.tar.gz"
    with gzip.open(packed, "wb", compresslevel=1) as written_packed:
        written_packed.write(bytes(10_000_000))
    with pytest.raises(RequestError, match="it is compressed; unpack it first"):
        cache.import_(packed)


def test_an_archive_that_was_cut_off_or_altered_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored()
    path = tmp_path / "class.tar"
    assert cache.export(path) == 4
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        heads = [each.offset for each in archive.getmembers()]
        places = [each.offset_data + 5 for each in archive.getmembers()]
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "laptop"))
    cut = [whole[:place] for place in (*heads, *places, 100)]
    altered = [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in (*heads, *(head + 124 for head in heads), *places)
    ]
    for content in cut + altered:
        path.write_bytes(content)
        with pytest.raises(RequestError, match=r"class\.tar is no archive of sound networks"):
            cache.import_(path)
        assert not (tmp_path / "laptop").exists()
    path.write_bytes(whole)
    assert cache.import_(path) == 4


def test_unusable_archives_are_refused(tmp_path: Path) -> None:
    for name in ("none.tar", "folder.tar", "bad.tar"):
        path = tmp_path / name
        if name.startswith("folder"):
            path.mkdir()
        elif name.startswith("bad"):
            path.write_bytes(b"nothing")
        with pytest.raises(RequestError, match=rf"{path.name} is no archive"):
            cache.import_(path)
    with pytest.raises(RequestError, match="nothing to export"):
        cache.export(tmp_path / "out.tar")
    stored(planned()[:1])
    with pytest.raises(RequestError, match="cannot write to folder"):
        cache.export(tmp_path / "bad.tar" / "out.tar")
    assert cache.export(tmp_path / "good.tar") == 1
    # Of another version: the same specification would have another name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specification, "REVISION", specification.REVISION + 1)
        with pytest.raises(RequestError, match="another version"):
            cache.import_(tmp_path / "good.tar")
        assert "another version" in cache.verify()[0]
    assert cache.import_(tmp_path / "good.tar") == 0


# --- full, read-only --------------------------------------------------------------------------

READ_ONLY = """
import os, subprocess, sys
from pathlib import Path
os.environ["KDNOTES_CACHE"] = sys.argv[1]
import test_zoo
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.training import cache
items = test_zoo.stored(test_zoo.planned()[:1])
archive = Path(sys.argv[2])
cache.export(archive)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
print(cache.ensure(items), len(cache.entries()), cache.verify(), cache.export(archive))
print(type(cache.load(items[0].spec)).__name__, cache.import_(archive))
attempts = [lambda: cache.ensure(test_zoo.planned()[:2]), cache.clear]
for attempt in attempts:
    try: attempt()
    except (RequestError, RunFailedError) as error: print(type(error).__name__, error)
print(len(cache.entries()))
"""


def test_a_read_only_cache_serves_what_it_has_and_says_what_it_cannot(tmp_path: Path) -> None:
    done = run_on(tmp_path / "disk", 10_000_000, READ_ONLY, tmp_path / "x.tar")
    assert done.stderr == ""
    served, loaded, lacking, kept, *freed, left = done.stdout.splitlines()
    assert served == "0 1 [] 1"
    assert loaded == "Normalized 0"
    where = re.escape(str(tmp_path / "disk"))
    refused = f"RequestError cannot write to cache folder '{where}': Read-only file system; name"
    assert re.match(refused, lacking)
    assert re.match(f"RunFailedError cannot delete {where}/networks: Read-only file system", kept)
    assert freed[-1] == "freed 0.0 MB"
    assert left == "1"


FULL = """
import os, sys
from pathlib import Path
os.environ["KDNOTES_CACHE"] = sys.argv[1]
import test_zoo
from kdnotes.errors import RunFailedError
from kdnotes.training import cache
place = Path(sys.argv[1])
if __name__ == "__main__":
    kl = test_zoo.planned()[2]
    free = int(sys.argv[2])
    cache.train_one(test_zoo.cache.Planned("teacher", kl.spec.teacher), "cpu", None)
    status = os.statvfs(place)
    (place / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - free))
    try: cache.train_one(kl, "cpu", None)
    except RunFailedError as error: print(error)
    print(*sorted(str(path.relative_to(place)) for path in place.rglob(".*")), cache.verify())
    (place / "filler").unlink()
    cache.train_one(kl, "cpu", None)
    print(len(cache.entries()), cache.verify())
"""


@pytest.mark.parametrize(("free", "file"), [(4096, "marks"), (20_000, "rows"), (600_000, "")])
def test_a_full_cache_names_the_file_and_goes_on_when_there_is_room(
    free: int, file: str, tmp_path: Path
) -> None:
    """A table that cannot grow says so: written through a map, it would kill the process."""
    done = run_on(tmp_path / "disk", 20_000_000, FULL, str(free))
    assert done.returncode == 0, done.stderr
    said, clean, after = done.stdout.splitlines()
    name = f"tables/[0-9a-f]{{20}}/{file}" if file else "networks/[0-9a-f]{20}"
    assert re.fullmatch(f"cannot write .*/{name}: No space left on device", said)
    assert clean.strip() == "[]"
    assert after == "2 []"


def test_failing_network_stops_the_run_and_says_why() -> None:
    good = planned()[0]
    bad = Planned(
        "kl",
        good.spec.model_copy(update={"data": DataSpec(name="imagefolder:/none", split="train")}),
    )
    with pytest.raises(RequestError, match="/none"):
        cache.ensure([bad], jobs=1)
