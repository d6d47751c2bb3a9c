"""(d) Grad-CAM maps of a ResNet-20's last and an earlier layer, for the true class.

grad-cam gives one map for each call (it averages over the layers it is given, scaled to [0, 1] by
image and enlarged to its size), captum one layer per call, kdnotes all layers from one pass.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.setting import Setting, scenes, trained_resnet
from benchmarks.timing import Contender, Row

TITLE = "Grad-CAM of two layers, ResNet-20"
WORK = "d: Grad-CAM"
REFERENCE, CAPTUM, OURS = "grad-cam", "captum", "kdnotes"
TAPS = ("body.layer3", "body.layer2")
TOLERANCE = 1e-3


def run(setting: Setting) -> list[Row]:
    """Time the three, then check that they drew the same maps."""
    from captum.attr import LayerGradCam

    from kdnotes import networks
    from kdnotes.probes.localization import grad_cam

    device = setting.device
    network = copy.deepcopy(trained_resnet(device, setting.quick))
    network.to(device, memory_format=torch.contiguous_format).eval()
    frozen = networks.freeze(network).to(device)
    data = scenes("test", setting.size(250, 50))
    images = (data.images.float() / 255).to(device)
    labels = data.labels.to(device)
    layers = [network.get_submodule(tap) for tap in TAPS]

    def by_grad_cam() -> list[Any]:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        targets: Any = [ClassifierOutputTarget(int(label)) for label in data.labels]
        maps = []
        for layer in layers:
            with GradCAM(model=network, target_layers=[layer]) as cam:
                maps.append(cam(input_tensor=images, targets=targets))
        return maps

    def by_captum() -> list[Tensor]:
        return [
            LayerGradCam(network, layer).attribute(images, target=labels, relu_attributions=True)[
                :, 0
            ]
            for layer in layers
        ]

    def by_kdnotes() -> list[Tensor]:
        shown = images.contiguous(memory_format=torch.channels_last)
        maps, _ = grad_cam(frozen, shown, labels, TAPS)
        return [maps[tap] for tap in TAPS]

    contenders = [
        *setting.with_peer("pytorch_grad_cam", lambda: Contender(REFERENCE, by_grad_cam)),
        Contender(CAPTUM, by_captum),
        Contender(OURS, by_kdnotes),
    ]
    for contender in contenders:
        contender.run()
    lines, maps = setting.race(WORK, contenders, contenders[0].name)
    captums, ours = maps[CAPTUM], maps[OURS]
    worst = max(
        float((theirs.detach() - own).abs().max() / theirs.detach().abs().max())
        for theirs, own in zip(captums, ours, strict=True)
    )
    setting.check(worst < TOLERANCE, f"d: maps are captum's to {worst:.1e} of the largest cell")
    if REFERENCE in maps:
        worst = max(
            float(np.abs(theirs - _as_grad_cam(own)).max())
            for theirs, own in zip(maps[REFERENCE], ours, strict=True)
        )
        setting.check(
            worst < 0.02, f"d: scaled and enlarged in its way, maps are grad-cam's to {worst:.1e}"
        )
    return lines


def _as_grad_cam(maps: Tensor) -> Any:
    """Maps (n, h, w) scaled to [0, 1] each and enlarged, by grad-cam's own function, twice."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    return scale_cam_image(scale_cam_image(maps.cpu().numpy(), (32, 32)))
