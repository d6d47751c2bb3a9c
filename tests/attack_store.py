"""Damage hundreds of files of a cache and of results at random: is one of them silently used?

Run by hand, in minutes: python tests/attack_store.py [SEED]. Every damaged network, table and
result must be made again, equal to the byte, or be refused by its name; exit status 1 if not.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny_book
from tiny_book import code, kdnotes, markdown

NETWORKS, TABLES, RESULTS = 300, 100, 150
EVERY = 100  # so often, a whole command is run on what is damaged
SHAPES = (b"", b"[]", b"{}", b"null", b"3", b'"text"', b"[" * 50_000, b'{"spec": []}', b"\xff\xfe")
GIVEN = ("seeds=2", "methods=kl", "train_count=64", "epochs=1")
MEASURE = """\
import kdnotes as kd
from kdnotes.probes import fidelity
study = kd.begin("fidelity", globals())
"""
CONCLUDE = """\
outcome = fidelity.measure(kd.trained(plan), plan.test_images())
kd.finish(study, kd.conclude(study, outcome, fidelity.MEASURES[0]))
"""

Damage = Callable[[Path, Path, random.Random], None]


# --- what is done to files ----------------------------------------------------------------------


def truncate(path: Path, other: Path, numbers: random.Random) -> None:
    """Cut a file off anywhere."""
    content = path.read_bytes()
    path.write_bytes(content[: numbers.randrange(len(content))])


def empty(path: Path, other: Path, numbers: random.Random) -> None:
    """Leave nothing in it."""
    path.write_bytes(b"")


def flip(path: Path, other: Path, numbers: random.Random) -> None:
    """Change one to eight bits."""
    content = bytearray(path.read_bytes())
    for place in numbers.sample(range(len(content)), numbers.randint(1, 8)):
        content[place] ^= 1 << numbers.randrange(8)
    path.write_bytes(content)


def overwrite(path: Path, other: Path, numbers: random.Random) -> None:
    """Write noise over a part."""
    content = bytearray(path.read_bytes())
    start = numbers.randrange(len(content))
    noise = numbers.randbytes(min(numbers.randint(1, 4096), len(content) - start))
    content[start : start + len(noise)] = noise
    path.write_bytes(content)


def exchange(path: Path, other: Path, numbers: random.Random) -> None:
    """Let it change places with another whole one."""
    between = path.with_name("between")
    path.rename(between)
    other.rename(path)
    between.rename(other)


def exchange_folders(path: Path, other: Path, numbers: random.Random) -> None:
    """Let all files of two folders change places."""
    exchange(path.parent, other.parent, numbers)


def reshape(path: Path, other: Path, numbers: random.Random) -> None:
    """Put JSON of another shape, or none, in its place."""
    shapes = list(SHAPES)
    if path.suffix in (".json", ".ipynb"):
        content = json.loads(path.read_bytes())
        key = numbers.choice([key for key in content if key != "seal"])
        shapes.append(json.dumps(content | {key: numbers.choice([[], {}, 7, "x", None])}).encode())
        shapes.append(json.dumps({k: v for k, v in content.items() if k != key}).encode())
    path.write_bytes(numbers.choice(shapes))


def delete(path: Path, other: Path, numbers: random.Random) -> None:
    """Take it away."""
    path.unlink()


ANY: tuple[Damage, ...] = (truncate, empty, flip, flip, overwrite, exchange, delete)


class Count(Counter[str]):
    """What became of the attempts; what must not be is printed at once."""

    def wrong(self, what: str) -> None:
        """Note a damage that went through."""
        self["WRONG"] += 1
        print(f"WRONG: {what}", flush=True)


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def restore(folder: Path, whole: dict[str, bytes]) -> None:
    """Put files back as they were."""
    shutil.rmtree(folder)
    for name, content in whole.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# --- networks -----------------------------------------------------------------------------------


def attack_networks(numbers: random.Random, networks: list[Any], command: list[str]) -> Count:
    """Damage networks; each must be named by verify, refused by load, and be trained again."""
    from kdnotes.training import cache

    whole = {item.spec.key: contents(cache.folder_of(item.spec)) for item in networks}
    weights = {key: files[cache.WEIGHTS] for key, files in whole.items()}
    count = Count()
    for attempt in range(NETWORKS):
        item, other = numbers.sample(networks, 2)
        name = numbers.choice([cache.MANIFEST, cache.WEIGHTS])
        path, another = (cache.folder_of(each.spec) / name for each in (item, other))
        damage = numbers.choice([*ANY, exchange_folders, reshape])
        damage(path, another, numbers)
        what = f"network {attempt}: {damage.__name__} {name}"
        count[damage.__name__] += 1
        hurt = [
            each
            for each in networks
            if contents(cache.folder_of(each.spec)) != whole[each.spec.key]
        ]
        try:
            named = "\n".join(cache.verify())
            for each in hurt:
                if each.spec.key not in named:
                    count.wrong(f"{what}: verify does not name {each.spec.key}")
                try:
                    cache.load(each.spec)
                    cache.history(each.spec)
                    count.wrong(f"{what}: it was loaded")
                except cache.DamagedError:
                    count["refused by name"] += 1
            if attempt % EVERY == 0:
                ran = kdnotes(*command)
                count["mended by the command, exit 0"] += ran.exit_code == 0
                if ran.exit_code:
                    count.wrong(f"{what}: {ran.output}")
            else:
                for each in hurt:
                    cache.train_one(each, "cpu", None)
            count["trained again"] += len(hurt)
            if any(
                (cache.folder_of(each.spec) / cache.WEIGHTS).read_bytes() != weights[each.spec.key]
                for each in networks
            ):
                count.wrong(f"{what}: other weights than before")
            if cache.verify():
                count.wrong(f"{what}: not mended")
        except Exception as error:
            count.wrong(f"{what}: {error!r}")
        for each in networks:
            restore(cache.folder_of(each.spec), whole[each.spec.key])
    return count


# --- tables -------------------------------------------------------------------------------------


def attack_tables(numbers: random.Random, networks: list[Any]) -> Count:
    """Damage teachers' tables; a student that is then trained must be what it was."""
    from kdnotes.training import cache

    students = [item for item in networks if item.spec.teacher is not None]
    weights = [(cache.folder_of(item.spec) / cache.WEIGHTS).read_bytes() for item in students]
    folders = cache.table_folders()
    whole = {folder: contents(folder) for folder in folders}
    count = Count()
    for attempt in range(TABLES):
        folder, other = numbers.sample(folders, 2)
        name = numbers.choice(["rows", "rows", "marks"])
        damage = numbers.choice([*ANY, exchange_folders])
        damage(folder / name, other / name, numbers)
        what = f"table {attempt}: {damage.__name__} {name}"
        count[damage.__name__] += 1
        try:
            count["named by verify"] += bool(cache.verify())
            for item, right in zip(students, weights, strict=True):
                shutil.rmtree(cache.folder_of(item.spec))
                cache.train_one(item, "cpu", None)
                if (cache.folder_of(item.spec) / cache.WEIGHTS).read_bytes() != right:
                    count.wrong(f"{what}: {item} came out otherwise")
                else:
                    count["students trained, equal to the byte"] += 1
        except Exception as error:
            count.wrong(f"{what}: {error!r}")
        for each in folders:
            restore(each, whole[each])
    return count


# --- results ------------------------------------------------------------------------------------


def attack_results(numbers: random.Random, root: Path, sweep: list[str], out: Path) -> Count:
    """Damage files of two runs; they must be run again, and not be shown nor published."""
    from kdnotes.book import running, site
    from kdnotes.errors import RequestError

    points = {text: out / f"tau={text}" for text in ("1", "2")}
    which = running.chapter("fidelity")
    given = dict(text.split("=") for text in GIVEN) | {"preset": "smoke"}
    runs = {
        folder: running.Run(running.request(which, given | {"tau": text}), folder, folder.name)
        for text, folder in points.items()
    }
    whole = {folder: contents(folder) for folder in runs}
    shown = {folder: kdnotes("show", folder).stdout for folder in runs}
    published = root / "_build" / "runs" / "smoke"
    count = Count()
    for attempt in range(RESULTS):
        folder, other = numbers.sample(list(runs), 2)
        name = numbers.choice(sorted(whole[folder]))
        damage = numbers.choice([*ANY, reshape])
        damage(folder / name, other / name, numbers)
        what = f"result {attempt}: {damage.__name__} {name}"
        count[damage.__name__] += 1
        try:
            for each, run in runs.items():
                hurt = contents(each) != whole[each]
                if (run in running.split([run])[1]) != hurt:
                    count.wrong(f"{what}: {'reused' if hurt else 'run again'}")
                count["run again"] += hurt
                told = kdnotes("show", each)
                read = any(
                    contents(each).get(n) != whole[each][n]
                    for n in whole[each]
                    if n.endswith(("csv", "json"))
                )
                named = re.search("fidelity|no results", told.stderr)
                if read and (told.exit_code != 2 or not named or told.stdout):
                    count.wrong(f"{what}: show: {told.output}")
                elif not read and told.stdout != shown[each]:
                    count.wrong(f"{what}: shows something else")
                count["refused by show, exit 2"] += read
                shutil.rmtree(published, ignore_errors=True)
                shutil.copytree(each, published)
                try:
                    site.publish_results("smoke")
                    if hurt:
                        count.wrong(f"{what}: published")
                except RequestError as error:
                    count["refused by publish"] += 1
                    if not hurt or "fidelity" not in str(error):
                        count.wrong(f"{what}: {error}")
                # What was published is an input of every run, and what others are compared with.
                shutil.rmtree(root / "results", ignore_errors=True)
            if attempt % EVERY == 0:
                again = kdnotes(*sweep)
                count["mended by the command, exit 0"] += again.exit_code == 0
                same = all(
                    contents(each)["fidelity.csv"] == whole[each]["fidelity.csv"] for each in runs
                )
                if again.exit_code or not same or running.split(runs.values())[1]:
                    count.wrong(f"{what}: {again.output}")
        except Exception as error:
            count.wrong(f"{what}: {error!r}")
        for each in runs:
            restore(each, whole[each])
    return count


def main(seed: int) -> int:
    """Make a book, run it, attack what came of it; returns the exit status."""
    place = Path(tempfile.mkdtemp(prefix="attack-"))
    patch = pytest.MonkeyPatch()
    patch.setenv("KDNOTES_CACHE", str(place / "cache"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cells = [
        markdown("# What is copied?"),
        code(tiny_book.PARAMETERS, tags=["parameters"]),
        code(MEASURE),
        code(tiny_book.CAST, tags=["cast"]),
        code(CONCLUDE),
        tiny_book.figure("main"),
    ]
    root = tiny_book.make(place / "book", {"fidelity": cells})
    (root / "book" / "claims.yml").write_text("[]")
    patch.setenv("KDNOTES_BOOK", str(root))
    patch.chdir(place)
    given = [part for text in GIVEN for part in ("-p", text)]
    options = ["--preset", "smoke", *given, "--out"]
    sweep = ["sweep", "fidelity", "--grid", "tau=1,2", *options, str(place / "out")]
    command = ["run", "fidelity", "-p", "tau=1", *options, str(place / "alone")]
    from kdnotes.book import running
    from kdnotes.training import cache

    request = running.request(
        running.chapter("fidelity"),
        dict(text.split("=") for text in (*GIVEN, "preset=smoke", "tau=1")),
    )
    networks = running.needed_networks([request])
    for item in networks:
        cache.train_one(item, "cpu", None)
    for first in (sweep, command):
        ran = kdnotes(*first)
        assert ran.exit_code == 0, ran.output
    second = networks_of_another_teacher(networks)
    for item in second:
        cache.train_one(item, "cpu", None)
    numbers, failed = random.Random(seed), 0
    said = StringIO()
    for what, attack in (
        (f"{NETWORKS} damaged networks", lambda: attack_networks(numbers, networks, command)),
        (f"{TABLES} damaged tables", lambda: attack_tables(numbers, [*networks, *second])),
        (
            f"{RESULTS} damaged result files",
            lambda: attack_results(numbers, root, sweep, place / "out"),
        ),
    ):
        with redirect_stderr(said):
            count = attack()
        print(
            f"{what}, seed {seed}:",
            *(f"  {name}: {many}" for name, many in count.items()),
            sep="\n",
        )
        print(f"  silently used: {count['WRONG']}", flush=True)
        failed += count["WRONG"]
    assert not re.search("Traceback", said.getvalue())
    patch.undo()
    shutil.rmtree(place)
    return bool(failed)


def networks_of_another_teacher(networks: list[Any]) -> list[Any]:
    """A student like one of these, of a teacher of another seed, and so with another table."""
    from kdnotes.training.specification import Planned

    student = next(item for item in networks if item.spec.teacher is not None)
    teacher = student.spec.teacher.model_copy(update={"seed": 7})
    return [Planned("kl", student.spec.model_copy(update={"teacher": teacher}))]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
