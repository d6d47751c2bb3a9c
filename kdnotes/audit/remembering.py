"""What networks answered, on the disk until an audit is finished: none is asked the same twice."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

MOST = 256e6  # bytes of logits that are kept of one network
_SEAL = 8  # bytes behind the logits, by which damage is seen


class Answers:
    """Logits of one network, by the mark of the image that they answer.

    With a path they outlive the process, however that ends; a file that is no such table is begun
    anew, and one that cannot be written to is given up: only a kill would lose anything then.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            self._open(path)
        except sqlite3.DatabaseError:
            if path is None or not path.is_file():
                raise
            path.unlink()
            self._open(path)

    def _open(self, path: Path | None) -> None:
        self._table = sqlite3.connect(path or ":memory:", isolation_level=None)
        # Not waited for until it is on the disk: what a failing machine loses is asked again.
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE IF NOT EXISTS answers (mark BLOB PRIMARY KEY, said BLOB)")
        if self._table.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        (self._bytes,) = self._table.execute("SELECT TOTAL(LENGTH(said)) FROM answers").fetchone()

    def known(self, marks: Sequence[bytes]) -> dict[int, Tensor]:
        """Place -> logits (classes,) of those marks whose image was answered before."""
        found = {}
        for place, mark in enumerate(marks):
            row = self._table.execute("SELECT said FROM answers WHERE mark = ?", (mark,)).fetchone()
            if row and row[0] == _sealed(mark, row[0][:-_SEAL]):
                found[place] = torch.frombuffer(bytearray(row[0][:-_SEAL]), dtype=torch.float32)
        return found

    def add(self, marks: Sequence[bytes], logits: Tensor) -> None:
        """Keep logits float32 (N, classes) of so many marks, as long as there is room."""
        both = zip(marks, logits.numpy(), strict=True)
        said = [_sealed(mark, its.tobytes()) for mark, its in both]
        size = sum(map(len, said))
        if self._bytes + size > MOST:
            return
        try:
            self._table.execute("BEGIN")
            rows = zip(marks, said, strict=True)
            self._table.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            self._table.execute("COMMIT")
            self._bytes += size
        except sqlite3.Error:  # no room, or an audit beside this one has finished and deleted it
            self._open(None)


def _sealed(mark: bytes, said: bytes) -> bytes:
    return said + hashlib.sha256(mark + said).digest()[:_SEAL]
