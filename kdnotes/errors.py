"""The two errors that end a command: the request is wrong, or running it failed."""

from __future__ import annotations


class RequestError(ValueError):
    """A wrong request: the message names what is wrong and what would be right; exit status 2."""


class RunFailedError(RuntimeError):
    """A right request that failed: the message names what was kept; exit status 1."""


def brief(error: BaseException | str, most: int = 100) -> str:
    """What another library says, in one line of so many letters at most."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
