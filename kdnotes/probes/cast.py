"""Who is compared: a teacher, a second teacher, and students trained with and without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Member:
    """One trained network of a cast.

    ``network`` maps float images in [0, 1] of shape (N, 3, H, W) to logits (N, classes); it is
    frozen, in evaluation mode, with BatchNorm folded. ``taps`` are the dotted paths of its feature
    layers, from shallow to deep.
    """

    arm: str
    seed: int
    network: nn.Module
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Cast:
    """A teacher, an optional second teacher of the same recipe, and the students compared."""

    teacher: Member
    second_teacher: Member | None
    members: tuple[Member, ...]
    classes: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the students' arms, in order of first appearance."""
        return tuple(dict.fromkeys(member.arm for member in self.members))

    def arm(self, name: str) -> tuple[Member, ...]:
        """All members of one arm, in order of their seeds."""
        return tuple(sorted((m for m in self.members if m.arm == name), key=lambda m: m.seed))

    def everyone(self) -> Iterator[Member]:
        """The teacher, the second teacher if there is one, then all members."""
        yield self.teacher
        if self.second_teacher is not None:
            yield self.second_teacher
        yield from self.members
