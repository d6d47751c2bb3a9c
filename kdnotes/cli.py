"""The command line: list, run, build, sweep, audit, show and cache.

Exit status: 0 done; 2 the request is wrong (one message on stderr, nothing run, nothing written);
1 the run itself failed (what it made is kept and named); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
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

STOPPED = 130


class Commands(TyperGroup):
    """Turns what a command raises into one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RequestError as error:
            _leave(str(error), 2)
        except RunFailedError as error:
            _leave(str(error), 1)
        except KeyboardInterrupt:
            _leave(
                "stopped; what was finished is kept, the same command goes on from there", STOPPED
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
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


@app.command("audit")
def audit_networks(
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="The network that taught.")],
    student: Annotated[str, typer.Option(metavar="MODEL", help="The network that was taught.")],
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="Test images, a folder for each class.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table and the summary.")],
    independent: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The student's twin, trained without a teacher."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels (default: theirs, up to 64).")
    ] = None,
    images: Annotated[int | None, typer.Option(help="How many images (default: all).")] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out files that cannot be read.")
    ] = False,
) -> None:
    """Measure what your own distilled network took from its teacher.

    MODEL is ARCH:FILE (a timm architecture, or one of the book's, with your checkpoint), or ARCH
    for timm's published weights. FOLDER holds a test or val folder with a folder for each class; of
    a folder that holds the classes directly, a fifth is measured. Without an independent student
    there is nothing to tell inheritance from what all networks share, and only the measures that
    need none are taken.

    \b
    kdnotes audit --teacher resnet50 --student resnet18:mine.safetensors \\
        --independent resnet18:twin.pt --data photos --size 224 --out audit
    """
    from kdnotes import audit

    def report(line: str) -> None:
        if sys.stderr.isatty():
            typer.echo(line, err=True)

    given = (teacher, student, independent, data)
    typer.echo(audit.run(*given, out, size, images, skip_damaged, report))
    typer.echo(out / "audit.md")


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
    typer.echo(compared.compared(first, second))


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

    rows = [
        (item.key, item.arm, item.model, f"seed {item.seed}", _size(item.size), item.seconds)
        for item in cache.entries()
    ]
    if rows:
        typer.echo(_aligned([(*row, f"{seconds:.0f} s") for *row, seconds in rows]))
    typer.echo(f"{len(rows)} networks in {cache.networks_folder()}")


@cached.command("verify")
def verify_cached() -> None:
    """Check every network against its checksum; exit status 1 if one is damaged.

    \b
    kdnotes cache verify
    """
    from kdnotes.training import cache

    if problems := cache.verify():
        listed = "\n".join(problems)
        raise RunFailedError(f"{listed}\nthe next run that needs them trains them again")
    typer.echo(f"{len(cache.entries())} networks are sound")


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

    try:
        typer.echo(f"{cache.export(file)} networks in {file}")
    except OSError as error:
        raise RequestError(f"cannot write {str(file)!r}: {error.strerror or error}") from error


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
    names = ("name", "type", "default", "meaning")
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
