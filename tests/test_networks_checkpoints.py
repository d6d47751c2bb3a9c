"""Checkpoints as training scripts leave them: read, or refused in one short message."""

from __future__ import annotations

import argparse
import collections
import pathlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from kdnotes import networks
from kdnotes.errors import RequestError

ARCHITECTURE = "resnet10t"  # a deep stem with max-pooling, which the variant for 32 pixels lacks
State = dict[str, Tensor]


def published(seed: int = 0, classes: int = 3) -> State:
    """Weights of timm's own network, BatchNorm statistics included."""
    torch.manual_seed(seed)
    body: Any = timm.create_model(ARCHITECTURE, num_classes=classes)
    state = {name: values.clone() for name, values in body.state_dict().items()}
    for name, values in state.items():
        if "running" in name:
            values.uniform_(0.5, 1.5)
    return state


STATE = published()
OTHER = published(1)
IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def logits_of(state: State, name: str = ARCHITECTURE, classes: int = 3) -> Tensor:
    """What timm's network answers, normalised as timm says."""
    body: Any = timm.create_model(name, num_classes=classes)
    body.load_state_dict(state)
    config = body.pretrained_cfg
    mean, std = (torch.tensor(config[each]).view(1, 3, 1, 1) for each in ("mean", "std"))
    with torch.no_grad():
        return body.eval()((IMAGES - mean) / std)


def opened(text: str, **options: Any) -> networks.Opened:
    return networks.open_network(text, **options)


def saved(tmp_path: Path, content: Any, name: str = "net.pth") -> str:
    torch.save(content, tmp_path / name)
    return f"{ARCHITECTURE}:{tmp_path / name}"


def under(prefix: str, state: State = STATE) -> State:
    return {prefix + name: values for name, values in state.items()}


class NotAllowed:
    """Something of somebody's own, which a file must not bring to life."""


def refused(text: str, said: str, **options: Any) -> str:
    """The message with which a network is refused; short, and none of torch's advice."""
    with pytest.raises(RequestError) as caught:
        opened(text, **options)
    message = str(caught.value)
    assert said in message, message
    assert len(message) < 300
    assert "\n" not in message
    assert "weights_only" not in message
    assert "pickle" not in message
    return message


# --- where the tensors are ------------------------------------------------------------------

ARGUMENTS = argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), best=np.float32(0.5))
HISTORY = {"accuracy": [np.float64(0.25)], "curve": np.arange(3), "epoch": np.int64(3)}
PLACES: list[tuple[Any, str]] = [
    (STATE, ""),
    (collections.OrderedDict(STATE), ""),
    ({"state_dict": STATE, "epoch": 3, "args": ARGUMENTS} | HISTORY, "state_dict"),
    ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, "model"),
    ({"net": under("module."), "acc": 93.1}, "net.module"),
    ({"model_state_dict": under("_orig_mod.module.")}, "model_state_dict._orig_mod.module"),
    ({"state_dict": under("module._orig_mod.")}, "state_dict.module._orig_mod"),
    ({"state_dict": under("model.") | {"criterion.weight": torch.ones(3)}}, "state_dict.model"),
    (under("student.module."), "student.module"),
    ({"state_dict": under("net.student.")}, "state_dict.net.student"),
    (under("module.") | {"n_averaged": torch.tensor(3)}, "module"),
    ({name: values for name, values in STATE.items() if "num_batches" not in name}, ""),
    (
        {
            "state_dict": {
                f"backbone.{n}": nn.Parameter(v) for n, v in STATE.items() if v.is_floating_point()
            }
        },
        "state_dict.backbone",
    ),
]


@pytest.mark.parametrize(("content", "where"), PLACES, ids=[each[1] or "plain" for each in PLACES])
def test_weights_are_found_where_scripts_leave_them(
    content: Any, where: str, tmp_path: Path
) -> None:
    found = opened(saved(tmp_path, content), classes=3)
    with torch.no_grad():
        torch.testing.assert_close(found.network(IMAGES), logits_of(STATE), rtol=0, atol=0)
    assert (found.classes, found.size) == (3, 176)
    assert found.file == tmp_path / "net.pth"
    assert any(f"took {where}" in note for note in found.notes) == bool(where)


def test_which_of_several_was_taken_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    both = {"state_dict_ema": OTHER, "state_dict": STATE}
    text = saved(tmp_path, both)
    usual, asked = opened(text), opened(f"{text}#state_dict_ema")
    with torch.no_grad():
        assert torch.equal(usual.network(IMAGES), logits_of(STATE))
        assert torch.equal(asked.network(IMAGES), logits_of(OTHER))
    assert "took state_dict" in usual.notes[0]
    assert "net.pth#state_dict_ema" in usual.notes[1]
    refused(f"{text}#net", "there is no entry 'net'; the file has state_dict, state_dict_ema")


def test_a_teacher_and_a_student_in_one_file_are_not_mistaken(tmp_path: Path) -> None:
    text = saved(tmp_path, {"state_dict": under("student.") | under("teacher.", OTHER)})
    refused(text, "several such networks (state_dict.student and state_dict.teacher)")
    for name, state in (("student", STATE), ("teacher", OTHER), ("state_dict.teacher", OTHER)):
        with torch.no_grad():
            assert torch.equal(opened(f"{text}#{name}").network(IMAGES), logits_of(state))


def test_half_precision_is_computed_in_single(tmp_path: Path) -> None:
    half = {n: v.half() if v.is_floating_point() else v for n, v in STATE.items()}
    for kind in ("half.pth", "half.safetensors"):
        if kind.endswith("pth"):
            torch.save(half, tmp_path / kind)
        else:
            save_file(half, tmp_path / kind)
        found = opened(f"{ARCHITECTURE}:{tmp_path / kind}")
        assert {each.dtype for each in found.network.parameters()} == {torch.float32}
        assert "float16" in found.notes[0]
        with torch.no_grad():
            torch.testing.assert_close(
                found.network(IMAGES), logits_of(STATE), rtol=0.01, atol=0.01
            )


# --- which architecture ---------------------------------------------------------------------


def test_the_published_network_comes_first_and_the_guess_is_said(tmp_path: Path) -> None:
    # Its weights fit the variant without pooling as well, which answers otherwise.
    found = opened(saved(tmp_path, STATE))
    assert isinstance(found.network.body.maxpool, nn.MaxPool2d)
    assert [note.split(": ")[1] for note in found.notes] == [
        "images are scaled and normalised as for resnet10t as published"
    ]
    small = networks.build("resnet18", 3, 0).body.state_dict()
    torch.save(small, tmp_path / "small.pth")
    guessed = opened(f"resnet18:{tmp_path / 'small.pth'}")
    assert isinstance(guessed.network.body.maxpool, nn.Identity)
    assert "only with the stem for small images" in guessed.notes[0]
    assert guessed.size == 32


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "efficientnet_b0"])
def test_torchvisions_networks_by_their_names(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = torchvision.models.get_model(name, weights=None, num_classes=3).eval()
    torch.save({"model": body.state_dict()}, tmp_path / "tv.pth")
    found = opened(f"{name}:{tmp_path / 'tv.pth'}", classes=3)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in IMAGENET)
    with torch.no_grad():
        expected = body((IMAGES - mean) / std)
        torch.testing.assert_close(found.network(IMAGES), expected, rtol=1e-5, atol=1e-6)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_transformer_of_other_images_is_built_for_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body: Any = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=96)
    torch.save(body.state_dict(), tmp_path / "vit.pth")
    found = opened(f"vit_tiny_patch16_224:{tmp_path / 'vit.pth'}")
    assert found.size == 96
    assert "for images of 96 pixels" in found.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(found.network(IMAGES), body.eval()(2 * IMAGES - 1))


def test_the_books_own_networks_keep_their_normalisation(tmp_path: Path) -> None:
    network = networks.build("vgg-small", 3, 0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).eval()
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    found = opened(f"vgg-small:{tmp_path / 'own.safetensors'}")
    with torch.no_grad():
        assert torch.equal(found.network(IMAGES), network(IMAGES))


def test_code_of_ones_own_builds_a_network(tmp_path: Path, monkeypatch: Any) -> None:
    code = """
import timm, torch
def plain():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
def known():
    return timm.create_model("resnet10t", num_classes=5)
def dictionary():
    class Answer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain()
        def forward(self, images):
            return {"logits": self.inner(images), "loss": None}
    return Answer()
def features():
    return torch.nn.Conv2d(3, 4, 3)
def pair():
    class Two(torch.nn.Conv2d):
        def forward(self, images):
            return images, images
    return Two(3, 3, 3)
def damaged():
    raise ValueError("no\\nsuch\\nthing")
number = 3
"""
    (tmp_path / "mine_of_one.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = opened("mine_of_one:plain")
    assert (plain.classes, plain.network.size) == (4, 32)
    assert "normalisation is not known" in plain.notes[0]
    assert torch.equal(plain.network.std.flatten(), torch.ones(3))
    known = opened("mine_of_one:known", classes=5)
    assert (known.size, known.notes) == (176, ())
    assert opened("mine_of_one:dictionary").classes == 4
    refused("mine_of_one:features", "logits (N, classes) are needed")
    refused("mine_of_one:pair", "answers with a tuple")
    refused("mine_of_one:damaged", "ValueError: no such thing")
    refused("mine_of_one:number", "does not give a network")
    refused("mine_of_one:none", "does not give a network")
    refused("no_such_module_here:build", "No module named")


# --- what is refused ------------------------------------------------------------------------


def damaged(name: str, value: float) -> State:
    state = {key: values.clone() for key, values in STATE.items()}
    state[name].view(-1)[-1] = value
    return state


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["fc.weight", "layer4.0.bn2.running_var"])
def test_weights_that_are_not_finite_are_refused(name: str, value: float, tmp_path: Path) -> None:
    refused(saved(tmp_path, damaged(name, value)), f"not finite numbers ({name})")


def test_a_head_of_other_classes_is_never_replaced(tmp_path: Path) -> None:
    text = saved(tmp_path, {"model": STATE})
    refused(text, "has a head of 3 classes; 10 are needed", classes=10)
    assert opened(text).classes == 3


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "pointer"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>" * 99), "no whole"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "no whole"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "no whole"),
    ],
)
@pytest.mark.parametrize("kind", ["net.pth", "net.safetensors"])
def test_files_that_are_no_checkpoints_are_named(
    write: Callable[[Path], Any], said: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / kind
    if kind.endswith("pth"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    write(path)
    assert kind in refused(f"{ARCHITECTURE}:{path}", said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2, torch.zeros(3)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        (3, "holds a int"),
        ({}, "no tensors by name"),
        ({"epoch": 3}, "no tensors by name"),
        ({0: torch.zeros(3), 1: torch.zeros(2)}, "none of the network's tensors"),
        ({"a" * 300: torch.zeros(3)}, "does not fit resnet10t"),
        (STATE | {"more.weight": torch.zeros(3)}, "1 tensors are too many, such as more.weight"),
        ({n: v for n, v in STATE.items() if n != "fc.bias"}, "missing, such as fc.bias"),
        (STATE | {"layer1.0.conv1.weight": torch.zeros(3, 3)}, "layer1.0.conv1.weight is (3, 3)"),
        ({"model": NotAllowed()}, "holds Python objects, which are not run"),
        ({"state_dict": STATE, "extra": NotAllowed()}, "save the network's state_dict()"),
        (nn.Linear(2, 2), "holds Python objects, which are not run"),
    ],
)
def test_odd_contents_are_refused(content: Any, said: str, tmp_path: Path) -> None:
    refused(saved(tmp_path, content), said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resnet1800", "unknown model 'resnet1800'"),
        ("x" * 400, "unknown model 'xxx"),
        ("resnet1800:none.pth", "unknown model"),
        ("none.pth", "say of which architecture, as NAME"),
        ("resnet10t:none.pth", "no checkpoint 'none.pth'"),
        (f"resnet10t:{'x' * 200}/none.pth", "xxx/none.pth'"),
        ("vgg-small", "there are no weights 'vgg-small'"),
    ],
)
def test_names_of_nothing_are_refused(text: str, said: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("KDNOTES_WEIGHTS", raising=False)
    refused(text, said)


def test_published_weights_are_looked_for_here_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("KDNOTES_WEIGHTS", raising=False)
    for name in (ARCHITECTURE, "resnet10t.c3_in1k", "mobilenet_v3_small"):
        opening = time.monotonic()
        refused(name, "none are downloaded unasked")
        assert time.monotonic() - opening < 3
    thousand = published(classes=1000)
    torch.save(thousand, tmp_path / f"{ARCHITECTURE}.pth")
    monkeypatch.setenv("KDNOTES_WEIGHTS", str(tmp_path))
    with torch.no_grad():
        expected = logits_of(thousand, classes=1000)
        assert torch.equal(opened(ARCHITECTURE).network(IMAGES), expected)
    refused(ARCHITECTURE, "has a head of 1000 classes; 10 are needed", classes=10)
    # timm itself would take one of them without a word.
    several = {"state_dict_ema": thousand, "averaged_model": published(seed=1, classes=1000)}
    torch.save(several, tmp_path / f"{ARCHITECTURE}.pth")
    refused(ARCHITECTURE, "several such networks")
