"""The cover: what the published runs say in one picture and three sentences, all computed.

``python -m kdnotes.book.cover`` draws it into results/ and the README, the site anew.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdnotes import methods, paths, probes, stats
from kdnotes.book import results
from kdnotes.figures import looks
from kdnotes.probes.findings import Findings
from kdnotes.stats.words import CANNOT_TELL
from kdnotes.study import arms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdnotes.figures.cover import Row
    from kdnotes.probes.base import Measure

PUBLISHED_PRESET = "laptop"
NAMES = {False: "cover.svg", True: "cover-narrow.svg"}  # by whether it is for a phone
_OTHER_TEACHERS = "control-second-teacher"
_START, _END = "<!-- cover: written by python -m kdnotes.book.cover -->", "<!-- end of cover -->"
_SOME = ("most", "part", "a little", "some, how much is open")
QUESTION = "A small network learns from a large one: what does it inherit besides accuracy?"


@dataclass(frozen=True)
class Cover:
    """The rows, the ways of teaching, students of each kind, and teachers averaged over."""

    rows: Sequence[Row]
    arms: Sequence[str]
    students: int
    teachers: int

    @property
    def first(self) -> str:
        """How the way of teaching is called whose words stand beside the rows."""
        return looks.of(self.arms[0]).short

    def picture(self, narrow: bool = False) -> Figure:
        """The picture, or the one for a phone."""
        from kdnotes import figures

        notes = [
            f"Bars: 95% intervals over {self._who()}. Under each property: its world of drawn "
            "images."
        ]
        if any(row.note for row in self.rows):
            notes.append(
                "* Not told apart from a student of another teacher of the same recipe: it may be "
                "what comes with accuracy alone, and not this teacher's own."
            )
        return figures.inherited(self.rows, self.arms, notes, narrow)

    def _who(self) -> str:
        averaged = f"averaged over {self.teachers} teachers"
        of_whom = "of one teacher" if self.teachers == 1 else averaged
        return f"{self.students} students of each kind, {of_whom}"

    def _words(self, arm: str) -> Counter[str]:
        """How many rows have which word for an arm."""
        return Counter(row.methods[arm]["word"] for row in self.rows if arm in row.methods)

    def _elsewhere(self) -> list[tuple[Row, str, str, str]]:
        """Row, its word, name of other images, the word there: of all that was asked again."""
        return [
            (row, row.methods[self.arms[0]]["word"], name, word)
            for row in self.rows
            for name, word in row.elsewhere.items()
        ]

    def answer(self) -> str:
        """What is inherited, in one sentence."""
        words = self._words(self.arms[0])
        most = [row for row in self.rows if row.methods[self.arms[0]]["word"] == "most"]
        parts = [
            f"{word.replace(', how much is open', ' (how much is open)')} in {words[word]}"
            + (f" (it {'; '.join(row.sentence for row in most)})" if word == "most" else "")
            for word in (*_SOME, "the opposite", "none to speak of")
            if words[word]
        ]
        if gapless := words[stats.NO_GAP] + words[stats.UNCERTAIN_GAP]:
            parts.append(f"in {gapless} there is no gap large enough to take a share of")
        if unknown := words[CANNOT_TELL]:
            parts.append(f"in {unknown} nobody can tell")
        others = [
            f"{looks.label(arm)} something in {sum(self._words(arm)[word] for word in _SOME)}"
            for arm in self.arms[1:]
        ]
        beside = f"; {' and '.join(others)}" if others else ""
        said = ", ".join(parts) or "nothing"
        first = looks.label(self.arms[0])
        return f"Of {len(self.rows)} properties {first} hands on {said}{beside}."

    def how_sure(self) -> str:
        """What the answer rests on, and where other images say otherwise, in one sentence."""
        there = "on small drawn images, with no run on photographs published yet"
        if asked := self._elsewhere():
            names = ", ".join(dict.fromkeys(name for _, _, name, _ in asked))
            alike = sum(here == word for _, here, _, word in asked)
            there = f"asked again on {names}, {alike} of {len(asked)} answers are the same word"
        marked = sum(bool(row.note) for row in self.rows)
        own = f"; {marked} may be what comes with accuracy alone (*)" if marked else ""
        return f"That rests on 95% intervals over {self._who()}: {there}{own}."

    def disagreements(self) -> str:
        """In Markdown, a line for each row whose word is another on other images."""
        if not (asked := self._elsewhere()):
            return "No run on other images is published with this version of the book."
        unlike = [
            f"- A student {row.sentence}: {here} on drawn images, {word} on {name} ({self.first})."
            for row, here, name, word in asked
            if word != here
        ]
        return "\n".join(unlike) or f"Nowhere: all {len(asked)} answers are the same word."

    def text(self) -> str:
        """The three sentences that stand above the picture, in Markdown."""
        return f"**{QUESTION}** {self.answer()} {self.how_sure()}"

    def alt(self) -> str:
        """What the picture shows, for who cannot see it."""
        shown = "; ".join(
            f"{row.sentence}: {row.methods[self.arms[0]]['word']}" for row in self.rows
        )
        return (
            f"How far students of {len(self.arms)} ways of teaching have come from a student "
            f"trained alone (0) to the teacher (1). A student of {self.first} {shown}."
        )


def read(drawn: Path | None = None, published: Path | None = None) -> Cover | None:
    """The cover of the run in ``drawn``, by default the published one, with those on other images.

    A run in ``published``, a folder of runs by their images, on the same images comes before the
    default one. None without a run.
    """
    declared = paths.root() / "book" / "cover.yml"
    saved = paths.root() / "results"
    others = sorted((published or saved / "published").glob("*"))
    if not declared.is_file():
        return None
    declare_methods()
    found: list[Row] = []
    seen: list[results.Saved] = []
    for entry in yaml.safe_load(declared.read_text(encoding="utf-8")):
        for run in results.runs(entry["chapter"], [drawn or saved / PUBLISHED_PRESET]).values():
            run, row = _row(entry, run, results.runs(run.chapter, others), own=drawn is not None)
            found += [row] if row else []
            seen.append(run)
    if not found:
        return None
    order = [arm for arm in looks.order() if any(arm in row.methods for row in found)]
    rows = [row for row in found if order[0] in row.methods]
    rows.sort(key=lambda row: -_place(row.methods[order[0]]))
    students, teachers = (
        min(int(run.parameters.get(name) or least) for run in seen)
        for name, least in (("seeds", 0), ("teacher_count", 1))
    )
    return Cover(rows, order, students, teachers)


def _place(answer: Mapping[str, Any]) -> float:
    return answer["estimate"] if answer["share"] else -math.inf


def declare_methods() -> None:
    """Give ways of teaching and controls their looks, where no cast is planned that would."""
    for method in methods.known().values():
        arms.plain(arms.taught_by(method()))
    arms.every_control(arms.taught_by(methods.get("kl")()))


def _row(
    entry: Mapping[str, str], run: results.Saved, others: Mapping[Path, results.Saved], own: bool
) -> tuple[results.Saved, Row | None]:
    """The run that a row of the cover is of, and the row; None where nothing was measured."""
    from kdnotes.figures.cover import Row

    images = _images(run)
    beside = {path: other for path, other in others.items() if _images(other) != images}
    if not own:
        run = [run, *(each for path, each in others.items() if path not in beside)][-1]
    condition = entry.get("condition", "")
    measure = probes.check_measure(entry["measure"], condition)
    measure = measure.at(condition, entry.get("sentence", ""))
    found = of_run(run, measure)
    if not (answers := _answers(run, found)):
        return run, None
    first, answer = next(iter(answers.items()))
    there = {path: _answers(other, of_run(other, measure)) for path, other in beside.items()}
    elsewhere = {
        results.called(path.name): each[first]["word"]
        for path, each in there.items()
        if first in each
    }
    more = found.difference(first, _OTHER_TEACHERS)
    some = answer["share"] and answer["word"] != CANNOT_TELL
    note = "*" if measure.of == "pair" and some and more.n > 1 and more.low <= 0 else ""
    return run, Row(measure.sentence, entry["world"], answers, elsewhere, note)


def _images(run: results.Saved) -> tuple[Any, Any]:
    return run.parameters.get("dataset"), run.parameters.get("glyphs")


def of_run(run: results.Saved, measure: Measure) -> Findings:
    """A saved run told by a measure."""
    names = str(run.parameters.get("methods") or "").split(",")
    return Findings(run.outcome, measure, [name for name in names if name])


def _answers(run: results.Saved, found: Findings) -> dict[str, Any]:
    """Each method's answer: as the run gave it, which knew single images, else from its table."""
    about = run.answers
    where = (about.get("measure"), about.get("condition"))
    if where != (found.measure.name, found.measure.condition):
        about = found.answers()
    return {
        arm: answer | {name: _finite(answer[name]) for name in ("estimate", "low", "high")}
        for arm, answer in about["methods"].items()
        if answer["seeds"]
    }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def draw(cover: Cover, folder: Path) -> list[Path]:
    """Write the picture, and that for a phone, as SVG: the same bytes for the same results."""
    import matplotlib as mpl

    written = []
    for narrow, name in NAMES.items():
        with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
            about = {"Date": None, "Description": cover.alt()}
            cover.picture(narrow).savefig(folder / name, metadata=about)
        written.append(folder / name)
    return written


def page(pictures: Path) -> str:
    """What the first page includes: sentences, picture, what it is; draws into a folder."""
    if not (cover := read()):
        return "No run is published with this copy of the book."
    draw(cover, pictures)
    return (
        f"{cover.text()}\n\n{_picture(f'../{pictures.name}', cover)}\n\n"
        "*What the published run says: 0 is a student trained alone, 1 its teacher. In grey, the "
        "images: a digit near the middle (one cue) or always in it (still), with a marker beside "
        "it (two cues), redrawn as nobody saw it in training, or in three styles, one of which "
        "the teacher never saw (groups).* "
        "[The scorecard](scorecard.ipynb) shows the run of this build, what the paper found, and "
        "what did not hold."
    )


def readme(text: str, cover: Cover) -> str:
    """The README with its cover replaced."""
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    shown = f"{cover.text()}\n\n{_picture('results', cover)}"
    return f"{before}{_START}\n\n{shown}\n\n{_END}{after}"


def _picture(folder: str, cover: Cover) -> str:
    wide, narrow = (f"{folder}/{name}" for name in NAMES.values())
    return (
        f'<picture>\n<source media="(max-width: 600px)" srcset="{narrow}">\n'
        f'<img src="{wide}" width="100%" alt="{html.escape(cover.alt())}">\n</picture>'
    )


def publish() -> list[Path]:
    """Write pictures into results/ and the sentences into the README; nothing without a run."""
    if not (cover := read()):
        return []
    page = paths.root() / "README.md"
    page.write_text(readme(page.read_text(encoding="utf-8"), cover), encoding="utf-8")
    return [*draw(cover, paths.root() / "results"), page]


if __name__ == "__main__":
    print(*publish(), sep="\n")
