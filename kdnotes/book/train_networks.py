"""Train the networks that a chapter needs, each by several processes together.

Started by torchrun or another launcher that sets WORLD_SIZE, RANK and LOCAL_RANK, such as
Fabric's. Afterwards ``kdnotes run`` finds the networks in the cache.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdnotes.cli import SETTINGS, Given
from kdnotes.errors import RequestError

if TYPE_CHECKING:
    from kdnotes.training.cache import Planned

app = typer.Typer(
    add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}, **SETTINGS
)


@app.command()
def train_networks(
    chapter: Annotated[
        str | None,
        typer.Argument(metavar="CHAPTER", help="Name of a chapter, as `kdnotes list` shows it."),
    ] = None,
    p: Given = None,
    preset: Annotated[
        str | None, typer.Option(help="How large: smoke, laptop, full or paper.")
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A JSON list of networks (arm and spec) in place of a chapter."
        ),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="A line per epoch on stderr, for log files.")
    ] = False,
) -> None:
    """Train all networks of a chapter, each by all processes together.

    Every process takes an equal share of each batch, and gradients are averaged. The cache
    (KDNOTES_CACHE) and the images must be on a file system that all machines share. Killed? The
    same command goes on after the last finished epoch: the state is kept after every epoch that
    ends 60 s or more after the last one kept (KDNOTES_CHECKPOINT_SECONDS; 0: after each).

    \b
    torchrun --nproc-per-node 4 -m kdnotes.book.train_networks localization --preset paper \\
        -p dataset=imagefolder:/data/imagenet
    torchrun --nproc-per-node 2 -m kdnotes.book.train_networks adversarial --preset paper \\
        -p dataset=imagefolder:/data/imagenet -p teacher=vgg19 -p student=vgg11 --lines
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29500 \\
        -m kdnotes.book.train_networks fidelity --preset paper -p dataset=imagefolder:/data/imagenet
    fabric run --accelerator cuda --devices 4 kdnotes/book/train_networks.py fidelity \\
        --preset paper -p dataset=imagefolder:/data/imagenet
    kdnotes run localization --preset paper -p dataset=imagefolder:/data/imagenet
    """
    from kdnotes.training import cache, distributed

    wanted, device, data_dir = _wanted(chapter, p or [], preset, networks)
    distributed.start(device)
    first = distributed.rank() == 0
    to_train: list[Planned] = distributed.told(cache.missing(wanted) if first else None)
    done = 0
    with _display(to_train, first) as show:
        for item in to_train:
            started = time.perf_counter()

            def report(epoch: int, loss: float, item: Planned = item) -> None:
                show((item.spec.key, epoch, loss))
                if lines:
                    _say(item, f"epoch {epoch} of {item.spec.recipe.epochs}, loss {loss:.4f}")

            cache.train_one(item, device, data_dir, report if first else None)
            done += 1
            if first:
                show((item.spec.key, item.spec.recipe.epochs, None))
                _say(item, f"{time.perf_counter() - started:.0f} s, {done} of {len(to_train)}")
    if first:
        typer.echo(f"{len(to_train)} networks trained, {len(wanted)} in {cache.networks_folder()}")


def _display(to_train: list[Planned], first: bool) -> Any:
    from kdnotes.training import pool

    return pool.progress(to_train, None if first else True)


def _say(item: Planned, text: str) -> None:
    described = f"{item.arm}, {item.spec.model}, seed {item.spec.seed}: {text}"
    print(described, file=sys.stderr, flush=True)


def _wanted(
    chapter: str | None, given: list[str], preset: str | None, networks: Path | None
) -> tuple[list[Planned], str, Path | None]:
    """Networks, teachers first, with the device and the data folder they are trained with."""
    from kdnotes.book import parameters, running
    from kdnotes.training import cache

    if (chapter is None) == (networks is None):
        raise RequestError("name either a chapter or a file of networks (--networks)")
    values = running.with_preset(parameters.assignments(given, "-p"), preset)
    if networks is not None:
        return _listed(networks), values.get("device", "cpu"), _folder(values.get("data_dir"))
    assert chapter is not None
    request = running.request(running.chapter(chapter), values)
    study = request.study
    return cache.with_teachers(study.networks), study.device, study.data_dir


def _listed(file: Path) -> list[Planned]:
    from kdnotes.training.cache import Planned, with_teachers
    from kdnotes.training.specification import NetworkSpec

    try:
        items = json.loads(file.read_text())
        planned = [
            Planned(str(item["arm"]), NetworkSpec.model_validate(item["spec"])) for item in items
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{str(file)!r} holds no list of networks: {error}") from error
    return with_teachers(planned)


def _folder(text: str | None) -> Path | None:
    return Path(text) if text else None


def _leave_own_folder() -> None:
    """Where Fabric's launcher runs this file by its path, modules beside it hide others' names."""
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != own]


if __name__ == "__main__":
    _leave_own_folder()
    app()
