"""The two errors that end a command: the request is wrong, or running it failed."""

from __future__ import annotations


class RequestError(ValueError):
    """A wrong request (unknown name, value out of range, missing folder).

    The message names what is wrong and what would be right; the command line prints it and
    exits with status 2.
    """


class RunFailedError(RuntimeError):
    """The request was right, but running it failed; the message names what was kept.

    The command line prints it and exits with status 1.
    """
