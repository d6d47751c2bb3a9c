"""(f) How much of this machine's matrix multiplication the laptop teacher's training step reaches.

Work is counted as two operations per multiply-add of the convolutions and the linear layer, and a
training step as three forward passes (one forward, two backward); BatchNorm, activations, the
optimiser and the images' way into the step count as nothing, but take time. The peak is the best
of float32 products of square matrices, in the same run, on one thread.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.setting import Setting, scenes, scenes_spec
from benchmarks.timing import Contender, Row, interleave

TITLE = "share of the matmul peak, the laptop teacher's training step"
WORK = "f: share of the peak"
PEAK = "float32 matmul"
OURS = "kdnotes, teacher's step"
SIDES = (512, 1024, 2048)


def run(setting: Setting) -> list[Row]:
    """Time products and an epoch of training in turns; the last column is the share."""
    from kdnotes import networks
    from kdnotes.study.presets import PRESETS

    preset, device = PRESETS["laptop"], setting.device
    steps = setting.size(30, 4)
    data = scenes("train", steps * preset.batch)
    spec = _spec(preset, len(data))

    def epoch() -> None:
        from kdnotes.training import loop

        network = networks.build(preset.teacher, 10, seed=0)
        loop.train(spec, network, data, None, device)

    products = [(side, torch.randn(side, side, device=device)) for side in SIDES]
    peaks = [
        Contender(f"{PEAK}, side {side}", partial(torch.matmul, matrix, matrix))
        for side, matrix in products
    ]
    contenders = [*peaks, Contender(OURS, epoch)]
    for contender in contenders:
        contender.run()
    seconds, _ = interleave(
        contenders, setting.turns(7), setting.clock, lambda text: setting.say(f"  {text}")
    )
    by_side = {side: seconds[f"{PEAK}, side {side}"] for side in SIDES}
    side = max(SIDES, key=lambda each: each**3 / min(by_side[each]))
    peak = 2 * side**3 / min(by_side[side])
    per_step = 3 * 2 * networks.multiply_adds(preset.teacher, data.size) * preset.batch
    taken = [each / steps for each in seconds[OURS]]
    reached = per_step / min(taken)
    setting.check(
        reached < peak or device != "cpu",  # on CUDA a step is bfloat16 in part
        f"f: {reached / 1e9:.1f} GFLOP/s of {peak / 1e9:.1f} (side {side}); "
        f"{per_step / 1e9:.2f} GFLOP in a step of {preset.batch} images",
    )
    lines = []
    for name, each, share in ((PEAK, by_side[side], 1.0), (OURS, taken, reached / peak)):
        ordered = sorted(each)
        lines.append(Row(WORK, name, ordered[0], ordered[len(ordered) // 2], share))
    return lines


def _spec(preset: Any, count: int) -> Any:
    from kdnotes.data.views import Views
    from kdnotes.training.specification import NetworkSpec, Recipe

    return NetworkSpec(
        role="teacher",
        model=preset.teacher,
        num_classes=10,
        data=scenes_spec("train", count),
        recipe=Recipe(
            epochs=1, batch=preset.batch, learning_rate=preset.teacher_rate, views=Views(pad=0)
        ),
    )
