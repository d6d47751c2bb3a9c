"""40 kills of run, sweep and build: the same command completes, nothing is trained twice or left.

Run by hand: ``python tests/attack_kills.py [COUNT]``. A small book is run undisturbed first. Then,
each time with an empty cache, a command is ended at a random moment by KILL, TERM, INT or HUP (the
last two to its whole group, as a terminal sends them), its processes are given five seconds, and
the command is given again: what was complete must stay as it is, and all results must be, to the
byte, what the undisturbed run made.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil
import tiny_book
from tiny_book import code

from kdnotes.store import UNFINISHED, checksum

PATIENCE = 5.0  # seconds after which no process may be left
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TO_ALL = (signal.SIGINT, signal.SIGHUP)
SMALL = ("-p", "train_count=60", "-p", "epochs=2", "-p", "seeds=2")
COMMANDS = {
    "run": ("run", "small", *SMALL, "--out"),
    "sweep": ("sweep", "small", *SMALL, "--grid", "tau=2,4", "--out"),
    "build": ("build", *SMALL, "--preset", "smoke", "--out"),
}
MEASURE = """\
from types import SimpleNamespace
import kdnotes as kd
from kdnotes.probes import accuracy
study = kd.begin("small", globals())
"""
SAVE = """\
outcome = accuracy.measure(kd.trained(plan), plan.test_images())
kd.results.save("{name}", outcome, [], dict(preset=preset, tau=tau), 1.0)
"""
MARK = "KDNOTES_ATTACK"  # in the environment of everything that an attack starts


def make_book(folder: Path) -> Path:
    cells = (code(MEASURE), code(tiny_book.CAST, tags=["cast"]))
    return tiny_book.make(folder, {"01-small": tiny_book.chapter("small", *cells, save=SAVE)})


def start(name: str, place: Path, root: Path) -> subprocess.Popen[bytes]:
    """A command in a session of its own, with a cache and a folder for temporary files."""
    (place / "temporary").mkdir(parents=True, exist_ok=True)
    mine = {"KDNOTES_BOOK": root, "KDNOTES_CACHE": place / "cache", MARK: place}
    mine |= {"TMPDIR": place / "temporary"}
    return subprocess.Popen(
        [sys.executable, "-m", "kdnotes.cli", *COMMANDS[name], str(place / "out")],
        env=os.environ | {key: str(value) for key, value in mine.items()},
        stdout=subprocess.DEVNULL,
        stderr=(place / "said").open("ab"),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def left(place: Path) -> list[psutil.Process]:
    """Processes that an attack started and that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(place) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def networks(place: Path) -> dict[str, int]:
    """When each complete network was written."""
    folder = place / "cache" / "networks"
    whole = [path for path in folder.glob("*") if not path.name.startswith(UNFINISHED)]
    return {path.name: (path / "weights.safetensors").stat().st_mtime_ns for path in whole}


def results(place: Path) -> dict[str, str]:
    """Checksums of tables, verdicts and weights."""
    kinds = [("out", "*.csv"), ("out", "*.parquet"), ("out", "small.json")]
    kinds.append(("cache/networks", "*.safetensors"))
    return {
        path.relative_to(place).as_posix(): checksum(path)
        for folder, kind in kinds
        for path in sorted((place / folder).rglob(kind))
        if "stage" not in path.parts
    }


def strays(place: Path) -> list[str]:
    """What a killed run left, of files that nobody will read."""
    found = [*place.rglob(f"{UNFINISHED}*"), *(place / "out").rglob(".*.ipynb")]
    found += (place / "temporary").iterdir()
    return [str(path.relative_to(place)) for path in found]


def attack(
    name: str, number: int, after: float, place: Path, root: Path, right: Mapping[str, str]
) -> dict[str, bool]:
    """What came of one kill."""
    process = start(name, place, root)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number) if number in TO_ALL else process.send_signal(number)
    process.wait(60)
    time.sleep(PATIENCE)
    alive = left(place)
    for each in alive:
        each.kill()
    whole = networks(place)
    again = start(name, place, root).wait(600)
    after_all = networks(place)
    return {
        "no process left after 5 s": not alive,
        "the same command completes": again == 0,
        "what was trained is kept": all(after_all.get(key) == when for key, when in whole.items()),
        "byte-equal": results(place) == right,
        "nothing stray": not strays(place),
    }


def main(count: int) -> int:
    chosen, found = random.Random(15), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = make_book(Path(folder, "book"))
        right, seconds = {}, {}
        for name in COMMANDS:
            place, started = Path(folder, name), time.monotonic()
            status = start(name, place, root).wait(600)
            assert status == 0, (place / "said").read_text()
            right[name], seconds[name] = results(place), time.monotonic() - started
            print(
                f"{name} undisturbed: {seconds[name]:.0f} s, {len(right[name])} files", flush=True
            )
        for kill in range(count):
            name, number = list(COMMANDS)[kill % 3], SIGNALS[kill // 3 % 4]
            after = chosen.uniform(0.2, seconds[name])
            place = Path(folder, f"kill-{kill}")
            outcome = attack(name, number, after, place, root, right[name])
            found.update({what: int(held) for what, held in outcome.items()})
            failed = [what for what, held in outcome.items() if not held]
            detail = f"; {strays(place)}; {(place / 'said').read_text()[-500:]}" if failed else ""
            signal_name = signal.Signals(number).name
            print(
                f"{kill + 1}. {name} {signal_name} {after:.1f} s: {failed or 'held'}{detail}",
                flush=True,
            )
            shutil.rmtree(place, ignore_errors=True)
    for what, times in found.items():
        print(f"{what}: {times} of {count}")
    return 0 if set(found.values()) == {count} else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
