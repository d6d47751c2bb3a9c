"""Train or load: the cache of networks and teacher tables, named by content.

A network is a folder with `weights.safetensors` and `manifest.json` (everything that went into it,
and the weights' checksum), which appears in one step when it is complete.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdnotes.errors import RequestError
from kdnotes.paths import cache_folder
from kdnotes.store import appearing, appearing_folder, checksum, clear_unfinished, write_json
from kdnotes.training.specification import NetworkSpec, Planned

if TYPE_CHECKING:
    from kdnotes.data import ImageData
    from kdnotes.networks import Composite, Normalized
    from kdnotes.training.loop import EpochReport
    from kdnotes.training.teachers import Teacher

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"


class Entry(NamedTuple):
    """A cached network as its manifest describes it."""

    key: str
    arm: str
    model: str
    seed: int
    size: int  # bytes on disk
    seconds: float


class DamagedError(RuntimeError):
    """A cached file is truncated, altered or missing."""


def networks_folder() -> Path:
    """Where the networks lie, a folder each."""
    return cache_folder() / "networks"


def folder_of(spec: NetworkSpec) -> Path:
    """Where one network lies or will lie."""
    return networks_folder() / spec.key


def is_complete(spec: NetworkSpec) -> bool:
    """Whether the network, or each part of a composite, is there by its manifest."""
    if spec.parts:
        return all(is_complete(part) for part in spec.parts)
    return (folder_of(spec) / MANIFEST).is_file()


def missing(planned: Iterable[Planned]) -> list[Planned]:
    """What is not in the cache yet of these and their teachers, each once, teachers first."""
    return [item for item in with_teachers(planned) if not is_complete(item.spec)]


def with_teachers(planned: Iterable[Planned]) -> list[Planned]:
    """Every trained network wanted and every one behind it, each once, teachers first."""
    ordered: dict[str, Planned] = {}

    def add(item: Planned) -> None:
        for behind in item.spec.trained_before:
            add(Planned("teacher", behind))
        if not item.spec.parts:  # a composite is not trained, its parts are
            ordered.setdefault(item.spec.key, item)

    for item in planned:
        add(item)
    return list(ordered.values())


def load(spec: NetworkSpec) -> Normalized | Composite:
    """The network in evaluation mode.

    Raises FileNotFoundError when it was never trained, and DamagedError when the weights are not
    those of the manifest.
    """
    from safetensors.torch import load as load_bytes

    from kdnotes import networks

    if spec.parts:
        parts: list[Any] = [load(part) for part in spec.parts]
        return networks.Composite(parts, spec.shares, spec.mirrored)
    network = _built(spec, seed=0)
    network.load_state_dict(load_bytes(_checked_weights(folder_of(spec))))
    return network.eval()


def _built(spec: NetworkSpec, seed: int) -> Normalized:
    from kdnotes import networks

    small = not spec.large_images
    return networks.build(spec.model, spec.num_classes, seed, small_images=small)


def history(spec: NetworkSpec) -> list[dict[str, float]]:
    """Loss terms and seconds of each epoch of a trained network."""
    return _manifest(folder_of(spec))["history"]


def seconds(spec: NetworkSpec) -> float:
    """Seconds that the training of a network took."""
    return float(_manifest(folder_of(spec))["seconds"])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"cached network {folder.name}: unreadable manifest") from error


def _checked_weights(folder: Path) -> bytes:
    expected = _manifest(folder).get("sha256")
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise DamagedError(f"cached network {folder.name}: weights are missing") from error
    if checksum(content) != expected:
        raise DamagedError(f"cached network {folder.name}: weights are truncated or altered")
    return content


def _damage(folder: Path) -> str:
    """What is wrong with a cached network, empty if nothing is."""
    try:
        _checked_weights(folder)
    except (DamagedError, FileNotFoundError) as error:
        return str(error)
    return ""


def ensure(
    planned: Iterable[Planned],
    jobs: int | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
) -> int:
    """Train what is missing or damaged, each network once, and return how many that were.

    On CPU, ``jobs`` one-thread worker processes (default: one per core) share the work. Finished
    networks are kept if the run is stopped.
    """
    wanted = with_teachers(planned)
    for item in wanted:
        if is_complete(item.spec) and (damage := _damage(folder_of(item.spec))):
            print(f"{damage}: training it again", file=sys.stderr)
            shutil.rmtree(folder_of(item.spec))
    if to_train := missing(wanted):
        from kdnotes.training import pool

        clear_unfinished(cache_folder())
        pool.train_all(to_train, train_one, jobs, device, data_dir)
    return len(to_train)


def train_one(
    item: Planned, device: str, data_dir: Path | None, report: EpochReport | None = None
) -> None:
    """Train one network, its teacher first, and save it; a no-op if it is there.

    A lock per network keeps two runs on one cache from doing the same work; of a group of processes
    (`distributed`), which all call this, the first one holds it and writes.
    """
    from filelock import FileLock

    from kdnotes.training import checkpoints, distributed

    spec, fabric = item.spec, distributed.joined(device)
    for behind in spec.trained_before:
        train_one(Planned("teacher", behind), device, data_dir)
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / spec.key) if fabric.is_global_zero else nullcontext():
        if fabric.broadcast(is_complete(spec)):
            return
        started = time.perf_counter()
        kept = checkpoints.Checkpoints(cache_folder() / "checkpoints" / spec.key)
        network, past = _made(spec, device, data_dir, report, kept)
        if fabric.is_global_zero:
            # A resumed run counts the epochs that it did not have to repeat.
            spent = sum(epoch["seconds"] for epoch in past)
            save(item, network, past, max(spent, time.perf_counter() - started))
            kept.remove()
        fabric.barrier()


def _made(
    spec: NetworkSpec, device: str, data_dir: Path | None, report: Any, kept: Any
) -> tuple[Normalized, list[dict[str, float]]]:
    """A network as it is to be saved, published or trained here, and its history."""
    from kdnotes import networks
    from kdnotes.training import loop

    if spec.pretrained:
        return networks.load_published(spec.model, spec.pretrained, spec.num_classes), []
    data = _data(spec.data.model_dump_json(), data_dir)
    network = _built(spec, spec.initialisation_seed)
    teacher = None if spec.teacher is None else _teacher_of(spec, data, device)
    return network, loop.train(spec, network, data, teacher, device, report, kept)


def _teacher_of(spec: NetworkSpec, data: ImageData, device: str) -> Teacher:
    """The teacher of a student, with the table of its answers if there can be one."""
    from kdnotes import networks
    from kdnotes.training import distributed, teachers

    assert spec.teacher is not None
    fabric = distributed.joined(device)
    network = networks.freeze(load(spec.teacher)).to(fabric.device)
    # A table cannot be filled by processes of several machines at once.
    if fabric.world_size > 1 or not teachers.fits_table(spec, network, data):
        return teachers.Teacher(network)
    views, layer = spec.recipe.views, teachers.layer_of(spec, network)
    asked = [spec.teacher.key, spec.data.key(), views.model_dump_json(), device]
    asked += [layer] if layer and spec.needs_layer else []
    folder = cache_folder() / "tables" / checksum("|".join(asked).encode())[:20]
    table = teachers.TeacherTable(folder, network, data, views, fabric.device, layer)
    return teachers.Teacher(network, table)


@lru_cache(maxsize=3)  # for the next networks of this process
def _data(text: str, data_dir: Path | None) -> ImageData:
    from kdnotes import data

    return data.load(data.DataSpec.model_validate_json(text), data_dir)


def save(item: Planned, network: Any, history: list[dict[str, float]], seconds: float) -> None:
    """Write a trained network so that it appears complete or not at all."""
    import torch
    from safetensors.torch import save as save_bytes

    import kdnotes

    state = network.state_dict().items()
    content = save_bytes({name: value.detach().cpu().contiguous() for name, value in state})
    manifest = {
        "arm": item.arm,
        "spec": item.spec.model_dump(mode="json"),
        "sha256": checksum(content),
        "versions": {"kdnotes": kdnotes.__version__, "torch": torch.__version__},
        "seconds": round(seconds, 2),
        "history": history,
    }
    with appearing_folder(folder_of(item.spec)) as scratch:
        (scratch / WEIGHTS).write_bytes(content)
        write_json(scratch / MANIFEST, manifest)


def entries() -> list[Entry]:
    """What the cache holds, in order of names; damaged manifests are left out (see `verify`)."""
    found = []
    for folder in _folders():
        try:
            manifest = _manifest(folder)
        except (DamagedError, FileNotFoundError):
            continue
        arm, spec, seconds = manifest["arm"], manifest["spec"], manifest["seconds"]
        found.append(Entry(folder.name, arm, spec["model"], spec["seed"], _size(folder), seconds))
    return found


def _folders() -> list[Path]:
    return sorted(path for path in networks_folder().glob("*") if not path.name.startswith("."))


def _size(folder: Path) -> int:
    """Bytes on disk, of which a sparse file takes fewer than it is long."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def verify() -> list[str]:
    """Names of the damaged networks, with what is wrong with each."""
    return [damage for folder in _folders() if (damage := _damage(folder))]


def clear() -> int:
    """Delete all networks, tables and decoded images; returns the bytes freed."""
    freed = 0
    for name in ("networks", "tables", "data", "locks", "checkpoints"):
        freed += _size(cache_folder() / name)
        shutil.rmtree(cache_folder() / name, ignore_errors=True)
    return freed


def export(path: Path) -> int:
    """Write all sound networks into one archive, for a class of laptops; returns their number."""
    sound = [folder for folder in _folders() if not _damage(folder)]
    if not sound:
        raise RequestError(f"nothing to export: no trained networks in {cache_folder()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as scratch, tarfile.open(scratch, "w") as archive:
        for folder in sound:
            for name in (MANIFEST, WEIGHTS):
                archive.add(folder / name, f"networks/{folder.name}/{name}")
    return len(sound)


def import_(path: Path) -> int:
    """Add the networks of an archive, each checked first; returns how many were new.

    An archive cannot run code: manifests are JSON, weights safetensors. Raises RequestError when it
    cannot be read or holds a damaged network.
    """
    networks_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=networks_folder()) as scratch:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(scratch, filter="data")
            folders = sorted(Path(scratch).glob("networks/*"))
            if not folders:
                raise ValueError("it holds none")
            for folder in folders:
                _checked_weights(folder)
                if NetworkSpec.model_validate(_manifest(folder)["spec"]).key != folder.name:
                    raise ValueError(f"{folder.name} was made by another version of kdnotes")
        except (tarfile.TarError, OSError, DamagedError, ValueError) as error:
            raise RequestError(f"{path} is no archive of sound networks: {error}") from error
        new = [folder for folder in folders if not (networks_folder() / folder.name).exists()]
        for folder in new:
            folder.rename(networks_folder() / folder.name)
        return len(new)
