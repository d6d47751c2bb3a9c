"""Where things lie: the book, what is made of it, the cache; and how paths are written down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def base_folder() -> Path:
    """What relative paths are relative to: where the command was typed, or the current folder."""
    return Path(os.environ.get("KDNOTES_BASE", "."))


def cache_folder() -> Path:
    """The cache folder: KDNOTES_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("KDNOTES_CACHE") or user_cache_path("kdnotes")).expanduser()


def data_folder() -> Path:
    """Where downloads go: KDNOTES_DATA, or the user's data folder."""
    from platformdirs import user_data_path

    return Path(os.environ.get("KDNOTES_DATA") or user_data_path("kdnotes")).expanduser()


def root() -> Path:
    """Folder of the book: KDNOTES_BOOK, or the checkout that this package lies in."""
    checkout = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("KDNOTES_BOOK") or checkout).expanduser().absolute()


def build_folder() -> Path:
    """Where everything that is made from the book goes."""
    return root() / "_build"


def by_hand_folder() -> Path:
    """Where a chapter's results go unless a folder was named."""
    return build_folder() / "runs" / "by-hand"


def without_absolute_paths(value: Any) -> Any:
    """A value whose texts name paths relative to `base_folder`, to read the same everywhere."""
    if isinstance(value, Mapping):
        return {key: without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_absolute_paths(item) for item in value]
    if not isinstance(value, str | Path):
        return value
    start, colon, rest = str(value).partition(":")
    if not colon or "/" in start:  # "/photos/groups.csv:race"
        start = _relative(start)
    return start + colon + _relative(rest)


def _relative(text: str) -> str:
    if text == "~" or text.startswith("~/"):  # not "~67.2", which is about that
        text = str(Path(text).expanduser())
    if not text.startswith("/") or text.startswith("//"):  # an address, as in https://
        return text
    return os.path.relpath(text, base_folder().resolve())
