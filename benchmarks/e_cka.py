"""(e) Linear CKA of the nine blocks of a ResNet-20 with the three stages of a small VGG.

Both estimate without bias in batches of 125 and average over them. kdnotes is timed as the chapter
on representations uses it, which also compares the last features, the logits, and the teacher with
itself.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import blocks_of
from benchmarks.setting import Setting, scenes, trained_resnet
from benchmarks.timing import Contender, Row

TITLE = "linear CKA, 9 x 3 layers"
WORK = "e: CKA"
REFERENCE, OURS = "torch-cka", "kdnotes"
FORWARD = "kdnotes, networks' answers alone"
BATCH = 125  # that of kdnotes.probes.representations
TOLERANCE = 1e-3


def run(setting: Setting) -> list[Row]:
    """Time both, check both in double precision, and each on a network and its own copy."""
    from kdnotes import networks
    from kdnotes.probes import representations
    from kdnotes.probes.base import Cast, Member, all_logits

    device = setting.device
    first = copy.deepcopy(trained_resnet(device, setting.quick))
    first.to(device, memory_format=torch.contiguous_format).eval()
    second = networks.build("vgg-small", 10, seed=5).to(device).eval()
    blocks, stages = blocks_of(20), networks.taps(second)
    data = scenes("test", setting.size(1000, 250))
    images = data.images.float() / 255
    batches = DataLoader(TensorDataset(images, data.labels), batch_size=BATCH)

    def members(student: Any, taps: tuple[str, ...]) -> Cast:
        teacher = Member("teacher", 0, networks.freeze(first).to(device), blocks)
        other = Member("student", 0, networks.freeze(student).to(device), taps)
        return Cast(teacher, None, (other,), data.classes)

    cast = members(second, stages)

    def by_torch_cka() -> Tensor:
        return _torch_cka(first, second, blocks, stages, batches, device)

    def by_kdnotes() -> Tensor:
        return _matrix(representations.measure(cast, data), 9, 3)

    def answers_alone() -> list[Tensor]:
        # What is left when CKA itself costs nothing: the most that any estimate could save.
        return all_logits(list(cast.everyone()), data, batch_size=BATCH)

    contenders = [
        *setting.with_peer("torch_cka", lambda: Contender(REFERENCE, by_torch_cka)),
        Contender(OURS, by_kdnotes),
        Contender(FORWARD, answers_alone),
    ]
    for contender in contenders:
        contender.run()
    lines, found = setting.race(WORK, contenders, contenders[0].name)
    exact = _in_double(first, second, blocks, stages, images.split(BATCH), device)
    for name, values in found.items():
        if name == FORWARD:
            continue
        worst = float((values.double() - exact).abs().max())
        setting.check(worst < TOLERANCE, f"e: {name} is off the double's value by {worst:.1e}")
    copied = members(first, blocks)
    own = _matrix(representations.measure(copied, data), 9, 9).diagonal()
    off = float((own - 1).abs().max())
    setting.check(off < 1e-5, f"e: a network and its copy, kdnotes: 1 in all layers to {off:.1e}")
    if REFERENCE in found:
        shuffled = DataLoader(
            TensorDataset(images, data.labels),
            batch_size=BATCH,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
        )
        twin = copy.deepcopy(first)
        theirs = _torch_cka(first, twin, blocks, blocks, shuffled, device).diagonal()
        setting.check(
            True,
            "e: a network and its copy with a loader that shuffles, torch-cka: "
            f"{float(theirs.min()):.2f} to {float(theirs.max()):.2f} where 1 is right "
            "(it draws the images anew for each network)",
        )
    return lines


def _torch_cka(
    first: Any,
    second: Any,
    layers: tuple[str, ...],
    others: tuple[str, ...],
    batches: DataLoader[Any],
    device: str,
) -> Tensor:
    """As its documentation has it; hooks are taken off again, as it leaves them on."""
    from torch_cka import CKA

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compared = CKA(
            first,
            second,
            model1_name="first",
            model2_name="second",
            model1_layers=list(layers),
            model2_layers=list(others),
            device=device,
        )
        compared.compare(batches)
    for network in (first, second):
        for module in network.modules():
            module._forward_hooks.clear()
    return compared.export()["CKA"]


def _matrix(outcome: Any, rows: int, columns: int) -> Tensor:
    """The student's values from the probe's table, by the teacher's layer and its own."""
    table = outcome.table
    table = table[(table["measure"] == "cka") & (table["arm"] == "student")]
    values = dict(zip(table["condition"], table["value"], strict=True))
    return torch.tensor(
        [
            [
                values[f"teacher_layer={row},student_layer={column}"]
                for column in range(1, 1 + columns)
            ]
            for row in range(1, 1 + rows)
        ]
    )


def _in_double(
    first: Any,
    second: Any,
    layers: tuple[str, ...],
    others: tuple[str, ...],
    parts: tuple[Tensor, ...],
    device: str,
) -> Tensor:
    """The same estimate by its textbook formula, everything in double precision."""
    from kdnotes.networks import tapped

    networks = [copy.deepcopy(network).double() for network in (first, second)]
    shared = torch.zeros(len(layers), len(others), dtype=torch.float64)
    own = [torch.zeros(len(each), dtype=torch.float64) for each in (layers, others)]
    for part in parts:
        grams = []
        for network, taps in zip(networks, (layers, others), strict=True):
            with torch.no_grad(), tapped(network, taps) as outputs:
                network(part.double().to(device))
                flat = [outputs[tap].flatten(1) for tap in taps]
            grams.append([(each @ each.T).fill_diagonal_(0) for each in flat])
        for row, gram in enumerate(grams[0]):
            own[0][row] += _hsic(gram, gram)
            for column, other in enumerate(grams[1]):
                shared[row, column] += _hsic(gram, other)
        for column, other in enumerate(grams[1]):
            own[1][column] += _hsic(other, other)
    return shared / torch.outer(own[0], own[1]).sqrt()


def _hsic(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of Song et al. (2012), equation 5; diagonals are 0."""
    count = len(first)
    total = (first * second).sum()
    total = total + first.sum() * second.sum() / ((count - 1) * (count - 2))
    total = total - 2 / (count - 2) * (first.sum(0) * second.sum(1)).sum()
    return float(total / (count * (count - 3)))
