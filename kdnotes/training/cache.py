"""Train or load: the cache of networks and teacher tables, named by content.

A network is a folder with `weights.safetensors` and `manifest.json` (everything that went into it,
and the weights' checksum), which appears in one step when it is complete.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdnotes.errors import RequestError, RunFailedError
from kdnotes.paths import cache_folder
from kdnotes.progress import in_notebook
from kdnotes.store import (
    appearing,
    appearing_folder,
    checksum,
    clear_unfinished,
    first_problem,
    is_sealed,
    make_folder,
    remove,
    sealed_json,
)
from kdnotes.training.specification import NetworkSpec, Planned

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.data import ImageData
    from kdnotes.networks import Composite, Normalized
    from kdnotes.training.loop import EpochReport
    from kdnotes.training.teachers import Teacher

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
MOST_OF_A_MANIFEST = 10_000_000  # bytes, in an archive
BYTES_OF_A_NAME = 1000  # in the header of weights, at most


class Entry(NamedTuple):
    """A cached network as its manifest describes it."""

    key: str
    arm: str
    model: str
    seed: int
    size: int  # bytes on disk
    seconds: float


class DamagedError(RuntimeError):
    """A cached file is truncated, altered, missing or another network's."""


class Manifest(BaseModel):
    """Everything that went into a network, and what proves its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arm: str
    spec: NetworkSpec
    sha256: str
    versions: dict[str, str]
    seconds: float = Field(ge=0)
    history: list[dict[str, float]]
    seal: str = ""  # networks of earlier versions have none


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

    Raises DamagedError when what lies under its name is not this network, whole.
    """
    from kdnotes import networks

    if spec.parts:
        parts: list[Any] = [load(part) for part in spec.parts]
        return networks.Composite(parts, spec.shares, spec.mirrored)
    folder = folder_of(spec)
    manifest = _manifest(_read(folder, MANIFEST), folder.name)
    state = _tensors(manifest, _read(folder, WEIGHTS), folder.name)
    return _filled(spec, state)


def _filled(spec: NetworkSpec, state: dict[str, Tensor]) -> Normalized:
    network = _built(spec, seed=0)
    network.load_state_dict(state)
    return network.eval()


def _built(spec: NetworkSpec, seed: int) -> Normalized:
    from kdnotes import networks

    small = not spec.large_images
    return networks.build(spec.model, spec.num_classes, seed, small_images=small)


def history(spec: NetworkSpec) -> list[dict[str, float]]:
    """Loss terms and seconds of each epoch of a trained network. Raises DamagedError."""
    return _manifest(_read(folder_of(spec), MANIFEST), spec.key).history


def seconds(spec: NetworkSpec) -> float:
    """Seconds that the training of a network took. Raises DamagedError."""
    return _manifest(_read(folder_of(spec), MANIFEST), spec.key).seconds


# --- what proves a network -------------------------------------------------------------------


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        problem = f"{name} cannot be read: {error.strerror}"
        raise DamagedError(f"cached network {folder.name}: {problem}") from error


def _manifest(content: bytes, key: str) -> Manifest:
    """A manifest that proves to be that of the network of this name."""
    try:
        manifest = Manifest.model_validate_json(content)
        made = manifest.spec.key
    except ValidationError as error:
        problem = f"{MANIFEST} does not describe a network ({first_problem(error)})"
        raise DamagedError(f"cached network {key}: {problem}") from error
    if "seal" in manifest.model_fields_set and not is_sealed(content):
        raise DamagedError(f"cached network {key}: {MANIFEST} is altered")
    if made != key:
        raise DamagedError(
            f"cached network {key}: is not what its name says, but another network ({made}), or "
            "was made by another version of kdnotes"
        )
    return manifest


def _check_weights(manifest: Manifest, content: bytes, key: str) -> None:
    if checksum(content) != manifest.sha256:
        raise DamagedError(f"cached network {key}: weights are truncated or altered")


def _tensors(manifest: Manifest, content: bytes, key: str) -> dict[str, Tensor]:
    """The weights of a network, which have proved to be its own and to fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_bytes

    _check_weights(manifest, content, key)
    try:
        wanted = _layout(manifest.spec.model, manifest.spec.num_classes, manifest.spec.large_images)
        state = load_bytes(content)
    except (SafetensorError, ValueError) as error:
        raise DamagedError(f"cached network {key}: {error}") from error
    if {name: (each.shape, each.dtype) for name, each in state.items()} != wanted:
        raise DamagedError(f"cached network {key}: weights do not fit {manifest.spec.model}")
    return state


@lru_cache(maxsize=64)
def _layout(model: str, num_classes: int, large_images: bool) -> dict[str, tuple[Any, Any]]:
    """Shape and type of each of a network's weights. Raises ValueError if there is no such one."""
    import torch

    from kdnotes import networks

    try:
        with torch.device("meta"):  # takes no memory, however large it claims to be
            network = networks.build(model, num_classes, 0, small_images=not large_images)
    except Exception as error:  # whatever a strange number makes torch and timm raise
        raise ValueError(f"there is no network {model} of {num_classes} classes") from error
    return {name: (each.shape, each.dtype) for name, each in network.state_dict().items()}


def _damage(folder: Path, quickly: bool = False) -> str:
    """What is wrong with a cached network, empty if nothing is.

    ``quickly``: without torch, so that weights may be whole and yet not fit.
    """
    try:
        manifest, content = _manifest(_read(folder, MANIFEST), folder.name), _read(folder, WEIGHTS)
        (_check_weights if quickly else _tensors)(manifest, content, folder.name)
    except DamagedError as error:
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
    to_train = unusable(planned)
    if to_train:
        from kdnotes.training import pool

        make_folder(cache_folder(), "cache folder", "name another one with KDNOTES_CACHE")
        clear_unfinished(cache_folder())
        pool.train_all(to_train, train_one, jobs, device, data_dir)
    return len(to_train)


def unusable(planned: Iterable[Planned]) -> list[Planned]:
    """As `missing`, but those that are damaged too, which are named."""
    found = []
    for item in with_teachers(planned):
        folder = folder_of(item.spec)
        if damage := _damage(folder, quickly="torch" not in sys.modules):
            found.append(item)
            if folder.exists():  # in a notebook, what is said on stderr counts as an error
                said = sys.stdout if in_notebook() else sys.stderr
                print(f"{damage}: training it again", file=said)
    return found


def train_one(
    item: Planned, device: str, data_dir: Path | None, report: EpochReport | None = None
) -> None:
    """Train one network, its teacher first, and save it; a no-op if it is there and sound.

    A lock per network keeps two runs on one cache from doing the same work; of a group of processes
    (`distributed`), which all call this, the first one holds it and writes.
    """
    from kdnotes.training import checkpoints, distributed

    spec, fabric = item.spec, distributed.joined(device)
    for behind in spec.trained_before:
        train_one(Planned("teacher", behind), device, data_dir)
    with _lock(spec.key) if fabric.is_global_zero else nullcontext():
        if fabric.broadcast(not _damage(folder_of(spec))):
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


def _lock(key: str) -> Any:
    from filelock import FileLock

    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / key)


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
    _write(item.spec.key, sealed_json(manifest).encode(), content)


def _write(key: str, manifest: bytes, weights: bytes) -> None:
    with appearing_folder(networks_folder() / key) as scratch:
        (scratch / WEIGHTS).write_bytes(weights)
        (scratch / MANIFEST).write_bytes(manifest)


def entries() -> list[Entry]:
    """What the cache holds, in order of names; damaged manifests are left out (see `verify`)."""
    found = []
    for folder in _folders("networks"):
        try:
            made = _manifest(_read(folder, MANIFEST), folder.name)
        except DamagedError:
            continue
        spec, size = made.spec, _size(folder)
        found.append(Entry(folder.name, made.arm, spec.model, spec.seed, size, made.seconds))
    return found


def table_folders() -> list[Path]:
    """The folders of the teachers' tables."""
    return _folders("tables")


def _folders(name: str) -> list[Path]:
    folder = cache_folder() / name
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _size(folder: Path) -> int:
    """Bytes on disk, of which a sparse file takes fewer than it is long."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def verify() -> list[str]:
    """Names of the damaged networks and tables, with what is wrong with each."""
    from kdnotes.training import teachers

    found = [_damage(folder) for folder in _folders("networks")]
    return [damage for damage in (*found, *map(teachers.damage, table_folders())) if damage]


def clear() -> int:
    """Delete all networks, tables and decoded images; returns the bytes freed.

    Raises RunFailedError, naming what could not be deleted.
    """
    before = _size(cache_folder())
    refused = []
    for name in ("networks", "tables", "data", "locks", "checkpoints"):
        try:
            remove(cache_folder() / name)
        except RunFailedError as error:
            refused.append(str(error))
    freed = before - _size(cache_folder())
    if refused:
        raise RunFailedError("\n".join([*refused, f"freed {freed / 1e6:.1f} MB"]))
    return freed


# --- archives ---------------------------------------------------------------------------------


def export(path: Path) -> int:
    """Write all sound networks into one archive, for a class of laptops; returns their number.

    Others are named on stderr. Raises RequestError when there is none or no such folder can be.
    """
    folders = {folder: _damage(folder) for folder in _folders("networks")}
    for damage in filter(None, folders.values()):
        print(f"{damage}: left out", file=sys.stderr)
    sound = [folder for folder, damage in folders.items() if not damage]
    if not sound:
        raise RequestError(f"nothing to export: no trained networks in {cache_folder()}")
    make_folder(path.absolute().parent, "folder", "name another file")
    with appearing(path) as scratch, tarfile.open(scratch, "w") as archive:
        for folder in sound:
            for name in (MANIFEST, WEIGHTS):
                content = _read(folder, name)
                member = tarfile.TarInfo(f"networks/{folder.name}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return len(sound)


def import_(path: Path) -> int:
    """Add the networks of an archive, each checked first; returns how many were new.

    A damaged one of the same name is replaced. An archive cannot run code: manifests are JSON,
    weights safetensors. Raises RequestError when it cannot be read or holds anything but sound
    networks, before one of them counts.
    """
    try:
        keys = [key for key, _, _ in _archived(path, built=True)]
        if not keys:
            raise ValueError("it holds none")
    except (tarfile.TarError, OSError, DamagedError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no archive of sound networks: {error}") from error
    if not any(_damage(networks_folder() / key) for key in keys):
        return 0
    make_folder(cache_folder(), "cache folder", "name another one with KDNOTES_CACHE")
    new = 0
    for key, manifest, weights in _archived(path):
        with _lock(key):
            if _damage(networks_folder() / key):
                _write(key, manifest, weights)
                new += 1
    return new


def _archived(path: Path, built: bool = False) -> Iterator[tuple[str, bytes, bytes]]:
    """Key, manifest and weights of each network in an archive, which have proved themselves.

    ``built``: once as a network, too. Nothing is unpacked, and nothing read that is larger than
    such a network can be. Raises as tarfile does, DamagedError, and ValueError for what else there
    is.
    """
    with path.open("rb") as file:
        if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
            raise ValueError("it is compressed; unpack it first, with gunzip or the like")
    seen: set[str] = set()
    with tarfile.open(path, "r:") as archive:
        while (member := archive.next()) is not None:
            key = member.name.removeprefix("networks/").removesuffix(f"/{MANIFEST}")
            if not re.fullmatch("[0-9a-f]{20}", key) or key in seen:
                raise ValueError(f"it holds {member.name!r}, which is no manifest or one too many")
            seen.add(key)
            first = _taken(archive, member, f"networks/{key}/{MANIFEST}", MOST_OF_A_MANIFEST)
            manifest = _manifest(first, key)
            spec = manifest.spec
            layout = _layout(spec.model, spec.num_classes, spec.large_images).values()
            most = sum(shape.numel() * kind.itemsize + BYTES_OF_A_NAME for shape, kind in layout)
            second = _taken(archive, archive.next(), f"networks/{key}/{WEIGHTS}", most)
            state = _tensors(manifest, second, key)
            if built:
                _filled(spec, state)
            yield key, first, second
        # tarfile takes a damaged header, or the end of the file, for the end of the archive.
        with path.open("rb") as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"it is damaged or cut off after {len(seen)} networks")


def _taken(archive: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, most: int) -> bytes:
    """The content of a member, if it is the plain file that comes next, and no larger."""
    if member is None or member.name != name or not member.isreg() or member.issparse():
        found = "its end" if member is None else repr(member.name)
        raise ValueError(f"{found} stands where the file {name} should")
    if not 0 <= member.size <= most:
        raise ValueError(f"{name} has {member.size} bytes, more than the {most} that it can need")
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
