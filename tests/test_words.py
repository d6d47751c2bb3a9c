"""The words for how much was inherited, at and around their bounds, and those for verdicts."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from kdnotes.stats.words import VERDICTS, VerdictLabel, format_number, how_much


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.4, -0.2, "the opposite"),
        (-0.1, -0.001, "the opposite"),  # the first that fits, though it is small
        (-0.1, 0.0, "none to speak of"),
        (-0.149, 0.149, "none to speak of"),
        (0.01, 0.149, "none to speak of"),
        (-0.15, 0.1, "cannot tell"),
        (-0.1, 0.15, "cannot tell"),
        (0.501, 1.2, "most"),
        (0.5, 0.9, "part"),
        (0.151, 3.0, "part"),
        (0.15, 0.499, "a little"),
        (0.001, 0.15, "a little"),
        (0.15, 0.5, "some, how much is open"),
        (0.001, 2.0, "some, how much is open"),
        (0.0, 0.4, "cannot tell"),
        (-0.2, 0.2, "cannot tell"),
        (-2.0, 2.0, "cannot tell"),
        (math.nan, math.nan, "cannot tell"),
        (0.6, math.inf, "cannot tell"),
    ],
)
def test_how_much(low: float, high: float, word: str) -> None:
    assert how_much(low, high) == word


def test_the_two_vocabularies_share_no_word() -> None:
    bounds = [-0.3, -0.1, 0.0, 0.1, 0.2, 0.4, 0.6, 0.9]
    ladder = {how_much(low, high) for low in bounds for high in bounds if low <= high}
    assert len(ladder) == 7
    assert not ladder & set(VERDICTS)
    assert set(VERDICTS) == set(get_args(VerdictLabel))
    assert len(set(VERDICTS.values())) == len(VERDICTS)


def test_numbers_have_no_zero_before_the_point() -> None:
    values = (0.384, -0.05, 1.2, -0.001, math.nan)
    assert [format_number(each) for each in values] == [".38", "-.05", "1.20", ".00", "not defined"]
