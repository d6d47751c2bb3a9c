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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from kdnotes import __version__
from kdnotes.errors import RequestError, RunFailedError
from kdnotes.stats.words import aligned

if TYPE_CHECKING:
    from kdnotes.book.running import Chapter, Done, Request

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Commands(TyperGroup):
    """Turns what a command raises into one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (RequestError, RunFailedError) as error:
            _leave(str(error), 2 if isinstance(error, RequestError) else 1)
        except OSError as error:  # such as a folder that is gone
            if error.errno == errno.EPIPE:  # nobody reads on
                raise
            _leave(f"{error.filename or 'failed'}: {error.strerror or error}", 1)
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            said = "stopped; what was finished is kept, the same command goes on from there"
            _leave(said, 128 + number)


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


def _argument(shown: str, says: str) -> Any:
    return typer.Argument(metavar=shown, help=says)


def _option(says: str, *names: str, shown: str | None = None, **others: Any) -> Any:
    return typer.Option(*names, metavar=shown, help=says, **others)


A_CHAPTER = _argument("CHAPTER", "Name of a chapter, as `kdnotes list` shows it.")
ChapterName = Annotated[str, A_CHAPTER]
A_VALUE = _option("Value of a parameter; may be repeated.", "-p", shown="NAME=VALUE")
Given = Annotated[list[str] | None, A_VALUE]
A_PRESET = _option("How large: smoke, laptop (default), published or paper.")
Preset = Annotated[str | None, A_PRESET]
Jobs = Annotated[int | None, _option("Processes at a time (default: cores).", min=1)]
RunOut = _option("Folder for what comes out (default: _build/runs/by-hand).")
DryRun = _option("Only say what would be trained, and for how long.", "--dry-run")
Edition = _option("The student edition has the exercises without the solutions.")
Grid = _option("Values of a parameter; may be repeated for a product.", shown="NAME=V1,V2")
Scheduler = _option(
    "A dask scheduler, whose workers (one thread each) share this file system.", shown="ADDRESS"
)


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
    if preset is not None and given.setdefault("preset", preset) != preset:
        raise RequestError(f"two presets: --preset {preset} and -p preset={given['preset']}")
    return given


def _leave(message: str, status: int) -> NoReturn:
    typer.echo(f"kdnotes: {message}", err=True)
    raise typer.Exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


Version = _option("Show it.", "--version", callback=_show_version, is_eager=True)


@app.callback()
def _options(version: Annotated[bool, Version] = False) -> None:
    pass


@app.command("list", epilog="\b\nkdnotes list\nkdnotes list localization\nkdnotes list --json")
def list_chapters(
    chapter: Annotated[str | None, A_CHAPTER] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """The chapters with their parameters: name, type, default, meaning.

    What all chapters have in common comes first, then what each has besides or instead.
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
    out: Annotated[Path | None, RunOut] = None,
    dry_run: Annotated[bool, DryRun] = False,
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
    only: Annotated[str | None, _option("Run these chapters only.", shown="A,B")] = None,
    jobs: Jobs = None,
    edition: Annotated[Literal["full", "student"], Edition] = "full",
    out: Annotated[Path | None, _option("Folder for runs and site (default: _build).")] = None,
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
    given, names = given_texts(p, preset), _names(only)
    index = site.build(given, names, jobs, out, edition, _report, typer.echo)
    typer.echo(f"site: {time.perf_counter() - started:.0f} s in all\n{index}")


@app.command("sweep")
def sweep_grid(
    chapter: ChapterName,
    grid: Annotated[list[str], Grid],
    out: Annotated[Path, _option("Folder for the points and the table of them all.")],
    p: Given = None,
    preset: Preset = None,
    jobs: Jobs = None,
    scheduler: Annotated[str | None, Scheduler] = None,
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


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _three(param: typer.CallbackParam, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    numbers: tuple[float, ...] = ()
    with suppress(ValueError):
        numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) != 3:
        raise RequestError(f"--{param.name} is three numbers such as .485,.456,.406, not {text!r}")
    return numbers


Student = _option("A network that was taught; once for each seed.", "--student", shown="MODEL")
Twin = _option(
    "The student's twin, trained without a teacher; once for each.", "--independent", shown="MODEL"
)
Images = _option("Images: a folder for each class, or file,label[,group...].", shown="FOLDER|CSV")
Predicted = _option(
    "Instead of networks: csv or parquet with image, network, a column of probabilities for each "
    "class, and label unless --data has them.",
    shown="FILE",
)
Mapped = _option("class,label: which of the networks' is which image's.", shown="CSV")
Grouped = _option("file and columns that group the images.", shown="CSV[:COLUMN]")
Only = _option("Measure these properties only.", shown="A,B", callback=_names)
Size = _option("What the networks take, in pixels (default: what timm says).")
Mean = _option("Normalisation (default: what timm says).", shown="R,G,B", callback=_three)
Steep = _option("How many of them, at random, for measures with gradients.")
Skip = _option("Leave out files that cannot be read.", "--skip-damaged")
FailIf = _option("As 'agreement:diff < 0.02': exit status 3 if it is met.", shown="CONDITION")


@app.command("audit")
def audit_networks(
    out: Annotated[Path, _option("Folder for the report and the tables.")],
    teacher: Annotated[str | None, _option("The one that taught.", shown="MODEL")] = None,
    students: Annotated[list[str] | None, Student] = None,
    independents: Annotated[list[str] | None, Twin] = None,
    data: Annotated[str | None, Images] = None,
    predictions: Annotated[str | None, Predicted] = None,
    map: Annotated[str | None, Mapped] = None,
    groups: Annotated[str | None, Grouped] = None,
    only: Annotated[str | None, Only] = None,
    size: Annotated[int | None, Size] = None,
    mean: Annotated[str | None, Mean] = None,
    std: Annotated[str | None, Mean] = None,
    images: Annotated[int | None, _option("How many images (default: all).")] = None,
    gradient_images: Annotated[int, Steep] = 100,
    skip_damaged: Annotated[bool, Skip] = False,
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
    given = {name: value for name, value in locals().items() if value is not None}
    from kdnotes.audit import running

    folder = given.pop("out")
    summary, met = running.run(running.Request(**given), folder)
    typer.echo(f"{summary}\n{folder / 'report.html'}")
    if met:
        _leave("; ".join(met), 3)


@app.command("show", epilog="kdnotes show _build/runs/laptop")
def show_results(folder: Annotated[Path, _argument("DIR", "Folder of a run or a sweep.")]) -> None:
    """What a run changed of its preset, what it answers, and its verdicts."""
    from kdnotes.book import report

    names = _chapters_in(folder)
    typer.echo("\n\n".join(report.shown(name, folder) for name in names))


@app.command("compare", epilog="kdnotes compare _build/runs/laptop tau-8")
def compare_results(
    first: Annotated[Path, _argument("DIR1", "Folder of a run.")],
    second: Annotated[Path, _argument("DIR2", "Folder of another.")],
) -> None:
    """What differs between two runs: parameters, main numbers, verdicts."""
    from kdnotes.book import report

    for folder in (first, second):
        _chapters_in(folder)
    typer.echo(report.differences(first, second))


def _chapters_in(folder: Path) -> list[str]:
    from kdnotes.book import results

    if not (names := results.chapters(folder)):
        what = "results in" if folder.is_dir() else "folder"
        raise RequestError(f"no {what} {str(folder)!r}; name the --out folder of a run")
    return names


@cached.command("list", epilog="kdnotes cache list")
def list_cached() -> None:
    """Every trained network: key, arm, architecture, seed, size, seconds it took."""
    from kdnotes.training import cache

    rows = []
    for made in cache.entries():
        spec, seconds = made.spec, f"{made.seconds:.0f} s"
        size = f"{cache.bytes_in(cache.folder_of(spec)) / 1e6:.1f} MB"
        rows.append((spec.key, made.arm, spec.model, f"seed {spec.seed}", size, seconds))
    if rows:
        typer.echo(aligned(rows))
    typer.echo(f"{len(rows)} networks in {cache.networks_folder()}")


@cached.command("verify", epilog="kdnotes cache verify")
def verify_cached() -> None:
    """Check every network and every row of a teacher's table; exit status 1 if one is damaged."""
    from kdnotes.training import cache

    if problems := cache.verify():
        listed = "\n".join(problems)
        raise RunFailedError(f"{listed}\nthe next run that needs them trains them again")
    tables = f" and {count} teacher tables" if (count := len(cache.table_folders())) else ""
    typer.echo(f"{len(cache.entries())} networks{tables} are sound")


@cached.command("clear", epilog="kdnotes cache clear")
def clear_cached() -> None:
    """Delete all trained networks and teacher tables."""
    from kdnotes.training import cache

    typer.echo(f"freed {cache.clear() / 1e6:.1f} MB")


@cached.command("export", epilog="kdnotes cache export networks.tar")
def export_cached(file: Annotated[Path, _argument("FILE", "The archive to write.")]) -> None:
    """Write all networks into one archive, so that a class need not train them."""
    from kdnotes.training import cache

    typer.echo(f"{cache.export(file)} networks in {file}")


@cached.command("import", epilog="kdnotes cache import networks.tar")
def import_cached(file: Annotated[Path, _argument("FILE", "An archive of `export`.")]) -> None:
    """Add the networks of an archive, each checked first."""
    from kdnotes.training import cache

    typer.echo(f"{cache.import_(file)} networks were new")


# --- what is shown ----------------------------------------------------------------------------


def _report(done: Done) -> None:
    note = " (unchanged, not executed again)" if done.reused else ""
    typer.echo(f"{done.run.title}: {done.seconds:.0f} s{note}")


def _as_json(chapter: Chapter) -> dict[str, Any]:
    about = {"chapter": chapter.name, "title": chapter.title, "file": f"book/{chapter.path.name}"}
    names = ("name", "type", "default", "meaning", "allowed")
    items = [{name: getattr(item, name) for name in names} for item in chapter.parameters.values()]
    return about | {"parameters": items}


def _parameters(items: Sequence[Any]) -> str:
    rows = [(f"  {item.name}", item.type, repr(item.default), item.meaning) for item in items]
    return aligned(rows)


def _plan(request: Request) -> str:
    """What would be trained, by arm, and for about how long."""
    from kdnotes.book import running
    from kdnotes.training import cache

    wanted = running.needed_networks([request])
    lacking = cache.missing(wanted)
    trained, to_train = (Counter(item.arm for item in items) for items in (wanted, lacking))
    rows = [("arm", "networks", "to train")]
    rows += [(arm, str(count), str(to_train[arm])) for arm, count in trained.items()]
    rows.append(("all", str(len(wanted)), str(len(lacking))))
    return f"{aligned(rows)}\n{running.estimate([request])}"


if __name__ == "__main__":
    main()
