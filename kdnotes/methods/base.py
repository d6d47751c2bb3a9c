"""A way of teaching: what it declares of itself, and what it sees of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_serializer
from pydantic.functional_serializers import SerializerFunctionWrapHandler

from kdnotes.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Group:
    """The processes that train one network together; as it stands, there is one alone."""

    def share(self, batch: int) -> slice:
        """The rows of a batch that this process has."""
        return slice(0, batch)

    def gathered(self, values: Tensor) -> Tensor:
        """The rows (n, ...) of all processes in their order; gradients go back to each."""
        return values


class Outputs(NamedTuple):
    """What a network makes of a batch; what the method does not ask for may be absent.

    ``logits`` (B, classes); ``features`` (B, D), the input of the last layer; ``layer``, the output
    of the layer that the method names, (B, C, H, W) or (B, classes).
    """

    logits: Tensor = None  # type: ignore[assignment]
    features: Tensor = None  # type: ignore[assignment]
    layer: Tensor = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Batch:
    """What a method sees of one step.

    ``labels`` int64 (B,); ``indices`` int64 (B,), places in the training set, each at most once;
    ``soft_labels(tau)``: target probabilities (B, classes) at a temperature, the teacher's unless
    the student is a control; ``generator``: the method's own, on the batch's device; ``beside``:
    what `Method.prepare` returned.
    """

    labels: Tensor
    indices: Tensor
    student: Outputs
    teacher: Outputs
    soft_labels: Callable[[float], Tensor]
    generator: Generator
    beside: Any = None
    group: Group = field(default_factory=Group)


class Method(BaseModel):
    """A way of teaching: the student minimises gamma * cross-entropy + weight * ``term``.

    The fields are its settings; ``tau`` follows the chapters' parameter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]  # by which it is asked for, lower case
    label: ClassVar[str]
    short: ClassVar[str]  # label where there is little room
    colour: ClassVar[str]  # #RRGGBB
    marker: ClassVar[str]  # matplotlib's
    line: ClassVar[Any] = "-"
    source: ClassVar[str]
    by_default: ClassVar[bool] = False  # whether chapters have it when none are named
    rank: ClassVar[int] = 100  # place among others
    details: ClassVar[str] = ""  # what tables say of its settings, a format of them
    from_logits: ClassVar[bool] = False  # soft labels at a setting tau: controls make sense

    gamma: float = Field(default=1.0, ge=0, description="weight of the cross-entropy")
    weight: float = Field(default=1.0, ge=0, description="weight of the method's own term")

    def layers(self) -> tuple[str, str] | None:
        """Which layer of the student, and of the teacher, the method looks at; mostly none.

        As `kdnotes.networks.hint_layer` reads them: a dotted path, "logits", or a depth as "2/3".
        """
        return None

    def prepare(self, example: Batch, labels: Tensor, seed: int) -> Any:
        """What is trained or remembered beside the student, from one batch and all labels (M,).

        Called once, with torch's global generator seeded.
        """
        return None

    def term(self, batch: Batch) -> Tensor:
        """The method's own loss, a scalar, the mean over the batch; no gradient to the teacher."""
        raise NotImplementedError

    def describe(self, *more: str) -> str:
        """The objective in a line, for tables; ``more`` is said beside its settings."""
        said = ", ".join(part for part in (self.details.format(**dict(self)), *more) if part)
        return f"{self.gamma:g} labels + {self.weight:g} {self.short}" + (said and f" ({said})")

    @model_serializer(mode="wrap")
    def _with_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name} | handler(self)


def at_least_single(values: Tensor) -> Tensor:
    """The values in single precision, or double if they are."""
    return values if values.dtype == torch.float64 else values.float()
