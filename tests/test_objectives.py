"""Objectives against hand-worked cases, plain loops in double precision, and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import rel_entr, softmax
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes.methods.objectives import (
    CRD,
    HintProjection,
    ObjectiveSpec,
    combine,
    hint,
    kl,
    kl_to_probabilities,
    permute_within_class,
    smoothed_labels,
)

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2, 2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# Soft labels


def test_kl_worked_by_hand() -> None:
    # At tau = 2 the teacher's logits 2 ln 3 and 0 become 3/4 and 1/4, the student's become 1/2:
    # 4 * (3/4 ln(3/2) + 1/4 ln(1/2)) = 3 ln 3 - 4 ln 2.
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    assert kl(student, teacher, 2.0).item() == pytest.approx(3 * math.log(3) - 4 * math.log(2))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 8.0])
def test_kl_equals_scipy_and_torch(tau: float) -> None:
    student, teacher = logits(7, 5, seed=1), logits(7, 5, seed=2)
    value = kl(student, teacher, tau).item()
    soft_student, soft_teacher = (softmax(x.numpy() / tau, axis=1) for x in (student, teacher))
    assert value == pytest.approx(tau**2 * rel_entr(soft_teacher, soft_student).sum(1).mean())
    summed = F.kl_div(
        F.log_softmax(student / tau, 1),
        F.log_softmax(teacher / tau, 1),
        reduction="sum",
        log_target=True,
    )
    assert value == pytest.approx(tau**2 * summed.item() / 7)


def test_kl_equals_torchdistill() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is absent")
    student, teacher, labels = logits(6, 4, seed=1), logits(6, 4, seed=2), torch.arange(6) % 4
    peer = losses.KDLoss("s", "output", "t", "output", temperature=4.0, alpha=0.1, beta=0.9)
    expected = peer({"s": {"output": student}}, {"t": {"output": teacher}}, labels)
    spec = ObjectiveSpec(method="kl", gamma=0.1, weight=0.9, tau=4.0)
    terms = {"ce": F.cross_entropy(student, labels), "kl": kl(student, teacher, spec.tau)}
    assert combine(terms, spec).item() == pytest.approx(expected.item(), rel=1e-12)


def test_kl_at_temperature_one_equals_timm() -> None:
    # Soft-target cross-entropy exceeds the divergence by the teacher's entropy.
    timm_loss = pytest.importorskip("timm.loss", reason="timm is absent")
    student, teacher = logits(6, 4, seed=1), logits(6, 4, seed=2)
    soft = torch.softmax(teacher, 1)
    entropy = torch.distributions.Categorical(probs=soft).entropy().mean()
    expected = timm_loss.SoftTargetCrossEntropy()(student, soft) - entropy
    assert kl(student, teacher, 1.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_kl_has_the_gradient_of_the_scaled_cross_entropy() -> None:
    tau, teacher = 4.0, logits(6, 4, seed=2)
    student = logits(6, 4, seed=1).requires_grad_()
    (ours,) = torch.autograd.grad(kl(student, teacher, tau), student)
    soft = torch.softmax(teacher / tau, 1)
    paper = -(tau**2) * (soft * torch.log_softmax(student / tau, 1)).sum(1).mean()
    (theirs,) = torch.autograd.grad(paper, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_kl_sends_nothing_to_the_teacher() -> None:
    student, teacher = logits(3, 4, seed=1).requires_grad_(), logits(3, 4, seed=2).requires_grad_()
    kl(student, teacher, 4.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_kl_is_zero_only_for_the_same_distribution() -> None:
    teacher = logits(5, 4)
    assert kl(teacher + 3.0, teacher, 4.0).item() == pytest.approx(0.0, abs=1e-12)
    assert kl(teacher * 1.1, teacher, 4.0).item() > 1e-3


def test_kl_to_probabilities_accepts_one_hot_labels() -> None:
    # A one-hot target has no entropy: what is left is the cross-entropy.
    student, labels = logits(6, 4), torch.arange(6) % 4
    value = kl_to_probabilities(student, F.one_hot(labels, 4).double(), 1.0)
    assert value.item() == pytest.approx(F.cross_entropy(student, labels).item(), rel=1e-12)


def test_kl_in_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(64, 10, seed=1).bfloat16(), logits(64, 10, seed=2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl(student, teacher, 4.0)
    assert value.dtype == torch.float32
    expected = kl(student.double(), teacher.double(), 4.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_kl_refuses_a_temperature_that_is_not_positive(tau: float) -> None:
    with pytest.raises(ValueError, match="tau"):
        kl_to_probabilities(logits(2, 3), torch.softmax(logits(2, 3), 1), tau)


def test_kl_refuses_different_classes() -> None:
    with pytest.raises(ValueError, match="same shape"):
        kl(logits(2, 3), logits(2, 4), 4.0)


# Hint


def test_hint_worked_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 4.0]]]])
    assert hint(student, teacher).item() == pytest.approx((4 + 9) / 4)


def test_the_gradient_of_a_hint_lies_in_memory_as_the_map_does() -> None:
    student, teacher = (
        torch.randn(2, 3, 4, 5, generator=generator(seed)).contiguous(
            memory_format=torch.channels_last
        )
        for seed in (1, 2)
    )
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(hint(student, teacher), student)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    expected = 2 * (student - teacher).detach() / student.numel()
    assert torch.allclose(gradient, expected)


def test_hint_in_half_precision_is_computed_in_single() -> None:
    student, teacher = logits(8, 50, seed=1).bfloat16(), logits(8, 50, seed=2).bfloat16()
    value = hint(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(((student.double() - teacher.double()) ** 2).mean().item())


def test_hint_sends_nothing_to_the_teacher() -> None:
    student, teacher = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    hint(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_hint_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="same shape"):
        hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 1, 1))


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
    projection = HintProjection(student, teacher)
    projected = projection(torch.randn(3, *student))
    assert projected.shape == (3, *teacher)
    hint(projected, torch.randn(3, *teacher)).backward()
    assert all(parameter.grad is not None for parameter in projection.parameters())


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
    convolution, *rest = HintProjection(student, teacher).project.children()
    assert isinstance(convolution, kind)
    assert (convolution.kernel_size, convolution.stride) == (kernel, stride)
    assert [type(layer) for layer in rest] == [nn.BatchNorm2d, nn.ReLU]


def test_projection_of_logits_keeps_both_signs() -> None:
    projected = HintProjection((6,), (10,))(torch.randn(50, 6, generator=generator()))
    assert projected.min() < 0 < projected.max()


def test_projection_refuses_a_map_for_a_vector() -> None:
    with pytest.raises(ValueError, match="both"):
        HintProjection((6, 4, 4), (10,))


# Contrast


def contrast(n_negatives: int = 5, **options: float | None) -> CRD:
    settings = {"tau": 0.1, "momentum": 0.5, "seed": 3, "embed_dim": 4} | options
    return CRD(6, 7, LABELS, n_negatives, **settings).double()  # type: ignore[arg-type]


def features(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = logits(batch, 6, seed=1, scale=1.0), logits(batch, 7, seed=2, scale=1.0)
    return student, teacher, torch.tensor([1, 10, 0, 5, 7, 11])[:batch]


def embedded(layer: nn.Linear, values: Tensor) -> Tensor:
    mapped = values @ layer.weight.T + layer.bias
    return mapped / mapped.norm(dim=1, keepdim=True)


def loop_reference(crd: CRD, batch: tuple[Tensor, Tensor, Tensor], estimate: bool) -> Tensor:
    """The loss of the class's docstring, one pair at a time, with the same negatives."""
    student, teacher, indices = batch
    chosen = crd.draw(indices, generator(9)).tolist()
    n_negatives, n_images = crd.n_negatives, len(LABELS)
    roles = (
        (embedded(crd.student_embedding, student), crd.teacher_bank.clone()),
        (embedded(crd.teacher_embedding, teacher), crd.student_bank.clone()),
    )
    total = torch.zeros((), dtype=torch.float64)
    for anchors, bank in roles:
        similarity = [
            [torch.exp(anchor @ bank[item] / crd.tau) for item in row]
            for anchor, row in zip(anchors, chosen, strict=True)
        ]
        every = [value.item() for row in similarity for value in row]
        z = n_images * sum(every) / len(every) if estimate else 1.0
        for row in similarity:
            h = [(e / z) / (e / z + n_negatives / n_images) for e in row]
            total = total - torch.log(h[0]) - sum(torch.log(1 - other) for other in h[1:])
    return total / len(indices)


# 5 negatives of 4 dimensions against 12 images: the whole product. 1 negative: the chosen rows.
@pytest.mark.parametrize("n_negatives", [1, 5])
@pytest.mark.parametrize("normalizer", [1.0, None])
def test_crd_equals_a_loop_over_pairs(n_negatives: int, normalizer: float | None) -> None:
    crd = contrast(n_negatives, normalizer=normalizer)
    student, teacher, indices = features()
    student.requires_grad_()
    learned = [student, *crd.parameters()]
    reference = loop_reference(crd, (student, teacher, indices), estimate=normalizer is None)
    # The constants count as constants, in Tian's code as here.
    expected = torch.autograd.grad(reference, learned)
    value = crd(student, teacher, indices, generator(9))
    assert value.item() == pytest.approx(reference.item(), rel=1e-10)
    for ours, theirs in zip(torch.autograd.grad(value, learned), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_negatives", [1, 5])
def test_crd_gradient_is_that_of_finite_differences(n_negatives: int) -> None:
    crd = contrast(n_negatives, normalizer=2.0).eval()
    student, teacher, indices = features()

    def value(student: Tensor, weight: Tensor) -> Tensor:
        swapped = {"teacher_embedding.weight": weight}
        arguments = (student, teacher, indices, generator(9))
        return torch.func.functional_call(crd, swapped, arguments)

    weight = crd.teacher_embedding.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (student.requires_grad_(), weight))


def test_crd_equals_torchdistill() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is absent")
    labels = torch.arange(64) % 4
    crd = CRD(6, 7, labels, 16, tau=0.07, momentum=0.5, seed=3, embed_dim=8).double()
    peer = losses.CRDLoss("norm", "empty", "norm", 8, 64, 16, 64, eps=0.0).double()
    peer.memory_v1.copy_(crd.student_bank)
    peer.memory_v2.copy_(crd.teacher_bank)
    # The second step sees moved banks and the constants of the first.
    for step in range(2):
        student, teacher = logits(5, 6, seed=step), logits(5, 7, seed=step + 9)
        indices = torch.arange(5) * 7 + step
        expected = peer(
            {
                "norm": {"output": embedded(crd.student_embedding, student).detach()},
                "empty": {
                    "input": {
                        "pos_idx": indices,
                        "contrast_idx": crd.draw(indices, generator(step)),
                    }
                },
            },
            {"norm": {"output": embedded(crd.teacher_embedding, teacher).detach()}},
        )
        value = crd(student, teacher, indices, generator(step))
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(crd.student_bank, peer.memory_v1)
    torch.testing.assert_close(crd.teacher_bank, peer.memory_v2)
    torch.testing.assert_close(crd.log_normalizers, peer.params[2:4].log())


def test_crd_draws_other_classes_uniformly() -> None:
    crd = contrast(n_negatives=4000)
    indices = torch.arange(len(LABELS))
    chosen = crd.draw(indices, generator())
    torch.testing.assert_close(chosen[:, 0], indices)
    for item, drawn in zip(indices.tolist(), chosen[:, 1:], strict=True):
        counts = drawn.bincount(minlength=len(LABELS))
        others = LABELS[item] != LABELS
        assert (counts[~others] == 0).all()
        expected = 4000 / int(others.sum())
        statistic = ((counts[others] - expected) ** 2 / expected).sum().item()
        assert statistic < chi2.ppf(1 - 1e-4, int(others.sum()) - 1)


def test_crd_draws_follow_the_generator_alone() -> None:
    crd, indices = contrast(), torch.tensor([2, 4])
    torch.manual_seed(0)
    first = crd.draw(indices, generator(1))
    torch.manual_seed(1)
    torch.testing.assert_close(first, crd.draw(indices, generator(1)))
    assert not torch.equal(first, crd.draw(indices, generator(2)))


def test_crd_moves_the_memory_as_worked_by_hand() -> None:
    crd = CRD(2, 2, torch.tensor([0, 1, 1]), 2, tau=1.0, momentum=0.75, seed=0, embed_dim=2)
    for layer in (crd.student_embedding, crd.teacher_embedding):
        layer.weight.data = torch.eye(2)
        layer.bias.data.zero_()
    crd.student_bank.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    crd.teacher_bank.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    # (3, 4) has unit length at (.6, .8); three quarters of (1, 0) and a quarter of that make
    # (.9, .2). (0, -5) makes (0, -1); with (.6, .8) that is (.45, .35).
    crd(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -5.0]]), torch.tensor([1]), generator())
    student = torch.tensor([0.9, 0.2]) / math.hypot(0.9, 0.2)
    teacher = torch.tensor([0.45, 0.35]) / math.hypot(0.45, 0.35)
    torch.testing.assert_close(crd.student_bank[1], student)
    torch.testing.assert_close(crd.teacher_bank[1], teacher)
    untouched = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(crd.student_bank[[0, 2]], untouched)
    torch.testing.assert_close(crd.teacher_bank[[0, 2]], untouched)


def test_crd_leaves_the_memory_alone_in_evaluation() -> None:
    crd = contrast().eval()
    before = crd.student_bank.clone(), crd.teacher_bank.clone()
    crd(*features(), generator())
    torch.testing.assert_close((crd.student_bank, crd.teacher_bank), before, rtol=0, atol=0)


def test_crd_trains_student_and_both_layers_only() -> None:
    crd = contrast()
    student, teacher, indices = features()
    crd(student.requires_grad_(), teacher.requires_grad_(), indices, generator()).backward()
    assert student.grad is not None
    assert teacher.grad is None
    names = {name for name, parameter in crd.named_parameters() if parameter.grad is not None}
    assert names == {
        f"{network}_embedding.{part}"
        for network in ("student", "teacher")
        for part in ("weight", "bias")
    }
    assert not crd.student_bank.requires_grad
    assert not crd.teacher_bank.requires_grad


def test_crd_keeps_the_first_batchs_constants() -> None:
    crd = contrast()
    student, teacher, indices = features()
    crd(student, teacher, indices, generator(1))
    constants = crd.log_normalizers.clone()
    assert constants.isfinite().all()
    crd(student + 1, teacher - 1, indices, generator(2))
    torch.testing.assert_close(crd.log_normalizers, constants, rtol=0, atol=0)


def test_crd_state_carries_banks_and_constants() -> None:
    crd, restored = contrast(), contrast(seed=8)
    student, teacher, indices = features()
    crd(student, teacher, indices, generator(1))
    restored.load_state_dict(crd.state_dict())
    expected = crd(student + 1, teacher, indices, generator(2))
    value = restored(student + 1, teacher, indices, generator(2))
    assert value.item() == expected.item()
    torch.testing.assert_close(restored.log_normalizers, crd.log_normalizers, rtol=0, atol=0)


def test_crd_start_follows_its_seed_alone() -> None:
    torch.manual_seed(0)
    first = contrast(seed=5).state_dict()
    torch.manual_seed(1)
    second, third = contrast(seed=5).state_dict(), contrast(seed=6).state_dict()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], equal_nan=True)
    assert not torch.equal(first["student_bank"], third["student_bank"])
    assert not torch.equal(first["student_bank"], first["teacher_bank"])


def test_crd_start_has_entries_of_about_unit_length() -> None:
    crd = CRD(6, 7, torch.arange(500) % 10, 8, tau=0.07, momentum=0.5, seed=0)
    assert crd.student_bank.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.02)


def test_crd_takes_maps_and_half_precision() -> None:
    labels = torch.arange(40) % 4
    crd = CRD(12, 8, labels, 16, tau=0.07, momentum=0.5, seed=0).eval()
    student = logits(5, 3, 2, 2, scale=1.0).bfloat16()
    teacher = logits(5, 8, seed=1, scale=1.0).bfloat16()
    indices = torch.arange(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = crd(student, teacher, indices, generator())
    assert value.dtype == torch.float32
    expected = crd.double()(student.double(), teacher.double(), indices, generator())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_crd_stays_finite_at_a_tiny_temperature() -> None:
    crd = CRD(6, 7, LABELS, 5, tau=0.005, momentum=0.5, seed=0, normalizer=1.0)
    student, teacher, indices = features()
    value = crd(student.float().requires_grad_(), teacher.float(), indices, generator())
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in crd.parameters())


def test_crd_learns_to_tell_images_of_other_classes() -> None:
    # Trained on noise-free pairs, the student's entry lies nearer to its own teacher entry than to
    # those of other classes.
    labels = torch.arange(40) % 4
    teacher = F.one_hot(labels, 4).float() + 0.1 * logits(40, 4, scale=1.0).float()
    student = teacher @ logits(4, 6, seed=3, scale=1.0).float()
    crd = CRD(6, 4, labels, 20, tau=0.1, momentum=0.5, seed=0, embed_dim=16)
    optimizer = torch.optim.Adam(crd.parameters(), 0.01)
    stream = generator()
    for _ in range(60):
        optimizer.zero_grad()
        crd(student, teacher, torch.arange(40), stream).backward()
        optimizer.step()
    similarity = crd.student_bank @ crd.teacher_bank.T
    own, others = similarity.diag(), similarity[labels[:, None] != labels].reshape(40, 30)
    assert (own > others.max(1).values + 0.2).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_negatives", [1, 5])
def test_crd_on_cuda_never_waits_and_agrees_with_the_cpu(n_negatives: int) -> None:
    student, teacher, indices = features()
    reference, crd = contrast(n_negatives).eval(), contrast(n_negatives).eval().cuda()
    student, teacher, indices = student.cuda(), teacher.cuda(), indices.cuda()
    stream = torch.Generator("cuda").manual_seed(0)
    chosen = crd.draw(indices, stream)
    # The same negatives on both devices, whose generators draw different numbers.
    crd.draw = lambda *_: chosen  # type: ignore[method-assign]
    reference.draw = lambda *_: chosen.cpu()  # type: ignore[method-assign]
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = crd(student.requires_grad_(), teacher, indices, stream)
        value.backward()
        contrast_of_all = crd.train()(student.detach(), teacher, indices, stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = reference(student.detach().cpu(), teacher.cpu(), indices.cpu(), generator())
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    assert contrast_of_all.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_negatives": 0}, "n_negatives"),
        ({"tau": 0.0}, "tau"),
        ({"momentum": 1.0}, "momentum"),
        ({"normalizer": 0.0}, "normalizer"),
    ],
)
def test_crd_refuses_numbers_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrast(**change)  # type: ignore[arg-type]


def test_crd_refuses_a_single_class() -> None:
    with pytest.raises(ValueError, match="single class"):
        CRD(6, 7, torch.zeros(9, dtype=torch.int64), 5, tau=0.1, momentum=0.5, seed=0)


# Controls


def test_smoothed_labels_have_the_confidence_and_nothing_else() -> None:
    labels = torch.tensor([2, 0, 3])
    probabilities = smoothed_labels(labels, 5, 0.6)
    expected = np.full((3, 5), 0.1)
    expected[[0, 1, 2], [2, 0, 3]] = 0.6
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("num_classes", "confidence"), [(1, 0.5), (10, 1.2), (10, -0.1)])
def test_smoothed_labels_refuse_numbers_out_of_range(num_classes: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        smoothed_labels(torch.zeros(3, dtype=torch.int64), num_classes, confidence)


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


# Specification


@pytest.mark.parametrize(
    "change",
    [
        {"method": "at"},
        {"tau": 0.0},
        {"tau": math.inf},
        {"weight": -0.1},
        {"gamma": -1.0},
        {"gamma": 0.0, "weight": 0.0},
        {"labels": "noise"},
        {"temperature": 4.0},
        {"crd_negatives": 0},
        {"crd_momentum": 1.0},
        {"crd_tau": 0.0},
        {"method": "hint"},
        {"method": "hint", "hint_student": "stages.1"},
        {"method": "crd", "labels": "permuted"},
        {"method": "none", "labels": "smoothed"},
    ],
)
def test_spec_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveSpec.model_validate({"method": "kl", "weight": 0.9} | change)


def test_spec_without_anything_to_train_on_is_refused() -> None:
    # The weight of a method that has no term does not count.
    with pytest.raises(ValidationError, match="nothing is left"):
        ObjectiveSpec(method="none", gamma=0.0, weight=1.0)


def test_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ObjectiveSpec().tau = 2.0  # type: ignore[misc]


def test_spec_forgets_what_its_method_does_not_read() -> None:
    plain = ObjectiveSpec(method="crd", weight=0.8, crd_negatives=32)
    other = ObjectiveSpec(
        method="crd", weight=0.8, crd_negatives=32, tau=8.0, hint_student="a", hint_teacher="b"
    )
    assert plain == other
    assert plain.model_dump_json() == other.model_dump_json()
    assert plain != ObjectiveSpec(method="crd", weight=0.8, crd_negatives=32, crd_tau=0.1)


@pytest.mark.parametrize(
    "spec",
    [
        ObjectiveSpec(),
        ObjectiveSpec(method="kl", gamma=0.1, weight=0.9, tau=8.0, labels="permuted"),
        ObjectiveSpec(method="hint", weight=100.0, hint_student="a", hint_teacher="b"),
        ObjectiveSpec(method="crd", weight=0.8, crd_negatives=32, crd_tau=0.1, crd_momentum=0.9),
    ],
    ids=lambda spec: spec.method,
)
def test_spec_survives_json_with_all_that_it_reads(spec: ObjectiveSpec) -> None:
    assert ObjectiveSpec.model_validate_json(spec.model_dump_json()) == spec


def test_combine_weighs_the_terms() -> None:
    spec = ObjectiveSpec(method="kl", gamma=0.5, weight=2.0)
    assert combine({"ce": torch.tensor(3.0), "kl": torch.tensor(7.0)}, spec).item() == 15.5
    assert combine({"ce": torch.tensor(3.0)}, ObjectiveSpec(gamma=2.0)).item() == 6.0


@pytest.mark.parametrize("names", [("ce",), ("kl",), ("ce", "hint"), ("ce", "kl", "hint")])
def test_combine_refuses_other_terms(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        combine({name: torch.tensor(1.0) for name in names}, ObjectiveSpec(method="kl", weight=1))
