"""(c) Images crafted by PGD with ten steps on a ResNet-20.

foolbox and torchattacks get the network as it is after training, as their documentation shows it;
kdnotes gives foolbox its frozen network, as in the chapter on adversarial images.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.setting import Setting, scenes, trained_resnet
from benchmarks.timing import Contender, Row

TITLE = "PGD with ten steps, ResNet-20"
WORK = "c: PGD-10"
REFERENCE = "foolbox"
EPS, STEPS, RELATIVE_STEP = 2 / 255, 10, 0.25
TOLERANCE = 0.01


def run(setting: Setting) -> list[Row]:
    """Time the attacks, then check that as many images withstand each."""
    import foolbox

    from kdnotes import networks
    from kdnotes.probes.adversarial import craft

    device = setting.device
    network = copy.deepcopy(trained_resnet(device, setting.quick))
    # Out of channels last, which training left it in: as its users would have it.
    network.to(device, memory_format=torch.contiguous_format).eval()
    frozen = networks.freeze(network).to(device)
    data = scenes("test", setting.size(100, 50))
    images = (data.images.float() / 255).to(device)
    labels = data.labels.to(device)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    theirs = foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=STEPS)

    def by_foolbox() -> Tensor:
        torch.manual_seed(0)
        return theirs(model, images, labels, epsilons=EPS)[1]

    def by_torchattacks() -> Tensor:
        import torchattacks

        torch.manual_seed(0)
        attack = torchattacks.PGD(network, eps=EPS, alpha=EPS * RELATIVE_STEP, steps=STEPS)
        return attack(images, labels)

    def by_kdnotes() -> Tensor:
        shown = images.contiguous(memory_format=torch.channels_last)
        return craft(frozen, shown, labels, eps=EPS, steps=STEPS, method="pgd")

    contenders = [
        Contender(REFERENCE, by_foolbox),
        *setting.with_peer("torchattacks", lambda: Contender("torchattacks", by_torchattacks)),
        Contender("kdnotes", by_kdnotes),
    ]
    lines, crafted = setting.race(WORK, contenders, REFERENCE, rounds=4)
    with torch.no_grad():
        clean = float((network(images).argmax(1) == labels).float().mean())
        robust = {
            name: float((network(each).argmax(1) == labels).float().mean())
            for name, each in crafted.items()
        }
    largest = max(float((each - images).abs().max()) for each in crafted.values())
    spread = max(robust.values()) - min(robust.values())
    # On a handful of images one image is more than the tolerance.
    allowed = max(TOLERANCE, 1.5 / len(labels))
    texts = ", ".join(f"{name} {value:.3f}" for name, value in robust.items())
    setting.check(
        spread <= allowed and largest <= EPS + 1e-6,
        f"c: accuracy {clean:.3f} clean; under attack {texts} (to differ by {allowed:.3f} at most)",
    )
    return lines
