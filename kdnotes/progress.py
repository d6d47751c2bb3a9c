"""The display of long work: bars on a terminal or in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Work under way, shown by rich's ``bars`` or logged: an amount in all, and lines of parts."""

    def __init__(self, title: str, total: float, bars: Any = None, log: bool = False) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self._bars, self._log = bars, log
        self._lines: dict[str, Any] = {}
        self._started = self._said = time.monotonic()
        self.line("", title, 0.0, total)

    def advance(self, amount: float, title: str | None = None) -> None:
        """Add to what is done in all; ``title`` replaces the overall description."""
        self.done += amount
        self.title = title or self.title
        self.line("", self.title, self.done, self.total)
        now = time.monotonic()
        if self._log and self.done and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._started) * (self.total - self.done) / self.done
            print(f"{self.title}: {left / 60:.1f} minutes left", file=sys.stderr, flush=True)

    def line(self, key: str, text: str, done: float, total: float | None) -> None:
        """Show or change the line of one thing; ``total`` None: its length is not known yet."""
        if self._bars is None:
            return
        if key not in self._lines:
            self._lines[key] = self._bars.add_task("", total=total)
        text = f"  {text}" if key else text
        self._bars.update(self._lines[key], description=text, completed=done, total=total)

    def remove(self, key: str) -> None:
        """Take a line away."""
        if key in self._lines:
            self._bars.remove_task(self._lines.pop(key))


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return bool(shell and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell")


@contextmanager
def shown(title: str, total: float, quiet: bool = False) -> Iterator[Progress]:
    """Progress of some work, with the time left; ``quiet``: nothing is shown."""
    if quiet or not (sys.stderr.isatty() or in_notebook()):
        yield Progress(title, total, log=not quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(force_jupyter=True) if in_notebook() else Console(stderr=True)
    text, left = TextColumn("{task.description}"), TimeRemainingColumn(elapsed_when_finished=True)
    columns = (text, BarColumn(), TimeElapsedColumn(), TextColumn("left"), left)
    with RichProgress(*columns, console=console, transient=True) as bars:
        yield Progress(title, total, bars)
