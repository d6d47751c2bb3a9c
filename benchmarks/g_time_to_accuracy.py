"""(g) Seconds until a KL student is as accurate as the RepDistiller-style loop makes it.

That loop (step schedule, batch 64, rate .05) trains 30 epochs on scenes; its mean accuracy over
three seeds is the mark. kdnotes trains with its laptop recipe and the smallest number of epochs of
`LADDER` at which the mean of the same seeds reaches the mark. Both have the same teacher, which is
not timed; filling the teacher's table is, for each student anew. Seconds are those of one thread.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.setting import DisagreementError, Setting, scenes, scenes_spec
from benchmarks.timing import Row, clock_of, rows

TITLE = "time until a KL student reaches the accuracy of 30 usual epochs"
WORK = "g: time to accuracy"
REFERENCE, OURS = "RepDistiller-style loop", "kdnotes"
LADDER = (2, 3, 4, 6, 8, 12, 16, 24)
SEEDS = 3
TEACHER_EPOCHS = 8

Measured = tuple[float, float]  # seconds of training, accuracy


def run(setting: Setting) -> list[Row]:
    """Train with both, one process per core; seconds of each seed are its rounds."""
    from kdnotes.training import pool

    count, test_count = setting.size(2000, 256), setting.size(2000, 250)
    usual = setting.size(30, 2)
    seeds = range(setting.size(SEEDS, 1))
    with tempfile.TemporaryDirectory(prefix="kdnotes-benchmark-") as folder:
        teacher = str(Path(folder) / "teacher.safetensors")
        _train_teacher(teacher, count, 1 if setting.quick else TEACHER_EPOCHS, setting.device)
        workers = min(2, pool.cores(), len(seeds)) if setting.device == "cpu" else 1
        with ProcessPoolExecutor(workers, get_context("spawn")) as executor:

            def all_seeds(train: Any, epochs: int) -> tuple[list[float], float]:
                futures = [
                    executor.submit(train, seed, epochs, count, test_count, setting.device, teacher)
                    for seed in seeds
                ]
                found = [future.result() for future in futures]
                accuracy = sum(each[1] for each in found) / len(found)
                return [each[0] for each in found], accuracy

            seconds, mark = all_seeds(_by_reference, usual)
            setting.say(f"  {REFERENCE}: {usual} epochs reach {mark:.4f}")
            reached, taken, epochs = -1.0, list[float](), 0
            for epochs in LADDER:
                taken, reached = all_seeds(_by_kdnotes, epochs)
                setting.say(f"  {OURS}: {epochs} epochs reach {reached:.4f}")
                if reached >= mark:
                    break
    if reached < mark and not setting.quick:
        raise DisagreementError(f"g: {LADDER[-1]} epochs reach {reached:.4f}, not {mark:.4f}")
    setting.check(
        True,
        f"g: {usual} usual epochs reach {mark:.4f}, {epochs} of kdnotes {reached:.4f}; mean "
        f"seconds {sum(seconds) / len(seconds):.1f} and {sum(taken) / len(taken):.1f}",
    )
    return rows(WORK, {REFERENCE: seconds, OURS: taken}, REFERENCE)


def _train_teacher(path: str, count: int, epochs: int, device: str) -> None:
    from safetensors.torch import save_file

    from kdnotes import networks
    from kdnotes.training import loop

    spec = _spec("teacher", 0, count, epochs)
    network = networks.build(spec.model, 10, spec.initialisation_seed)
    loop.train(spec, network, scenes("train", count), None, device)
    save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, path)


def _teacher(path: str) -> Any:
    from safetensors.torch import load_file

    from kdnotes import networks
    from kdnotes.study.presets import PRESETS

    network = networks.build(PRESETS["laptop"].teacher, 10, seed=0)
    network.load_state_dict(load_file(path))
    return network.eval()


def _by_reference(
    seed: int, epochs: int, count: int, test_count: int, device: str, teacher: str
) -> Measured:
    import torch

    from benchmarks import repdistiller
    from kdnotes import networks

    torch.set_num_threads(1)
    data, test = scenes("train", count), scenes("test", test_count)
    spec = _spec("student", seed, count, epochs)
    body = networks.build(spec.model, 10, spec.initialisation_seed).body
    taught_by = _teacher(teacher).body.to(device)
    clock = clock_of(device)
    started = clock()
    batches = repdistiller.loader(data.images, data.labels, augment=False, seed=seed)
    repdistiller.train(body, batches, epochs, "kl", taught_by, device=device)
    seconds = clock() - started
    return seconds, repdistiller.accuracy(body, test.images, test.labels, device)


def _by_kdnotes(
    seed: int, epochs: int, count: int, test_count: int, device: str, teacher: str
) -> Measured:
    import torch

    from kdnotes import networks
    from kdnotes.probes.base import Member, all_logits
    from kdnotes.training import loop
    from kdnotes.training.teachers import TeacherTable

    torch.set_num_threads(1)
    data, test = scenes("train", count), scenes("test", test_count)
    spec = _spec("student", seed, count, epochs)
    network = networks.build(spec.model, 10, spec.initialisation_seed)
    taught_by = _teacher(teacher)
    loop.distributed.joined(device)  # imports, which the reference does not need
    clock = clock_of(device)
    with tempfile.TemporaryDirectory(prefix="kdnotes-benchmark-") as folder:
        started = clock()
        frozen = networks.freeze(taught_by).to(device)
        views, place = spec.recipe.views, torch.device(device)
        table = TeacherTable(Path(folder) / "table", frozen, data, views, place)
        loop.train(spec, network, data, loop.Teacher(frozen, table), device)
        seconds = clock() - started
    member = Member("kl", seed, networks.freeze(network).to(device), ())
    answers = all_logits([member], test)[0].argmax(1)
    return seconds, float((answers == test.labels).float().mean())


def _spec(role: str, seed: int, count: int, epochs: int) -> Any:
    """A network of the laptop preset on plain scenes, with other numbers of images and epochs."""
    from kdnotes.study import Study

    study = Study("benchmark", {"preset": "laptop", "device": "cpu"})
    plan = study.plan("plain", study.world("one-cue"))
    spec = plan.teacher()
    if role == "student":
        plan.students(plan.method("kl"), of=spec, seeds=[seed])
        spec = plan.planned[-1].spec
    recipe = spec.recipe.model_copy(update={"epochs": epochs})
    return spec.model_copy(update={"recipe": recipe, "data": scenes_spec("train", count)})
