"""From executed notebooks to the site: staging, Jupyter Book, and checks of what comes out."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from kdnotes import paths
from kdnotes.book import costs, results, running
from kdnotes.book.running import Done, Run, RunFailedError
from kdnotes.errors import RequestError

Edition = Literal["full", "student"]
SOLUTION_TAG = "solution"
TABLES = "tables"  # where pages find the chapters' tables, beside the pages
COVER_CHAPTER = "scorecard"  # its first figure stands for the whole run, on the first page
PUBLISHED_PRESET = "laptop"
_ERROR_TAG = "papermill-error-cell-tag"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NOT_RUN = (
    ":::{note}\nThis chapter was not run for this build of the book: it has no numbers and no "
    "figures here.\n:::"
)


@dataclass(frozen=True)
class Built:
    """A finished site: its first page, and the runs behind it."""

    index: Path
    done: list[Done]


@dataclass(frozen=True)
class Spent:
    """What the chapters cost, as tables in Markdown."""

    by_chapter: str = costs.NOT_MEASURED
    by_kind: str = costs.NOT_MEASURED


def build(
    preset: str = PUBLISHED_PRESET,
    only: Sequence[str] = (),
    jobs: int | None = None,
    out: Path | None = None,
    edition: Edition = "full",
    fresh: bool = False,
    report: Callable[[Done], None] = lambda done: None,
) -> Built:
    """Run the chapters (or ``only`` those named), then build the site, in ``out``.

    Chapters whose every input is unchanged are reused, unless ``fresh``. Chapters left out keep
    their last run if it is still valid, else they appear without outputs. A site that fails its
    checks does not replace the last good one. Raises RequestError before anything is run, and
    RunFailedError with what was wrong.
    """
    require_jupyter_book()
    every = running.chapters()
    chosen = {chapter.name for chapter in (running.chapters(only) if only else every)}
    requests = {each.name: running.request(each, {"preset": preset}) for each in every}
    out = running.make_folder(out or paths.build_folder())
    folder = running.make_folder(out / "runs" / preset)
    runs = {name: Run(request, folder) for name, request in requests.items()}
    done: dict[str, Done] = {}
    with ExitStack() as stack:
        environment = None
        # What reads the results of other chapters comes after them.
        for numbered in (True, False):
            pending, stamps = [], {}
            for each in every:
                if each.numbered is not numbered:
                    continue
                run = runs[each.name]
                stamps[run.notebook] = running.key(run)
                before = running.finished(run, stamps[run.notebook])
                if before is not None and not (fresh and each.name in chosen):
                    done[each.name] = before
                    if each.name in chosen:
                        report(before)
                elif each.name in chosen:
                    pending.append(run)
            if pending and environment is None:
                environment = stack.enter_context(running.surroundings(len(pending)))
            if numbered:  # while the server of the kernels loads what they need
                running.train([requests[name] for name in requests if name in chosen], jobs)
            for finished in running.execute(pending, jobs, stamps, report, environment):
                done[finished.run.request.chapter.name] = finished
    stage_folder = out / ("stage" if edition == "full" else f"stage-{edition}")
    executed = {name: each.run.notebook for name, each in done.items()}
    finished_runs = [done[name] for name in requests if name in done]
    spent = Spent(costs.table(finished_runs), costs.profile(finished_runs))
    stage(executed, folder, stage_folder, edition, spent)
    target = out / ("html" if edition == "full" else f"html-{edition}")
    index = publish_pages(stage_folder, target)
    return Built(index, [done[name] for name in requests if name in done and name in chosen])


def require_jupyter_book() -> None:
    """Raise RequestError unless Jupyter Book 1.x is here: 2.x would publish nothing, silently."""
    try:
        version = metadata.version("jupyter-book")
    except metadata.PackageNotFoundError:
        version = ""
    if not version.startswith("1."):
        found = f"version {version} is installed" if version else "it is not installed"
        raise RequestError(
            f"building the site needs Jupyter Book 1.x, but {found}; "
            "install it with: pip install -r requirements.txt"
        )


# --- staging --------------------------------------------------------------------------------


def stage(
    notebooks: Mapping[str, Path],
    tables: Path,
    folder: Path,
    edition: Edition = "full",
    spent: Spent | None = None,
) -> None:
    """Copy the book into ``folder``, chapters replaced by their executed notebooks.

    ``notebooks``: executed ones by chapter; ``tables``: where the chapters' CSV and JSON files
    are; ``spent``: what the run cost. The student edition leaves out the cells
    tagged as solutions.
    """
    import yaml

    shutil.rmtree(folder, ignore_errors=True)
    root = paths.root()
    shutil.copytree(root / "book", folder / "book", ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    shutil.copy(root / "_toc.yml", folder)
    config = yaml.safe_load((root / "_config.yml").read_text())
    (folder / "book" / TABLES).mkdir()
    spent = spent or Spent()
    generated = {"costs.md": spent.by_chapter}
    if (folder / "book" / "speed.md").is_file():
        generated["profile.md"] = spent.by_kind
        generated["benchmarks.md"] = costs.benchmarks(root / "results" / "benchmarks")
    for name, text in generated.items():
        (folder / "book" / TABLES / name).write_text(text + "\n", encoding="utf-8")
    for name, template in running.chapter_paths().items():
        executed = notebooks.get(name)
        notebook = json.loads((executed or template).read_text(encoding="utf-8"))
        if executed is None:
            note = {"cell_type": "markdown", "id": "not-run", "metadata": {}, "source": _NOT_RUN}
            notebook["cells"].insert(1, note)
        else:
            for suffix in (".csv", ".json"):
                shutil.copy(tables / f"{name}{suffix}", folder / "book" / TABLES)
        if edition == "student":
            notebook["cells"] = [cell for cell in notebook["cells"] if not _is_solution(cell)]
        (folder / "book" / template.name).write_text(json.dumps(notebook), encoding="utf-8")
    cover = _cover(notebooks.get(COVER_CHAPTER))
    (folder / "book" / "_static" / f"{COVER_CHAPTER}.png").write_bytes(cover)
    if len(notebooks) < len(running.chapter_paths()):
        # Text may refer to the figures of chapters that were not run.
        sphinx = config["sphinx"]["config"]
        sphinx.setdefault("suppress_warnings", []).extend(["ref.ref", "ref.numref"])
    (folder / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def _cover(scorecard: Path | None) -> bytes:
    """The picture on the first page: this run's, else the published one, else an empty one."""
    figure = None if scorecard is None else _first_figure(scorecard)
    if figure is not None:
        return figure
    published = paths.root() / "results" / PUBLISHED_PRESET / f"{COVER_CHAPTER}.png"
    if published.is_file():
        return published.read_bytes()
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (1, 1), 255).save(stream, "PNG")
    return stream.getvalue()


def _is_solution(cell: dict[str, Any]) -> bool:
    return SOLUTION_TAG in cell["metadata"].get("tags", ())


def toc_pages(toc: Path) -> list[str]:
    """Pages that a table of contents names, without suffix, the root first."""
    import yaml

    def pages(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for name, value in node.items():
                if name in ("root", "file"):
                    yield value
                else:
                    yield from pages(value)
        elif isinstance(node, list):
            for item in node:
                yield from pages(item)

    return list(pages(yaml.safe_load(toc.read_text())))


# --- building -------------------------------------------------------------------------------


def publish_pages(stage_folder: Path, target: Path) -> Path:
    """Build and check the staged book, then put it at ``target``; returns the first page.

    Raises RunFailedError naming every problem; ``target`` is then as it was before.
    """
    problems = toc_problems(stage_folder) + [
        f"{path.name}: {problem}"
        for path in sorted((stage_folder / "book").glob("*.ipynb"))
        for problem in output_problems(path)
    ]
    if problems:
        raise _failed("the book cannot be built", problems, stage_folder)
    # Quiet, in a folder that holds no earlier build: what is only read again when it changed
    # would not warn again. Sphinx then reads every page.
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            "from jupyter_book.cli.main import main; main()",
            *("build", str(stage_folder), "-W", "-n", "--keep-going", "-q"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"},
    )
    said = _COLOURS.sub("", finished.stderr).replace(f"{stage_folder}{os.sep}", "")
    pages = stage_folder / "_build" / "html"
    if finished.returncode:
        lines = [line for line in said.splitlines() if line.strip()]
        raise _failed("Jupyter Book reported", lines, pages)
    problems = page_problems(pages, toc_pages(stage_folder / "_toc.yml"))
    if problems:
        raise _failed("the site has problems", problems, pages)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    pages.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target / "index.html"


def _failed(what: str, problems: Sequence[str], kept: Path) -> RunFailedError:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return RunFailedError(f"{what}:{lines}\nwhat was made until then is in {kept}")


# --- checks ---------------------------------------------------------------------------------


def toc_problems(folder: Path) -> list[str]:
    """Pages of the table of contents that do not exist, and chapters that it forgets."""
    named = toc_pages(folder / "_toc.yml")
    problems = [
        f"_toc.yml names {page}, but there is no such .md or .ipynb file"
        for page in named
        if not any((folder / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb"))
    ]
    problems += [
        f"_toc.yml does not name book/{path.stem}: it would not be published"
        for path in sorted((folder / "book").glob("*.ipynb"))
        if f"book/{path.stem}" not in named
    ]
    return problems


def output_problems(path: Path) -> list[str]:
    """What must not be published in a notebook: errors, warnings, paths of this machine."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    # Not part of a longer path: a relative one may well lead through the same names.
    places = {
        str(place): re.compile(rf"(?<![\w.]){re.escape(f'{place}{os.sep}')}")
        for place in (paths.root(), Path.home(), sys.prefix)
        if len(str(place)) > 1
    }
    problems = []
    for number, cell in enumerate(notebook["cells"], start=1):
        if _ERROR_TAG in cell["metadata"].get("tags", ()):
            problems.append(f"cell {number} is papermill's note of a failed run")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                problems.append(f"cell {number} raised {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                lines = "".join(output["text"]).strip().splitlines() or [""]
                problems.append(f"cell {number} wrote to stderr: {lines[0]}")
            text = json.dumps(output)
            problems += [
                f"cell {number} shows a path of this machine ({place})"
                for place, pattern in places.items()
                if pattern.search(text)
            ]
    return problems


def page_problems(pages: Path, named: Sequence[str]) -> list[str]:
    """Pages that are missing, images without a description, and links that lead nowhere."""
    problems = []
    parsed: dict[Path, _Page] = {}
    for page in named:
        path = pages / f"{page}.html"
        if not path.is_file():
            problems.append(f"page {page} was not made")
            continue
        parsed[path] = _parse(path)
    for path, page_content in list(parsed.items()):
        name = path.relative_to(pages).as_posix()
        for source, alt in page_content.images:
            if not alt.strip() or "_images/" in alt:
                problems.append(f"{name}: image {source} has no description (image: alt)")
        sources = [source for source, _ in page_content.images]
        for link in dict.fromkeys([*page_content.links, *sources]):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                problems.append(f"{name}: link to {link} leads nowhere")
            elif parts.fragment and target.suffix == ".html":
                if target not in parsed:
                    parsed[target] = _parse(target)
                if unquote(parts.fragment) not in parsed[target].anchors:
                    problems.append(f"{name}: there is no #{parts.fragment} for link {link}")
    return problems


class _Page(HTMLParser):
    """Links, images and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img":
            self.images.append((values.get("src", ""), values.get("alt", "")))
        self.anchors.update(values[name] for name in ("id", "name") if name in values)


def _parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


# --- the published run ----------------------------------------------------------------------


def publish_results(preset: str, runs: Path | None = None) -> list[Path]:
    """Copy a run's small files and cover figure to results/PRESET; returns what was written.

    Raises RequestError when a chapter has not been run with that preset.
    """
    source = (runs or paths.build_folder() / "runs") / preset
    target = paths.root() / "results" / preset
    missing = [name for name in running.chapter_paths() if name not in results.chapters(source)]
    if missing:
        raise RequestError(
            f"no results of {', '.join(missing)} in {source}; first run: "
            f"kdnotes build --preset {preset}"
        )
    cover = _first_figure(source / f"{COVER_CHAPTER}.ipynb")
    if cover is None:
        raise RequestError(f"chapter {COVER_CHAPTER!r} in {source} has no figure for the cover")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in running.chapter_paths():
        for suffix in (".csv", ".json"):
            written.append(Path(shutil.copy(source / f"{name}{suffix}", target)))
    (target / f"{COVER_CHAPTER}.png").write_bytes(cover)
    return [*written, target / f"{COVER_CHAPTER}.png"]


def _first_figure(notebook: Path) -> bytes | None:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                return base64.b64decode("".join(output["data"]["image/png"]))
    return None


if __name__ == "__main__":
    try:
        for written_path in publish_results(sys.argv[1] if len(sys.argv) > 1 else PUBLISHED_PRESET):
            print(written_path)
    except RequestError as error:
        sys.exit(f"kdnotes: {error}")
