"""Hint: the squared error, and the projection to the teacher's shape."""

from __future__ import annotations

import pytest
import torch
from method_batches import batch, generator, logits
from torch import nn

from kdnotes.methods import Outputs
from kdnotes.methods.hint import Hint, projection, squared_error


def test_worked_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 4.0]]]])
    assert squared_error(student, teacher).item() == pytest.approx((4 + 9) / 4)


def test_the_gradient_of_a_hint_lies_in_memory_as_the_map_does() -> None:
    student, teacher = (
        torch.randn(2, 3, 4, 5, generator=generator(seed)).contiguous(
            memory_format=torch.channels_last
        )
        for seed in (1, 2)
    )
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(squared_error(student, teacher), student)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    expected = 2 * (student - teacher).detach() / student.numel()
    assert torch.allclose(gradient, expected)


def test_in_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(8, 50, seed=1).bfloat16(), logits(8, 50, seed=2).bfloat16()
    value = squared_error(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(((student.double() - teacher.double()) ** 2).mean().item())


def test_sends_nothing_to_the_teacher() -> None:
    student, teacher = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    squared_error(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((6, 8, 8), (10, 8, 8)),
        ((6, 16, 16), (10, 8, 8)),
        ((6, 8, 8), (10, 16, 16)),
        ((6, 16, 8), (10, 8, 4)),
        ((6, 16, 16), (10, 4, 4)),
        ((6, 15, 15), (10, 5, 5)),
        ((6, 4, 4), (10, 16, 16)),
        ((6, 5, 5), (10, 15, 15)),
        ((6, 8, 8), (10, 7, 7)),
        ((6, 7, 7), (10, 8, 8)),
        ((6, 8, 4), (10, 4, 8)),
        ((6, 1, 1), (10, 4, 4)),
        ((6,), (10,)),
    ],
)
def test_projection_reaches_the_teachers_shape(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    layers = projection(student, teacher)
    projected = layers(torch.randn(3, *student))
    assert projected.shape == (3, *teacher)
    squared_error(projected, torch.randn(3, *teacher)).backward()
    assert all(parameter.grad is not None for parameter in layers.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel", "stride"),
    [
        ((6, 8, 8), (10, 8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ((6, 16, 16), (10, 8, 8), nn.Conv2d, (3, 3), (2, 2)),
        ((6, 8, 8), (10, 16, 16), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((6, 8, 8), (10, 6, 7), nn.Conv2d, (3, 2), (1, 1)),
    ],
)
def test_projection_has_the_layers_of_repdistiller(
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    kind: type[nn.Module],
    kernel: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    convolution, *rest = projection(student, teacher).children()
    assert isinstance(convolution, kind)
    assert (convolution.kernel_size, convolution.stride) == (kernel, stride)
    assert [type(layer) for layer in rest] == [nn.BatchNorm2d, nn.ReLU]


def test_projection_of_logits_keeps_both_signs() -> None:
    projected = projection((6,), (10,))(torch.randn(50, 6, generator=generator()))
    assert projected.min() < 0 < projected.max()


def test_projection_refuses_a_map_for_a_vector() -> None:
    with pytest.raises(ValueError, match="both"):
        projection((6, 4, 4), (10,))


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_a_teachers_values_below_zero_are_within_reach(lowest: float) -> None:
    # A map before its activation: the projection must not end in a ReLU then.
    student = Outputs(layer=torch.randn(4, 6, 8, 8, generator=generator()))
    teacher = Outputs(layer=torch.full((4, 5, 8, 8), 1.0).index_fill_(1, torch.tensor(0), lowest))
    method = Hint(student_layer="a", teacher_layer="b")
    layers = method.prepare(batch(student, teacher), torch.zeros(9), seed=0)
    assert bool((layers(student.layer) < 0).any()) == (lowest < 0)
    value = method.term(batch(student, teacher, beside=layers))
    assert value.item() == pytest.approx(
        ((layers(student.layer) - teacher.layer) ** 2).mean().item()
    )
    assert method.layers() == ("a", "b")
