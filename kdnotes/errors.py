"""The one error that means: the request is wrong."""

from __future__ import annotations


class RequestError(ValueError):
    """A wrong request (unknown name, value out of range, missing folder).

    The message names what is wrong and what would be right; the command line prints it and
    exits with status 2.
    """
