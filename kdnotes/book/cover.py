"""The cover: what the published runs say in one picture and three sentences, all computed.

``python -m kdnotes.book.cover`` draws it from what lies in results/ and writes it there, and into
the README. The site draws it anew.
"""

from __future__ import annotations

import html
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdnotes import methods, paths, probes, stats
from kdnotes.book import results
from kdnotes.figures import looks
from kdnotes.probes import wording
from kdnotes.probes.base import Outcome
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
_GAPLESS = "in {} there is no clear gap to close"
QUESTION = "A small network learns from a large one: what does it inherit besides accuracy?"


@dataclass(frozen=True)
class Cover:
    """The rows of the cover, of the ways of teaching that were compared, with what is said of them.

    students: how many there are of each kind; teachers: over how many they are averaged.
    """

    rows: Sequence[Row]
    arms: Sequence[str]
    students: int
    teachers: int

    @cached_property
    def first(self) -> str:
        """How the way of teaching is called whose words stand beside the rows."""
        return looks.of(self.arms[0]).short

    def picture(self, narrow: bool = False) -> Figure:
        """The picture, or the one for a phone."""
        from kdnotes import figures

        notes = [
            f"Bars: 95% intervals over {self.students} students of each kind, "
            f"{_teachers(self.teachers)}. Under each property: its world of drawn images."
        ]
        if any(row.note for row in self.rows):
            notes.append(
                "* Not told apart from a student of another teacher of the same recipe: it may be "
                "what comes with accuracy alone, and not this teacher's own."
            )
        return figures.inherited(self.rows, self.arms, notes, narrow)

    def words(self, arm: str) -> dict[str, list[str]]:
        """The sentences of the rows by the word that an arm has in them, the best known first."""
        found = defaultdict[str, list[str]](list)
        for row in self.rows:
            answer = row.methods.get(arm)
            found[answer["word"] if answer else wording.NOT_MEASURED].append(row.sentence)
        return dict(found)

    def answer(self) -> str:
        """What is inherited, in one sentence."""
        words = self.words(self.arms[0])
        parts = [
            f"{word.replace(', how much is open', ' (how much is open)')} in {len(words[word])}"
            + (f" (it {'; '.join(words[word])})" if word == "most" else "")
            for word in (*_SOME, "the opposite", "none to speak of")
            if word in words
        ]
        unknown = {CANNOT_TELL: "in {} nobody can tell", stats.NO_GAP: _GAPLESS}
        counts = {_GAPLESS: 0} | dict.fromkeys(unknown.values(), 0)
        for word, there in words.items():
            if word in (CANNOT_TELL, stats.NO_GAP, stats.UNCERTAIN_GAP):
                counts[unknown.get(word, _GAPLESS)] += len(there)
        parts += [said.format(count) for said, count in counts.items() if count]
        some = {arm: sum(len(self.words(arm).get(word, ())) for word in _SOME) for arm in self.arms}
        first, *rest = map(looks.label, self.arms)
        counted = zip(rest, self.arms[1:], strict=True)
        others = " and ".join(f"{label} something in {some[arm]}" for label, arm in counted)
        said = ", ".join(parts) or "nothing"
        beside = f"; {others}" if others else ""
        return f"Of {len(self.rows)} properties {first} hands on {said}{beside}."

    def how_sure(self) -> str:
        """What the answer rests on, and where other images say otherwise, in one sentence."""
        pairs = [
            (name, word == row.methods[self.arms[0]]["word"])
            for row in self.rows
            for name, word in row.elsewhere.items()
        ]
        names = ", ".join(dict.fromkeys(name for name, _ in pairs))
        alike = sum(same for _, same in pairs)
        there = (
            f"asked again on {names}, {alike} of {len(pairs)} answers are the same word"
            if pairs
            else "on small drawn images, with no run on photographs published yet"
        )
        marked = sum(bool(row.note) for row in self.rows)
        own = f"; {marked} may be what comes with accuracy alone (*)" if marked else ""
        return (
            f"That rests on 95% intervals over {self.students} students of each kind, "
            f"{_teachers(self.teachers)}: {there}{own}."
        )

    def disagreements(self) -> str:
        """In Markdown, a line for each row whose word is another on other images."""
        arm = self.arms[0]
        unlike = [
            f"- A student {row.sentence}: {row.methods[arm]['word']} on drawn images, "
            f"{word} on {name} ({self.first})."
            for row in self.rows
            for name, word in row.elsewhere.items()
            if word != row.methods[arm]["word"]
        ]
        asked = sum(len(row.elsewhere) for row in self.rows)
        if not asked:
            return "No run on other images is published with this version of the book."
        return "\n".join(unlike) or f"Nowhere: all {asked} answers are the same word."

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


def _teachers(count: int) -> str:
    return "of one teacher" if count == 1 else f"averaged over {count} teachers"


def read(drawn: Path | None = None, published: Path | None = None) -> Cover | None:
    """The cover of the chapters in a folder, by default of the published run; None without one.

    ``published``: a folder of runs, one for each kind of images. A run there of the same images
    comes before that in ``drawn``, which is named only to see a run of one's own.
    """
    declared = paths.root() / "book" / "cover.yml"
    root = paths.root() / "results"
    own = drawn is not None
    drawn = drawn or root / PUBLISHED_PRESET
    others = sorted((published or root / "published").glob("*"))
    if not declared.is_file():
        return None
    declare_methods()
    found: list[Row] = []
    seen: list[results.Saved] = []
    for entry in yaml.safe_load(declared.read_text(encoding="utf-8")):
        if entry["chapter"] in results.chapters(drawn):
            row, run = _row(entry, drawn, others, own)
            found += [row] if row else []
            seen.append(run)
    if not found:
        return None
    order = [arm for arm in looks.order() if any(arm in row.methods for row in found)]
    first = order[0]
    found.sort(key=lambda row: -_place(row.methods.get(first)))
    counts = [int(run.parameters.get("seeds") or 0) for run in seen]
    teachers = [int(run.parameters.get("teacher_count") or 1) for run in seen]
    return Cover([row for row in found if first in row.methods], order, min(counts), min(teachers))


def _place(answer: Mapping[str, Any] | None) -> float:
    return answer["estimate"] if answer and answer["share"] else -math.inf


def declare_methods() -> None:
    """Give ways of teaching and controls their looks, where no cast is planned that would."""
    for method in methods.known().values():
        arms.plain(arms.taught_by(method()))
    arms.every_control(arms.taught_by(methods.get("kl")()))


def _row(
    entry: Mapping[str, str], drawn: Path, others: Sequence[Path], own: bool
) -> tuple[Row | None, results.Saved]:
    """A row of the cover, None where nothing was measured; and the run that it is of."""
    from kdnotes.figures.cover import Row

    chapter = entry["chapter"]
    run, folder = results.load(chapter, drawn), drawn
    beside = {}
    for other in others:
        if chapter not in results.chapters(other):
            continue
        published = results.load(chapter, other)
        if _images(published) != _images(run):
            beside[results.called(other.name)] = (published, other)
        elif not own:
            run, folder = published, other
    measure = _measure(entry)
    found = of_runs(chapter, folder, measure, run)
    methods_ = _answers(run, found)
    if not methods_:
        return None, run
    first = next(iter(methods_))
    elsewhere = {}
    for name, (published, where) in beside.items():
        answers = _answers(published, of_runs(chapter, where, measure, published))
        if first in answers:
            elsewhere[name] = answers[first]["word"]
    more = found.difference(first, _OTHER_TEACHERS)
    some = methods_[first]["share"] and methods_[first]["word"] != CANNOT_TELL
    note = "*" if measure.of == "pair" and some and more.n > 1 and more.low <= 0 else ""
    return Row(measure.sentence, entry["world"], methods_, elsewhere, note), run


def _images(run: results.Saved) -> tuple[Any, Any]:
    return run.parameters.get("dataset"), run.parameters.get("glyphs")


def _measure(entry: Mapping[str, str]) -> Measure:
    """The declared measure of a row, in its own words where it has any."""
    condition = entry.get("condition", "")
    measure = probes.check_measure(entry["measure"], condition)
    return measure.at(condition, entry.get("sentence", ""))


def of_runs(chapter: str, folder: Path, measure: Measure, run: results.Saved) -> Findings:
    """A saved run told by a measure, with single images where they were kept."""
    table = results.table(chapter, folder)
    there = (folder / f"{chapter}.items.parquet").is_file()
    items = results.items(chapter, folder) if there else Outcome.of_rows([]).items
    names = str(run.parameters.get("methods") or "").split(",")
    return Findings(Outcome(table, items), measure, [name for name in names if name])


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


# --- files ------------------------------------------------------------------------------------


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
    print(*publish(), sep="\n", file=sys.stdout)
