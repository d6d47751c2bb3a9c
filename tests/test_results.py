"""Saved results are complete or absent, read back as they were, and name no place."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_book
from full_disk import run_on
from tiny_book import SAVE_TAU, chapter, code, files_under, kdnotes

from kdnotes import paths
from kdnotes.book import results, running, site
from kdnotes.errors import RequestError
from kdnotes.probes.base import Outcome
from kdnotes.stats import claims

CLAIM: dict[str, Any] = {
    "id": "one",
    "measure": "agreement",
    "estimate": np.float64(0.5),
    "low": float("nan"),
    "high": 0.6,
    "criterion": "above 0",
    "verdict": "open",
    "paper": None,
}


def outcome() -> Outcome:
    table = pd.DataFrame(
        {
            "arm": ["teacher", "kl", "kl"],
            "seed": [0, 0, 1],
            "condition": ["", "", "eps=4/255"],
            "measure": ["accuracy", "accuracy", "fooling_rate"],
            "value": [1 / 3, 0.25, float("nan")],
        }
    )
    items = pd.DataFrame(
        {
            "item": np.arange(4, dtype=np.int32),
            "source": np.array([9, 9, 8, 8]),
            "arm": pd.Categorical(["kl"] * 4),
            "seed": [0] * 4,
            "condition": pd.Categorical([""] * 4),
            "prediction": np.array([1, 2, 3, 4], np.int16),
            "measure": pd.Categorical(["accuracy"] * 4),
            "value": np.array([0, 1, 0, np.nan], np.float32),
        }
    )
    return Outcome(table, items)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDNOTES_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def test_what_is_saved_is_read_back(out: Path) -> None:
    saved = outcome()
    results.save("fidelity", saved, [CLAIM], {"tau": 4.0, "seeds": (0, 1)}, 1.234)
    assert sorted(path.name for path in out.iterdir()) == [
        "fidelity.csv",
        "fidelity.items.parquet",
        "fidelity.json",
    ]
    table = results.table("fidelity")
    assert tuple(table.columns) == results.COLUMNS
    assert (table.pop("chapter") == "fidelity").all()
    # The empty condition is a text, not a missing value.
    pd.testing.assert_frame_equal(table, saved.table, check_dtype=False, rtol=1e-7)
    items = results.items("fidelity")
    pd.testing.assert_frame_equal(items, saved.items, check_categorical=False)
    assert items["prediction"].dtype == np.int16
    loaded = results.load("fidelity")
    assert loaded.claims == [CLAIM | {"estimate": 0.5, "low": None}]
    assert loaded.parameters == {"tau": 4.0, "seeds": [0, 1]}
    assert loaded.seconds == 1.23
    assert loaded.versions["numpy"] == np.__version__
    assert f"{os.cpu_count()} cores" in loaded.hardware
    assert loaded.training_seconds is None


def test_results_of_an_earlier_version_are_read(out: Path) -> None:
    results.save("a", outcome(), [CLAIM], {}, 1)
    content = json.loads((out / "a.json").read_text())
    for name in ("hardware", "training_seconds", "primaries", "files", "seal"):
        del content[name]
    (out / "a.json").write_text(json.dumps(content))
    assert results.load("a").training_seconds is None
    del content["seconds"]
    (out / "a.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"is not the result of a chapter: seconds: Field"):
        results.load("a")
    content |= {"seconds": 1}
    wrong = {"estimate": "much", "verdict": 3, "low": []}
    for broken in ({"claims": [CLAIM | {key: value}]} for key, value in wrong.items()):
        (out / "a.json").write_text(json.dumps(content | broken))
        with pytest.raises(RequestError, match="claim 'one' has"):
            results.load("a")
    (out / "a.json").write_text(json.dumps(content))
    for text in ("", "a,b\n1", "chapter,value\na,much", "\0"):
        (out / "a.csv").write_text(text)
        with pytest.raises(RequestError, match=r"a\.csv is damaged"):
            results.table("a")
    (out / "a.items.parquet").write_bytes(b"PAR1")
    with pytest.raises(RequestError, match=r"a\.items\.parquet is damaged"):
        results.items("a")


def test_the_json_is_strict(out: Path) -> None:
    results.save("a", outcome(), [CLAIM], {"deep": {"x": [float("inf")]}}, 0)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (out / "a.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert list(content) == list(results.Saved.model_fields)
    assert content["parameters"] == {"deep": {"x": [None]}}


def test_a_chapter_that_measures_nothing_has_empty_tables(out: Path) -> None:
    results.save("b", outcome(), [CLAIM, CLAIM | {"id": "two"}], {}, 0)
    results.save("a", None, [CLAIM | {"id": "three"}], {}, 0)
    assert results.chapters() == ["a", "b"]
    assert tuple(results.table("a").columns) == results.COLUMNS
    assert tuple(results.items("a").columns) == results.ITEM_COLUMNS


def test_a_claim_is_read_back_as_it_was_found(out: Path) -> None:
    known = claims.load("fidelity")
    found = claims.evaluate(known, outcome())
    results.save("fidelity", outcome(), found, {}, 0)
    assert results.load("fidelity").claims == found
    assert set(results.CLAIM_KEYS) < set(found[0])


def test_versions_are_of_packages_that_the_code_uses() -> None:
    imported = set()
    for path in (Path(__file__).resolve().parents[1] / "kdnotes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    called = {"scikit-learn": "sklearn", "lightning-fabric": "lightning_fabric"}
    named = {called.get(name, name) for name in results.PACKAGES}
    assert named <= imported
    computing = {"torch", "torchvision", "timm", "lightning_fabric", "foolbox", "torchmetrics"}
    computing |= {"captum", "kornia", "numpy", "scipy", "pandas", "sklearn"}
    assert imported & computing <= named


def test_incomplete_claims_and_tables_are_refused_and_nothing_is_written(out: Path) -> None:
    short = {key: value for key, value in CLAIM.items() if key != "verdict"}
    with pytest.raises(ValueError, match="claim 'one' lacks verdict"):
        results.save("a", outcome(), [short], {}, 0)
    bad = Outcome(outcome().table.drop(columns="seed"), outcome().items)
    with pytest.raises(KeyError, match="seed"):
        results.save("a", bad, [CLAIM], {}, 0)
    assert not out.exists()


def test_no_absolute_path_is_written(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    monkeypatch.setenv("KDNOTES_BASE", str(base))
    home = Path.home()
    given = {
        "data_dir": str(tmp_path / "data"),
        "folder": tmp_path / "data",
        "dataset": f"imagefolder:{tmp_path}/photos",
        "teacher": "resnet18:~/weights.pt",
        "names": ["relative/path", "https://example.org/x", "vgg-small", "~67.2"],
    }
    results.save("a", None, [], given, 0)
    assert not re.search('["/:]/[a-z]', (out / "a.json").read_text().replace("https://", ""))
    read = results.load("a").parameters
    assert read["data_dir"] == read["folder"] == "../data"
    assert read["dataset"] == "imagefolder:../photos"
    prefix, _, weights = read["teacher"].partition(":")
    assert prefix == "resnet18"
    assert (base / weights).resolve() == (home / "weights.pt").resolve()
    assert read["names"] == given["names"]


def test_damaged_or_missing_results_are_named(out: Path) -> None:
    out.mkdir()
    for read in (results.load, results.table, results.items):
        with pytest.raises(RequestError, match="there is no"):
            read("a")
    (out / "a.json").write_text('{"chapter": "a"')
    with pytest.raises(RequestError, match=r"a\.json is not the result of a chapter"):
        results.load("a")
    (out / "a.json").write_text("[]")
    with pytest.raises(RequestError, match=r"a\.json is not the result of a chapter"):
        results.load("a")


def test_by_hand_results_go_into_the_build_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDNOTES_OUT", raising=False)
    monkeypatch.delenv("KDNOTES_BOOK", raising=False)
    repository = Path(__file__).resolve().parents[1]
    assert results.folder() == repository / "_build" / "runs" / "by-hand"
    assert paths.root() == repository
    assert os.access(repository / "_toc.yml", os.R_OK)


# --- results that prove themselves --------------------------------------------------------------

READERS = {".json": results.load, ".csv": results.table, ".items.parquet": results.items}
FILES = ("scorecard.csv", "scorecard.ipynb", "scorecard.items.parquet", "scorecard.json")


def damaged(content: bytes) -> Iterator[bytes]:
    """What is left of a file after this and that."""
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content + b"\n"
    yield b"[]"
    yield b"{}"
    for share in range(1, 20):
        place = share * len(content) // 20
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_no_altered_result_is_read(out: Path) -> None:
    results.save("a", outcome(), [CLAIM], {"tau": 4.0}, 1.5)
    results.save("b", outcome(), [CLAIM], {"tau": 5.0}, 1.5)
    for suffix, read in READERS.items():
        path = out / f"a{suffix}"
        whole = path.read_bytes()
        for content in (*damaged(whole), (out / f"b{suffix}").read_bytes()):
            if content == whole:  # the two chapters have the same items
                continue
            path.write_bytes(content)
            with pytest.raises(RequestError, match=re.escape(str(path))):
                read("a")
        path.write_bytes(whole)
        read("a")
    (out / "a.csv").unlink()
    with pytest.raises(RequestError, match="there is no"):
        results.table("a")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> running.Run:
    """A chapter that was run into the folder "out"."""
    tiny_book.use(tmp_path, monkeypatch, tiny_book.figure("main"))
    done = kdnotes("run", "scorecard", "-p", "tau=2", "--out", "out")
    assert done.exit_code == 0, done.output
    request = running.request(running.chapter("scorecard"), {"tau": "2"})
    return running.Run(request, tmp_path / "out")


def test_a_run_is_reused_while_every_file_is_what_it_was(ran: running.Run) -> None:
    (reused,), _ = running.split([ran])
    assert reused.reused
    assert sorted(path.name for path in ran.folder.iterdir()) == list(FILES)
    for name in FILES:
        path = ran.folder / name
        whole = path.read_bytes()
        for content in damaged(whole):
            path.write_bytes(content)
            assert running.split([ran]) == ([], [ran]), name
            with pytest.raises(RequestError, match=re.escape(str(path))):
                running.stamp(ran.notebook)
        path.unlink()
        assert running.split([ran]) == ([], [ran]), name
        path.write_bytes(whole)
    assert running.split([ran])[0] == [reused]


def test_damaged_results_are_shown_by_nobody(ran: running.Run) -> None:
    shown = kdnotes("show", "out")
    assert shown.exit_code == 0
    for name in ("scorecard.csv", "scorecard.json"):
        path = ran.folder / name
        whole = path.read_bytes()
        for content in damaged(whole):
            path.write_bytes(content)
            refused = kdnotes("show", "out")
            assert refused.exit_code == 2, (name, content, refused.output)
            assert refused.stdout == ""
            assert f"out/{name} " in refused.stderr
        path.write_bytes(whole)
    assert kdnotes("show", "out").stdout == shown.stdout


def test_a_sweep_runs_a_damaged_point_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_book.use(tmp_path, monkeypatch)
    sweep_it = ("sweep", "scorecard", "--grid", "tau=1,2", "--out", "out")
    assert kdnotes(*sweep_it).exit_code == 0
    path = tmp_path / "out" / "tau=2" / "scorecard.csv"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"2", b"3"))
    again = kdnotes(*sweep_it)
    assert again.exit_code == 0, again.output
    assert "scorecard tau=1: " in again.stdout
    assert again.stdout.count("not executed again") == 1
    assert path.read_bytes() == whole


def test_damaged_results_are_not_published(ran: running.Run, tmp_path: Path) -> None:
    runs = paths.root() / "_build" / "runs" / "smoke"
    shutil.copytree(ran.folder, runs)
    published = paths.root() / "results" / "smoke"
    for name in FILES:
        whole = (runs / name).read_bytes()
        (runs / name).write_bytes(whole[:-1] + b" ")
        with pytest.raises(RequestError, match=re.escape(str(runs / name))):
            site.publish_results("smoke")
        assert not published.exists()
        (runs / name).write_bytes(whole)
    (runs / "scorecard.csv").write_text("")
    environment = os.environ | {"KDNOTES_BOOK": str(paths.root())}
    command = [sys.executable, "-m", "kdnotes.book.site", "smoke"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"kdnotes: {runs / 'scorecard.csv'} is damaged: it is not what was saved; run the chapter "
        "again\n"
    )
    shutil.rmtree(runs)
    shutil.copytree(ran.folder, runs)
    assert len(site.publish_results("smoke")) == 2


def test_a_chapter_left_out_of_a_build_is_refused_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would appear with its last run, or silently without it."""
    cells = {name: chapter(name, tiny_book.figure(name)) for name in ("01-a", "scorecard")}
    cells["01-a"][-1] = code(tiny_book.SAVE_NOTHING.format(name="a"))
    monkeypatch.setenv("KDNOTES_BOOK", str(tiny_book.make(tmp_path / "book", cells)))
    runs = tmp_path / "out" / "runs" / "smoke"
    runs.mkdir(parents=True)
    ran = kdnotes("run", "a", "--preset", "smoke", "--out", runs)
    assert ran.exit_code == 0, ran.output
    (runs / "a.csv").write_text("altered")
    only = ("build", "--preset", "smoke", "--only", "scorecard", "--out", tmp_path / "out")
    refused = kdnotes(*only)
    assert refused.exit_code == 2
    assert f"{runs / 'a.csv'} is damaged" in refused.stderr
    assert not (tmp_path / "out" / "html").exists()
    assert not (runs / "scorecard.csv").exists()


# --- runs that do not finish --------------------------------------------------------------------

FAILING = "raise ValueError('no')"
REFUSING = "from kdnotes.errors import RequestError\nraise RequestError('no such thing')"


def rewrite(*cells: Any, last: Any = None) -> None:
    """Put these cells before what the chapter saves, and one after it."""
    whole = chapter("scorecard", *cells, save=SAVE_TAU)
    tiny_book.write(paths.root() / "book" / "scorecard.ipynb", [*whole, *([last] if last else [])])


@pytest.mark.parametrize("saved", [True, False])
def test_a_failed_run_leaves_nothing_that_passes_for_its_result(
    ran: running.Run, saved: bool
) -> None:
    rewrite(*([] if saved else [code(FAILING)]), last=code(FAILING))
    failed = kdnotes("run", "scorecard", "-p", "tau=3", "--out", "out")
    assert failed.exit_code == 1
    assert files_under(ran.folder) == ["scorecard.partial.ipynb"]
    assert kdnotes("show", "out").exit_code == 2


def test_a_refused_run_leaves_older_results_unless_it_has_touched_them(ran: running.Run) -> None:
    before = {path: path.read_bytes() for path in ran.folder.iterdir()}
    rewrite(code(REFUSING))
    assert kdnotes("run", "scorecard", "-p", "tau=3", "--out", "out").exit_code == 2
    assert {path: path.read_bytes() for path in ran.folder.iterdir()} == before
    rewrite(last=code(REFUSING))
    assert kdnotes("run", "scorecard", "-p", "tau=3", "--out", "out").exit_code == 2
    assert files_under(ran.folder) == []


def test_results_are_replaced_and_never_written_over(ran: running.Run, tmp_path: Path) -> None:
    """Whoever reads or has linked an older result keeps it as it was."""
    (tmp_path / "kept").mkdir()
    before = {name: (ran.folder / name).read_bytes() for name in FILES}
    for name in FILES:
        os.link(ran.folder / name, tmp_path / "kept" / name)
    assert kdnotes("run", "scorecard", "-p", "tau=3", "--out", "out").exit_code == 0
    for name in FILES:
        assert (tmp_path / "kept" / name).read_bytes() == before[name]
        if "parquet" not in name:  # there are no items
            assert (ran.folder / name).read_bytes() != before[name]
        assert not (ran.folder / name).samefile(tmp_path / "kept" / name)
    assert sorted(path.name for path in ran.folder.iterdir()) == list(FILES)


def test_an_output_folder_that_is_deleted_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = code("import os, shutil\nshutil.rmtree(os.environ['KDNOTES_OUT'])")
    tiny_book.use(tmp_path, monkeypatch)
    for cells, last in (((delete,), code(FAILING)), ((), delete)):
        rewrite(*cells, last=last)
        failed = kdnotes("run", "scorecard", "--out", "out")
        assert failed.exit_code == 1, failed.output
        assert "Traceback" not in failed.output
        assert f"its output folder {tmp_path / 'out'} is not there any more" in failed.stderr
        assert not (tmp_path / "out").exists()


ON_A_FULL_DISK = """
import os, sys
from pathlib import Path
place = Path(sys.argv[1])
os.environ["KDNOTES_BOOK"] = sys.argv[2]
from tiny_book import kdnotes
status = os.statvfs(place)
done = kdnotes("run", "scorecard", "--out", place / "out")
print(done.exit_code, *sorted(path.name for path in (place / "out").iterdir()))
print(done.stderr)
"""


@pytest.mark.parametrize(
    ("lines", "file"), [(4_000_000, r"\.scorecard\.\S+\.ipynb"), (0, r"scorecard\.csv")]
)
def test_a_full_disk_is_named_and_no_result_is_half_written(
    lines: int, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = code(f"import os\nprint('x' * {lines})\nmuch = ' ' * {0 if lines else 4_000_000}")
    large = SAVE_TAU.replace('condition=""', "condition=much")
    root = tiny_book.use(tmp_path, monkeypatch, many, save=large)
    done = run_on(tmp_path / "disk", 1_000_000, ON_A_FULL_DISK, root)
    exited, *said = done.stdout.splitlines()
    assert exited.split()[0] == "1", done.stderr
    assert set(exited.split()[1:]) <= {"scorecard.partial.ipynb"}
    place = re.escape(str(tmp_path / "disk" / "out"))
    assert re.search(rf"{place}/{file}.*No space left on device", "\n".join(said))
    assert "Traceback" not in done.stderr


# --- the stamp ----------------------------------------------------------------------------------


def test_the_stamp_changes_with_the_packages_own_sources(
    ran: running.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(running.__file__).parents[1]
    copy = tmp_path / "kdnotes"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(running, "__file__", str(copy / "book" / "running.py"))
    assert running.split([ran])[1] == []  # the same sources elsewhere
    sources = ["cli.py", "probes/fidelity.py", "data/sources/scenes.py", "training/loop.py"]
    for name in sources:
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"# changed\n")
        assert running.split([ran]) == ([], [ran]), name
        path.write_bytes(whole)
    (copy / "probes" / "new.py").write_text("")
    assert running.split([ran]) == ([], [ran])
