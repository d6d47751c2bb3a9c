"""Networks: seeded, foldable, tappable, and readable from checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdnotes import networks
from kdnotes.errors import RequestError

SMALL = ("vgg-small", "vgg-medium", "resnet-small", "vit-small", "paper-mnist", "resnet18")


def warmed(name: str) -> networks.Normalized:
    """A network whose BatchNorm statistics are no longer those of its birth."""
    network = networks.build(name, 10, seed=0)
    generator = torch.Generator().manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, 3, 32, 32, generator=generator))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize("name", SMALL)
def test_folding_keeps_the_logits_and_leaves_no_batch_norm(name: str) -> None:
    network = warmed(name)
    frozen = networks.freeze(network)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, observed = network(images), frozen(images)
    assert (expected - observed).abs().max() < 1e-5 * max(1, expected.abs().max())
    left = [m for m in frozen.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not left
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_features_lead_to_the_logits(name: str) -> None:
    network = warmed(name)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        logits, features = networks.forward_with_features(network, images)
        assert torch.allclose(logits, network(images), atol=1e-6)
    assert features.ndim == 2


def test_same_seed_same_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = networks.build("vgg-small", 10, seed=3)
    assert torch.equal(torch.rand(3), expected)
    again, other = networks.build("vgg-small", 10, seed=3), networks.build("vgg-small", 10, seed=4)
    assert torch.equal(first.body.head.weight, again.body.head.weight)
    assert not torch.equal(first.body.head.weight, other.body.head.weight)


def test_normalisation_happens_inside() -> None:
    network = networks.build("vgg-small", 10, seed=0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2))
    network.eval()
    images = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack(
        [(images[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.4), (0.3, 0.2)])], 1
    )
    with torch.no_grad():
        assert torch.allclose(network(images), network.body(by_hand), atol=1e-6)


def test_taps_give_maps_from_shallow_to_deep_and_hooks_go() -> None:
    network = networks.build("vgg-small", 10, seed=0).eval()
    paths = networks.taps(network)
    with networks.tapped(network, paths) as outputs:
        network(torch.rand(2, 3, 32, 32))
        assert [outputs[path].shape[-1] for path in paths] == [16, 8, 4]
    assert not any(module._forward_hooks for module in network.modules())
    with (
        pytest.raises(ZeroDivisionError),
        networks.tapped(network, paths),
    ):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("vgg-small", "stages.0 stages.1 stages.2"),
        ("paper-mnist", "stages.0 stages.1"),
        ("vit-tiny", "blocks.0 blocks.1"),
        ("resnet-small", "layer1 layer2 layer3 layer4"),
        ("resnet18", "layer1 layer2 layer3 layer4"),
        ("vgg11", "features.1 features.4 features.9 features.14 features.19 features.20"),
        ("swin_tiny_patch4_window7_224", "layers.0 layers.1 layers.2 layers.3"),
        ("regnetx_002", "s1 s2 s3 s4"),
        ("efficientnet_b0", "blocks.0 blocks.1 blocks.2 blocks.4 blocks.6"),
    ],
)
def test_taps_are_the_stages_without_the_stem(name: str, stages: str) -> None:
    with torch.device("meta"):
        network = networks.build(name, 10, seed=0)
    assert networks.taps(network) == tuple(f"body.{stage}" for stage in stages.split())


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "regnetx_002", "mobilenetv3_small_050"])
def test_taps_hold_the_maps_that_timm_gives_for_its_stages(name: str) -> None:
    network = networks.build(name, 10, seed=0).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad(), networks.tapped(network, networks.taps(network)) as outputs:
        network(images)
        found = list(outputs.values())
        maps = network.body.forward_intermediates(
            network.normalize(images), intermediates_only=True, output_fmt="NCHW"
        )
    for ours, theirs in zip(found, maps[len(maps) - len(found) :], strict=True):
        assert torch.equal(ours, theirs)


def test_networks_that_declare_no_stages_are_told() -> None:
    bare = networks.Normalized(nn.Sequential(nn.Flatten()), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(RequestError, match="Sequential has no stages that can be found"):
        networks.taps(bare)


@pytest.mark.parametrize(
    ("where", "index"),
    [("1/3", 0), ("2/3", 2), ("3/3", 3)],  # of four: 4/3, 8/3 and 12/3, rounded
)
def test_layers_to_match_are_counted_in_thirds(where: str, index: int) -> None:
    network = networks.build("resnet-small", 10, seed=0)
    assert networks.hint_layer(network, where) == networks.taps(network)[index]


def test_layers_to_match_are_named_or_refused() -> None:
    network = networks.build("paper-mnist", 10, seed=0)
    assert networks.hint_layer(network, "1/3") == "body.stages.0"  # the first of two
    for name in ("logits", "body.stages.1.0"):
        assert networks.hint_layer(network, name) == name
    with pytest.raises(RequestError, match="a layer is 1/3, 2/3, 3/3, logits or a dotted path"):
        networks.hint_layer(network, "4/3")
    with pytest.raises(RequestError, match="use logits"):
        networks.hint_layer(networks.Composite([network]), "1/3")


@pytest.mark.parametrize("name", ["vgg-small", "paper-mnist-half"])
def test_gradients_stay_channels_last(name: str) -> None:
    # In another order all layers behind take longer.
    size = 32 if name == "vgg-small" else 28
    network = networks.build(name, 10, seed=0).to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    seen: list[bool] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(
            lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last))
        )

    for path in networks.taps(network):
        network.get_submodule(path).register_forward_hook(note)
    network(images).sum().backward()
    assert seen == [True] * len(networks.taps(network))


@pytest.mark.parametrize("size", [28, 32])
def test_the_digit_net_pools_as_written_down(size: int) -> None:
    network = networks.build("paper-mnist-half", 10, seed=0).eval()
    maps = torch.rand(3, 32, size - 4, size - 4)
    pooled = F.adaptive_avg_pool2d(F.max_pool2d(maps, 2), 12)
    expected = network.body.head(network.body.hidden(pooled))
    assert torch.equal(network.body.forward_head(maps), expected)


def test_features_at_a_layer_stop_there() -> None:
    network = warmed("vgg-small")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), networks.tapped(network, ("body.stages.1",)) as outputs:
        network(images)
        expected = outputs["body.stages.1"]
    network.body.head = nn.Identity()
    network.body.stages[2] = nn.Linear(1, 1)  # would fail if it were reached
    with torch.no_grad():
        assert torch.equal(networks.features_at(network, images, "body.stages.1"), expected)
    assert not any(module._forward_hooks for module in network.modules())


def test_wrong_names_are_answered_with_right_ones() -> None:
    with pytest.raises(RequestError, match=r"unknown model 'resnet1800'.*vgg-small.*resnet"):
        networks.build("resnet1800", 10, seed=0)
    network = networks.build("vgg-small", 10, seed=0)
    with (
        pytest.raises(RequestError, match=r"no layer 'body.stage'.*body.stages"),
        networks.tapped(network, ("body.stage",)),
    ):
        pass


def test_checkpoints_of_both_kinds_are_read(tmp_path: Path) -> None:
    network = warmed("resnet18")
    state = {name: value.contiguous() for name, value in network.body.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "net.pth")
    images = torch.rand(2, 3, 32, 32)
    imagenet = networks.build("resnet18", 10, 0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    imagenet.body.load_state_dict(state)
    for file in ("net.safetensors", "net.pth"):
        read = networks.open_network(f"resnet18:{tmp_path / file}", 10).network
        with torch.no_grad():
            assert torch.equal(read(images), imagenet.eval()(images))
    save_file(network.state_dict(), tmp_path / "ours.safetensors")
    ours = networks.open_network(f"resnet18:{tmp_path / 'ours.safetensors'}", 10).network
    with torch.no_grad():
        assert torch.equal(ours(images), network(images))


def test_unusable_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are no weights 'vgg-small'"):
        networks.open_network("vgg-small", 10)
    with pytest.raises(RequestError, match="no checkpoint"):
        networks.open_network(f"resnet18:{tmp_path / 'none.pth'}", 10)
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(RequestError, match=r"bad\.pth is no whole checkpoint"):
        networks.open_network(f"resnet18:{tmp_path / 'bad.pth'}", 10)
    save_file(
        networks.build("resnet18", 7, seed=0).body.state_dict(), tmp_path / "seven.safetensors"
    )
    with pytest.raises(RequestError, match="head of 7 classes; 10 are needed"):
        networks.open_network(f"resnet18:{tmp_path / 'seven.safetensors'}", 10)


def test_multiply_adds_of_a_layer_worked_by_hand() -> None:
    # vgg-small at 32: three 3x3 convolutions at 16, 8 and 4 pixels, then 64 x 10.
    by_hand = 27 * 16 * 16**2 + 9 * 16 * 32 * 8**2 + 9 * 32 * 64 * 4**2 + 640
    assert networks.multiply_adds("vgg-small", 32) == by_hand
    assert networks.multiply_adds("vgg-small", 64) == 4 * by_hand


@pytest.mark.parametrize("name", networks.PRESET_NETS)
def test_declared_multiply_adds_are_those_counted(name: str) -> None:
    network = networks.build(name, 10, seed=0).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32, device="meta"))
    assert networks.multiply_adds(name, 32) == counter.get_total_flops() / 2


def test_multiply_adds_of_timms_networks_are_counted() -> None:
    # ResNet-18 has 1,814,073,344 at 224 pixels with 1000 classes (fvcore's count; He et al. 2016,
    # table 1: 1.8 G), of which 512 for each class; at 32 pixels, with a stem of stride 1, 556 M.
    for_ten = 1_814_073_344 - 990 * 512
    assert networks.multiply_adds("resnet18", 224, small_images=False) == for_ten
    assert networks.multiply_adds("resnet18", 32) == pytest.approx(556e6, rel=0.01)


def test_the_books_own_names_need_no_torch() -> None:
    code = (
        "import sys; from kdnotes import networks; networks.check_name('vgg-large');"
        "networks.multiply_adds('vit-tiny', 32);"
        "print({'torch', 'timm', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))]
)
def test_every_channel_is_normalised_by_its_own_numbers(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    images = torch.rand(4, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    network = networks.Normalized(torch.nn.Identity(), mean, std)
    for layout in (torch.contiguous_format, torch.channels_last):
        seen = network(images.contiguous(memory_format=layout))
        assert seen.is_contiguous(memory_format=layout)
        for channel in range(3):
            expected = (images[:, channel] - mean[channel]) / std[channel]
            torch.testing.assert_close(seen[:, channel], expected, rtol=0, atol=0)


def test_names_and_maps_are_told_without_building() -> None:
    import timm

    from kdnotes.networks import building

    assert building.timm_names() == set(timm.list_models())
    for name in (*networks.PRESET_NETS, "resnet18", "efficientnet_b0"):
        for size in (28, 32) if name in networks.PRESET_NETS else (32,):
            network = networks.build(name, 10, seed=0).eval()
            with torch.no_grad(), networks.tapped(network, networks.taps(network)) as outputs:
                network(torch.zeros(1, 3, size, size))
            sides = tuple(each.shape[-1] for each in outputs.values())
            assert networks.map_sides(name, size) == sides
    with pytest.raises(RequestError, match="vit-tiny takes images of 32 pixels, not of 64"):
        networks.map_sides("vit-tiny", 64)
    with pytest.raises(RequestError, match="cannot be shown images of 32 x 32 pixels"):
        networks.map_sides("vit_tiny_patch16_224", 32)
    assert set(networks.map_sides("vit_tiny_patch16_224", 224)) == {14}
