"""Controls of soft labels: without a teacher, and permuted within the class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_batches import generator

from kdnotes.methods.controls import permute_within_class, smoothed_labels


def test_smoothed_labels_have_the_confidence_and_nothing_else() -> None:
    labels = torch.tensor([2, 0, 3])
    probabilities = smoothed_labels(labels, 5, 0.6)
    expected = np.full((3, 5), 0.1)
    expected[[0, 1, 2], [2, 0, 3]] = 0.6
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_permutation_stays_within_the_class_and_moves_everything(seed: int) -> None:
    labels = torch.randint(0, 7, (300,), generator=generator(seed))
    permutation = permute_within_class(labels, generator(seed))
    torch.testing.assert_close(permutation.sort().values, torch.arange(300))
    torch.testing.assert_close(labels[permutation], labels)
    assert (permutation != torch.arange(300)).all()


def test_permutation_is_seeded_and_uniform() -> None:
    labels = torch.tensor([4, 9, 4, 4, 4])
    stream = generator()
    partners = torch.stack([permute_within_class(labels, stream)[0] for _ in range(3000)])
    counts = partners.bincount(minlength=5)
    assert counts[[0, 1]].tolist() == [0, 0]
    # A third each, with a standard deviation of 26 around 1000.
    assert (counts[2:] - 1000).abs().max() < 120
    first, second = (permute_within_class(labels, generator(3)) for _ in range(2))
    torch.testing.assert_close(first, second)


def test_permutation_keeps_an_item_that_is_alone() -> None:
    assert permute_within_class(torch.tensor([1, 0, 1]), generator()).tolist() == [2, 1, 0]
