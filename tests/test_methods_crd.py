"""CRD against a plain loop, finite differences, hand-worked memories and torchdistill's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from method_batches import Contrast, generator, logits
from oracles import of_torchdistill
from pydantic import ValidationError
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from kdnotes.methods import crd as methods_crd
from kdnotes.methods.crd import draw

NUMBERS = json.loads((Path(__file__).parent / "oracles" / "torchdistill.json").read_text())
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2, 2])


def contrast(negatives: int = 5, seed: int = 3, **settings: float | None) -> Contrast:
    settings = {"contrast_temperature": 0.1, "embedding": 4} | settings
    return Contrast(LABELS, (6, 7), seed, negatives=negatives, **settings).double()


def features(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = logits(batch, 6, seed=1, scale=1.0), logits(batch, 7, seed=2, scale=1.0)
    return student, teacher, torch.tensor([1, 10, 0, 5, 7, 11])[:batch]


def embedded(layer: nn.Linear, values: Tensor) -> Tensor:
    mapped = values @ layer.weight.T + layer.bias
    return mapped / mapped.norm(dim=1, keepdim=True)


def loop_reference(crd: Contrast, batch: tuple[Tensor, Tensor, Tensor], estimate: bool) -> Tensor:
    """The loss of the class's docstring, one pair at a time, with the same negatives."""
    student, teacher, indices = batch
    beside, negatives, n_images = crd.beside, crd.method.negatives, len(LABELS)
    chosen = draw(beside, indices, negatives, generator(9)).tolist()
    roles = (
        (embedded(beside.student_embedding, student), beside.teacher_bank.clone()),
        (embedded(beside.teacher_embedding, teacher), beside.student_bank.clone()),
    )
    total = torch.zeros((), dtype=torch.float64)
    for anchors, bank in roles:
        similarity = [
            [torch.exp(anchor @ bank[item] / crd.method.contrast_temperature) for item in row]
            for anchor, row in zip(anchors, chosen, strict=True)
        ]
        every = [value.item() for row in similarity for value in row]
        z = n_images * sum(every) / len(every) if estimate else 1.0
        for row in similarity:
            h = [(e / z) / (e / z + negatives / n_images) for e in row]
            total = total - torch.log(h[0]) - sum(torch.log(1 - other) for other in h[1:])
    return total / len(indices)


# 5 negatives of 4 dimensions against 12 images: the whole product. 1 negative: the chosen rows.
@pytest.mark.parametrize("negatives", [1, 5])
@pytest.mark.parametrize("normalizer", [1.0, None])
def test_equals_a_loop_over_pairs(negatives: int, normalizer: float | None) -> None:
    crd = contrast(negatives, normalizer=normalizer)
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


@pytest.mark.parametrize("negatives", [1, 5])
def test_gradient_is_that_of_finite_differences(negatives: int) -> None:
    crd = contrast(negatives, normalizer=2.0).eval()
    student, teacher, indices = features()

    def value(student: Tensor, weight: Tensor) -> Tensor:
        swapped = {"beside.teacher_embedding.weight": weight}
        arguments = (student, teacher, indices, generator(9))
        return torch.func.functional_call(crd, swapped, arguments)

    weight = crd.beside.teacher_embedding.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (student.requires_grad_(), weight))


def test_equals_torchdistill(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, width = NUMBERS["crd"], of_torchdistill.WIDTH
    crd = Contrast(
        torch.arange(of_torchdistill.IMAGES) % of_torchdistill.CLASSES,
        (width, width),
        negatives=of_torchdistill.NEGATIVES,
        contrast_temperature=of_torchdistill.TEMPERATURE,
        momentum=of_torchdistill.MOMENTUM,
        embedding=width,
    ).double()
    beside = crd.beside
    for layer in (beside.student_embedding, beside.teacher_embedding):
        layer.weight.data = torch.eye(width, dtype=torch.float64)
        layer.bias.data.zero_()
    banks = (beside.student_bank, beside.teacher_bank)
    for bank, start in zip(banks, of_torchdistill.banks(), strict=True):
        bank.copy_(start)
    for number, loss in enumerate(expected["losses"]):
        student, teacher, indices, chosen = of_torchdistill.step(number)
        monkeypatch.setattr(methods_crd, "draw", lambda *_, chosen=chosen: chosen)
        assert crd(student, teacher, indices, generator()).item() == pytest.approx(loss, rel=1e-7)
    ways = of_torchdistill.waves(of_torchdistill.IMAGES, width, start=11)
    assert [float((bank * ways).sum()) for bank in banks] == pytest.approx(expected["banks"])
    assert beside.log_normalizers.tolist() == pytest.approx(expected["log_normalizers"])


def test_draws_other_classes_uniformly() -> None:
    indices = torch.arange(len(LABELS))
    chosen = draw(contrast().beside, indices, 4000, generator())
    torch.testing.assert_close(chosen[:, 0], indices)
    for item, drawn in zip(indices.tolist(), chosen[:, 1:], strict=True):
        counts = drawn.bincount(minlength=len(LABELS))
        others = LABELS[item] != LABELS
        assert (counts[~others] == 0).all()
        expected = 4000 / int(others.sum())
        statistic = ((counts[others] - expected) ** 2 / expected).sum().item()
        assert statistic < chi2.ppf(1 - 1e-4, int(others.sum()) - 1)


def test_draws_follow_the_generator_alone() -> None:
    beside, indices = contrast().beside, torch.tensor([2, 4])
    torch.manual_seed(0)
    first = draw(beside, indices, 5, generator(1))
    torch.manual_seed(1)
    torch.testing.assert_close(first, draw(beside, indices, 5, generator(1)))
    assert not torch.equal(first, draw(beside, indices, 5, generator(2)))


def test_moves_the_memory_as_worked_by_hand() -> None:
    settings = {"negatives": 2, "contrast_temperature": 1.0, "momentum": 0.75, "embedding": 2}
    crd = Contrast(torch.tensor([0, 1, 1]), (2, 2), **settings)
    for layer in (crd.beside.student_embedding, crd.beside.teacher_embedding):
        layer.weight.data = torch.eye(2)
        layer.bias.data.zero_()
    crd.beside.student_bank.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    crd.beside.teacher_bank.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    # (3, 4) has unit length at (.6, .8); three quarters of (1, 0) and a quarter of that make
    # (.9, .2). (0, -5) makes (0, -1); with (.6, .8) that is (.45, .35).
    crd(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -5.0]]), torch.tensor([1]), generator())
    student = torch.tensor([0.9, 0.2]) / math.hypot(0.9, 0.2)
    teacher = torch.tensor([0.45, 0.35]) / math.hypot(0.45, 0.35)
    torch.testing.assert_close(crd.beside.student_bank[1], student)
    torch.testing.assert_close(crd.beside.teacher_bank[1], teacher)
    untouched = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(crd.beside.student_bank[[0, 2]], untouched)
    torch.testing.assert_close(crd.beside.teacher_bank[[0, 2]], untouched)


def test_leaves_the_memory_alone_in_evaluation() -> None:
    crd = contrast().eval()
    before = crd.beside.student_bank.clone(), crd.beside.teacher_bank.clone()
    crd(*features(), generator())
    torch.testing.assert_close(
        (crd.beside.student_bank, crd.beside.teacher_bank), before, rtol=0, atol=0
    )


def test_trains_student_and_both_layers_only() -> None:
    crd = contrast()
    student, teacher, indices = features()
    crd(student.requires_grad_(), teacher.requires_grad_(), indices, generator()).backward()
    assert student.grad is not None
    assert teacher.grad is None
    trained = crd.beside.named_parameters()
    names = {name for name, parameter in trained if parameter.grad is not None}
    assert names == {
        f"{network}_embedding.{part}"
        for network in ("student", "teacher")
        for part in ("weight", "bias")
    }
    assert not crd.beside.student_bank.requires_grad
    assert not crd.beside.teacher_bank.requires_grad


def test_keeps_the_first_batchs_constants() -> None:
    crd = contrast()
    student, teacher, indices = features()
    crd(student, teacher, indices, generator(1))
    constants = crd.beside.log_normalizers.clone()
    assert constants.isfinite().all()
    crd(student + 1, teacher - 1, indices, generator(2))
    torch.testing.assert_close(crd.beside.log_normalizers, constants, rtol=0, atol=0)


def test_state_carries_banks_and_constants() -> None:
    crd, restored = contrast(), contrast(seed=8)
    student, teacher, indices = features()
    crd(student, teacher, indices, generator(1))
    restored.load_state_dict(crd.state_dict())
    expected = crd(student + 1, teacher, indices, generator(2))
    value = restored(student + 1, teacher, indices, generator(2))
    assert value.item() == expected.item()
    torch.testing.assert_close(
        restored.beside.log_normalizers, crd.beside.log_normalizers, rtol=0, atol=0
    )


def test_start_follows_its_seed_alone() -> None:
    torch.manual_seed(0)
    first = contrast(seed=5).state_dict()
    torch.manual_seed(1)
    second, third = contrast(seed=5).state_dict(), contrast(seed=6).state_dict()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], equal_nan=True)
    assert not torch.equal(first["beside.student_bank"], third["beside.student_bank"])
    assert not torch.equal(first["beside.student_bank"], first["beside.teacher_bank"])


def test_start_has_entries_of_about_unit_length() -> None:
    crd = Contrast(torch.arange(500) % 10, (6, 7))
    assert crd.beside.student_bank.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.02)


def test_takes_maps_and_half_precision() -> None:
    labels = torch.arange(40) % 4
    crd = Contrast(labels, (12, 8), negatives=16).eval()
    student = logits(5, 3, 2, 2, scale=1.0).bfloat16()
    teacher = logits(5, 8, seed=1, scale=1.0).bfloat16()
    indices = torch.arange(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = crd(student, teacher, indices, generator())
    assert value.dtype == torch.float32
    expected = crd.double()(student.double(), teacher.double(), indices, generator())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_stays_finite_at_a_tiny_temperature() -> None:
    crd = Contrast(LABELS, (6, 7), negatives=5, contrast_temperature=0.005, normalizer=1.0)
    student, teacher, indices = features()
    value = crd(student.float().requires_grad_(), teacher.float(), indices, generator())
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in crd.parameters())


def test_learns_to_tell_images_of_other_classes() -> None:
    # Trained on noise-free pairs, the student's entry lies nearer to its own teacher entry than to
    # those of other classes.
    labels = torch.arange(40) % 4
    teacher = F.one_hot(labels, 4).float() + 0.1 * logits(40, 4, scale=1.0).float()
    student = teacher @ logits(4, 6, seed=3, scale=1.0).float()
    settings = {"negatives": 20, "contrast_temperature": 0.1, "embedding": 16}
    crd = Contrast(labels, (6, 4), **settings)
    optimizer = torch.optim.Adam(crd.parameters(), 0.01)
    stream = generator()
    for _ in range(60):
        optimizer.zero_grad()
        crd(student, teacher, torch.arange(40), stream).backward()
        optimizer.step()
    similarity = crd.beside.student_bank @ crd.beside.teacher_bank.T
    own, others = similarity.diag(), similarity[labels[:, None] != labels].reshape(40, 30)
    assert (own > others.max(1).values + 0.2).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("negatives", [1, 5])
def test_on_cuda_never_waits_and_agrees_with_the_cpu(
    negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, indices = features()
    reference, crd = contrast(negatives).eval(), contrast(negatives).eval().cuda()
    student, teacher, indices = student.cuda(), teacher.cuda(), indices.cuda()
    stream = torch.Generator("cuda").manual_seed(0)
    chosen = draw(crd.beside, indices, negatives, stream)
    # The same negatives on both devices, whose generators draw different numbers.
    monkeypatch.setattr(
        methods_crd, "draw", lambda _, indices, *__: chosen if indices.is_cuda else chosen.cpu()
    )
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
        ({"negatives": 0}, "negatives"),
        ({"contrast_temperature": 0.0}, "contrast_temperature"),
        ({"momentum": 1.0}, "momentum"),
        ({"normalizer": 0.0}, "normalizer"),
    ],
)
def test_refuses_numbers_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        contrast(**change)  # type: ignore[arg-type]


def test_refuses_a_single_class() -> None:
    with pytest.raises(ValueError, match="single class"):
        Contrast(torch.zeros(9, dtype=torch.int64), (6, 7))
