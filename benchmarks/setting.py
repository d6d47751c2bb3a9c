"""What all works share: how large, where, how often, what was checked, and a trained network."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from benchmarks.timing import Clock, Contender, Row, clock_of, interleave, rows

ROUNDS = 5


class DisagreementError(RuntimeError):
    """Contenders that were said to do the same work gave different results."""


@dataclass
class Setting:
    """A run of the benchmarks, and what its checks found so far.

    ``rounds`` None: each work's own number. ``quick``: small sizes, to see that all works.
    """

    device: str = "cpu"
    rounds: int | None = None
    quick: bool = False
    checks: list[str] = field(default_factory=list)

    def size(self, full: int, quick: int) -> int:
        """A size, or the small one that stands in for it."""
        return quick if self.quick else full

    def turns(self, usual: int = ROUNDS) -> int:
        """How many rounds a work gets."""
        return self.rounds or (1 if self.quick else usual)

    @property
    def clock(self) -> Clock:
        """What seconds are read from, except where a work says otherwise."""
        return clock_of(self.device)

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def check(self, holds: bool, text: str) -> None:
        """Write down what a check found; raises DisagreementError when it does not hold."""
        if not holds:
            raise DisagreementError(text)
        self.checks.append(text)
        self.say(f"  checked: {text}")

    def race(
        self, work: str, contenders: list[Contender], reference: str, rounds: int = ROUNDS
    ) -> tuple[list[Row], dict[str, Any]]:
        """Time the contenders in turns: lines of the table, and what each gave."""
        seconds, results = interleave(
            contenders, self.turns(rounds), self.clock, lambda text: self.say(f"  {text}")
        )
        return rows(work, seconds, reference), results

    def with_peer(self, module: str, make: Callable[[], Contender]) -> list[Contender]:
        """A peer's contender, or none, said on stderr, where the peer is not installed."""
        if importlib.util.find_spec(module) is None:
            self.say(f"  {module} is not installed: left out (make bench installs it)")
            return []
        return [make()]


@lru_cache(maxsize=1)
def trained_resnet(device: str, quick: bool) -> Any:
    """A ResNet-20 (`networks.Normalized`) trained for a short while on scenes, not frozen."""
    from benchmarks.nets import cifar_resnet
    from kdnotes.data.views import Views
    from kdnotes.training import loop
    from kdnotes.training.specification import NetworkSpec, Recipe

    data = scenes("train", 256 if quick else 1000)
    network = cifar_resnet(20, seed=0)
    spec = NetworkSpec(
        role="teacher",
        model="resnet-20",
        num_classes=10,
        data=scenes_spec("train", len(data)),
        recipe=Recipe(epochs=1 if quick else 4, batch=64, views=Views(pad=0)),
    )
    loop.train(spec, network, data, None, device)
    return network


def scenes_spec(split: str, count: int) -> Any:
    """The plain scenes of the book: a digit whose hue tells the class half of the time."""
    from kdnotes.data import DataSpec, with_fingerprint
    from kdnotes.study.study import SCENES

    *_, one_cue = SCENES["one-cue"]
    spec = DataSpec.model_validate(
        {"name": "scenes", "split": split, "count": count, "options": one_cue}
    )
    return with_fingerprint(spec, None)


@lru_cache(maxsize=4)
def scenes(split: str, count: int) -> Any:
    """Images of `scenes_spec` (`kdnotes.data.ImageData`)."""
    from kdnotes import data

    return data.load(scenes_spec(split, count))
