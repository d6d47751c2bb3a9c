"""Agreement of two networks: beyond chance, and on the mistakes of one of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def cohen_kappa(predictions_a: ArrayLike, predictions_b: ArrayLike) -> float:
    """Agreement of two raters, both of shape (items,), beyond chance (0): Cohen (1960).

    NaN where both always give the same answer. Raises ValueError for empty or unequal inputs.
    """
    a, b = np.asarray(predictions_a), np.asarray(predictions_b)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"need two equally long lists of answers, not {a.shape} and {b.shape}")
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    share_a = np.bincount(codes[: a.size], minlength=len(names)) / a.size
    share_b = np.bincount(codes[a.size :], minlength=len(names)) / a.size
    by_chance = float(share_a @ share_b)
    if by_chance >= 1:
        return float("nan")
    return (float((a == b).mean()) - by_chance) / (1 - by_chance)


def error_consistency(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Kappa of being right on the same items, (items,): Geirhos, Meding and Wichmann (2020)."""
    return cohen_kappa(np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool))


def agreement_on_wrong_items(
    student_predictions: ArrayLike, teacher_predictions: ArrayLike, labels: ArrayLike
) -> float:
    """Share of the teacher's wrong answers, of (items,), that the student gives as well, or NaN."""
    student, teacher = np.asarray(student_predictions), np.asarray(teacher_predictions)
    wrong = teacher != np.asarray(labels)
    return float((student[wrong] == teacher[wrong]).mean()) if wrong.any() else float("nan")
