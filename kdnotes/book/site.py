"""From executed notebooks to the site: staging, Jupyter Book, and checks of what comes out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import yaml

from kdnotes import data, paths, store
from kdnotes.book import cover, execution, page_tables, parameters, results, running
from kdnotes.book.cover import PUBLISHED_PRESET
from kdnotes.book.running import Done, Run
from kdnotes.data import folders
from kdnotes.errors import RequestError, RunFailedError

Edition = Literal["full", "student"]
SOLUTION_TAG = "solution"
PUBLISHED = (".csv", ".json")  # of the files of a chapter's run
TABLES = "tables"  # where pages find the chapters' tables, beside the pages
AUDITS = ("efficientnet-lite", "cifar10")  # that the book shows
FIRST_SCREEN = "first-screen"  # tag of the cells that hold a chapter's answer
# Formulas are drawn by MathJax in one file, which this package carries: pages need no network.
MATHS_CARRIER, MATHS = "sphinx-mathjax-offline", "static/mathjax/tex-svg.js"
_NEEDED = {"jupyter-book": ("Jupyter Book 1.x", "1."), MATHS_CARRIER: (MATHS_CARRIER, "")}
_ERROR_TAG = "papermill-error-cell-tag"
# A notebook names its own number, to be right wherever it is opened; on the site, the table of
# contents numbers titles, and with them figures and exercises.
_TITLE_NUMBER = re.compile(r"^# \d+\. ")
# The title of a chapter with the first sentence under it, and what follows.
_OPENING = re.compile(r"(.*?^# [^\n]+\n+.+?[.?!])\s+(.+)", re.DOTALL | re.MULTILINE)
# A list of no items, to a reader of screens: what it holds are entries of a bibliography.
_NO_LIST = 'role="list" class="citation-list"', 'class="citation-list"'
_RAW_TABLE = "|:\N{EN DASH}|"  # the rule under a table's head, where it was taken for text
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NOT_RUN = (
    ":::{note}\nThis chapter was not run for this build of the book: it has no numbers and no "
    "figures here.\n:::"
)


def build(
    given: Mapping[str, str],
    only: Sequence[str] = (),
    jobs: int | None = None,
    out: Path | None = None,
    edition: Edition = "full",
    report: Callable[[Done], None] = lambda done: None,
    announce: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run the chapters (or ``only`` those named), then build the site in ``out``: its first page.

    ``given``: texts for parameters of every chapter; ``announce`` is told for how long will be
    trained. Chapters that are left out keep their last run if it is still valid, else they appear
    without outputs. A site that fails its checks does not replace the last good one. Raises
    RequestError before anything is run, and RunFailedError with what was wrong.
    """
    require_jupyter_book()
    every = running.chapters()
    names = [each.name for each in every]
    chosen = {each.name for each in running.chapters(only)} if only else {*names}
    requests = [running.request(each, given) for each in every]
    out = running.make_folder(out or paths.build_folder())
    folder = running.make_folder(out / "runs" / given.get("preset", PUBLISHED_PRESET))
    runs = [Run(each, folder) for each in requests]
    for run in runs:
        if run.title not in chosen and run.notebook.exists():
            running.stamp(run.notebook)
    wanted = [each for each in requests if each.chapter.name in chosen]
    announce(running.estimate(wanted, jobs))
    done: list[Done] = []
    forked = False
    for late in (False, True):
        now = [run for run in runs if run.request.chapter.reads_results is late]
        reused, pending = running.split(now)
        pending = [run for run in pending if run.title in chosen]
        # Those with most networks first: nothing long is left to one core at the end.
        pending.sort(key=lambda run: -len(run.request.study.networks))
        for each in reused:
            if each.run.title in chosen:
                report(each)
        if not late:  # kernels load what they need while networks are trained
            forked = execution.preload(len(pending))
            running.train(wanted, jobs)
        done += [*reused, *execution.execute(pending, jobs, report, forked)]
    suffix = "" if edition == "full" else f"-{edition}"
    done.sort(key=lambda each: names.index(each.run.title))
    stage(done, out / f"stage{suffix}", edition)
    return publish_pages(out / f"stage{suffix}", out / f"html{suffix}")


def require_jupyter_book() -> None:
    """Raise RequestError unless Jupyter Book 1.x (2.x publishes nothing) and MathJax are here."""
    for package, (called, wanted) in _NEEDED.items():
        try:
            found = f"version {metadata.version(package)} is installed"
        except metadata.PackageNotFoundError:
            found = "it is not installed"
        if not found.startswith(f"version {wanted}"):
            right = "install it with: pip install -r requirements.txt"
            raise RequestError(f"building the site needs {called}, but {found}; {right}")


def stage(done: Sequence[Done], folder: Path, edition: Edition = "full") -> None:
    """Copy the book into a folder, with executed notebooks and tables, and solutions or without."""
    shutil.rmtree(folder, ignore_errors=True)
    root, book = paths.root(), folder / "book"
    shutil.copytree(root / "book", book, ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    shutil.copy(root / "_toc.yml", folder)
    (book / TABLES).mkdir()
    (book / "_static").mkdir(exist_ok=True)
    for name, text in _generated(root, done, book / "_static").items():
        (book / TABLES / name).write_text(text + "\n", encoding="utf-8")
    runs = {each.run.request.chapter.name: each.run for each in done}
    templates = running.chapter_paths()
    for name, template in templates.items():
        notebook = _read(runs[name].notebook if name in runs else template)
        cells = [_sized(cell) for cell in answer_first(notebook["cells"])]
        cells[0]["source"] = _TITLE_NUMBER.sub("# ", "".join(cells[0]["source"]))
        if name in runs:
            _copied([name], runs[name].folder, book / TABLES)
        else:
            note = {"cell_type": "markdown", "id": "not-run", "metadata": {}, "source": _NOT_RUN}
            cells.insert(1, note)
        if edition == "student":
            cells = [cell for cell in cells if not _tagged(cell, SOLUTION_TAG)]
        (book / template.name).write_text(json.dumps(notebook | {"cells": cells}), encoding="utf-8")
    carried = metadata.distribution(MATHS_CARRIER).locate_file(f"{MATHS_CARRIER}/{MATHS}")
    shutil.copy(str(carried), book / "_static")
    config = yaml.safe_load((root / "_config.yml").read_text())
    sphinx = config["sphinx"]["config"]
    buttons, kept = config.pop("launch_buttons"), config.pop("repository")
    if kept["url"]:  # else there is nothing that could be launched
        # Jupyter Book would put these there itself, and then replace them by the others given.
        about = {"repository_url": kept["url"], "repository_branch": kept["branch"]}
        sphinx["html_theme_options"] |= {"launch_buttons": buttons} | about
    if len(runs) < len(templates):  # text may refer to figures of chapters that were not run
        sphinx.setdefault("suppress_warnings", []).extend(["ref.ref", "ref.numref"])
    (folder / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def _generated(root: Path, done: Sequence[Done], pictures: Path) -> dict[str, str]:
    """Tables that pages include, by file; pictures of theirs go into a folder."""
    saved, tables = root / "results", page_tables
    audits, stimuli = saved / "published" / "audits", saved / "published" / "stimuli"
    paper = root / "book" / "paper-tables.yml"
    return {f"audit-{name}.md": tables.audited(audits / f"{name}.json") for name in AUDITS} | {
        "cover.md": cover.page(pictures),
        "costs.md": tables.table(done),
        "profile.md": tables.profile(done),
        "benchmarks.md": tables.benchmarks(saved / "benchmarks"),
        "trained-out.md": tables.trained_out(saved / "trained-out.csv"),
        "error-rates.md": tables.error_rates(saved / "error-rates.csv"),
        "again.md": tables.again(saved / "laptop", saved / "laptop-again"),
        "beside-the-paper.md": tables.beside_the_paper(paper, saved),
        "strangers.md": tables.strangers(stimuli / "strangers.csv"),
        "changed.md": tables.changed(saved / "first-edition.csv", saved / "laptop"),
    }


def answer_first(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells as a page shows them: title, one sentence, those tagged first-screen, the rest."""
    shown = [cell for cell in cells if _tagged(cell, FIRST_SCREEN)]
    opening = _OPENING.match("".join(cells[0].get("source", ""))) if shown else None
    if opening is None:
        return [*cells[:1], *shown, *(cell for cell in cells[1:] if cell not in shown)]
    first, rest = ({**cells[0], "source": text.strip()} for text in opening.groups())
    rest.pop("id", None)
    return [first, *shown, rest, *(cell for cell in cells[1:] if cell not in shown)]


def _sized(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell whose picture is shown as wide as its notebook says: at half of its pixels."""
    for output in cell.get("outputs", ()):
        if width := output.get("metadata", {}).get("image/png", {}).get("width"):
            options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
            options["width"] = f"{width}px"
    return cell


def _read(notebook: Path) -> dict[str, Any]:
    return json.loads(notebook.read_text(encoding="utf-8"))


def _tagged(cell: dict[str, Any], tag: str) -> bool:
    return tag in cell["metadata"].get("tags", ())


def toc_pages(toc: Path) -> list[str]:
    """Pages that a table of contents names, without suffix, the root first."""
    return re.findall(r"^[\s-]*(?:root|file):\s*(\S+)", toc.read_text(), re.MULTILINE)


def publish_pages(stage_folder: Path, target: Path) -> Path:
    """Build and check the staged book, then put it at ``target``; returns the first page.

    Raises RunFailedError naming every problem; ``target`` is then as it was before.
    """
    problems = toc_problems(stage_folder)
    for path in sorted((stage_folder / "book").glob("*.ipynb")):
        problems += [f"{path.name}: {problem}" for problem in output_problems(path)]
    if problems:
        raise _failed("the book cannot be built", problems, stage_folder)
    # Quiet, in a folder that holds no earlier build: what is only read again when it changed
    # would not warn again. Sphinx then reads every page.
    command = (sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build")
    finished = subprocess.run(
        [*command, str(stage_folder), "-W", "-n", "--keep-going", "-q"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"},
    )
    pages = stage_folder / "_build" / "html"
    if finished.returncode:
        said = _COLOURS.sub("", finished.stderr).replace(f"{stage_folder}{os.sep}", "")
        raise _failed("Jupyter Book reported", filter(str.strip, said.splitlines()), pages)
    if problems := page_problems(pages, toc_pages(stage_folder / "_toc.yml")):
        raise _failed("the site has problems", problems, pages)
    for page in pages.rglob("*.html"):
        if _NO_LIST[0] in (text := page.read_text(encoding="utf-8")):
            page.write_text(text.replace(*_NO_LIST), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    pages.rename(target)
    return target / "index.html"


def _failed(what: str, problems: Iterable[str], kept: Path) -> RunFailedError:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return RunFailedError(f"{what}:{lines}\nwhat was made until then is in {kept}")


def toc_problems(folder: Path) -> list[str]:
    """Pages of the table of contents that do not exist, and chapters that it forgets."""
    named = toc_pages(folder / "_toc.yml")
    missing = [
        f"_toc.yml names {page}, but there is no such .md or .ipynb file"
        for page in named
        if not any((folder / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb"))
    ]
    return missing + [
        f"_toc.yml does not name book/{path.stem}: it would not be published"
        for path in sorted((folder / "book").glob("*.ipynb"))
        if f"book/{path.stem}" not in named
    ]


def output_problems(path: Path) -> list[str]:
    """What must not be published in a notebook: errors, warnings, paths of this machine."""
    # Not part of a longer path: a relative one may well lead through the same names.
    places = {
        str(place): re.compile(rf"(?<![\w.]){re.escape(f'{place}{os.sep}')}")
        for place in (paths.root(), Path.home(), sys.prefix)
        if len(str(place)) > 1
    }
    problems = []
    for number, cell in enumerate(_read(path)["cells"], start=1):
        if _tagged(cell, _ERROR_TAG):
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
    made = {page: pages / f"{page}.html" for page in named}
    problems = [f"page {page} was not made" for page, path in made.items() if not path.is_file()]
    parsed = lru_cache(maxsize=None)(_Page)
    for path in filter(Path.is_file, made.values()):
        name, page = path.relative_to(pages).as_posix(), parsed(path)
        if page.has_raw_table:
            problems.append(f"{name}: a table is shown as the text that it is made of")
        for source, alt in page.images:
            if not alt.strip() or "_images/" in alt:
                problems.append(f"{name}: image {source} has no description (image: alt)")
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                problems.append(f"{name}: link to {link} leads nowhere")
            elif target.suffix == ".html" and unquote(parts.fragment) not in parsed(target).anchors:
                problems.append(f"{name}: there is no #{parts.fragment} for link {link}")
    return problems


class _Page(HTMLParser):
    """What a page refers to; much faster than a tree of it, and there are many pages."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[tuple[str, str]] = []  # source and description
        self.links: dict[str, None] = {}  # each once, in their order
        self.anchors = {""}  # where a link without one leads
        text = path.read_text(encoding="utf-8")
        self.has_raw_table = _RAW_TABLE in text
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attributes}
        self.anchors |= {about.get("id", ""), about.get("name", "")}
        if tag == "img":
            self.images.append((about.get("src", ""), about.get("alt", "")))
        if tag in ("a", "img"):
            self.links[about.get("href" if tag == "a" else "src", "")] = None


def publish_results(preset: str) -> list[Path]:
    """Copy a run's small files to results/PRESET and draw the cover; returns what was written.

    Raises RequestError when a chapter has not been run with that preset, or its files are damaged.
    """
    source = paths.build_folder() / "runs" / preset
    names = list(running.chapter_paths())
    if missing := [name for name in names if name not in results.chapters(source)]:
        first = f"first run: kdnotes build --preset {preset}"
        raise RequestError(f"no results of {', '.join(missing)} in {source}; {first}")
    for each in names:
        running.stamp(source / f"{each}.ipynb")
    return [*_copied(names, source, paths.root() / "results" / preset), *cover.publish()]


def publish_run(folder: Path) -> list[Path]:
    """Copy a run on one set of images to results/published/IMAGES; returns what was written.

    With the image files that it used, in their order: ``images.csv``. Raises RequestError where the
    folder holds no run of the preset `published`, or several sets.
    """
    runs = {name: results.load(name, folder) for name in results.chapters(folder)}
    made = {(run.parameters["preset"], run.parameters["dataset"]) for run in runs.values()}
    if [preset for preset, _ in made] != ["published"]:
        raise RequestError(
            f"{folder} must hold runs of the preset published on one set of images, as 'kdnotes "
            "run CHAPTER --preset published --out DIR' leaves them; it holds: "
            f"{', '.join(sorted(' on '.join(each) for each in made)) or 'none'}"
        )
    ((_, dataset),) = made
    target = paths.root() / "results" / "published" / Path(dataset.rpartition(":")[2]).name
    written = _copied(runs, folder, target)
    if dataset.startswith(data.FOLDER_PREFIX):
        used = dict.fromkeys(each for run in runs.values() for each in _image_files(run))
        with store.appearing(target / "images.csv") as path:
            path.write_text("\n".join(["split,file", *map(",".join, used)]) + "\n")
        written.append(target / "images.csv")
    return [*written, *cover.publish()]


def _copied(names: Iterable[str], source: Path, target: Path) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    files = [source / f"{name}{end}" for name in names for end in PUBLISHED]
    return [Path(shutil.copy(file, target)) for file in files]


def _image_files(run: results.Saved) -> Iterator[tuple[str, str]]:
    """Split and name of each file that a run's networks were trained and tested on."""
    asked = shlex.split(run.command)[2:]
    given = parameters.assignments([each for each in asked if "=" in each], "-p")
    request = running.request(running.chapter(run.chapter), given | {"preset": "published"})
    specs = [item.spec.data for item in request.study.networks if not item.spec.parts]
    specs += [plan.test_spec() for plan in request.study.plans.values()]
    for spec in {each.model_dump_json(): each for each in specs}.values():
        photos = folders.survey(spec.name, folders.FolderOptions(**spec.options))
        names = [photo.name for photo in photos.split(spec.split)]
        for number in data.load(spec).sources.tolist():
            yield spec.split, names[number % data.TEST_SOURCE_OFFSET]


if __name__ == "__main__":
    try:
        asked = sys.argv[1] if len(sys.argv) > 1 else PUBLISHED_PRESET
        folder = Path(asked)
        for written_path in publish_run(folder) if folder.is_dir() else publish_results(asked):
            print(written_path)
    except RequestError as error:
        print(f"kdnotes: {error}", file=sys.stderr)
        sys.exit(2)
