"""The command line: list, run, build, sweep, audit, show and cache.

Exit status: 0 done; 2 the request is wrong (one message on stderr, nothing run, nothing written);
1 the run itself failed (what it made is kept and named); 3 a condition of an audit was met;
128 + n stopped by signal n, such as 130 by Ctrl-C.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from kdnotes import __version__
from kdnotes.errors import RequestError, RunFailedError

if TYPE_CHECKING:
    from kdnotes.book.running import Chapter, Done, Request

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
MET = 3  # a condition of an audit


class Commands(TyperGroup):
    """Turns what a command raises into one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RequestError as error:
            _leave(str(error), 2)
        except RunFailedError as error:
            _leave(str(error), 1)
        except OSError as error:  # such as a folder that is gone
            if error.errno == errno.EPIPE:  # nobody reads on
                raise
            _leave(f"{error.filename or 'failed'}: {error.strerror or error}", 1)
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            _leave(
                "stopped; what was finished is kept, the same command goes on from there",
                128 + number,
            )


SETTINGS: dict[str, Any] = {
    "cls": Commands,
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
HELP = "Run, rebuild and extend the book 'What does the student inherit?'."
app = typer.Typer(name="kdnotes", help=HELP, **SETTINGS)
cached = typer.Typer(help="The trained networks and teacher tables, kept between runs.", **SETTINGS)
app.add_typer(cached, name="cache")

A_CHAPTER = typer.Argument(metavar="CHAPTER", help="Name of a chapter, as `kdnotes list` shows it.")
ChapterName = Annotated[str, A_CHAPTER]
Given = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="NAME=VALUE", help="Value of a parameter; may be repeated."),
]
Preset = Annotated[
    str | None, typer.Option(help="How large: smoke, laptop (default), published or paper.")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at a time (default: cores).")]


def main() -> None:
    """Run the command line; leaves with its exit status."""
    from kdnotes import store

    terminal = sys.stderr.isatty()

    def stop(number: int, frame: object) -> None:
        for each in STOPPING[1:]:  # who closes a terminal sends it more than once
            signal.signal(each, signal.SIG_IGN)
        if terminal and not os.isatty(2):  # it is gone: what is still said would fail
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        raise KeyboardInterrupt(number)

    for each in STOPPING:
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(each, stop)
    with store.temporary_files():
        app()


def given_texts(p: Sequence[str] | None, preset: str | None) -> dict[str, str]:
    """The texts given for parameters, by name. Raises RequestError, also for two presets."""
    from kdnotes.book import parameters

    given = parameters.assignments(p or (), "-p")
    if preset is None:
        return given
    if given.get("preset", preset) != preset:
        raise RequestError(f"two presets: --preset {preset} and -p preset={given['preset']}")
    return given | {"preset": preset}


def _leave(message: str, status: int) -> NoReturn:
    typer.echo(f"kdnotes: {message}", err=True)
    raise typer.Exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_chapters(
    chapter: Annotated[str | None, A_CHAPTER] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """The chapters with their parameters: name, type, default, meaning.

    What all chapters have in common comes first, then what each has besides or instead.

    \b
    kdnotes list
    kdnotes list localization
    kdnotes list --json
    """
    from kdnotes.book import parameters, running

    found = running.chapters([chapter] if chapter else ())
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in found], indent=1))
        return
    shared = [] if chapter else list(parameters.shared().values())
    parts = [f"every chapter\n{_parameters(shared)}"] if shared else []
    for each in found:
        own = _parameters([item for item in each.parameters.values() if item not in shared])
        parts.append(f"{each.name}: {each.title}\n{own}".strip())
    typer.echo("\n\n".join(parts))


@app.command("run")
def run_chapter(
    chapter: ChapterName,
    p: Given = None,
    preset: Preset = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what comes out (default: _build/runs/by-hand).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be trained, and for how long.")
    ] = False,
) -> None:
    """Run one chapter, training what it lacks first.

    OUT/CHAPTER.ipynb is the executed notebook, OUT/CHAPTER.csv the table, OUT/CHAPTER.items.parquet
    the outcome of every image, and OUT/CHAPTER.json the verdicts and what they were made with.

    \b
    kdnotes run localization
    kdnotes run localization -p tau=8 -p methods=kl,crd --out warmer
    kdnotes run adversarial -p dataset=imagefolder:photos -p seeds=3 --dry-run
    """
    from kdnotes import paths
    from kdnotes.book import running

    request = running.request(running.chapter(chapter), given_texts(p, preset))
    if dry_run:
        typer.echo(_plan(request))
        return
    from kdnotes.book import execution

    folder = running.make_folder(out or paths.by_hand_folder())
    running.train([request])
    execution.execute([running.Run(request, folder)], report=_report)
    for path in sorted(folder.glob(f"{chapter}.*")):
        typer.echo(path)


@app.command("build")
def build_book(
    p: Given = None,
    preset: Preset = None,
    only: Annotated[
        str | None, typer.Option(metavar="A,B", help="Run these chapters only.")
    ] = None,
    jobs: Jobs = None,
    edition: Annotated[
        Literal["full", "student"],
        typer.Option(help="The student edition has the exercises without the solutions."),
    ] = "full",
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs and site (default: _build).")
    ] = None,
) -> None:
    """Run all chapters, then build the site in _build/html.

    Chapters whose template, parameters, networks and code are unchanged are not executed again.
    Executed chapters, tables and verdicts are left in _build/runs/PRESET.

    \b
    kdnotes build
    kdnotes build --preset smoke --out /tmp/try
    kdnotes build -p methods=kl,dkd --out with-dkd
    kdnotes build --only localization,scorecard
    kdnotes build --edition student
    """
    from kdnotes.book import site

    started = time.perf_counter()
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    index = site.build(given_texts(p, preset), names, jobs, out, edition, _report, typer.echo)
    typer.echo(f"site: {time.perf_counter() - started:.0f} s in all")
    typer.echo(index)


@app.command("sweep")
def sweep_grid(
    chapter: ChapterName,
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=V1,V2", help="Values of a parameter; may be repeated for a product."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the points and the table of them all.")],
    p: Given = None,
    preset: Preset = None,
    jobs: Jobs = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A dask scheduler, whose workers (one thread each) share this file system.",
        ),
    ] = None,
) -> None:
    """Run a chapter over a grid of parameters.

    One run per point, and one table of them all: OUT/CHAPTER.csv.
    Separate values by semicolons where they have commas in them.

    \b
    kdnotes sweep fidelity --grid tau=1,2,4,8 -p methods=kl --out temperatures
    kdnotes sweep fidelity --grid tau=1,4 --grid "methods=kl;kl,crd" --out both
    kdnotes sweep fidelity --grid tau=1,4 --scheduler tcp://node:8786 --out /shared/tau
    """
    from kdnotes.book import parameters, sweep

    points = sweep.grid_points(parameters.assignments(grid, "--grid"))
    runs = sweep.runs(chapter, given_texts(p, preset), points, out.absolute())
    sweep.execute(runs, jobs, _report, scheduler)
    typer.echo(sweep.combine(chapter, points, runs, out))


def _option(*names: str, shown: str | None = None, says: str) -> Any:
    return typer.Option(*names, metavar=shown, help=says)


Student = _option(shown="MODEL", says="A network that was taught; once for each seed.")
Twin = _option(shown="MODEL", says="The student's twin, trained without a teacher; once for each.")
Images = _option(
    shown="FOLDER|CSV", says="Images: a folder for each class, or file,label[,group...]."
)
Predicted = _option(
    shown="FILE",
    says="Instead of networks: csv or parquet with image, network, a column of probabilities for "
    "each class, and label unless --data has them.",
)
Mapped = _option("--map", shown="CSV", says="class,label: which of the networks' is which image's.")
Grouped = _option(shown="CSV[:COLUMN]", says="file and columns that group the images.")
Only = _option(shown="A,B", says="Measure these properties only.")
Size = _option(says="What the networks take, in pixels (default: what timm says).")
Mean = _option(shown="R,G,B", says="Normalisation (default: what timm says).")
Many = _option(says="How many images (default: all).")
Steep = _option(says="How many of them, at random, for measures with gradients.")
FailIf = _option(shown="CONDITION", says="As 'agreement:diff < 0.02': exit status 3 if it is met.")


@app.command("audit")
def audit_networks(
    out: Annotated[Path, typer.Option(help="Folder for the report and the tables.")],
    teacher: Annotated[str | None, _option(shown="MODEL", says="The one that taught.")] = None,
    student: Annotated[list[str] | None, Student] = None,
    independent: Annotated[list[str] | None, Twin] = None,
    data: Annotated[str | None, Images] = None,
    predictions: Annotated[str | None, Predicted] = None,
    class_map: Annotated[str | None, Mapped] = None,
    groups: Annotated[str | None, Grouped] = None,
    only: Annotated[str | None, Only] = None,
    size: Annotated[int | None, Size] = None,
    mean: Annotated[str | None, Mean] = None,
    std: Annotated[str | None, Mean] = None,
    images: Annotated[int | None, Many] = None,
    gradient_images: Annotated[int, Steep] = 100,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out files that cannot be read.")
    ] = False,
    fail_if: Annotated[list[str] | None, FailIf] = None,
) -> None:
    """Measure what your own distilled network took from its teacher.

    MODEL is ARCH:FILE (a timm architecture, or one of the book's, with your checkpoint), or ARCH
    for timm's published weights. Of a FOLDER with a test or val folder in it, that one is measured.
    Without an independent student there is nothing to tell inheritance from what all networks
    share. What is finished is kept: after Ctrl-C the same command goes on.

    A condition is "MEASURE OP NUMBER" for the student's value, or "MEASURE:diff OP NUMBER" for
    student minus independent. It is met where the whole 95% interval lies beyond the number.

    \b
    kdnotes audit --teacher resnet50 --student resnet18:mine.safetensors \\
        --independent resnet18:twin.pt --data photos --out audit
    """
    from kdnotes.audit import running

    request = running.Request(
        teacher=teacher,
        students=tuple(student or ()),
        independents=tuple(independent or ()),
        data=data,
        predictions=predictions,
        map=class_map,
        groups=groups,
        only=tuple(name.strip() for name in (only or "").split(",") if name.strip()),
        size=size,
        images=images,
        gradient_images=gradient_images,
        mean=_three("--mean", mean),
        std=_three("--std", std),
        skip_damaged=skip_damaged,
        fail_if=tuple(fail_if or ()),
    )
    done = running.run(request, out)
    typer.echo(done.summary)
    typer.echo(out / "report.html")
    if done.met:
        _leave("; ".join(done.met), MET)


def _three(option: str, text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise RequestError(f"{option} is three numbers such as .485,.456,.406, not {text!r}")
    return numbers


@app.command("show")
def show_results(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or a sweep.")],
) -> None:
    """What a run changed of its preset, what it answers, and its verdicts.

    \b
    kdnotes show _build/runs/laptop
    """
    from kdnotes.book import compared

    names = _chapters_in(folder)
    typer.echo("\n\n".join(compared.shown(name, folder) for name in names))


@app.command("compare")
def compare_results(
    first: Annotated[Path, typer.Argument(metavar="DIR1", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="DIR2", help="Folder of another.")],
) -> None:
    """What differs between two runs: parameters, main numbers, verdicts.

    \b
    kdnotes compare _build/runs/laptop tau-8
    """
    from kdnotes.book import compared

    for folder in (first, second):
        _chapters_in(folder)
    typer.echo(compared.differences(first, second))


def _chapters_in(folder: Path) -> list[str]:
    from kdnotes.book import results

    what = "results in" if folder.is_dir() else "folder"
    if not (names := results.chapters(folder)):
        raise RequestError(f"no {what} {str(folder)!r}; name the --out folder of a run")
    return names


@cached.command("list")
def list_cached() -> None:
    """Every trained network: key, arm, architecture, seed, size, seconds it took.

    \b
    kdnotes cache list
    """
    from kdnotes.training import cache

    rows = []
    for made in cache.entries():
        spec, size = made.spec, _size(cache.bytes_in(cache.folder_of(made.spec)))
        took = f"{made.seconds:.0f} s"
        rows.append((spec.key, made.arm, spec.model, f"seed {spec.seed}", size, took))
    if rows:
        typer.echo(_aligned(rows))
    typer.echo(f"{len(rows)} networks in {cache.networks_folder()}")


@cached.command("verify")
def verify_cached() -> None:
    """Check every network and every row of a teacher's table; exit status 1 if one is damaged.

    \b
    kdnotes cache verify
    """
    from kdnotes.training import cache

    if problems := cache.verify():
        listed = "\n".join(problems)
        raise RunFailedError(f"{listed}\nthe next run that needs them trains them again")
    tables = f" and {count} teacher tables" if (count := len(cache.table_folders())) else ""
    typer.echo(f"{len(cache.entries())} networks{tables} are sound")


@cached.command("clear")
def clear_cached() -> None:
    """Delete all trained networks and teacher tables.

    \b
    kdnotes cache clear
    """
    from kdnotes.training import cache

    typer.echo(f"freed {_size(cache.clear())}")


@cached.command("export")
def export_cached(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
) -> None:
    """Write all networks into one archive, so that a class need not train them.

    \b
    kdnotes cache export networks.tar
    """
    from kdnotes.training import cache

    typer.echo(f"{cache.export(file)} networks in {file}")


@cached.command("import")
def import_cached(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of `export`.")],
) -> None:
    """Add the networks of an archive, each checked first.

    \b
    kdnotes cache import networks.tar
    """
    from kdnotes.training import cache

    typer.echo(f"{cache.import_(file)} networks were new")


# --- what is shown ----------------------------------------------------------------------------


def _report(done: Done) -> None:
    note = " (unchanged, not executed again)" if done.reused else ""
    typer.echo(f"{done.run.title}: {done.seconds:.0f} s{note}")


def _as_json(chapter: Chapter) -> dict[str, Any]:
    names = ("name", "type", "default", "meaning", "allowed")
    return {
        "chapter": chapter.name,
        "title": chapter.title,
        "file": f"book/{chapter.path.name}",
        "parameters": [
            {name: getattr(item, name) for name in names} for item in chapter.parameters.values()
        ],
    }


def _parameters(items: Sequence[Any]) -> str:
    return _aligned(
        [(f"  {item.name}", item.type, repr(item.default), item.meaning) for item in items]
    )


def _plan(request: Request) -> str:
    """What would be trained, by arm, and for about how long."""
    from kdnotes.book import costs, running
    from kdnotes.training import cache

    wanted = running.needed_networks([request])
    lacking = cache.missing(wanted)
    trained, to_train = (Counter(item.arm for item in items) for items in (wanted, lacking))
    rows = [("arm", "networks", "to train")]
    rows += [(arm, str(count), str(to_train[arm])) for arm, count in trained.items()]
    rows.append(("all", str(len(wanted)), str(len(lacking))))
    return f"{_aligned(rows)}\n{costs.estimate([request])}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
