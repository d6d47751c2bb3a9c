"""Several processes train one network: as one process does, and on from where they were killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from asked import study_of
from method_batches import Contrast
from PIL import Image
from torch import nn

from kdnotes import networks
from kdnotes.data import DataSpec, ImageData, load
from kdnotes.data.views import ColorJitter, Crops, ResizedCrops, Views
from kdnotes.errors import RequestError
from kdnotes.methods.crd import CRD
from kdnotes.methods.kl import KL
from kdnotes.methods.sp import SP
from kdnotes.study import Study, paper
from kdnotes.training import cache as networks_cache
from kdnotes.training import distributed, loop, pool
from kdnotes.training.loop import Checkpoints
from kdnotes.training.specification import NetworkSpec, Planned, Recipe

BATCH = 16
TEACHER_EPOCHS = 20
TAUGHT: dict[str, dict[str, object]] = {
    "none": {},
    "kl": {"method": KL()},
    "permuted": {"method": KL(), "labels": "permuted"},
    "crd": {"method": CRD(weight=0.8, negatives=16)},
    "sp": {"method": SP(weight=30)},
}


def images() -> ImageData:
    return load(DataSpec(name="scenes", split="train", count=4 * BATCH))


def specification(name: str, **changes: object) -> NetworkSpec:
    teacher = None
    if name != "none":
        teacher = specification("none").model_copy(update={"role": "teacher"})
    recipe = {
        "epochs": 2,
        "batch": BATCH,
        "learning_rate": 0.02,
        "views": Views(pad=0),
        "resized": ResizedCrops(smallest=0.5),
        "crops": Crops(),
        "jitter": ColorJitter(),
    }
    return NetworkSpec(
        role="student",
        model="vgg-small",
        num_classes=10,
        data=DataSpec(name="scenes", split="train", count=4 * BATCH),
        recipe=Recipe(**(recipe | changes)),
        teacher=teacher,
        **TAUGHT[name],
    )


def without_batch_norm(seed: int) -> networks.Normalized:
    """A network whose answer to an image does not depend on the rest of the batch."""
    network = networks.build("vgg-small", 10, seed)
    for block in network.body.stages.modules():
        if hasattr(block, "bn"):
            block.bn = nn.ReLU()
    return network


def trained(name: str) -> torch.Tensor:
    """Weights after a few steps, here or by the whole group."""
    spec = specification(name)
    teacher = None if spec.teacher is None else loop.Teacher(without_batch_norm(9).eval())
    network = without_batch_norm(1)
    loop.train(spec, network, images(), teacher)
    return weights(network)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def contrast() -> dict[str, torch.Tensor]:
    """Two steps of CRD on features of this process's share: loss, slopes and memory."""
    fabric = distributed.joined("cpu")
    group = distributed.Together(fabric)
    numbers = torch.Generator().manual_seed(3)
    labels = torch.arange(40) % 4
    settings = {"negatives": 8, "contrast_temperature": 0.1}
    crd = Contrast(labels, (6, 5), group=group, **settings)
    draws = torch.Generator().manual_seed(4)
    loss = torch.tensor(0.0)
    for _ in range(2):
        chosen = torch.randperm(40, generator=numbers)[:BATCH]
        student = torch.randn(BATCH, 6, generator=numbers)
        teacher = torch.randn(BATCH, 5, generator=numbers)
        own = group.share(BATCH)
        loss = loss + crd(student[own], teacher[own], chosen[own], draws)
    loss.backward()
    beside = crd.beside
    return {
        "loss": fabric.all_reduce(loss.detach()),
        "slopes": fabric.all_reduce(beside.student_embedding.weight.grad),
        "banks": torch.cat([beside.student_bank, beside.teacher_bank]),
        "normalizers": beside.log_normalizers,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in ImageNet's layout, and a settings file with networks and sizes to match."""
    root = tmp_path_factory.mktemp("imagenet")
    numbers = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in range(2):
            place = root / split / f"n{label:08}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = numbers.integers(0, 120, (40, 48, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    content = paper.settings().model_dump()
    imagenet = content["imagenet"]
    imagenet |= {"image_size": 32, "stored_size": 40}
    imagenet["preset"] |= {"teacher_epochs": TEACHER_EPOCHS, "student_epochs": 2}
    imagenet["preset"] |= {"independent_epochs": 1, "batch": 8, "students": 1, "controls": 1}
    imagenet["methods"]["crd"]["negatives"] = 8
    pair = imagenet["pairs"]["resnet50-resnet18"] | {"published": ""}
    pair |= {"teacher": "vgg-small", "student": "vgg-small"}
    layers = ("teacher_layer", "student_layer")
    pair["methods"]["hint"] |= dict.fromkeys(layers, "body.stages.1")
    imagenet["pairs"] = {"tiny": pair}
    imagenet["recipes"]["vgg"]["learning_rate"] = 0.05
    (root / "tiny.yml").write_text(yaml.safe_dump(content))
    return root


def environment(folder: Path, cache: Path) -> dict[str, str]:
    return os.environ | {
        "KDNOTES_PAPER": str(folder / "tiny.yml"),
        "KDNOTES_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }


def launched(command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, "--nproc-per-node", "2", *command],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def arguments(folder: Path) -> list[str]:
    """Of the command that trains a chapter's networks."""
    given = [f"dataset=imagefolder:{folder}", "device=cpu", "methods=kl"]
    options = [part for value in given for part in ("-p", value)]
    return ["fidelity", "--preset", "paper", *options]


def workers(launcher: int) -> list[int]:
    """Processes that a launcher has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in listed.stdout.split()]


def teacher_of(folder: Path, cache: Path, patch: pytest.MonkeyPatch) -> tuple[Study, str]:
    """The chapter that the launcher trains for, and the key of its first teacher."""
    for name, value in environment(folder, cache).items():
        patch.setenv(name, value)
    chosen = study_of("fidelity", preset="paper", dataset=f"imagefolder:{folder}", methods="kl")
    return chosen, chosen.networks[0].spec.key


def epoch_of(kept: Checkpoints) -> int:
    last = kept.last()
    return 0 if last is None else int(last.name.split("-")[1])


KEEPING_EVERY_EPOCH = """
from kdnotes import train_networks
from kdnotes.training import loop
loop.SECONDS_BETWEEN = 0
train_networks.app()
"""


@pytest.fixture(scope="module")
def killed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The cache of a run of which one process was killed, and the last epoch that it kept."""
    cache = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        _, teacher = teacher_of(folder, cache, patch)
    kept = Checkpoints(cache / "checkpoints" / teacher)
    script = cache / "script.py"
    script.write_text(KEEPING_EVERY_EPOCH)
    process = launched([str(script), *arguments(folder)], environment(folder, cache))
    deadline = time.monotonic() + 120
    ours: list[int] = []
    begun = False
    while not begun and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
        ours = ours if len(ours) == 2 else workers(process.pid)
        begun = any(kept.folder.glob("epoch-*"))
    assert begun, process.communicate()[0]
    os.kill(ours[1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (cache / "networks" / teacher).exists()
    return cache, epoch_of(kept)


@contextmanager
def printed(to_train: list[Planned], quiet: bool = False) -> Iterator[pool.Show]:
    """In place of the display: every epoch that a group has trained."""
    yield lambda item, epoch, loss: quiet or print(f"{item}: epoch {epoch}, {loss}", flush=True)


# What the two processes run after that: the same command, an uninterrupted run of two networks in
# another cache, and a few steps to compare with one process's.
TOGETHER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
import test_parallel as shared
from asked import study_of
from kdnotes import train_networks
from kdnotes.training import cache as networks_cache, pool
torch.set_num_threads(1)
pool.display = shared.printed
train_networks.app({arguments!r}, standalone_mode=False)
os.environ["KDNOTES_CACHE"] = "{out}/cache"
chapter = study_of("fidelity", preset="paper", dataset="imagefolder:{folder}", methods="kl")
for item in chapter.networks:
    if item.arm in ("teacher", "kl"):
        networks_cache.train_one(item, "cpu", None)
found = {{name: shared.trained(name) for name in shared.TAUGHT}} | shared.contrast()
torch.save(found, f'{out}/rank-{{os.environ["RANK"]}}.pt')
"""


@pytest.fixture(scope="module")
def together(
    folder: Path, killed: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What two processes came to, with an uninterrupted run's networks in the folder "cache"."""
    out = tmp_path_factory.mktemp("together")
    names = {"tests": str(Path(__file__).parent), "out": out, "folder": folder}
    script = out / "script.py"
    script.write_text(TOGETHER.format(**names, arguments=arguments(folder)))
    process = launched([str(script)], environment(folder, killed[0]))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    (out / "printed.txt").write_text(printed)
    return out


def test_two_processes_train_as_one_does(together: Path) -> None:
    """Weights equal one process's to 1e-5 without BatchNorm, and are the same in both."""
    first, second = (torch.load(together / f"rank-{rank}.pt") for rank in (0, 1))
    for name in TAUGHT:
        alone = trained(name)
        start = weights(without_batch_norm(1))
        assert (alone - start).abs().max() > 5e-3, "nothing was trained"
        assert torch.allclose(first[name], alone, atol=1e-5), name
        assert torch.equal(first[name], second[name]), name


def test_memory_of_crd_is_that_of_the_whole_batch(together: Path) -> None:
    first, second = (torch.load(together / f"rank-{rank}.pt") for rank in (0, 1))
    for name, alone in contrast().items():
        assert torch.allclose(first[name], alone, atol=1e-5), name
        assert torch.equal(first[name], second[name]), name


def test_killed_group_goes_on_to_the_same_networks(
    folder: Path, killed: tuple[Path, int], together: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, kept = killed
    chosen, teacher = teacher_of(folder, cache, monkeypatch)
    assert 1 <= kept < TEACHER_EPOCHS
    printed = (together / "printed.txt").read_text()
    epochs = re.findall(r"^teacher, .*: epoch (\d+), \d", printed, re.MULTILINE)
    assert [int(epoch) for epoch in epochs] == [*range(kept + 1, TEACHER_EPOCHS + 1)]
    assert networks_cache.missing(chosen.networks) == []
    assert networks_cache.verify() == []
    assert not list((cache / "checkpoints").iterdir())
    assert len(networks_cache.history(chosen.networks[0].spec)) == TEACHER_EPOCHS
    keys = {item.spec.key for item in chosen.networks if item.arm in ("teacher", "kl")}
    assert teacher in keys
    assert len(keys) == 2
    for key in keys:
        resumed, uninterrupted = (
            place / "networks" / key / "weights.safetensors"
            for place in (cache, together / "cache")
        )
        assert resumed.read_bytes() == uninterrupted.read_bytes()


class Killed(Exception):  # noqa: N818
    """Stands for the end of a process."""


@pytest.mark.parametrize(
    ("name", "model", "changes"),
    [
        ("crd", "vgg-small", {}),
        ("kl", "paper-mnist", {"optimizer": "adadelta", "schedule": "exponential"}),
        ("none", "vgg-small", {"optimizer": "adamw", "learning_rate": 1e-3}),
    ],
    ids=["memory and momentum", "dropout and adadelta", "adamw"],
)
def test_one_process_goes_on_to_the_same_bits(
    name: str,
    model: str,
    changes: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = specification(name, epochs=4, **changes)
    spec = spec.model_copy(update={"model": model})
    data = images()

    def run(kept: Checkpoints | None, report: loop.EpochReport | None = None) -> torch.Tensor:
        network = networks.build(model, 10, seed=1)
        teacher = networks.freeze(networks.build("vgg-small", 10, seed=9))
        taught = None if spec.teacher is None else loop.Teacher(teacher)
        history = loop.train(spec, network, data, taught, report=report, kept=kept)
        assert len(history) == 4
        return weights(network)

    def kill(epoch: int, loss: float) -> None:
        if epoch == 3:
            raise Killed

    whole = run(None)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN", 0)
    kept = Checkpoints(tmp_path / "kept")
    with pytest.raises(Killed):
        run(kept, kill)
    assert epoch_of(kept) == 2
    torch.rand(7)  # another process: the global generator is elsewhere
    assert torch.equal(run(kept), whole)


def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "kept")
    assert kept.last() is None
    kept.write(1, {"x": torch.ones(3), "history": []})
    kept.write(2, {"x": torch.zeros(3), "history": [{"loss": 1.5}]})
    (path,) = kept.folder.iterdir()
    assert path == kept.last()
    assert epoch_of(kept) == 2
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["x"], torch.zeros(3))
    assert state["history"] == [{"loss": 1.5}]
    path.write_bytes(path.read_bytes()[:-1])
    assert kept.last() is None
    kept.remove()
    assert not kept.folder.exists()


def test_short_training_leaves_no_checkpoint() -> None:
    kept = Checkpoints(Path("nowhere"))
    assert not kept.due()
    kept._written -= loop.SECONDS_BETWEEN
    assert kept.due()


def test_batch_must_be_shared_evenly() -> None:
    group = distributed.Together(SimpleNamespace(world_size=3, global_rank=2))  # type: ignore[arg-type]
    assert group.share(12) == slice(8, 12)
    with pytest.raises(RequestError, match="a batch of 16 images cannot be shared evenly by 3"):
        group.share(16)


def test_too_few_devices_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="2 processes but 1 CUDA devices"):
        distributed.joined("cuda:all")


def test_all_graphics_cards_are_asked_for_in_a_group_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes on the CPU stand for two cards."""
    together = pool._in_group

    def on_cpu(processes: int, to_train: list[Planned], train: Any) -> None:
        assert (processes, train.keywords["device"]) == (2, "cuda:all")
        together(processes, to_train, partial(train.func, device="cpu", data_dir=None))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(pool, "_in_group", on_cpu)
    item = Planned("independent", specification("none", epochs=1))
    assert networks_cache.ensure([item], device="cuda:all") == 1
    assert networks_cache.is_complete(item.spec)
    failing = item.spec.model_copy(update={"recipe": Recipe(batch=BATCH + 1)})
    with pytest.raises(Exception, match="cannot be shared evenly by 2 processes"):
        networks_cache.ensure([Planned("independent", failing)], device="cuda:all")
