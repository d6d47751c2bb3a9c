"""Where relative paths start and where the cache lies."""

from __future__ import annotations

import os
from pathlib import Path


def base_folder() -> Path:
    """What relative paths are relative to: where the command was typed, or the current folder."""
    return Path(os.environ.get("KDNOTES_BASE", "."))


def cache_folder() -> Path:
    """The cache folder: KDNOTES_CACHE, or the user's cache folder."""
    if folder := os.environ.get("KDNOTES_CACHE"):
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("kdnotes")
