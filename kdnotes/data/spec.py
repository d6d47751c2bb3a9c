"""Which images: a specification that can be planned with before anything is read."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Values that stay as they are, of which none is misspelt: other fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(Strict):
    """Which images: enough to make the same ones again, and to name them in a cache key.

    ``name``: that of a source, for some with a path behind a colon. ``count`` None means all there
    are. ``options`` are the source's own. ``fingerprint`` names the content of the files behind it.
    """

    name: str
    split: Literal["train", "test"]
    count: int | None = None
    seed: int = 0
    options: dict[str, Any] = {}
    fingerprint: str = ""

    def identity(self) -> dict[str, Any]:
        """What decides which images these are; where a folder lies does not."""
        values = self.model_dump()
        source, colon, _ = self.name.partition(":")
        if colon and self.fingerprint:
            values |= {"name": source, "options": {}}  # path and options are in the fingerprint
        return values

    def key(self) -> str:
        """Content hash of the specification."""
        from kdnotes.store import checksum  # late: modules lie no more than ten imports deep

        return checksum(json.dumps(self.identity(), sort_keys=True).encode())[:16]
