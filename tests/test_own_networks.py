"""Five lines for one's own networks: any module, one or several a side, a folder or tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import kdnotes as kd
from kdnotes.data import DataSpec, load
from kdnotes.errors import RequestError
from kdnotes.probes import fidelity
from kdnotes.probes.base import Cast

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def network(seed: int, classes: int = 10) -> nn.Module:
    """A module of nobody's library, in training mode as scripts leave it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return load(DataSpec(name="scenes", split="test", count=120)).batch(torch.arange(120))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(120) % 10


def test_values_are_those_of_the_plain_modules(pixels: Tensor, labels: Tensor) -> None:
    big, small, twin = (network(seed) for seed in range(3))
    cast = kd.cast(teacher=big, student=small, independent=twin, mean=MEAN, std=STD)
    found = kd.measure(cast, kd.images(pixels=pixels, labels=labels), ["fidelity"])
    shown = pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)
    shown = shown / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        answers = [module.eval()(shown).argmax(1) for module in (big, small, twin)]
    rows = found.table.set_index(["measure", "arm", "condition"])["value"]
    for arm, own in zip(("teacher", "student", "independent"), answers, strict=True):
        right = (own == labels).float().mean().item()
        assert rows["accuracy", arm, ""] == pytest.approx(right, abs=1e-6)
    agree = [(own == answers[0]).float().mean().item() for own in answers[1:]]
    assert rows["agreement", "student", ""] == pytest.approx(agree[0], abs=1e-6)
    difference = found.contrast("agreement", "student", "independent")
    assert difference.estimate == pytest.approx(agree[0] - agree[1], abs=1e-6)
    assert difference.low <= difference.estimate <= difference.high


def test_the_networks_are_left_as_they_were(pixels: Tensor, labels: Tensor) -> None:
    big, small = network(0), network(1)
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in (big, small)]
    kd.measure(kd.cast(big, small), kd.images(pixels=pixels, labels=labels), ["fidelity"])
    for module, values in zip((big, small), before, strict=True):
        assert module.training
        assert all(each.requires_grad for each in module.parameters())
        assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())


def test_several_networks_a_side_are_seeds(pixels: Tensor, labels: Tensor) -> None:
    students, twins = [network(seed) for seed in (1, 2, 3)], [network(seed) for seed in (4, 5, 6)]
    images = kd.images(pixels=pixels.float() / 255, labels=labels)
    found = kd.measure(kd.cast(network(0), students, twins), images, ["fidelity"])
    by_seed = found.table.query("measure == 'agreement' and condition == ''")
    values = by_seed.pivot(index="seed", columns="arm", values="value")
    difference = found.contrast("agreement", "student", "independent")
    assert difference.n == 3
    expected = (values["student"] - values["independent"]).mean()
    assert difference.estimate == pytest.approx(expected, abs=1e-9)


def test_a_folder_and_what_cannot_be_measured(
    tmp_path: Path, pixels: Tensor, labels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(60):
        folder = tmp_path / "test" / f"class {labels[place]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[place].permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
    (tmp_path / "train").mkdir()
    for folder in (tmp_path / "test").iterdir():
        (tmp_path / "train" / folder.name).mkdir()
        first = next(folder.iterdir())
        (tmp_path / "train" / folder.name / "one.png").write_bytes(first.read_bytes())
    images = kd.images(str(tmp_path), size=24)
    assert (len(images), images.size) == (60, 24)
    found = kd.measure(kd.cast(network(0), network(1), network(2)), images)
    found.show()
    said = capsys.readouterr().out
    assert "agreement" not in found.skipped
    assert any("Grad-CAM" in name or "looks" in name or "local" in name for name in found.skipped)
    assert all(f"Not measured: {name}" in said for name in found.skipped)
    assert "| what | teacher | student | independent |" in said


def test_the_numbers_are_those_of_the_probe_itself(pixels: Tensor, labels: Tensor) -> None:
    images = kd.images(pixels=pixels, labels=labels)
    cast = kd.cast(network(0), network(1), network(2))
    direct = fidelity.measure(Cast(cast.teacher, None, cast.members, images.classes), images)
    ours = kd.measure(cast, images, ["fidelity"])
    assert ours.table.equals(direct.table)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: kd.cast(network(0), network(1, classes=9)), "numbers of classes"),
        (lambda: kd.cast(network(0), nn.Conv2d(3, 10, 3)), r"logits \(N, classes\) are needed"),
        (lambda: kd.cast(network(0), _damaged()), "not finite"),
        (
            lambda: kd.cast(network(0), _overflowing()),
            "logits of student, seed 0 are not all finite",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(
    make: object, said: str, pixels: Tensor, labels: Tensor
) -> None:
    with pytest.raises(RequestError, match=said):
        kd.measure(make(), kd.images(pixels=pixels, labels=labels), ["fidelity"])  # type: ignore[operator]


def _damaged() -> nn.Module:
    module = network(1)
    nn.init.constant_(module[-1].weight, float("nan"))  # type: ignore[index]
    return module


def _overflowing() -> nn.Module:
    """Finite weights, whose sums are beyond the numbers there are for bright images."""
    module = network(1)
    nn.init.constant_(module[-1].weight, 3e38)  # type: ignore[index]
    return module


def test_images_and_properties_are_checked(pixels: Tensor, labels: Tensor) -> None:
    with pytest.raises(RequestError, match="both pixels and labels"):
        kd.images(pixels=pixels)
    with pytest.raises(RequestError, match=r"give them in \[0, 1\]"):
        kd.images(pixels=pixels.float(), labels=labels)
    with pytest.raises(RequestError, match="unknown property 'colour'"):
        kd.measure(
            kd.cast(network(0), network(1)), kd.images(pixels=pixels, labels=labels), ["colour"]
        )
