"""What goes into a network: recipe, method, data and seed, hashed into its name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from kdnotes import methods
from kdnotes.data import DataSpec, Strict
from kdnotes.data.views import ColorJitter, Crops, ResizedCrops, Views
from kdnotes.methods import Method
from kdnotes.store import checksum

REVISION = 2  # raise it when the same specification trains to other weights: caches depend on it


class Recipe(Strict):
    """How long and with what schedule a network is trained.

    Schedules: ``one-cycle`` (linear up over the first 15% of steps, cosine down), ``cosine``,
    ``step-30`` (x0.1 every 30 epochs) and ``exponential`` (x0.7 per epoch), as in PyTorch's
    examples of ImageNet and MNIST. ``crops`` and ``jitter`` come after the teacher has answered.
    """

    epochs: int = Field(default=8, ge=1)
    batch: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adadelta", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["one-cycle", "cosine", "step-30", "exponential"] = "one-cycle"
    views: Views = Views()
    jitter: ColorJitter | None = None
    crops: Crops | None = None
    resized: ResizedCrops | None = None

    def rate(self, step: int, per_epoch: int) -> float:
        """Learning rate at a step, counted from 0, where an epoch has so many steps."""
        if self.schedule == "step-30":
            return self.learning_rate * 0.1 ** (step // per_epoch // 30)
        if self.schedule == "exponential":
            return self.learning_rate * 0.7 ** (step // per_epoch)
        total = self.epochs * per_epoch
        warm = max(1, round(0.15 * total)) if self.schedule == "one-cycle" else 0
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        way = (step - warm) / max(1, total - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * way))


class NetworkSpec(Strict):
    """Everything that determines a network, teacher included.

    ``method``: None for a network that learns from the labels alone. ``labels``: whose soft labels
    the method gets: the teacher's, smoothed ones, or the teacher's permuted within each class.
    ``start_seed``: of the first weights in place of the network's own. ``parts``, ``shares``,
    ``mirrored``: of a composite, see `networks.Composite`. ``pretrained``: published weights of a
    network that is not trained. ``large_images``: timm's ResNets keep their strided stem.
    """

    role: Literal["teacher", "student"]
    model: str
    num_classes: int
    data: DataSpec
    recipe: Recipe
    method: SerializeAsAny[Method] | None = None
    labels: Literal["teacher", "smoothed", "permuted"] = "teacher"
    seed: int = 0
    teacher: NetworkSpec | None = None
    start_seed: int | None = None
    parts: tuple[NetworkSpec, ...] = ()
    shares: tuple[float, ...] = ()
    mirrored: bool = False
    pretrained: str = ""
    large_images: bool = False

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        return methods.from_settings(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.method is None) != (self.teacher is None):
            raise ValueError("a method and a teacher go together: name both or neither")
        if self.labels != "teacher" and not (self.method and self.method.from_logits):
            raise ValueError(f"labels {self.labels!r} need a method whose targets are soft labels")
        if self.method is not None and self.method.gamma == 0 == self.method.weight:
            raise ValueError("gamma and weight are both 0: nothing is left to train on")
        return self

    @property
    def key(self) -> str:
        """Content hash: the network's name in the cache; raises RequestError as `code_mark`."""
        values = self.model_dump(mode="json", exclude={"teacher", "parts"})
        values["data"] = self.data.identity()
        if self.method is not None:
            values["method"]["code"] = methods.code_mark(type(self.method))
        values["teacher"] = self.teacher and self.teacher.key
        values["parts"] = [part.key for part in self.parts]
        text = f"{REVISION}:{json.dumps(values, sort_keys=True)}"
        return checksum(text.encode())[:20]

    @property
    def initialisation_seed(self) -> int:
        """Seed of the first weights: others for a teacher and a student of one architecture."""
        if self.start_seed is not None:
            return self.start_seed
        return derive_seed(self.role, self.model, self.seed)

    @property
    def order_seed(self) -> int:
        """Seed of the data order and of the views: one for all students of one seed."""
        return derive_seed("order", self.role, self.seed)

    @property
    def trained_before(self) -> tuple[NetworkSpec, ...]:
        """The trained networks that teach this one, or that a composite consists of."""
        if self.teacher is None:
            return self.parts
        return self.teacher.parts or (self.teacher,)

    @property
    def layers(self) -> tuple[str, str] | None:
        """The student's and the teacher's layer that the method looks at, if it does."""
        return None if self.method is None else self.method.layers()

    @property
    def needs_layer(self) -> bool:
        """Whether that of the teacher is one that no table of logits holds."""
        return self.layers is not None and self.layers[1] != "logits"


@dataclass(frozen=True)
class Planned:
    """A network that is wanted, and the arm that it plays (for display only)."""

    arm: str
    spec: NetworkSpec

    def __str__(self) -> str:
        return f"{self.arm}, {self.spec.model}, seed {self.spec.seed}"


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from named parts."""
    return int(checksum(json.dumps(parts).encode())[:16], 16) >> 1
