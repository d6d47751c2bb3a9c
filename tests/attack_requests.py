"""250 bad requests over all chapters' parameters: each refused, at once, with nothing written.

Run by hand: ``python tests/attack_requests.py [COUNT]``. Requests are made in this process, ten of
them also as commands of their own, whose seconds are printed.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from asked import wrong_values
from tiny_book import files_under, kdnotes

from kdnotes.book import running

SLOW = 3.0  # seconds
COMMANDS = 10


def requests() -> list[tuple[str, str]]:
    """Chapters with what one of their parameters must refuse."""
    return [
        (chapter.name, f"{each.name}={value}")
        for chapter in running.chapters()
        for each in chapter.parameters.values()
        for value in wrong_values(each)
        if value or not each.optional
    ]


def command(chapter: str, given: str) -> list[str]:
    return ["run", chapter, "-p", given, "--out", "out"]


def main(count: int) -> int:
    every = requests()
    chosen = random.Random(15).sample(every, count)
    found: Counter[str] = Counter()
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["KDNOTES_CACHE"] = str(Path(folder, "cache"))
        for chapter, given in chosen:
            started = time.perf_counter()
            done = kdnotes(*command(chapter, given))
            seconds = time.perf_counter() - started
            slowest = max(slowest, (seconds, f"{chapter} -p {given}"))
            refused = done.exit_code == 2 and done.stderr.startswith("kdnotes: ")
            found["refused with status 2 and one message"] += refused
            found[f"within {SLOW:g} s"] += seconds < SLOW
            found["nothing written"] += files_under(Path(folder)) == []
            if not refused:
                print(f"accepted: {chapter} -p {given!r}: {done.exit_code} {done.output[:200]}")
        print(f"{count} of {len(every)} bad requests; slowest {slowest[0]:.2f} s: {slowest[1]}")
        for what, times in found.items():
            print(f"  {what}: {times}")
        own = []
        for chapter, given in random.Random(16).sample(chosen, COMMANDS):
            started = time.perf_counter()
            words = [sys.executable, "-m", "kdnotes.cli", *command(chapter, given)]
            refused = subprocess.run(words, capture_output=True).returncode == 2
            own.append((time.perf_counter() - started, refused))
        seconds, times = sorted(each for each, _ in own), sum(refused for _, refused in own)
        print(
            f"{COMMANDS} commands: {times} refused; seconds {seconds[0]:.2f} to {seconds[-1]:.2f}"
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = (used.ru_utime + used.ru_stime) / COMMANDS
        print(f"  of which the processor worked {cpu:.2f} s on average")
        print(f"load of the machine {os.getloadavg()[0]:.1f}; left: {files_under(Path(folder))}")
        os.chdir("/")
    return 0 if set(found.values()) == {count} and times == COMMANDS else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 250))
