"""A way of teaching: what it declares of itself, and what it sees of a batch.

A method is one file in this folder with one subclass of `Method`. Nothing else has to name it: the
command line, the chapters, the figures and the cache read what it declares.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_serializer
from pydantic.functional_serializers import SerializerFunctionWrapHandler

from kdnotes.errors import RequestError
from kdnotes.lazy import torch
from kdnotes.store import checksum

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Group(Protocol):
    """The processes that train one network together, each with its share of every batch."""

    def count(self) -> int:
        """Number of processes."""

    def share(self, batch: int) -> slice:
        """The rows of a batch that this process has."""

    def gathered(self, values: Tensor) -> Tensor:
        """The rows (n, ...) of all processes in their order, without gradient."""

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, without gradient."""


class Alone:
    """A group of one process."""

    def count(self) -> int:
        """One."""
        return 1

    def share(self, batch: int) -> slice:
        """All rows."""
        return slice(0, batch)

    def gathered(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


@dataclass(frozen=True)
class Outputs:
    """What a network makes of a batch; what the method does not ask for may be absent.

    ``logits`` (B, classes); ``features`` (B, D), the input of the last layer; ``layer``, the output
    of the layer that the method names, (B, C, H, W), or (B, classes) where it names the logits.
    """

    logits: Tensor | None = None
    features: Tensor | None = None
    layer: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What a method sees of one step.

    ``labels`` int64 (B,); ``indices`` int64 (B,), the images' places in the training set, each at
    most once; ``soft_labels(tau)``: the target probabilities (B, classes) at a temperature, the
    teacher's unless the student is a control that gets others; ``beside``: what `Method.prepare`
    returned; ``generator`` lives on the batch's device and is the method's own.
    """

    labels: Tensor
    indices: Tensor
    student: Outputs
    teacher: Outputs
    soft_labels: Callable[[float], Tensor]
    generator: Generator
    beside: Any = None
    group: Group = field(default_factory=Alone)


class Method(BaseModel):
    """A way of teaching: the student minimises gamma * cross-entropy + weight * ``term``.

    The class attributes say how it is named and drawn, and where it comes from; the fields are its
    settings, with defaults and ranges. A field called ``tau`` follows the parameter of that name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """As it is asked for: lower case, without spaces."""
    label: ClassVar[str]
    """For axes and tables."""
    short: ClassVar[str]
    """Where there is little room."""
    colour: ClassVar[str]
    """Of its marks and lines, #RRGGBB."""
    marker: ClassVar[str]
    """matplotlib's."""
    line: ClassVar[Any] = "-"
    """matplotlib's line style."""
    source: ClassVar[str]
    """The publication, and where its settings come from."""
    by_default: ClassVar[bool] = False
    """Whether chapters use it when no methods are named."""
    rank: ClassVar[int] = 100
    """Its place where methods stand in order."""
    from_logits: ClassVar[bool] = False
    """Whether its targets are soft labels, so that controls with other soft labels make sense."""

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

    def describe(self) -> str:
        """The objective in a line, for tables."""
        own = "" if (detail := self.detail()) == "" else f" ({detail})"
        return f"{self.gamma:g} labels + {self.weight:g} {self.short}{own}"

    def detail(self) -> str:
        """What tables say of its settings."""
        return ""

    @model_serializer(mode="wrap")
    def _with_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name} | handler(self)


def source_file(method: type[Method]) -> Path:
    """The file that a method's class was written in.

    Raises RequestError for one from a notebook or a prompt: worker processes cannot see it.
    """
    try:
        return Path(inspect.getfile(method))
    except (OSError, TypeError) as error:
        raise RequestError(
            f"method {method.name!r} was defined in a notebook, where training processes cannot "
            "see it; write it into a file in kdnotes/methods, or into a package of yours with an "
            "entry point in the group kdnotes.methods"
        ) from error


@lru_cache
def code_mark(method: type[Method]) -> str:
    """Content hash of a method's file: who edits a method trains its students again."""
    return checksum(source_file(method))[:16]


def at_least_single(values: Tensor) -> Tensor:
    """The values in single precision, or double if they are."""
    return values if values.dtype == torch.float64 else values.float()
