"""What goes into a network: recipe, objective, data and seed, hashed into its name."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kdnotes.data import DataSpec
from kdnotes.objectives import ObjectiveSpec
from kdnotes.transforms import ColorJitter, Views

REVISION = 1  # raise it when the same specification trains to other weights: caches depend on it


class Recipe(BaseModel):
    """How long and with what schedule a network is trained.

    Schedules: ``one-cycle`` (linear up over the first 15% of steps, cosine down), ``step`` (x0.1
    at 62.5, 75 and 87.5% of the epochs, as in RepDistiller), ``exponential`` (x0.7 per epoch, as
    in the PyTorch MNIST example) and ``cosine``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=8, ge=1)
    batch: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adadelta", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["one-cycle", "step", "exponential", "cosine"] = "one-cycle"
    views: Views = Views()
    jitter: ColorJitter | None = None


class NetworkSpec(BaseModel):
    """Everything that determines a trained network, teacher included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["teacher", "student"]
    model: str
    num_classes: int
    data: DataSpec
    recipe: Recipe
    objective: ObjectiveSpec = ObjectiveSpec()
    seed: int = 0
    teacher: NetworkSpec | None = None

    @property
    def key(self) -> str:
        """Content hash: the network's name in the cache."""
        values = self.model_dump(mode="json")
        spec: NetworkSpec | None = self
        place = values
        while spec is not None:
            place["data"] = spec.data.identity()
            spec, place = spec.teacher, place["teacher"]
        return _hash(json.dumps(values, sort_keys=True))

    @property
    def initialisation_seed(self) -> int:
        """Seed of the first weights, from role, architecture and seed.

        A teacher and a student of one architecture never share an initialisation by accident.
        """
        return derive_seed(self.role, self.model, self.seed)

    @property
    def order_seed(self) -> int:
        """Seed of the data order and of the views; the same for all students of one seed."""
        return derive_seed("order", self.role, self.seed)


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from named parts."""
    text = json.dumps(parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=4096)
def _hash(text: str) -> str:
    return hashlib.sha256(f"{REVISION}:{text}".encode()).hexdigest()[:20]
