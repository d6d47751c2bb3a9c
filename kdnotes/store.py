"""Files and folders that appear complete or not at all, and the checksums that prove them.

The only place that writes what others will read: results, networks, tables, copies of images.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdnotes import paths

UNFINISHED = ".writing-"  # how names begin that nobody may read
DAY = 24 * 60 * 60  # seconds


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file to write to that takes the name ``path`` when the block ends without an error."""
    scratch = _scratch(path)
    scratch.touch(exist_ok=False)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``path``, in place of an old one, as `appearing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(path)
    scratch.mkdir()
    try:
        yield scratch
        if path.exists():  # a damaged one that is being replaced
            shutil.rmtree(path)
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON in one step. Raises ValueError for a number that is not finite."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with appearing(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def checksum(content: bytes | Path) -> str:
    """SHA-256 of bytes or of a file, in hex. Raises OSError where a file cannot be read."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scratch(path: Path) -> Path:
    # Made by open and mkdir, not by tempfile, whose files are for their owner only.
    return path.with_name(f"{UNFINISHED}{path.name}.{paths.writer()}-{secrets.token_hex(4)}")


# --- what a process leaves that was killed ------------------------------------------------------


def clear_unfinished(folder: Path, pattern: str = f"**/{UNFINISHED}*") -> None:
    """Delete unfinished files and folders, whose names say who wrote them, of dead processes."""
    with suppress(OSError):  # another process clears up, too
        for path in [each for each in folder.glob(pattern) if _is_abandoned(each)]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


@contextmanager
def temporary_files() -> Iterator[None]:
    """Have all temporary files, those of kernels and workers too, in a folder that is deleted.

    So are those of processes that were killed.
    """
    before, own = tempfile.gettempdir(), f"kdnotes-{paths.writer()}-"
    clear_unfinished(Path(before), "kdnotes-*")
    with tempfile.TemporaryDirectory(prefix=own, ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = os.environ["TMPDIR"] = before


def _is_abandoned(path: Path) -> bool:
    """Whether the process in a name is one of this machine that has ended.

    Of unfinished files alone, also of another machine, after a day.
    """
    found = re.search(rf"[.-]{re.escape(platform.node())}-(\d+)[.-]", path.name)
    try:
        if found is None:
            old = time.time() - path.stat().st_mtime > DAY
            return old and path.name.startswith(UNFINISHED)
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's, or gone already
        pass
    return False
