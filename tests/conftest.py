"""Settings shared by all tests: one thread, and a cache of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache of trained networks out of the tests."""
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "cache"))
