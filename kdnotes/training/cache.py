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
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError

from kdnotes import __version__, data, networks, store
from kdnotes.data import Strict
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.paths import cache_folder
from kdnotes.progress import in_notebook
from kdnotes.training import pool
from kdnotes.training.specification import NetworkSpec, Planned

if TYPE_CHECKING:
    from torch import Tensor

    from kdnotes.training.loop import EpochReport
    from kdnotes.training.teachers import Teacher

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
MOST_OF_A_MANIFEST = 10_000_000  # bytes, in an archive
BYTES_OF_A_NAME = 1000  # in the header of weights, at most


class DamagedError(RuntimeError):
    """A cached file is truncated, altered, missing or another network's."""


class Manifest(Strict, allow_inf_nan=False):
    """Everything that went into a network, and what proves its weights."""

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
    for item in planned:
        behind = [Planned("teacher", each) for each in item.spec.trained_before]
        for each in with_teachers(behind):
            ordered.setdefault(each.spec.key, each)
        if not item.spec.parts:  # a composite is not trained, its parts are
            ordered.setdefault(item.spec.key, item)
    return list(ordered.values())


def load(spec: NetworkSpec) -> networks.Normalized | networks.Composite:
    """The network in evaluation mode; DamagedError where what has its name is not it, whole."""
    if spec.parts:
        parts: list[Any] = [load(part) for part in spec.parts]
        return networks.Composite(parts, spec.shares, spec.mirrored)
    state = _tensors(_manifest(folder_of(spec)))
    network = _built(spec, seed=0)
    network.load_state_dict(state)
    return network.eval()


def _built(spec: NetworkSpec, seed: int) -> networks.Normalized:
    small = not spec.large_images
    return networks.build(spec.model, spec.num_classes, seed, small_images=small)


def history(spec: NetworkSpec) -> list[dict[str, float]]:
    """Loss terms and seconds of each epoch of a trained network. Raises DamagedError."""
    return _manifest(folder_of(spec)).history


def seconds(spec: NetworkSpec) -> float:
    """Seconds that the training of a network took. Raises DamagedError."""
    return _manifest(folder_of(spec)).seconds


# --- what proves a network -------------------------------------------------------------------


@contextmanager
def _proving(key: str) -> Iterator[None]:
    """Say of which network something is wrong: what goes wrong becomes DamagedError."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        problem = str(error)
        if isinstance(error, OSError):
            problem = f"{Path(error.filename or 'it').name} cannot be read: {error.strerror}"
        elif isinstance(error, ValidationError):
            problem = f"{MANIFEST} does not describe a network ({store.first_problem(error)})"
        raise DamagedError(f"cached network {key}: {problem}") from error


def _manifest(folder: Path, content: bytes | None = None) -> Manifest:
    """A folder's manifest, or content for it, that proves to be that of the network of its name."""
    with _proving(folder.name):
        content = (folder / MANIFEST).read_bytes() if content is None else content
        manifest = Manifest.model_validate_json(content)
        if "seal" in manifest.model_fields_set and not store.is_sealed(content):
            raise ValueError(f"{MANIFEST} is altered")
        if (made := manifest.spec.key) != folder.name:
            other = f"another network ({made}), or was made by another version of kdnotes"
            raise ValueError(f"is not what its name says, but {other}")
        return manifest


def _tensors(
    manifest: Manifest, content: bytes | None = None, quickly: bool = False
) -> dict[str, Tensor]:
    """The weights of a network, or content for them, that prove to be its own and to fit.

    ``quickly``: without torch, so that they may be whole and yet not fit; none are returned.
    """
    spec = manifest.spec
    with _proving(spec.key):
        content = (folder_of(spec) / WEIGHTS).read_bytes() if content is None else content
        if store.checksum(content) != manifest.sha256:
            raise ValueError("weights are truncated or altered")
        if quickly:
            return {}
        from safetensors.torch import load as load_bytes

        state = load_bytes(content)
        wanted = _layout(spec.model, spec.num_classes, spec.large_images)
        if {name: (each.shape, each.dtype) for name, each in state.items()} != wanted:
            raise ValueError(f"weights do not fit {spec.model}")
        return state


@lru_cache(maxsize=64)
def _layout(model: str, num_classes: int, large_images: bool) -> dict[str, tuple[Any, Any]]:
    """Shape and type of each of a network's weights. Raises ValueError if there is no such one."""
    import torch

    try:
        with torch.device("meta"):  # takes no memory, however large it claims to be
            network = networks.build(model, num_classes, 0, small_images=not large_images)
    except Exception as error:  # whatever a strange number makes torch and timm raise
        raise ValueError(f"there is no network {model} of {num_classes} classes") from error
    return {name: (each.shape, each.dtype) for name, each in network.state_dict().items()}


def _damage(folder: Path, quickly: bool = False) -> str:
    """What is wrong with a cached network, empty if nothing is; ``quickly``: as `_tensors`."""
    try:
        _tensors(_manifest(folder), quickly=quickly)
    except DamagedError as error:
        return str(error)
    return ""


# --- training ---------------------------------------------------------------------------------


def ensure(
    planned: Iterable[Planned],
    jobs: int | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
) -> int:
    """Train what is missing or damaged, on CPU by ``jobs`` workers; returns how many that were."""
    if to_train := unusable(planned):
        store.make_folder(cache_folder(), "cache folder", "name another one with KDNOTES_CACHE")
        store.clear_unfinished(cache_folder())
        train = partial(train_one, device=device, data_dir=data_dir)
        pool.train_all(to_train, train, jobs, device)
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
    """Train one network, its teacher first, and save it; a no-op if it is there and sound."""
    from kdnotes.training import distributed, loop

    spec, fabric = item.spec, distributed.joined(device)
    for behind in spec.trained_before:
        train_one(Planned("teacher", behind), device, data_dir)
    # Two runs do not do the same work; in a group, the first process holds the lock and writes.
    with _lock(spec.key) if fabric.is_global_zero else nullcontext():
        if fabric.broadcast(not _damage(folder_of(spec))):
            return
        started = time.perf_counter()
        kept = loop.Checkpoints(cache_folder() / "checkpoints" / spec.key)
        past: list[dict[str, float]] = []
        if spec.pretrained:
            network = networks.load_published(spec.model, spec.pretrained, spec.num_classes)
        else:
            images = _images(spec.data.model_dump_json(), data_dir)
            network = _built(spec, spec.initialisation_seed)
            teacher = None if spec.teacher is None else _teacher_of(spec, images, device)
            past = loop.train(spec, network, images, teacher, device, report, kept)
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


def _teacher_of(spec: NetworkSpec, images: data.ImageData, device: str) -> Teacher:
    """The teacher of a student, with the table of its answers if there can be one."""
    from kdnotes.training import distributed, teachers

    assert spec.teacher is not None
    fabric = distributed.joined(device)
    network = networks.freeze(load(spec.teacher)).to(fabric.device)
    # A table cannot be filled by processes of several machines at once.
    if fabric.world_size > 1 or not teachers.fits_table(spec, network, images):
        return teachers.Teacher(network)
    views, layer = spec.recipe.views, teachers.layer_of(spec, network)
    asked = [spec.teacher.key, spec.data.key(), views.model_dump_json(), device]
    asked += [layer] if layer and spec.needs_layer else []
    folder = cache_folder() / "tables" / store.checksum("|".join(asked).encode())[:20]
    table = teachers.TeacherTable(folder, network, images, views, fabric.device, layer)
    return teachers.Teacher(network, table)


@lru_cache(maxsize=3)  # for the next networks of this process
def _images(spec: str, data_dir: Path | None) -> data.ImageData:
    return data.load(data.DataSpec.model_validate_json(spec), data_dir)


def save(item: Planned, network: Any, history: list[dict[str, float]], seconds: float) -> None:
    """Write a trained network so that it appears complete or not at all."""
    import torch
    from safetensors.torch import save as save_bytes

    state = network.state_dict().items()
    content = save_bytes({name: value.detach().cpu().contiguous() for name, value in state})
    manifest = {
        "arm": item.arm,
        "spec": item.spec.model_dump(mode="json"),
        "sha256": store.checksum(content),
        "versions": {"kdnotes": __version__, "torch": torch.__version__},
        "seconds": round(seconds, 2),
        "history": history,
    }
    _write(folder_of(item.spec), store.sealed_json(manifest).encode(), content)


def _write(folder: Path, manifest: bytes, weights: bytes) -> None:
    with store.appearing_folder(folder) as scratch:
        (scratch / WEIGHTS).write_bytes(weights)
        (scratch / MANIFEST).write_bytes(manifest)


# --- the cache as a whole ---------------------------------------------------------------------


def entries() -> list[Manifest]:
    """What the cache holds, in order of names; damaged manifests are left out (see `verify`)."""
    found = []
    for folder in _folders("networks"):
        with suppress(DamagedError):
            found.append(_manifest(folder))
    return found


def table_folders() -> list[Path]:
    """The folders of the teachers' tables."""
    return _folders("tables")


def _folders(name: str) -> list[Path]:
    folder = cache_folder() / name
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def bytes_in(folder: Path) -> int:
    """Bytes on disk, of which a sparse file takes fewer than it is long."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def verify() -> list[str]:
    """Names of the damaged networks and tables, with what is wrong with each."""
    from kdnotes.training import teachers

    found = [_damage(folder) for folder in _folders("networks")]
    return [damage for damage in (*found, *map(teachers.damage, table_folders())) if damage]


def clear() -> int:
    """Delete networks, tables, decoded images; returns bytes freed, RunFailedError if not all."""
    before = bytes_in(cache_folder())
    refused = []
    for name in ("networks", "tables", "data", "locks", "checkpoints"):
        try:
            store.remove(cache_folder() / name)
        except RunFailedError as error:
            refused.append(str(error))
    freed = before - bytes_in(cache_folder())
    if refused:
        raise RunFailedError("\n".join([*refused, f"freed {freed / 1e6:.1f} MB"]))
    return freed


# --- archives ---------------------------------------------------------------------------------


def export(path: Path) -> int:
    """Write all sound networks into an archive; returns their number. RequestError for none."""
    folders = {folder: _damage(folder) for folder in _folders("networks")}
    for damage in filter(None, folders.values()):
        print(f"{damage}: left out", file=sys.stderr)
    sound = [folder for folder, damage in folders.items() if not damage]
    if not sound:
        raise RequestError(f"nothing to export: no trained networks in {cache_folder()}")
    store.make_folder(path.absolute().parent, "folder", "name another file")
    with store.appearing(path) as scratch, tarfile.open(scratch, "w") as archive:
        for folder in sound:
            for name in (MANIFEST, WEIGHTS):
                content = (folder / name).read_bytes()
                member = tarfile.TarInfo(f"networks/{folder.name}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return len(sound)


def import_(path: Path) -> int:
    """Add the networks of an archive, also in place of damaged ones; returns how many were new.

    It cannot run code: manifests are JSON, weights safetensors. Raises RequestError for one that
    holds anything but sound networks, before one of them counts.
    """
    try:
        folders = [folder for folder, _, _ in _archived(path)]
        if not folders:
            raise ValueError("it holds none")
    except (tarfile.TarError, OSError, DamagedError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no archive of sound networks: {error}") from error
    if not any(map(_damage, folders)):
        return 0
    store.make_folder(cache_folder(), "cache folder", "name another one with KDNOTES_CACHE")
    new = 0
    for folder, manifest, weights in _archived(path):
        with _lock(folder.name):
            if _damage(folder):
                _write(folder, manifest, weights)
                new += 1
    return new


def _archived(path: Path) -> Iterator[tuple[Path, bytes, bytes]]:
    """Folder, manifest and weights of each network in an archive, which have proved themselves.

    Nothing is unpacked, and nothing read that is larger than such a network can be.
    """
    seen: set[str] = set()
    with path.open("rb") as file:
        if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
            raise ValueError("it is compressed; unpack it first, with gunzip or the like")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                key = member.name.removeprefix("networks/").removesuffix(f"/{MANIFEST}")
                if not re.fullmatch("[0-9a-f]{20}", key) or key in seen:
                    raise ValueError(f"it holds {member.name!r}, no manifest or one too many")
                seen.add(key)
                folder = networks_folder() / key
                first = _taken(archive, member, f"networks/{key}/{MANIFEST}", MOST_OF_A_MANIFEST)
                manifest = _manifest(folder, first)
                spec = manifest.spec
                layout = _layout(spec.model, spec.num_classes, spec.large_images).values()
                most = sum(
                    shape.numel() * kind.itemsize + BYTES_OF_A_NAME for shape, kind in layout
                )
                second = _taken(archive, archive.next(), f"networks/{key}/{WEIGHTS}", most)
                _tensors(manifest, second)
                yield folder, first, second
            # tarfile takes a damaged header, or the end of the file, for the end of the archive.
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
