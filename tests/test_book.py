"""The book: its notebooks as committed, the way to the site, and the site of the smoke run."""

from __future__ import annotations

import ast
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quiet_notebooks
import tiny_book
from bs4 import BeautifulSoup
from tiny_book import REPOSITORY, chapter, code, exercise, figure, files_under, kdnotes, markdown

from kdnotes.book import parameters, results, running, site
from kdnotes.errors import RequestError

REQUIRED_CHAPTERS = (
    "distillation",
    "fidelity",
    "localization",
    "adversarial",
    "color-invariance",
    "crop-and-shift-invariance",
    "unseen-domains",
    "shape-and-cue-bias",
    "domain-adaptation",
    "decision-boundaries",
    "representations",
    "bias",
    "no-accuracy-gain",
    "architectures",
    "dose",
    "scorecard",
)
NOTEBOOKS = sorted((REPOSITORY / "book").glob("*.ipynb"))
CHECKED_TAG = "nbval-check-output"
LONGEST_FUNCTION = 25  # lines: about a screen
SMOKE = REPOSITORY / "_build" / "smoke"
SMOKE_RUNS = SMOKE / "runs" / "smoke"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tags(cell: Any) -> list[str]:
    return cell["metadata"].get("tags", [])


# --- the notebooks as committed -------------------------------------------------------------

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_the_chapters_are_there_and_in_the_table_of_contents() -> None:
    assert set(REQUIRED_CHAPTERS) <= set(running.chapter_paths())
    assert site.toc_problems(REPOSITORY) == []


@each_notebook
def test_committed_notebooks_are_clean(path: Path) -> None:
    assert quiet_notebooks.noises(read(path)) == []


def test_what_a_run_or_an_editor_leaves_in_a_notebook_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = read(NOTEBOOKS[0])
    first, second, *_ = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first |= {"outputs": [{"output_type": "stream"}], "execution_count": 3}
    second["metadata"]["collapsed"] = True
    second["id"] = first["id"]
    notebook["metadata"] |= {"widgets": {}, "kernelspec": {"name": "mine"}}
    (path := tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    places = [notebook["cells"].index(cell) + 1 for cell in (first, second)]
    assert quiet_notebooks.main([str(path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: metadata 'widgets'",
        f"{path}: kernel 'mine', not 'python3'",
        f"{path}: cell {places[0]}: outputs",
        f"{path}: cell {places[0]}: an execution count",
        f"{path}: cell {places[1]}: metadata 'collapsed'",
        f"{path}: cell {places[1]}: no id of its own",
    ]
    assert quiet_notebooks.main([str(each) for each in NOTEBOOKS]) == 0


@each_notebook
def test_chapters_have_the_agreed_form(path: Path) -> None:
    cells = read(path)["cells"]
    if re.match(r"\d\d-", path.stem):
        # A cell with a figure can hold nothing else: every output would become that figure.
        shown = [cell for cell in cells if site.SOLUTION_TAG not in tags(cell)]
        assert 19 <= sum("mystnb" not in cell["metadata"] for cell in shown) <= 31
    title = "".join(cells[0]["source"]).splitlines()[0]
    assert cells[0]["cell_type"] == "markdown"
    assert re.fullmatch(r"# .+", title)
    assert any(CHECKED_TAG in tags(cell) for cell in cells)
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name


@each_notebook
def test_parameters_are_annotated_explained_and_complete(path: Path) -> None:
    found = parameters.read(path)  # which refuses a line without annotation or comment
    assert set(parameters.shared()) <= set(found)
    assert found["preset"].default == "laptop"


@each_notebook
def test_figures_are_captioned_and_described(path: Path) -> None:
    names = []
    for number, cell in enumerate(read(path)["cells"], start=1):
        about = cell["metadata"].get("mystnb", {})
        if "figure" in about or "image" in about:
            assert about["figure"]["caption"].strip(), number
            assert len(about["image"]["alt"].strip()) > 10, number
            names.append(about["figure"]["name"])
    assert names, "a chapter has a picture"
    assert len(set(names)) == len(names)


@each_notebook
def test_solutions_can_be_left_out(path: Path) -> None:
    for cell in read(path)["cells"]:
        if "{solution" in "".join(cell["source"]):
            assert site.SOLUTION_TAG in tags(cell)


# --- the way to the site --------------------------------------------------------------------


@pytest.fixture
def small_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny_book.use(
        tmp_path, monkeypatch, figure("main"), *exercise("first"), save=tiny_book.SAVE_NOTHING
    )


def replace_cells(root: Path, *cells: Any) -> None:
    tiny_book.write(
        root / "book" / "scorecard.ipynb",
        chapter("scorecard", *cells, save=tiny_book.SAVE_NOTHING),
    )


def test_build_runs_checks_and_publishes(small_book: Path) -> None:
    built = kdnotes("build", "--preset", "smoke")
    assert built.exit_code == 0, built.output
    assert built.stderr == ""
    html = small_book / "_build" / "html"
    assert built.stdout.splitlines()[-1] == str(html / "index.html")
    assert re.search(r"^scorecard: \d+ s$", built.stdout, re.MULTILINE)
    page = (html / "book" / "scorecard.html").read_text()
    assert 'alt="A line"' in page
    assert "A line.</span>" in page  # the caption
    assert "It is the answer" in page
    assert (html / "index.html").is_file()

    # Again: nothing has changed, so nothing runs; without solutions this time.
    ran = small_book / "_build" / "runs" / "smoke" / "scorecard.ipynb"
    changed = ran.stat().st_mtime_ns
    student = kdnotes("build", "--preset", "smoke", "--edition", "student")
    assert student.exit_code == 0, student.output
    assert "not executed again" in student.stdout
    assert ran.stat().st_mtime_ns == changed
    edition = small_book / "_build" / "html-student"
    page = (edition / "book" / "scorecard.html").read_text()
    assert "What is this?" in page
    for path in edition.rglob("*"):
        assert path.is_dir() or b"It is the answer" not in path.read_bytes()
    assert html.is_dir()

    # A page with a broken reference is refused, and the last good site stays.
    good = (html / "book" / "intro.html").read_bytes()
    (small_book / "book" / "intro.md").write_text("# The book\n\nSee {ref}`nowhere`.\n")
    broken = kdnotes("build", "--preset", "smoke")
    assert broken.exit_code == 1
    assert "intro.md" in broken.stderr
    assert "nowhere" in broken.stderr
    assert str(small_book / "_build" / "stage") in broken.stderr
    assert (html / "book" / "intro.html").read_bytes() == good

    # What was run can be published: small files, and a cover where rows of one are declared.
    written = site.publish_results("smoke")
    assert sorted(path.name for path in written) == [
        "scorecard.csv",
        "scorecard.json",
    ]


BEGIN = """\
import kdnotes as kd
from kdnotes.probes import fidelity
study = kd.begin("fidelity", globals())
"""
MEASURE = """\
outcome = fidelity.measure(kd.trained(plan), plan.test_images())
kd.finish(study, kd.conclude(study, outcome, fidelity.MEASURES[0]))
"""


def test_a_book_is_built_with_other_methods(tmp_path: Path, monkeypatch: Any) -> None:
    """One that is off by default: in tables of every chapter, and in what the site says it cost."""
    measured = [
        markdown("# What is copied?"),
        code(tiny_book.PARAMETERS, tags=["parameters"]),
        code(BEGIN),
        code(tiny_book.CAST, tags=["cast"]),
        code(MEASURE),
    ]
    compared = code("print('compared:', methods)", tags=["reads-results"])
    last = chapter("scorecard", compared, figure("main"))
    root = tiny_book.make(tmp_path / "book", {"01-fidelity": measured, "scorecard": last})
    (root / "book" / "claims.yml").write_text("[]")
    (root / "book" / "glossary.md").open("a").write("\n```{include} tables/profile.md\n```\n")
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    given = ("methods=kl,dkd", "seeds=1", "train_count=64", "epochs=1")
    options = [part for text in given for part in ("-p", text)]
    built = kdnotes("build", "--preset", "smoke", *options, "--out", tmp_path / "out")
    assert built.exit_code == 0, built.output
    runs, pages = tmp_path / "out" / "runs" / "smoke", tmp_path / "out" / "html" / "book"
    assert set(results.table("fidelity", runs)["arm"]) >= {"independent", "kl", "dkd"}
    assert results.load("fidelity", runs).parameters["methods"] == "kl,dkd"
    assert "compared: kl,dkd" in (pages / "scorecard.html").read_text()
    assert "training students by DKD" in (pages / "glossary.html").read_text()

    for wrong in ("tua=1", "methods=kl,dk", "size=x"):
        refused = kdnotes("build", "-p", wrong, "--out", tmp_path / "new")
        assert refused.exit_code == 2
        assert not (tmp_path / "new").exists()


def test_build_refuses_warnings_among_the_outputs(small_book: Path) -> None:
    replace_cells(small_book, code("import warnings\nwarnings.warn('odd')"))
    built = kdnotes("build", "--preset", "smoke")
    assert built.exit_code == 1
    assert "scorecard.ipynb: cell 3 wrote to stderr" in built.stderr
    assert not (small_book / "_build" / "html").exists()


def test_a_chapter_that_is_left_out_is_said_not_to_have_run(
    small_book: Path, tmp_path: Path
) -> None:
    site.stage([], tmp_path / "stage")
    cells = read(tmp_path / "stage" / "book" / "scorecard.ipynb")["cells"]
    assert "was not run" in cells[1]["source"]
    assert "ref.numref" in (tmp_path / "stage" / "_config.yml").read_text()


def test_the_table_of_contents_numbers_what_is_staged(small_book: Path, tmp_path: Path) -> None:
    path = small_book / "book" / "scorecard.ipynb"
    notebook = read(path)
    notebook["cells"][0]["source"] = ["# 12. What is it, 3. or 4.?\n", "1. A list\n"]
    path.write_text(json.dumps(notebook))
    site.stage([], tmp_path / "stage")
    title = read(tmp_path / "stage" / "book" / "scorecard.ipynb")["cells"][0]["source"]
    assert title == "# What is it, 3. or 4.?\n1. A list\n"


def test_tables_are_staged_for_download(small_book: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("KDNOTES_OUT", str(tmp_path / "runs"))
    results.save("scorecard", None, [], {}, 0)
    request = running.request(running.chapter("scorecard"), {})
    run = running.Run(request, tmp_path / "runs")
    notebook = read(small_book / "book" / "scorecard.ipynb")
    notebook["metadata"]["papermill"] = {"duration": 7.0}
    run.notebook.write_text(json.dumps(notebook))
    site.stage([running.Done(run, 7.0, reused=False)], tmp_path / "stage")
    tables = tmp_path / "stage" / "book" / "tables"
    generated = ("again", "benchmarks", "beside-the-paper", "changed", "costs", "cover")
    generated += ("error-rates", "profile", "strangers", "trained-out")
    generated += tuple(f"audit-{name}" for name in site.AUDITS)
    files = sorted([*(f"{name}.md" for name in generated), "scorecard.csv", "scorecard.json"])
    assert files_under(tables) == files
    assert "| scorecard | 0 | 0.0 min of one core | 7 s |" in (tables / "costs.md").read_text()


@pytest.mark.parametrize("url", ["", "https://github.com/someone/inherit"])
def test_chapters_can_be_launched_where_the_repository_is_named(
    small_book: Path, tmp_path: Path, url: str
) -> None:
    config = small_book / "_config.yml"
    text = config.read_text()
    assert '  url: ""\n' in text
    config.write_text(text.replace('  url: ""\n', f'  url: "{url}"\n'))
    site.stage([], tmp_path / "stage")
    site.publish_pages(tmp_path / "stage", tmp_path / "html")
    page = (tmp_path / "html" / "book" / "scorecard.html").read_text()
    notebook = "main/book/scorecard.ipynb"
    colab = f"https://colab.research.google.com/github/someone/inherit/blob/{notebook}"
    binder = "https://mybinder.org/v2/gh/someone/inherit/main?urlpath=lab/tree/book/scorecard.ipynb"
    assert [address in page for address in (colab, binder)] == [bool(url)] * 2
    assert ("colab." in page, "mybinder." in page) == (bool(url), bool(url))
    assert (tmp_path / "html" / "_static" / "tex-svg.js").stat().st_size > 1_000_000


def test_long_tables_of_chapters_lie_folded(small_book: Path, tmp_path: Path) -> None:
    def table(name: str, rows: int) -> str:
        return "\n".join([f"| {name} | its value |", "|---|---|", *["| x | y |"] * rows])

    path = small_book / "book" / "scorecard.ipynb"
    notebook = read(path)
    texts = [table("ten", 10), table("eleven", 11)]
    texts.append(f"````{{dropdown}} Folded\n{table('twelve', 12)}\n````")
    notebook["cells"] += map(markdown, texts)
    path.write_text(json.dumps(notebook))
    page = small_book / "book" / "intro.md"
    page.write_text(f"{page.read_text()}\n\n{table('page', 11)}\n\n{table('pages', 26)}\n")
    site.stage([], tmp_path / "stage")
    site.publish_pages(tmp_path / "stage", tmp_path / "html")

    found = {}
    for name in ("scorecard", "intro"):
        text = (tmp_path / "html" / "book" / f"{name}.html").read_text()
        for each in BeautifulSoup(text, "html.parser").find_all("table"):
            around = each.find_parents("details")
            assert len(around) < 2
            told = around[0].summary.get_text(strip=True) if around else ""
            found[each.th.get_text(strip=True)] = told
    assert found == {
        "ten": "",
        "eleven": "11 rows: eleven, its value",
        "twelve": "Folded",
        "page": "",
        "pages": "26 rows: pages, its value",
    }


def test_a_picture_is_shown_at_half_of_its_pixels() -> None:
    output = {"output_type": "display_data", "data": {}, "metadata": {"image/png": {"width": 572}}}
    cell = {"metadata": {"mystnb": {"image": {"alt": "A line"}}}, "outputs": [output]}
    assert site._sized(cell)["metadata"]["mystnb"]["image"] == {"alt": "A line", "width": "572px"}
    assert site._sized({"metadata": {}, "outputs": []}) == {"metadata": {}, "outputs": []}


def test_jupyter_book_2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.metadata, "version", lambda name: "2.0.1")
    refused = kdnotes("build")
    assert refused.exit_code == 2
    assert "Jupyter Book 1.x, but version 2.0.1 is installed" in refused.stderr


def test_pages_of_the_table_of_contents(tmp_path: Path) -> None:
    toc = tmp_path / "_toc.yml"
    toc.write_text(
        "format: jb-book\nroot: book/intro\nparts:\n- caption: A\n  chapters:\n"
        "  - file: book/a\n    sections:\n    - file: book/b\n"
    )
    assert site.toc_pages(toc) == ["book/intro", "book/a", "book/b"]
    (tmp_path / "book").mkdir()
    for name in ("intro.md", "a.ipynb", "06-c.ipynb"):
        (tmp_path / "book" / name).write_text("")
    assert site.toc_problems(tmp_path) == [
        "_toc.yml names book/b, but there is no such .md or .ipynb file",
        "_toc.yml does not name book/06-c: it would not be published",
    ]


def test_output_problems(tmp_path: Path) -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "fine"},
        {"output_type": "stream", "name": "stderr", "text": ["tqdm\n", "more"]},
        {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []},
        {"output_type": "stream", "name": "stdout", "text": f"{REPOSITORY}/book"},
        {"output_type": "stream", "name": "stdout", "text": f"..{REPOSITORY}/book"},
    ]
    cells = [{"metadata": {}, "cell_type": "code", "outputs": [output]} for output in outputs]
    banner = {"metadata": {"tags": ["papermill-error-cell-tag"]}, "cell_type": "markdown"}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [*cells, banner]}))
    assert site.output_problems(path) == [
        "cell 2 wrote to stderr: tqdm",
        "cell 3 raised ValueError: no",
        f"cell 4 shows a path of this machine ({REPOSITORY})",
        "cell 6 is papermill's note of a failed run",
    ]


def test_page_problems(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "book" / "one.html").write_text(
        '<a href="two.html#here">ok</a> <a href="https://example.org/x#y">ok</a> <a href="#">ok</a>'
        '<a href="two.html#there">no</a> <a href="gone.html">no</a> <a href="#lost">no</a>'
        '<img src="../a.png" alt="A dot"><img src="../a.png"><img src="b.png" alt="B">'
        '<img src="../a.png" alt="../_images/a.png">'
    )
    (tmp_path / "book" / "two.html").write_text(
        '<h1 id="here">Two</h1><a href="one.html">ok</a><p>| who | right | |:\N{EN DASH}|:|</p>',
        encoding="utf-8",
    )
    assert sorted(site.page_problems(tmp_path, ["book/one", "book/two", "book/three"])) == sorted(
        [
            "page book/three was not made",
            "book/two.html: a table is shown as the text that it is made of",
            "book/one.html: there is no #there for link two.html#there",
            "book/one.html: link to gone.html leads nowhere",
            "book/one.html: there is no #lost for link #lost",
            "book/one.html: image ../a.png has no description (image: alt)",
            "book/one.html: image ../a.png has no description (image: alt)",
            "book/one.html: link to b.png leads nowhere",
        ]
    )


def test_numbered_chapters_come_first_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    cells = partial(chapter, save="")
    root = tiny_book.make(
        tmp_path,
        {name: cells(name) for name in ("appendix", "02-b", "scorecard", "10-c-d", "01-a")},
    )
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    found = running.chapters()
    assert [each.name for each in found] == ["a", "b", "c-d", "appendix", "scorecard"]
    assert [each.name for each in running.chapters(["scorecard", "b"])] == ["b", "scorecard"]


def test_a_page_that_reads_other_results_is_run_again_for_those_of_properties_only(
    tmp_path: Path, monkeypatch: Any
) -> None:
    reads = code("pass", tags=["reads-results"])
    pages = {"01-a": (), "b": (reads,), "scorecard": (reads,)}
    root = tiny_book.make(tmp_path, {name: chapter(name, *more) for name, more in pages.items()})
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    assert [each.reads_results for each in running.chapters()] == [False, True, True]
    run = running.Run(running.request(running.chapter("scorecard"), {}), tmp_path)
    before = running.key(run)
    (tmp_path / "b.json").write_text("{}")
    assert running.key(run) == before
    (tmp_path / "a.json").write_text("{}")
    assert running.key(run) != before


def test_what_was_run_with_other_sources_of_the_package_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_book.make(tmp_path, {"01-a": chapter("a")})
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    run = running.Run(running.request(running.chapter("a"), {}), tmp_path)
    package = tmp_path / "kdnotes" / "probes"
    package.mkdir(parents=True)
    (package / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(running, "__file__", str(package.parent / "book" / "running.py"))
    before = running.key(run)
    assert running.key(run) == before
    (package / "one.py").write_text("x = 2\n")
    assert running.key(run) != before


def test_a_published_run_must_be_whole(small_book: Path) -> None:
    with pytest.raises(RequestError, match="no results of scorecard"):
        site.publish_results("smoke")
    assert not (small_book / "results" / "smoke").exists()


# --- the site of the smoke run --------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    """Executed notebooks of the smoke run, by chapter."""
    if not (SMOKE / "html").is_dir():
        pytest.skip("no site of a smoke run; 'make smoke' builds it")
    return {name: read(SMOKE_RUNS / f"{name}.ipynb") for name in running.chapter_paths()}


@pytest.mark.book
def test_every_page_is_there_and_every_link_and_image_is_sound(smoke: Any) -> None:
    pages = site.toc_pages(REPOSITORY / "_toc.yml")
    assert len(pages) >= len(smoke)
    assert site.page_problems(SMOKE / "html", pages) == []


@pytest.mark.book
def test_no_error_warning_or_path_is_published(smoke: Any) -> None:
    for name in smoke:
        assert site.output_problems(SMOKE_RUNS / f"{name}.ipynb") == [], name
    for page in (SMOKE / "html" / "book").glob("*.html"):
        text = page.read_text()
        assert "Traceback (most recent call last)" not in text, page.name
        assert "papermill-error-cell" not in text, page.name
        # What is left to the preset is not told as Python's word for nothing.
        parts = BeautifulSoup(text, "html.parser").find_all(["p", "td"])
        unsaid = [part for part in parts if re.search(r"[,:] None\b", part.get_text())]
        assert not unsaid or page.name == "api.html", page.name


@pytest.mark.book
def test_every_picture_has_caption_and_description(smoke: Any) -> None:
    for name, notebook in smoke.items():
        for number, cell in enumerate(notebook["cells"], start=1):
            kinds = {kind for output in cell.get("outputs", ()) for kind in output.get("data", ())}
            if "image/png" in kinds:
                about = cell["metadata"].get("mystnb", {})
                assert {"figure", "image"} <= set(about), f"{name}, cell {number}"


@pytest.mark.book
def test_what_nbval_compares_is_not_empty(smoke: Any) -> None:
    for name, notebook in smoke.items():
        checked = [cell for cell in notebook["cells"] if CHECKED_TAG in tags(cell)]
        assert checked, name
        assert all(cell["outputs"] for cell in checked), name


@pytest.mark.book
def test_every_chapter_left_its_results(smoke: Any) -> None:
    for name in smoke:
        table = results.table(name, SMOKE_RUNS)
        assert tuple(table.columns) == results.COLUMNS
        assert set(table["chapter"]) <= {name}
        assert set(results.ITEM_COLUMNS) <= set(results.items(name, SMOKE_RUNS).columns)
        saved = results.load(name, SMOKE_RUNS)
        assert saved.parameters["preset"] == "smoke"
        assert saved.seconds > 0
        for suffix in results.SUFFIXES:
            assert f"{REPOSITORY}/".encode() not in (SMOKE_RUNS / f"{name}{suffix}").read_bytes()


def test_a_page_shows_the_answer_before_what_led_to_it() -> None:
    def cell(name: str, *tags: str) -> dict[str, Any]:
        return {"id": name, "metadata": {"tags": list(tags)}}

    cells = [
        cell("question"),
        cell("parameters", "parameters"),
        cell("cast", "cast"),
        cell("answer", "remove-input", "first-screen"),
        cell("figure", "first-screen"),
        cell("rest"),
    ]
    shown = [each["id"] for each in site.answer_first(cells)]
    assert shown == ["question", "answer", "figure", "parameters", "cast", "rest"]
    cells[0] |= {
        "source": "# 5. Why?\n\nIt matters. And this is more\nabout it.\n\n**Time:** long."
    }
    first, *_, rest = site.answer_first(cells)[:4]
    assert first["source"] == "# 5. Why?\n\nIt matters."
    assert rest["source"] == "And this is more\nabout it.\n\n**Time:** long."
