"""The display of long work: bars on a terminal or in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Work that is under way: one overall amount, and a line for each thing that is being done.

    This class itself shows nothing; `shown` yields the one that suits where the output goes.
    """

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done = title, total, 0.0

    def advance(self, amount: float, title: str | None = None) -> None:
        """Add to what is done in all; ``title`` replaces the overall description."""
        self.done += amount
        self.title = title or self.title
        self.refresh()

    def line(self, key: str, text: str, done: float, total: float | None) -> None:
        """Show or change the line of one thing; ``total`` None: its length is not known yet."""

    def remove(self, key: str) -> None:
        """Take a line away."""

    def refresh(self) -> None:
        """Show what has changed."""


class _Plain(Progress):
    """A line on stderr now and then, for log files."""

    def __init__(self, title: str, total: float) -> None:
        super().__init__(title, total)
        self._started = self._said = time.monotonic()

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES or not self.done:
            return
        self._said = now
        left = (now - self._started) * (self.total - self.done) / self.done
        print(f"{self.title}: {left / 60:.1f} minutes left", file=sys.stderr, flush=True)


class _Bars(Progress):
    """Bars by rich."""

    def __init__(self, title: str, total: float, bars: Any) -> None:
        super().__init__(title, total)
        self._bars = bars
        self._overall = bars.add_task(title, total=total)
        self._lines: dict[str, Any] = {}

    def line(self, key: str, text: str, done: float, total: float | None) -> None:
        if key not in self._lines:
            self._lines[key] = self._bars.add_task("", total=total)
        self._bars.update(self._lines[key], description=f"  {text}", completed=done, total=total)

    def remove(self, key: str) -> None:
        if key in self._lines:
            self._bars.remove_task(self._lines.pop(key))

    def refresh(self) -> None:
        self._bars.update(self._overall, description=self.title, completed=self.done)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return bool(shell and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell")


@contextmanager
def shown(title: str, total: float, quiet: bool = False) -> Iterator[Progress]:
    """Progress of some work, with the time left; ``quiet``: nothing is shown."""
    if quiet:
        yield Progress(title, total)
        return
    if not (sys.stderr.isatty() or in_notebook()):
        yield _Plain(title, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(force_jupyter=True) if in_notebook() else Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with RichProgress(*columns, console=console, transient=True) as bars:
        yield _Bars(title, total, bars)
