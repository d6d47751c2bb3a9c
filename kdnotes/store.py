"""Files and folders that appear complete or not at all, and the checksums that prove them."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnotes.errors import RequestError, RunFailedError

if TYPE_CHECKING:
    from pydantic import ValidationError

UNFINISHED = ".writing-"  # how names begin that nobody may read
DAY = 24 * 60 * 60  # seconds
UNSEALED = '"seal": ""'  # in JSON that `sealed` completes; inside a text, its quotes are escaped


@contextmanager
def naming(path: Path, verb: str = "write") -> Iterator[None]:
    """Name the file that the system refuses, on a full disk say: OSError becomes RunFailedError."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(f"cannot {verb} {path}: {error.strerror or error}") from error


@contextmanager
def appearing(path: Path, folder: bool = False) -> Iterator[Path]:
    """A file or ``folder`` to fill that becomes ``path`` if nothing fails; or RunFailedError."""
    # Made by open and mkdir, not by tempfile, whose files are for their owner only.
    scratch = path.with_name(f"{UNFINISHED}{path.name}.{writer()}-{secrets.token_hex(4)}")
    try:
        with naming(path):
            if folder:
                scratch.mkdir(parents=True)
                yield scratch
                remove(path)  # a damaged one that is being replaced
            else:
                scratch.touch(exist_ok=False)
                yield scratch
            scratch.replace(path)
    finally:
        if folder:
            shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


appearing_folder = partial(appearing, folder=True)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there. Raises RunFailedError, naming it."""
    with naming(path, "delete"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def make_folder(folder: Path, what: str, advice: str) -> Path:
    """A folder that can be written to, made if need be. Raises RequestError with the ``advice``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"cannot write to {what} {str(folder)!r}: {error.strerror or error}"
        raise RequestError(f"{problem}; {advice}") from error
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `sealed_json` in one step. Raises ValueError for a number that is not finite."""
    text = sealed_json(content)
    with appearing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_at(path: Path, parts: Iterable[tuple[int, bytes]]) -> None:
    """Write bytes at places in a file that memory maps see; RunFailedError if there is no room."""
    with naming(path), path.open("r+b") as file:
        for place, content in parts:
            file.seek(place)
            file.write(content)


def checksum(content: bytes | Path, of: str = "") -> str:
    """SHA-256 in hex of bytes or a file, ``of`` whose it is; OSError where it cannot be read."""
    state = hashlib.sha256(of.encode())
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        return hashlib.file_digest(file, lambda: state).hexdigest()


def sealed(text: str) -> str:
    """JSON with the checksum of all the rest in place of its one empty ``"seal"``."""
    before, after = text.split(UNSEALED)
    return f'{before}{UNSEALED[:-1]}{checksum(text.encode())}"{after}'


def sealed_json(content: Mapping[str, Any]) -> str:
    """A mapping as JSON with a seal. Raises ValueError for a number that is not finite."""
    return sealed(json.dumps({**content, "seal": ""}, indent=1, allow_nan=False) + "\n")


def is_sealed(content: bytes) -> bool:
    """Whether JSON is, to the byte, what `sealed` made."""
    before, start, rest = content.partition(UNSEALED[:-1].encode())
    return rest[:64] == checksum(before + start + rest[64:]).encode()


def first_problem(error: ValidationError) -> str:
    """What pydantic found first, and where."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".lstrip(": ")


def writer() -> str:
    """This process, as the names of unfinished files have it: machine and number."""
    return f"{platform.node()}-{os.getpid()}"


def clear_unfinished(folder: Path, pattern: str = f"**/{UNFINISHED}*") -> None:
    """Delete what dead processes left unfinished in a folder; the names say who wrote it."""
    with suppress(OSError):  # another process clears up, too
        for path in [each for each in folder.glob(pattern) if _is_abandoned(each)]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


@contextmanager
def temporary_files() -> Iterator[None]:
    """Have temporary files, of kernels and workers too, in a folder that is deleted at the end."""
    before = tempfile.gettempdir()
    clear_unfinished(Path(before), "kdnotes-*")
    folder = tempfile.mkdtemp(prefix=f"kdnotes-{writer()}-")
    # At the very end: what workers shared lies in it, and is given up when the process ends.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        tempfile.tempdir = os.environ["TMPDIR"] = before


def _is_abandoned(path: Path) -> bool:
    """Whether a name tells of an ended process; on another machine, unfinished files of a day."""
    found = re.search(rf"[.-]{re.escape(platform.node())}-(\d+)[.-]", path.name)
    try:
        if found is None:
            old = time.time() - path.stat().st_mtime > DAY
            return old and path.name.startswith(UNFINISHED)
        os.kill(int(found[1]), 0)
    except OSError as error:  # or it is another user's, or the file is gone already
        return isinstance(error, ProcessLookupError)
    return False
