"""Stages, features and folding of other people's networks, whatever their layers are called."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from kdnotes import networks
from kdnotes.errors import RequestError
from kdnotes.networks.wrapping import SAME, differ
from kdnotes.probes import localization

# Architecture, side of its last map at its own size.
VARIED = {
    "swin_tiny_patch4_window7_224": 7,  # channels last
    "mambaout_femto": 7,
    "sequencer2d_s": 16,
    "vgg11_bn": 7,  # works in place
    "hrnet_w18_small": 7,  # branches
    "efficientvit_b0": 7,
    "shvit_s1": 4,  # BatchNorm in the head
    "volo_d1_224": 14,  # a second head over the tokens
    "mvitv2_tiny": 7,  # tokens with their grid beside them
    "crossvit_tiny_240": 14,  # two branches
    "twins_svt_small": 7,
    "densenet121": 7,
    "dpn48b": 7,  # BatchNorm before convolutions
    "resnet10t": 6,
}


def randomised(body: nn.Module) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics that are not those of its birth."""
    generator = torch.Generator().manual_seed(1)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return body.eval()


def read_as_it_is(body: Any, network: networks.Normalized, last: Tensor, images: Tensor) -> None:
    """Logits, as they are and folded, and the last stage's map are the network's own."""
    own = body((images - network.mean) / network.std)
    for each in (network, networks.freeze(network)):
        stages = networks.taps(each)
        with networks.tapped(each, stages) as outputs:
            logits, features = networks.forward_with_features(each, images)
        assert differ(logits, own) <= SAME
        assert features.ndim == 2
        assert all(output.ndim == 4 for output in outputs.values())
        sides = [output.shape[2] for output in outputs.values()]
        assert sides == sorted(sides, reverse=True)
        assert differ(outputs[stages[-1]], last) <= 10 * SAME


@pytest.mark.parametrize("name", VARIED)
def test_varied_networks_are_read_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    body: Any = randomised(timm.create_model(name, num_classes=7))
    size = 192 if name == "resnet10t" else body.pretrained_cfg["input_size"][-1]
    network = networks.Normalized(body, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), size)
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inputs = (images - network.mean) / network.std
        last = body.forward_intermediates(inputs, output_fmt="NCHW", intermediates_only=True)[-1]
        assert last.shape[2:] == (VARIED[name],) * 2
        read_as_it_is(body, network, last.clone(), images)


def test_a_transformer_is_shown_images_of_its_own_size() -> None:
    body: Any = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=96, depth=3)
    network = networks.Normalized(body, (0.5,) * 3, (0.5,) * 3, 96).eval()
    assert networks.taps(network) == ("body.blocks.0", "body.blocks.1", "body.blocks.2")
    seen = torch.rand(2, 3, 96, 96)
    tokens = body.patch_embed(2 * seen - 1)
    with torch.no_grad(), networks.tapped(network, ("body.blocks.2",)) as outputs:
        network(seen)
        all_tokens = body.forward_intermediates(2 * seen - 1, output_fmt="NLC")[1][-1]
    assert tokens.shape[1] == 36
    # The class token comes first and is left out; the others lie row by row.
    expected = all_tokens.transpose(1, 2).reshape(2, 192, 6, 6)
    torch.testing.assert_close(outputs["body.blocks.2"], expected)


@pytest.mark.parametrize(
    ("name", "stage", "shape"),
    [
        ("resnet18", "layer4", (512, 2, 2)),
        ("densenet121", "features.norm5", (1024, 2, 2)),
        ("swin_t", "features.7", (768, 2, 2)),
        ("vgg11_bn", "features.28", (512, 2, 2)),
    ],
)
def test_torchvisions_networks_are_looked_at(name: str, stage: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    body: Any = randomised(torchvision.models.get_model(name, weights=None, num_classes=5))
    network = networks.Normalized(body, (0.5,) * 3, (0.5,) * 3, 64)
    kept: list[Tensor] = []
    # Independent of ours: hooked by hand, and copied before anything can overwrite it.
    hook = body.get_submodule(stage).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        network(images)
        hook.remove()
        expected = kept[0].permute(0, 3, 1, 2) if name == "swin_t" else kept[0]
        last = networks.taps(network)[-1]
        with networks.tapped(network, (last,)) as outputs:
            logits, _ = networks.forward_with_features(network, images)
        found = outputs[last]
        assert torch.equal(logits, body((images - 0.5) / 0.5))
    assert found.shape[1:] == shape
    torch.testing.assert_close(found, expected)


class InPlace(nn.Sequential):
    """What follows the first layer overwrites what it gave."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        )


def test_what_is_overwritten_later_is_kept_as_it_was() -> None:
    torch.manual_seed(0)
    network = networks.Normalized(InPlace(), (0.0,) * 3, (1.0,) * 3, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), networks.tapped(network, ("body.0", "body.1")) as outputs:
        network(images)
        first = network.body[0](images)
    assert float(first.min()) < 0
    assert torch.equal(outputs["body.0"], first)
    assert torch.equal(outputs["body.1"], first.relu())
    maps, _ = localization.grad_cam(network, images, torch.tensor([1, 2]), ["body.0"])
    weights = network.body[4].weight[[1, 2]] / 16**2
    gradient = weights[:, :, None, None] * (first > 0)
    by_hand = (gradient.mean((2, 3), keepdim=True) * first).sum(1).relu()
    torch.testing.assert_close(maps["body.0"], by_hand)


class Branches(nn.Module):
    """Gives a pair: tokens behind a class token, and their grid."""

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1), (maps.shape[2], maps.shape[3])


class OfBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.block = Branches()
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens, _ = self.block(self.patches(images))
        return self.head(tokens.mean(1))


def test_tuples_and_tokens_become_maps() -> None:
    network = networks.Normalized(OfBranches(), (0.0,) * 3, (1.0,) * 3, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), networks.tapped(network, ("body.block",)) as outputs:
        network(images)
        assert torch.equal(outputs["body.block"], network.body.patches(images))
    with pytest.raises(RequestError, match="Grad-CAM needs maps"):  # read from a class token, too
        localization.grad_cam(network, images, torch.tensor([0, 1]), ["body.block"])


class BatchNormFirst(nn.Module):
    """Named as if BatchNorm followed the convolution: it comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv1(self.bn1(images)))


def test_what_cannot_be_folded_is_left() -> None:
    body = randomised(BatchNormFirst())
    network = networks.Normalized(body, (0.0,) * 3, (1.0,) * 3, 32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        frozen = networks.freeze(network)
        assert isinstance(frozen.body.bn1, nn.BatchNorm2d)
        assert differ(frozen(images), network(images)) <= SAME


class NamedOtherwise(nn.Module):
    """Two of its four norms can be folded; one sees what was changed in place, one comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.p, self.q, self.r, self.s = (nn.BatchNorm2d(3) for _ in range(4))
        self.head = nn.Linear(3, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.q(self.b(self.p(self.a(images))))
        maps = self.r(self.c(maps).relu_())
        maps = self.s(self.d(maps))
        maps = self.s(self.d(maps))
        return self.head(maps.mean((2, 3)))


def test_norms_are_folded_by_what_they_are_given() -> None:
    network = networks.Normalized(randomised(NamedOtherwise()), (0.0,) * 3, (1.0,) * 3, 16)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        frozen = networks.freeze(network)
        assert differ(frozen(images), network(images)) <= SAME
    left = {name for name, each in frozen.body.named_children() if isinstance(each, nn.BatchNorm2d)}
    assert left == {"r", "s"}


class ReadsMemory(nn.Module):
    """Its head takes numbers in the order in which they lie in memory: layouts are not alike."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16 * 16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.conv(images))
        return self.head(maps.as_strided((len(maps), 1024), (1024, 1)))


def test_a_layout_that_changes_what_is_computed_is_left() -> None:
    torch.manual_seed(0)
    network = networks.Normalized(randomised(ReadsMemory()), (0.0,) * 3, (1.0,) * 3, 16)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        frozen = networks.freeze(network)
        assert not isinstance(frozen.body.norm, nn.BatchNorm2d)  # folding by itself is right
        assert differ(frozen(images), network(images)) <= SAME


def test_efficientnets_are_folded_whole() -> None:
    import timm

    body = randomised(timm.create_model("tf_efficientnet_lite0", num_classes=5))
    frozen = networks.freeze(networks.Normalized(body, (0.0,) * 3, (1.0,) * 3, 64))
    assert not [each for each in frozen.modules() if isinstance(each, nn.BatchNorm2d)]


def test_layers_that_are_none_are_refused_in_few_words() -> None:
    network = networks.build("resnet18", 10, 0)
    for path in ("body.layer9", "x" * 500, ""):
        with pytest.raises(RequestError) as caught:
            networks.hint_layer(network, path)
        assert len(str(caught.value)) < 300
    assert network.training  # looking changed nothing
