"""(b) A whole small study on two cores: a teacher, three independent students, three methods.

Thirteen networks (three seeds of each student), the same images, networks and numbers of epochs.
Everything is included: starting Python, drawing the images, training, testing. Each as used: the
RepDistiller-style loop in one process with two threads, kdnotes through `cache.ensure` with two
workers of one thread each and an empty cache. Seconds are the wall's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.setting import DisagreementError, Setting
from benchmarks.timing import Contender, Row, interleave, rows

TITLE = "a small study: teacher, 3 independent students, 3 methods x 3 seeds"
WORK = "b: small study"
REFERENCE, OURS = "RepDistiller-style loop", "kdnotes"
CORES = 2
ARMS = ("independent", "kl", "hint", "crd")
WORSE = 0.05  # kdnotes' students may be as much less accurate than the others', not more


def run(setting: Setting) -> list[Row]:
    """Time both studies as commands of their own, and compare how accurate the students are."""
    images = setting.size(3000, 256)
    epochs = setting.size(3, 1)
    seeds = setting.size(3, 1)

    def study(which: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.b_study", which, "--device", setting.device]
        for name, value in (("--images", images), ("--epochs", epochs), ("--seeds", seeds)):
            command += [name, str(value)]
        with tempfile.TemporaryDirectory(prefix="kdnotes-benchmark-") as cache:
            environment = os.environ | {"KDNOTES_CACHE": cache}
            if which == "reference":
                environment["OMP_NUM_THREADS"] = str(CORES)
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise DisagreementError(f"b: the study of {which} failed; see above")
        return json.loads(done.stdout.splitlines()[-1])

    contenders = [
        Contender(REFERENCE, lambda: study("reference")),
        Contender(OURS, lambda: study("kdnotes")),
    ]
    seconds, found = interleave(
        contenders, setting.turns(2), time.perf_counter, lambda text: setting.say(f"  {text}")
    )
    theirs, own = found[REFERENCE], found[OURS]
    texts = ", ".join(f"{arm} {theirs[arm]:.3f} and {own[arm]:.3f}" for arm in theirs)
    no_worse = all(own[arm] >= theirs[arm] - WORSE for arm in theirs)
    setting.check(
        setting.quick or no_worse,
        f"b: mean accuracy, reference and kdnotes: {texts}",
    )
    return rows(WORK, seconds, REFERENCE)


def reference(images: int, epochs: int, seeds: int, device: str) -> dict[str, float]:
    """The study by the RepDistiller-style loop: one network after the other."""
    import torch

    from benchmarks import repdistiller
    from benchmarks.setting import scenes
    from kdnotes import methods, networks
    from kdnotes.study.presets import PRESETS

    torch.set_num_threads(CORES)
    preset = PRESETS["laptop"]
    train, test = scenes("train", images), scenes("test", images // 2)
    taught: dict[str, Any] = {name: methods.get(name)() for name in ("hint", "crd")}
    weights = {name: method.weight for name, method in taught.items()}

    def trained(model: str, seed: int, method: str = "none", teacher: Any = None) -> Any:
        torch.manual_seed(seed)
        body = networks.build(model, 10, seed).body
        batches = repdistiller.loader(train.images, train.labels, augment=False, seed=seed)
        more = 1 if teacher is None and model == preset.teacher else 0
        repdistiller.train(
            body,
            batches,
            epochs + more,
            method,
            teacher,
            weights,
            taught["crd"].negatives,
            device,
        )
        return body

    def right(body: Any) -> float:
        return repdistiller.accuracy(body, test.images, test.labels, device)

    teacher = trained(preset.teacher, 0)
    means = {"teacher": right(teacher)}
    for arm in ARMS:
        method, taught_by = ("none", None) if arm == "independent" else (arm, teacher)
        found = [right(trained(preset.student, seed, method, taught_by)) for seed in range(seeds)]
        means[arm] = sum(found) / seeds
    return means


def ours(images: int, epochs: int, seeds: int, device: str) -> dict[str, float]:
    """The study by kdnotes: the laptop preset's plain cast without its controls."""
    import torch

    from benchmarks.setting import scenes
    from kdnotes import networks
    from kdnotes.probes.base import all_logits
    from kdnotes.study import Study
    from kdnotes.study.arms import INDEPENDENT
    from kdnotes.training import cache

    torch.set_num_threads(1)
    sizes = {"seeds": seeds, "train_count": images, "epochs": epochs}
    study = Study("benchmark", {"preset": "laptop", "device": device} | sizes)
    study.settings = study.settings.model_copy(update={"teacher_epochs": epochs + 1})
    plan = study.plan("plain", study.world("one-cue"))
    teacher = plan.teacher()
    for arm in ARMS:
        if arm == "independent":
            plan.students(INDEPENDENT)
        else:
            plan.students(plan.method(arm), of=teacher)
    planned = plan.planned
    cache.ensure(planned, jobs=CORES, device=device)
    test = scenes("test", images // 2)
    means: dict[str, list[float]] = {}
    for item in planned:
        from kdnotes.probes.base import Member

        network = networks.freeze(cache.load(item.spec)).to(device)
        logits = all_logits([Member(item.arm, item.spec.seed, network, ())], test)[0]
        right = float((logits.argmax(1) == test.labels).float().mean())
        means.setdefault(item.arm, []).append(right)
    return {arm: sum(values) / len(values) for arm, values in means.items()}


def main() -> None:
    """One study as a command; the accuracies are its last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("reference", "kdnotes"))
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    study = reference if asked.which == "reference" else ours
    print(json.dumps(study(asked.images, asked.epochs, asked.seeds, asked.device)))


if __name__ == "__main__":
    main()
