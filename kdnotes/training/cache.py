"""Train or load: the cache of networks and teacher tables, named by content.

A network is a folder with `weights.safetensors` and `manifest.json` (everything that went into it,
and the weights' checksum). It appears under its name in one step when it is complete, so a half
written one is never read; a damaged one is noticed, named and trained again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdnotes.errors import RequestError
from kdnotes.paths import cache_folder
from kdnotes.training.specification import NetworkSpec


@dataclass(frozen=True)
class Planned:
    """A network that is wanted, and the arm that it plays (for display only)."""

    arm: str
    spec: NetworkSpec


@dataclass(frozen=True)
class Entry:
    """A cached network as its manifest describes it."""

    key: str
    arm: str
    model: str
    seed: int
    bytes: int
    seconds: float


def networks_folder() -> Path:
    """Where the networks lie, one folder each."""
    return cache_folder() / "networks"


def folder_of(spec: NetworkSpec) -> Path:
    """Where one network lies or will lie."""
    return networks_folder() / spec.key


def is_complete(spec: NetworkSpec) -> bool:
    """Whether the network is there, by its manifest; `load` checks the weights.

    A composite is there when its parts are.
    """
    if spec.parts:
        return all(is_complete(part) for part in spec.parts)
    return (folder_of(spec) / "manifest.json").is_file()


def missing(planned: Iterable[Planned]) -> list[Planned]:
    """What is not in the cache yet, teachers of students included, each once, teachers first."""
    return [item for item in with_teachers(planned) if not is_complete(item.spec)]


def with_teachers(planned: Iterable[Planned]) -> list[Planned]:
    """Every trained network wanted and every one behind it, each once, teachers first."""
    ordered: dict[str, Planned] = {}

    def add(item: Planned) -> None:
        if item.spec.teacher is not None:
            add(Planned("teacher", item.spec.teacher))
        if item.spec.parts:  # a composite is not trained, its parts are
            for part in item.spec.parts:
                add(Planned("teacher", part))
            return
        ordered.setdefault(item.spec.key, item)

    for item in planned:
        add(item)
    return list(ordered.values())


def keys_behind(spec: NetworkSpec) -> list[str]:
    """Names of the trained networks that must be there before this one can be trained."""
    if spec.teacher is None:
        return []
    return [part.key for part in spec.teacher.parts or (spec.teacher,)]


def load(spec: NetworkSpec) -> Any:
    """The network (`networks.Normalized` or `Composite`), weights checked on reading.

    Raises FileNotFoundError when it was never trained, and DamagedError when the files do not
    match their manifest.
    """
    from safetensors.torch import load as load_bytes

    from kdnotes import networks

    if spec.parts:
        return networks.Composite([load(part) for part in spec.parts], spec.shares, spec.mirrored)
    folder = folder_of(spec)
    manifest = _manifest(folder)
    content = _checked_weights(folder, manifest)
    network = networks.build(
        spec.model, spec.num_classes, seed=0, small_images=not spec.large_images
    )
    network.load_state_dict(load_bytes(content))
    return network.eval()


def history(spec: NetworkSpec) -> list[dict[str, float]]:
    """Loss terms and seconds of each epoch of a trained network."""
    return _manifest(folder_of(spec))["history"]


def seconds(spec: NetworkSpec) -> float:
    """Seconds that the training of a network took."""
    return float(_manifest(folder_of(spec))["seconds"])


class DamagedError(RuntimeError):
    """A cached file is truncated or altered."""


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"cached network {folder.name}: unreadable manifest") from error


def _checked_weights(folder: Path, manifest: dict[str, Any]) -> bytes:
    try:
        content = (folder / "weights.safetensors").read_bytes()
    except OSError as error:
        raise DamagedError(f"cached network {folder.name}: weights are missing") from error
    if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
        raise DamagedError(f"cached network {folder.name}: weights are truncated or altered")
    return content


def save(item: Planned, network: Any, history: list[dict[str, float]], seconds: float) -> None:
    """Write a trained network so that it appears complete or not at all."""
    import torch
    from safetensors.torch import save as save_bytes

    import kdnotes
    from kdnotes.training.loop import wants_compile

    weights = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    content = save_bytes(weights)
    manifest = {
        "arm": item.arm,
        "spec": item.spec.model_dump(mode="json"),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {"kdnotes": kdnotes.__version__, "torch": torch.__version__},
        "compiled": wants_compile(),
        "seconds": round(seconds, 2),
        "history": history,
    }
    target = folder_of(item.spec)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    (scratch / "weights.safetensors").write_bytes(content)
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1))
    if target.exists():  # a damaged one that is being replaced
        shutil.rmtree(target)
    scratch.rename(target)


def ensure(
    planned: Iterable[Planned],
    jobs: int | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
    quiet: bool | None = None,
) -> int:
    """Train what is missing, each network once, and return how many that were.

    On CPU, ``jobs`` one-thread worker processes (default: one per core) share the work; teachers
    come before their students. Progress goes to stderr when that is a terminal, or to the
    notebook. Finished networks are kept if the run is stopped. A damaged network is named and
    trained again.
    """
    wanted = list(planned)
    for item in with_teachers(wanted):
        if is_complete(item.spec):
            try:
                _verify_once(folder_of(item.spec))
            except DamagedError as error:
                print(f"{error}: training it again", file=sys.stderr)
                shutil.rmtree(folder_of(item.spec))
    to_train = missing(wanted)
    if to_train:
        from kdnotes.training import pool
        from kdnotes.training.loop import wants_compile

        wants_compile()  # a wrong request is answered before anything is started
        pool.train_all(to_train, jobs, device, data_dir, quiet)
    return len(to_train)


def _verify_once(folder: Path) -> None:
    manifest = folder / "manifest.json"
    weights = folder / "weights.safetensors"
    stamp = weights.stat().st_mtime_ns if weights.exists() else 0
    _verify_folder(folder, manifest.stat().st_mtime_ns, stamp)


@lru_cache(maxsize=4096)
def _verify_folder(folder: Path, manifest_changed: int, weights_changed: int) -> None:
    _checked_weights(folder, _manifest(folder))


def train_one(item: Planned, device: str, data_dir: Path | None, report: Any = None) -> None:
    """Train one network whose teacher is in the cache, and save it; a no-op if it is there.

    A lock per network keeps two runs on one cache from doing the same work. In a group of processes
    (`kdnotes.training.distributed`) all of them call this; the first one holds the lock and writes.
    """
    from filelock import FileLock

    from kdnotes.training import checkpoints, distributed

    spec = item.spec
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / spec.key) if distributed.rank() == 0 else nullcontext():
        if distributed.told(is_complete(spec)):
            return
        if spec.pretrained:
            if distributed.rank() == 0:
                _fetch(item)
            distributed.barrier()
            return
        kept = checkpoints.Checkpoints(
            cache_folder() / "checkpoints" / spec.key, checkpoints.seconds_between()
        )
        started = time.perf_counter()
        network, past = _trained(spec, device, data_dir, report, kept)
        if distributed.rank() == 0:
            # A resumed run counts the epochs that it did not have to repeat.
            spent = sum(epoch["seconds"] for epoch in past)
            save(item, network, past, max(spent, time.perf_counter() - started))
            kept.remove()
        distributed.barrier()


def _fetch(item: Planned) -> None:
    """Save published weights as the network that they are."""
    from kdnotes import networks

    spec, started = item.spec, time.perf_counter()
    network = networks.load_published(spec.model, spec.pretrained, spec.num_classes)
    save(item, network, [], time.perf_counter() - started)


def _trained(
    spec: NetworkSpec, device: str, data_dir: Path | None, report: Any, kept: Any
) -> tuple[Any, list[dict[str, float]]]:
    from kdnotes.training import loop as training
    from kdnotes.training.teacher_table import TableError

    data = training_data(spec, data_dir)
    for attempt in (1, 2):
        network = _fresh(spec)
        teacher = None if spec.teacher is None else _teacher_for(spec, data, device)
        try:
            history = training.train(
                spec, network, data, teacher, device, report, kept, training.wants_compile()
            )
            return network, history
        except TableError as error:
            if attempt == 2:
                raise
            print(str(error), file=sys.stderr)
            shutil.rmtree(_table_folder(spec, device), ignore_errors=True)
    raise AssertionError("unreachable")


def _fresh(spec: NetworkSpec) -> Any:
    """The network before training."""
    from kdnotes import networks

    return networks.build(
        spec.model,
        spec.num_classes,
        spec.initialisation_seed,
        small_images=not spec.large_images,
    )


def training_data(spec: NetworkSpec, data_dir: Path | None) -> Any:
    """The images a network is trained on, kept in memory for the next network of this process."""
    return _data(spec.data.model_dump_json(), data_dir)


@lru_cache(maxsize=3)
def _data(text: str, data_dir: Path | None) -> Any:
    from kdnotes import data

    return data.load(data.DataSpec.model_validate_json(text), data_dir)


def _table_folder(spec: NetworkSpec, device: str) -> Path:
    assert spec.teacher is not None
    parts = [spec.teacher.key, spec.data.key(), spec.recipe.views.model_dump_json(), device]
    return cache_folder() / "tables" / hashlib.sha256("|".join(parts).encode()).hexdigest()[:20]


def _teacher_for(spec: NetworkSpec, data: Any, device: str) -> Any:
    import torch

    from kdnotes import networks
    from kdnotes.training import loop as training
    from kdnotes.training.teacher_table import TeacherTable

    assert spec.teacher is not None
    place = torch.device("cuda" if device.startswith("cuda") else "cpu")
    network = networks.freeze(load(spec.teacher)).to(place)
    if training.needs_layer(spec):
        return training.Teacher(network, maps=_maps_for(spec, data, network, place))
    if _is_live(spec, data):
        return training.Teacher(network)
    folder = _table_folder(spec, device)
    table = TeacherTable(folder, network, data, spec.recipe.views, place)
    return training.Teacher(network, table)


def _is_live(spec: NetworkSpec, data: Any) -> bool:
    """Whether a teacher is asked at every step: no finite views, several processes, many classes.

    The rows of one table cannot be filled by processes of several machines at once.
    """
    from kdnotes.training import distributed

    if spec.recipe.resized is not None or distributed.count() > 1:
        return True
    return 4 * len(data) * len(spec.recipe.views) * spec.num_classes > _MOST_TABLE_BYTES


def _maps_for(spec: NetworkSpec, data: Any, network: Any, device: Any) -> Any:
    """A teacher's feature maps of all images, where each has one view and memory allows it."""
    global _kept_maps
    import torch

    assert spec.teacher is not None
    from kdnotes.training.loop import Teacher, teacher_layer

    layer = teacher_layer(spec, Teacher(network))
    assert layer is not None
    one_view = len(spec.recipe.views) == 1 and spec.recipe.resized is None
    if not one_view or not isinstance(data.images, torch.Tensor):
        return None
    name = (spec.teacher.key, spec.data.key(), layer, str(device))
    if _kept_maps is None or _kept_maps[0] != name:
        from kdnotes.training import loop as training

        _kept_maps = None  # the old ones go before the new ones come
        one = training.feature_maps(network, data.subset(torch.arange(1)), layer, device)
        if one.numel() * 4 * len(data) > _MOST_MAP_BYTES:
            return None
        _kept_maps = (name, training.feature_maps(network, data, layer, device))
    return _kept_maps[1]


# Students of one teacher follow one another: the last one's maps are kept in each process.
_kept_maps: tuple[Any, Any] | None = None
_MOST_MAP_BYTES = 300_000_000
_MOST_TABLE_BYTES = 50_000_000_000


def entries() -> list[Entry]:
    """What the cache holds, in order of names; damaged manifests are left out (see `verify`)."""
    found = []
    for folder in _folders():
        try:
            manifest = _manifest(folder)
        except (DamagedError, FileNotFoundError):
            continue
        size = sum(file.stat().st_size for file in folder.iterdir())
        spec = manifest["spec"]
        found.append(
            Entry(
                folder.name, manifest["arm"], spec["model"], spec["seed"], size, manifest["seconds"]
            )
        )
    return found


def _folders() -> list[Path]:
    if not networks_folder().is_dir():
        return []
    return sorted(path for path in networks_folder().iterdir() if not path.name.startswith("."))


def verify() -> list[str]:
    """Names of the damaged networks, with what is wrong with each."""
    problems = []
    for folder in _folders():
        try:
            _checked_weights(folder, _manifest(folder))
        except (DamagedError, FileNotFoundError) as error:
            problems.append(str(error))
    return problems


def clear() -> int:
    """Delete all networks, tables and decoded images; returns the bytes freed."""
    freed = 0
    for name in ("networks", "tables", "data", "locks", "checkpoints"):
        folder = cache_folder() / name
        if folder.is_dir():
            freed += sum(
                file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()
            )
            shutil.rmtree(folder)
    return freed


def export(path: Path) -> int:
    """Write all sound networks into one archive, for a class of laptops; returns their number."""
    sound = [folder for folder in _folders() if _is_sound(folder)]
    if not sound:
        raise RequestError(f"nothing to export: no trained networks in {cache_folder()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    with tarfile.open(scratch, "w") as archive:
        for folder in sound:
            for name in ("manifest.json", "weights.safetensors"):
                archive.add(folder / name, f"networks/{folder.name}/{name}")
    scratch.replace(path)
    return len(sound)


def _is_sound(folder: Path) -> bool:
    try:
        _checked_weights(folder, _manifest(folder))
    except (DamagedError, FileNotFoundError):
        return False
    return True


def import_(path: Path) -> int:
    """Add the networks of an archive, each checked first; returns how many were new.

    Only manifests (JSON) and weights (safetensors) are read: an archive cannot run code. Raises
    RequestError when the file is no such archive or holds a damaged network.
    """
    if not path.is_file():
        raise RequestError(f"no archive {str(path)!r}")
    networks_folder().mkdir(parents=True, exist_ok=True)
    added = 0
    with tempfile.TemporaryDirectory(prefix=".importing-", dir=networks_folder()) as scratch:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(scratch, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise RequestError(f"{path.name} is no archive of networks: {error}") from error
        folders = sorted(Path(scratch).glob("networks/*"))
        if not folders:
            raise RequestError(f"{path.name} holds no networks")
        for folder in folders:
            try:
                manifest = _manifest(folder)
                _checked_weights(folder, manifest)
                key = NetworkSpec.model_validate(manifest["spec"]).key
            except (DamagedError, FileNotFoundError, ValueError) as error:
                raise RequestError(f"{path.name}: {error}") from error
            if key != folder.name:
                raise RequestError(
                    f"{path.name}: network {folder.name} was made by another version of kdnotes"
                )
        for folder in folders:
            target = networks_folder() / folder.name
            if not target.exists():
                folder.rename(target)
                added += 1
    return added
