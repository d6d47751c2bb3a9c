"""The command line on a small real book: what it makes, what it refuses, and how it stops."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_book
from asked import study_of
from tiny_book import SAVE_TAU, chapter, code, files_under, kdnotes

from kdnotes import store
from kdnotes.book import results, running
from kdnotes.book.parameters import SHARED

CAST_CELL = code(tiny_book.CAST, tags=["cast"])
FAILING = "value = 1\nraise ValueError(f'value was {value}')"
SLEEPING = "import time\ntime.sleep(120)"


@pytest.fixture
def make_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a book of one chapter that needs no networks, and use it."""
    return partial(tiny_book.use, tmp_path, monkeypatch)


# --- what is right --------------------------------------------------------------------------


def test_help_is_quick_and_shows_an_example_of_each_command() -> None:
    started = time.process_time()
    loaded = subprocess.run(
        [sys.executable, "-c", "import kdnotes.cli, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert time.process_time() - started < 5
    assert not {"torch", "pandas", "numpy", "papermill", "rich", "nbformat"} & set(loaded)
    commands = ("list", "run", "build", "sweep", "audit", "show", "compare")
    caches = ("list", "verify", "clear", "export", "import")
    for words in [(name,) for name in commands] + [("cache", name) for name in caches]:
        shown = kdnotes(*words, "--help")
        assert shown.exit_code == 0
        assert f"  kdnotes {' '.join(words)}" in shown.stdout


def test_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {f"0{number}-{name}": chapter(name) for number, name in enumerate(("a", "b", "c"))}
    cells["scorecard"] = chapter("scorecard")
    for name, source in (
        ("00-a", SHARED),
        ("02-c", tiny_book.PARAMETERS + 'own: int = 1  # "its" (1 to 9)'),
    ):
        cells[name][1]["source"] = source
    monkeypatch.setenv("KDNOTES_BOOK", str(tiny_book.make(tmp_path, cells)))
    shown = kdnotes("list")
    assert shown.exit_code == 0
    shared, *each = shown.stdout.strip().split("\n\n")
    assert re.search(r"seeds +int \| None +None +students of each kind", shared)
    assert len(shared.splitlines()) == 1 + len(SHARED.splitlines())
    assert each[0] == "a: Does the student a?"
    title, *different, _, own = each[2].splitlines()
    assert title == "c: Does the student c?"
    assert [line.split()[0] for line in different] == ["preset", "methods", "tau", "device"]
    assert re.fullmatch(r'  own +int +1 +"its" \(1 to 9\)', own)
    alone = kdnotes("list", "c").stdout
    assert alone.startswith("c: Does the student c?\n")
    assert len(alone.splitlines()) == 2 + len(tiny_book.PARAMETERS.splitlines())
    assert "did you mean 'scorecard'" in kdnotes("list", "scorecar").stderr


def test_list_for_machines(make_book: Any) -> None:
    make_book()
    (described,) = json.loads(kdnotes("list", "--json").stdout)
    assert described["chapter"] == "scorecard"
    assert described["file"] == "book/scorecard.ipynb"
    by_name = {each["name"]: each for each in described["parameters"]}
    assert by_name["tau"] == {
        "name": "tau",
        "type": "float | None",
        "default": 4.0,
        "meaning": "temperature of the soft labels (0.1 to 1000)",
        "allowed": "0.1 to 1000",
    }


def test_run_then_show(make_book: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_book(tiny_book.figure("a"))
    template = (root / "book" / "scorecard.ipynb").read_text()
    monkeypatch.setenv("MPLBACKEND", "agg")  # as scripts set it: no figure would be shown
    (tmp_path / "data").mkdir()
    data = tmp_path / "data"
    done = kdnotes("run", "scorecard", "-p", "tau=1e-1", "-p", f"data_dir={data}", "--out", "out")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    out = tmp_path / "out"
    files = ["csv", "ipynb", "items.parquet", "json"]
    assert files_under(out) == [f"scorecard.{suffix}" for suffix in files]
    assert results.table("scorecard", out)["value"].tolist() == [0.1]
    assert results.load("scorecard", out).parameters == {"preset": "smoke", "tau": 0.1}
    assert (root / "book" / "scorecard.ipynb").read_text() == template
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    notebook = json.loads((out / "scorecard.ipynb").read_text())
    injected = [
        cell
        for cell in notebook["cells"]
        if "injected-parameters" in cell["metadata"].get("tags", ())
    ]
    assert "".join(injected[0]["source"]) == '# Parameters\ntau = 0.1\ndata_dir = "data"\n'
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert outputs[-1]["text"] == ["1 False\n"]

    shown = kdnotes("show", "out")
    assert shown.exit_code == 0
    for expected in (
        r"scorecard \(2 s\)",
        r"tau 0\.1, preset 4",
        r"warm +agrees +\.10 \[\.00, 9\.00\] +tau",
        r"tau +kl +\.10 +1",
    ):
        assert re.search(expected, shown.stdout), expected


def test_dry_run_names_networks_by_arm_and_writes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    root = tiny_book.make(tmp_path / "book", {"02-fidelity": chapter("fidelity", CAST_CELL)})
    monkeypatch.setenv("KDNOTES_BOOK", str(root))
    before = files_under(tmp_path)
    shown = kdnotes("run", "fidelity", "-p", "seeds=3", "--dry-run", "--out", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    for line in (r"teacher +1 +1", r"independent +3 +3", r"kl +3 +3", r"about [\d.]+ minutes"):
        assert re.search(rf"^{line}", shown.stdout, re.MULTILINE), line
    assert not re.search(r"^(hint|crd) ", shown.stdout, re.MULTILINE)
    assert files_under(tmp_path) == before


# --- what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run scorcard", "unknown chapter 'scorcard' (did you mean 'scorecard'?)"),
        ("run", "Missing argument 'CHAPTER'"),
        ("run scorecard --bogus", "No such option"),
        ("run scorecard -p seeds", "-p 'seeds' must be NAME=VALUE"),
        ("run scorecard -p seeds=abc", "parameter 'seeds' must be a whole number"),
        ("run scorecard -p seeds=0", "parameter 'seeds' must be a whole number (1 to 1000)"),
        ("run scorecard -p tau=-1", "parameter 'tau' must be a number (0.1 to 1000)"),
        ("run scorecard -p size=10", "parameter 'size' must be a whole number (1 to 9)"),
        ("run scorecard -p tua=1", "no parameter 'tua' (did you mean 'tau'?)"),
        ("run scorecard -p methods=kl,hnt", "unknown method 'hnt' (did you mean 'hint'?)"),
        ("run scorecard -p dataset=digit", "unknown data set 'digit'"),
        ("run scorecard -p dataset=imagefolder:none", "no folder 'none'"),
        ("run scorecard -p data_dir=nowhere", "no folder 'nowhere'"),
        ("run scorecard -p teacher=vgg-huge", "unknown model 'vgg-huge'"),
        ("run scorecard -p device=tpu", "parameter 'device' must be cpu, cuda or cuda:all"),
        ("run scorecard --preset tiny", "'preset' must be smoke, laptop, published or paper"),
        ("run scorecard --preset smoke -p preset=full", "two presets: "),
        ("run scorecard --out FILE", "cannot write to output folder"),
        ("run scorecard --out /proc/none", "cannot write to output folder"),
        ("build --only scorecard,nothing", "unknown chapter 'nothing'"),
        ("build --preset tiny", "'preset' must be smoke, laptop, published or paper"),
        ("build --edition teacher", "'teacher' is not one of"),
        ("build --jobs 0", "Invalid value for '--jobs'"),
        ("build --out FILE/x", "cannot write to output folder"),
        ("sweep scorecard --out new", "Missing option '--grid'"),
        ("sweep scorecard --grid tau=1", "Missing option '--out'"),
        ("sweep scorecard --grid tau --out new", "--grid 'tau' must be NAME=VALUE"),
        ("sweep scorecard --grid tau=, --out new", "--grid tau has no value"),
        ("sweep scorecard --grid tau=1,1 --out new", "names a value twice"),
        ("sweep scorecard --grid tau=1,-1 --out new", "'tau' must be a number (0.1 to 1000)"),
        ("sweep scorecard --grid tau=1 -p tau=2 --out new", "'tau' is both in --grid and in -p"),
        ("sweep scorecard --grid tau=1 --out new --scheduler nowhere", "'nowhere'"),
        ("show none", "no folder 'none'"),
        ("show .", "no results in '.'"),
        ("cache import none.tar", "none.tar"),
        ("cache import FILE", "FILE"),
        ("cache export new.tar", "nothing to export"),
    ],
)
def test_a_wrong_request_is_named_and_nothing_is_run_or_written(
    make_book: Any, tmp_path: Path, arguments: str, message: str
) -> None:
    make_book()
    (tmp_path / "FILE").write_text("")
    before = files_under(tmp_path)
    done = kdnotes(*arguments.split())
    assert done.exit_code == 2, done.output
    assert message in done.stderr.replace("\n", " ")
    assert done.stdout == ""
    left = [path for path in files_under(tmp_path) if not path.startswith("cache")]
    assert left == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("lst", "No such command 'lst'"),
        ("run scorcard", "did you mean 'scorecard'?"),
        ("run scorecard -p tua=1", "did you mean 'tau'?"),
        ("run scorecard --prset smoke", "No such option: --prset"),
        ("build --only scorcard", "did you mean 'scorecard'?"),
        ("sweep scorecard --grid tua=1 --out new", "did you mean 'tau'?"),
    ],
)
def test_a_typo_is_answered_at_once(make_book: Any, arguments: str, said: str) -> None:
    make_book()
    loaded = "import atexit, sys; atexit.register(lambda: print(*sys.modules))\n"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"{loaded}from kdnotes.cli import main; main()", *arguments.split()],
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 2 * (os.getloadavg()[0] + 1)
    assert done.returncode == 2
    assert said in done.stderr
    heavy = {"torch", "torchvision", "timm", "pandas", "papermill", "matplotlib", "rich"}
    assert not heavy & set(done.stdout.split())


def test_a_cell_that_cannot_declare_its_casts_is_named(make_book: Any, tmp_path: Path) -> None:
    make_book(code("plan = study.plan('a')", tags=["cast"]))
    done = kdnotes("run", "scorecard", "--dry-run")
    assert done.exit_code == 2
    said = done.stderr.replace("\n", " ")
    assert "chapter 'scorecard', cell 3, which declares its casts, failed" in said
    assert "(plan = study.plan('a')): TypeError" in said
    assert kdnotes("list").exit_code == 0  # which executes nothing


def test_without_a_book_the_way_out_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("KDNOTES_BOOK", str(tmp_path))
    done = kdnotes("list")
    assert done.exit_code == 2
    assert "KDNOTES_BOOK" in done.stderr


# --- what fails -----------------------------------------------------------------------------


def test_a_failing_chapter_names_its_cell_and_keeps_what_it_did(
    make_book: Any, tmp_path: Path
) -> None:
    make_book(code("print('done', 'before')"), code(FAILING))
    out = tmp_path / "out"
    done = kdnotes("run", "scorecard", "--out", out)
    assert done.exit_code == 1
    assert "scorecard failed in cell 4 (value = 1): ValueError: value was 1" in done.stderr
    partial = out / "scorecard.partial.ipynb"
    assert str(partial) in done.stderr
    assert files_under(out) == [partial.name]
    assert "done before" in partial.read_text()
    # Mended, it runs, and nothing is left of the failure.
    tiny_book.write(
        Path(os.environ["KDNOTES_BOOK"]) / "book" / "scorecard.ipynb",
        chapter("scorecard", save=SAVE_TAU),
    )
    assert kdnotes("run", "scorecard", "--out", out).exit_code == 0
    assert not partial.exists()


def test_a_dead_kernel_and_a_chapter_that_saves_nothing_are_failures(
    make_book: Any, tmp_path: Path
) -> None:
    root = make_book(code("import os\nos._exit(3)"))
    died = kdnotes("run", "scorecard", "--out", "out")
    assert died.exit_code == 1
    assert "DeadKernelError" in died.stderr
    tiny_book.write(root / "book" / "scorecard.ipynb", chapter("scorecard", save="pass"))
    unsaved = kdnotes("run", "scorecard", "--out", "out")
    assert unsaved.exit_code == 1
    assert "without saving scorecard.csv, scorecard.items.parquet, scorecard.json" in unsaved.stderr
    assert files_under(tmp_path / "out") == ["scorecard.partial.ipynb"]


def test_a_chapter_can_say_that_the_request_is_wrong(make_book: Any, tmp_path: Path) -> None:
    make_book(code("from kdnotes.errors import RequestError\nraise RequestError('no such thing')"))
    done = kdnotes("run", "scorecard", "--out", "out")
    assert done.exit_code == 2
    assert done.stderr == "kdnotes: no such thing\n"
    assert files_under(tmp_path / "out") == []


def started(out: Path, stopped_by: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A run that waits in its second cell, and the processes that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdnotes.cli", "run", "scorecard", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a script ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(stopped_by, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not any("done before" in path.read_text() for path in out.glob(".*.ipynb")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family  # the kernel
    return process, family


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_process_and_keeps_the_partial_notebook(
    make_book: Any, tmp_path: Path, number: int
) -> None:
    make_book(code("print('done', 'before')"), code(SLEEPING))
    out = tmp_path / "out"
    process, family = started(out, number)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.startswith("kdnotes: stopped; ")
    assert len(said.splitlines()) == 1
    assert files_under(out) == ["scorecard.partial.ipynb"]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_what_a_killed_run_leaves_goes_with_the_next(
    make_book: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_book(code("print('done', 'before')"), code(SLEEPING))
    temporary, out = tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process, family = started(out, signal.SIGINT)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []  # the kernel misses its parent
    assert len(files_under(out)) == 1
    assert any(name.endswith(".json") for name in files_under(temporary))  # the kernel's file
    own, others = f".writing-a.{store.writer()}-0", ".writing-b.elsewhere-1-0"
    (out / f".writing-c.{platform.node()}-{process.pid}-0").mkdir()
    for name in (own, others, ".mine.ipynb"):
        (out / name).touch()
    os.utime(out / ".mine.ipynb", (0, 0))
    tiny_book.write(root / "book" / "scorecard.ipynb", chapter("scorecard", save=SAVE_TAU))
    command = [sys.executable, "-m", "kdnotes.cli", "run", "scorecard", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    kept = [name for name in files_under(out) if name.startswith(".")]
    assert kept == sorted([own, others, ".mine.ipynb"])  # who wrote these may still be there
    assert files_under(temporary) == []


def test_a_run_that_shall_outlive_its_terminal_does() -> None:
    source = (
        "import signal\n"
        "from kdnotes import cli\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n"
        "cli.app = lambda: print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout == "True\n"


# --- keys -----------------------------------------------------------------------------------


def test_the_key_changes_with_everything_that_matters(make_book: Any, tmp_path: Path) -> None:
    root = make_book(code("pass", tags=["reads-results"]))

    def key(**given: str) -> str:
        return running.key(
            running.Run(running.request(running.chapter("scorecard"), given), tmp_path)
        )

    first = key()
    assert key() == first
    assert key(tau="4.0") == first  # the default
    assert key(tau="5") != first
    (root / "results" / "published.json").write_text("{}")
    second = key()
    assert second != first
    (tmp_path / "fidelity.json").write_text("{}")  # which a scorecard reads
    third = key()
    assert third != second
    tiny_book.write(root / "book" / "scorecard.ipynb", chapter("scorecard", code("1")))
    assert key() not in (first, second, third)
    # Images in files may change without a trace.
    (tmp_path / "data").mkdir()
    assert key(data_dir=str(tmp_path / "data")) == ""


# --- the cache ------------------------------------------------------------------------------


def test_cache_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdnotes import networks
    from kdnotes.training import cache

    item = study_of("fidelity", preset="smoke", seeds=1, methods="kl").networks[0]
    network = networks.build(item.spec.model, item.spec.num_classes, seed=0)
    cache.save(item, network, [], 3.0)
    listed = kdnotes("cache", "list")
    assert listed.exit_code == 0
    assert re.search(rf"{item.spec.key}  teacher  vgg-medium +seed 100  .* MB  3 s", listed.stdout)
    archive = tmp_path / "networks.tar"
    assert kdnotes("cache", "export", archive).stdout.startswith("1 networks in")
    assert kdnotes("cache", "verify").stdout == "1 networks are sound\n"
    weights = cache.folder_of(item.spec) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = kdnotes("cache", "verify")
    assert damaged.exit_code == 1
    assert item.spec.key in damaged.stderr
    assert kdnotes("cache", "clear").stdout.startswith("freed ")
    assert cache.entries() == []
    assert kdnotes("cache", "import", archive).stdout == "1 networks were new\n"
    assert kdnotes("cache", "import", archive).stdout == "0 networks were new\n"
    assert kdnotes("cache", "export", "/proc/none/x.tar").exit_code == 2
