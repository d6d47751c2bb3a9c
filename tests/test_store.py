"""Files appear whole or not at all, prove what they are, and say so when there is no room."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disk import run_on

from kdnotes import store
from kdnotes.errors import RequestError, RunFailedError


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("old")

    def fail() -> None:
        with store.appearing(path) as scratch:
            scratch.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with store.appearing(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_file_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    """Who has the old one open reads it to its end."""
    path, other = tmp_path / "x.csv", tmp_path / "other"
    path.write_text("old and long")
    os.link(path, other)
    with path.open() as reader:
        with store.appearing(path) as scratch:
            scratch.write_text("new")
        assert reader.read() == other.read_text() == "old and long"
    assert path.read_text() == "new"


def test_a_folder_takes_the_place_of_whatever_was_there(tmp_path: Path) -> None:
    for name in ("nothing", "file", "folder", "link"):
        (tmp_path / "target").mkdir(exist_ok=True)
        path = tmp_path / name
        if name == "file":
            path.write_text("x")
        elif name == "folder":
            (path / "inner").mkdir(parents=True)
        elif name == "link":
            path.symlink_to(tmp_path / "target")
        with store.appearing_folder(path) as scratch:
            (scratch / "new").write_text("x")
        assert [each.name for each in path.iterdir()] == ["new"]
    assert list((tmp_path / "target").iterdir()) == []
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True)
def test_who_may_read_is_up_to_the_umask(umask: int, tmp_path: Path) -> None:
    with store.appearing(tmp_path / "file") as scratch:
        scratch.write_text("x")
    with store.appearing_folder(tmp_path / "folder") as scratch:
        (scratch / "inner").write_text("x")
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask
    for name in ("file", "folder/inner"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_json_without_finite_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_seal_breaks_with_every_byte(tmp_path: Path) -> None:
    text = {"a": 'it says "seal": "" here', "b": [1.5]}
    store.write_json(tmp_path / "x.json", text)
    content = (tmp_path / "x.json").read_bytes()
    assert store.is_sealed(content)
    assert text.items() < json.loads(content).items()
    for place in range(len(content)):
        for bit in (1, 32, 128):
            altered = bytearray(content)
            altered[place] ^= bit
            assert not store.is_sealed(bytes(altered)), (place, bit)
        assert not store.is_sealed(content[:place])
    assert not store.is_sealed(content + b"\n")


def test_a_checksum_is_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    # As `printf content | sha256sum` has it.
    known = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert store.checksum(path) == store.checksum(b"content") == known
    owned = {store.checksum(path, of=name) for name in ("a", "b", "")}
    assert owned == {store.checksum(b"content", of=name) for name in ("a", "b", "")}
    assert len(owned) == 3


# --- no room ----------------------------------------------------------------------------------

FILL = """
import sys
from pathlib import Path
from kdnotes import store
from kdnotes.errors import RunFailedError
place = Path(sys.argv[1])
def large(): store.write_json(place / "new.json", {"a": "x" * 1_000_000})
def folder():
    with store.appearing_folder(place / "folder") as scratch:
        (scratch / "file").write_bytes(bytes(1_000_000))
(place / "old.json").write_text("old")
(place / "table").touch()
def old():
    with store.appearing(place / "old.json") as scratch: scratch.write_bytes(bytes(1_000_000))
def inside(): store.write_at(place / "table", [(0, b"x" * 100_000), (200_000, b"x" * 1_000_000)])
for write in (large, folder, old, inside):
    try: write()
    except RunFailedError as error: print(error)
print((place / "old.json").read_text(), *sorted(path.name for path in place.iterdir()))
"""


def test_a_full_disk_is_named_and_nothing_is_left_of_the_attempt(tmp_path: Path) -> None:
    done = run_on(tmp_path / "disk", 400_000, FILL)
    assert done.stderr == ""
    *said, left = done.stdout.splitlines()
    names = ("new.json", "folder", "old.json", "table")
    disk = tmp_path / "disk"
    assert said == [f"cannot write {disk / name}: No space left on device" for name in names]
    assert left == "old old.json table"


def test_no_room_at_any_step_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path = tmp_path / "x.json"
    for step in ("touch", "write_text", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, lambda *_, **__: (_ for _ in ()).throw(full))
            with pytest.raises(RunFailedError, match=r"cannot write .*x\.json: No space left"):
                store.write_json(path, {"a": 1})
        assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_to_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RequestError, match=r"^cannot write to folder '.*file/x': Not a directory; "
    ):
        store.make_folder(tmp_path / "file" / "x", "folder", "name another one")
