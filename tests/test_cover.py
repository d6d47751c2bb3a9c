"""The cover is drawn from the published runs, is up to date, and says what they say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from kdnotes.book import cover, results
from kdnotes.figures import looks
from kdnotes.stats.words import how_much

REPOSITORY = Path(__file__).resolve().parents[1]
LAPTOP = REPOSITORY / "results" / "laptop"
SCENES = REPOSITORY / "results" / "published" / "scenes"


@pytest.fixture(scope="module")
def drawn() -> cover.Cover:
    found = cover.read()
    assert found is not None
    return found


def test_the_pictures_and_the_readme_are_those_of_the_published_runs(
    drawn: cover.Cover, tmp_path: Path
) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    again = "run python -m kdnotes.book.cover"
    assert cover.readme(text, drawn) == text, again
    for path in cover.draw(drawn, tmp_path):
        assert path.read_bytes() == (REPOSITORY / "results" / path.name).read_bytes(), again


def test_every_row_of_the_file_is_measured_and_ends_the_sentence(drawn: cover.Cover) -> None:
    assert 10 <= len(drawn.rows) <= 13
    for row in drawn.rows:
        assert row.sentence[0].islower()
        assert not row.sentence.endswith(".")
        assert len(row.sentence) <= 38
    assert list(drawn.arms) == ["kl", "hint", "crd"]


def test_a_row_has_the_share_that_its_table_has(drawn: cover.Cover) -> None:
    table = pd.read_csv(SCENES / "bias.csv", keep_default_na=False, na_values={"value": [""]})
    values = table[(table["measure"] == "deficit") & (table["condition"] == "")]
    mean = values.groupby("arm")["value"].mean()
    gap = mean["teacher"] - mean["independent"]
    row = next(each for each in drawn.rows if each.world == "groups")
    for arm in drawn.arms:
        share = (mean[arm] - mean["independent"]) / gap
        assert row.methods[arm]["estimate"] == pytest.approx(share, abs=1e-6)
        low, high = row.methods[arm]["low"], row.methods[arm]["high"]
        assert row.methods[arm]["word"] == how_much(low, high)


def test_marks_lie_where_the_shares_are_and_are_hollow_where_nobody_can_tell(
    drawn: cover.Cover,
) -> None:
    for narrow in (False, True):
        axis = drawn.picture(narrow).axes[0]
        for arm in drawn.arms:
            marks = [line for line in axis.lines if line.get_gid() == arm]
            rows = [row.methods[arm] for row in drawn.rows if row.methods[arm]["share"]]
            assert len(marks) == len(rows)
            places = [float(mark.get_xdata()[0]) for mark in marks]
            shares = [row["estimate"] for row in rows]
            assert _in_line(places, shares)
            hollow = [mark.get_markerfacecolor() == "white" for mark in marks]
            assert hollow == [row["word"] == "cannot tell" for row in rows]
            assert {mark.get_marker() for mark in marks} == {looks.of(arm).marker}


def _in_line(places: list[float], shares: list[float]) -> bool:
    slopes = [(places[n] - places[0]) / (shares[n] - shares[0]) for n in range(1, len(places))]
    return max(slopes) - min(slopes) < 1e-6 * max(slopes)


def test_no_text_leaves_the_picture_and_all_of_it_is_legible(drawn: cover.Cover) -> None:
    # At 800 pixels and at 390, a letter is that many pixels high or more.
    for narrow, shown, least in ((False, 800, 6.5), (True, 390, 8.0)):
        figure = drawn.picture(narrow)
        width, height = figure.get_size_inches() * 100
        figure.canvas.draw()
        for text in figure.axes[0].texts:
            box = text.get_window_extent()
            if not text.get_text():
                continue
            assert 0 <= box.x0 < box.x1 <= width, text.get_text()
            assert 0 <= box.y0 < box.y1 <= height, text.get_text()
            assert text.get_size() / 0.72 * shown / width >= least, text.get_text()
        assert height <= (2400 if narrow else 900)


def test_other_images_stand_beside_the_rows_that_were_asked_there(tmp_path: Path) -> None:
    photos = tmp_path / "cifar10"
    photos.mkdir()
    for name in ("fidelity", "color-invariance"):
        shutil.copy(LAPTOP / f"{name}.csv", photos)
        run = json.loads((LAPTOP / f"{name}.json").read_text())
        run["parameters"]["dataset"] = "cifar10"
        run.pop("seal")  # changed by hand
        (photos / f"{name}.json").write_text(json.dumps(run))
    same_images = tmp_path / "scenes"
    same_images.mkdir()
    shutil.copy(LAPTOP / "bias.csv", same_images)
    run = results.load("bias", LAPTOP)
    methods = run.answers["methods"] | {
        "kl": run.answers["methods"]["kl"] | {"estimate": 0.0, "low": -0.1, "high": 0.1}
    }
    run.model_copy(update={"answers": run.answers | {"methods": methods}}).write(same_images)

    found = cover.read(published=tmp_path)
    assert found is not None
    rows = {row.sentence: row for row in found.rows}
    there = {row.sentence: dict(row.elsewhere) for row in found.rows if row.elsewhere}
    here = rows["does not mind a change of colour"].methods["kl"]["word"]
    assert there["does not mind a change of colour"] == {"CIFAR-10": here}
    assert len(there) == 2
    assert "asked again on CIFAR-10, 2 of 2 answers are the same word" in found.how_sure()
    # A published run of the same images takes the place of the laptop's ...
    assert rows["serves the same group worse"].methods["kl"]["estimate"] == pytest.approx(
        0, abs=0.1
    )
    # ... but not in the cover of a run of one's own.
    own = cover.read(LAPTOP, tmp_path)
    assert own is not None
    row = next(row for row in own.rows if row.world == "groups")
    assert row.methods["kl"]["estimate"] > 0.8
    said = [text.get_text() for text in found.picture().axes[0].texts]
    assert f"{here} (CIFAR-10)" in said


def test_the_sentences_count_what_the_rows_say(drawn: cover.Cover) -> None:
    words = [row.methods["kl"]["word"] for row in drawn.rows]
    for word in ("most", "part"):
        (count,) = re.findall(rf"\b{word} in (\d+)", drawn.answer())
        assert int(count) == words.count(word)
    assert f"Of {len(words)} properties" in drawn.answer()
    assert drawn.alt().count(";") == len(words) - 1
    runs = [results.load(name, SCENES) for name in ("fidelity", "bias")]
    assert {run.parameters["seeds"] for run in runs} == {drawn.students}


def test_without_a_run_there_is_no_cover(tmp_path: Path) -> None:
    assert cover.read(tmp_path, tmp_path) is None
