"""Figures: fixed and distinguishable looks, drawn values equal to the table, legible text."""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from asked import NOTEBOOKS, study_of
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy import stats as scipy_stats

from kdnotes import figures as draw
from kdnotes import methods, stats
from kdnotes.figures import looks
from kdnotes.figures.tables import choose, select
from kdnotes.study import arms

METHODS = [arms.taught_by(methods.get(name)()) for name in ("kl", "hint", "crd")]
SEEN_TOGETHER = [
    *(arms.TEACHER, arms.SECOND_TEACHER, arms.INDEPENDENT, *METHODS),
    *(arms.control(kind, METHODS[0]) for kind in ("second-teacher", "smoothed", "permuted")),
    arms.FOREIGN,
]
VALUES = {
    "independent": [0.70, 0.72, 0.71, 0.69, 0.73],
    "kl": [0.82, 0.85, 0.83, 0.80, 0.86],
    "hint": [0.74, 0.75, 0.73, 0.72, 0.76],
    "control-smoothed": [0.70, 0.74, 0.71],
    "teacher": [0.98],
    "second-teacher": [0.96],
}
PHONE_WIDTH = 350


@pytest.fixture(autouse=True)
def default_settings() -> Any:
    with plt.rc_context():
        plt.rcdefaults()
        yield


def make_table(conditions: tuple[str, ...] = ("",)) -> pd.DataFrame:
    rows = [
        (arm, seed, condition, "same_answer", value - 0.1 * place)
        for place, condition in enumerate(conditions)
        for arm, values in VALUES.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "condition", "measure", "value"])


_WITHIN = ("equivalent", 0.0, 0.05)


def make_shares() -> pd.DataFrame:
    return pd.DataFrame(
        {"kl": [0.38, 0.70], "hint": [0.02, np.nan]}, index=["Where it looks", "What fools it"]
    )


def make_figures() -> dict[str, Figure]:
    table = make_table()
    sweep = make_table(("strength=0.3", "strength=0.6"))
    ratio = stats.gap_closed(table, None, "same_answer", "", "kl")
    none = stats.gap_closed(table, None, "same_answer", "", "hint", "independent", "hint")
    pictures = np.linspace(0, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8)
    maps = np.arange(12.0).reshape(3, 2, 2)
    same = "same_answer"
    strengths = {"strength=0.3": 0.3, "strength=0.6": 0.6}
    return {
        "points": draw.points(table, same, xlabel="Same answer", reference_lines={"chance": 0.5}),
        "paired": draw.paired(table, same, ["kl", "hint", "control-smoothed"], None, "Same answer"),
        "closed": draw.closed({"kl": ratio, "hint": none}),
        "plane": draw.plane(
            make_table(("a", "b")),
            (same, "a"),
            (same, "b"),
            list(VALUES),
            "Before",
            "After",
            vertical_lines={"chance": 0.5},
        ),
        "panels": draw.panels(
            sweep,
            {"mild jitter": (same, "strength=0.3"), "strong jitter": (same, "strength=0.6")},
            ["teacher", "independent", "kl", "crd"],
        ),
        "grouped": draw.grouped(
            sweep,
            same,
            {"mild": "strength=0.3", "strong": "strength=0.6"},
            ["kl", "independent", "crd"],
            "Same answer",
        ),
        "curve": draw.curve(sweep, same, strengths, list(VALUES), "Strength", "Same answer"),
        "heatmap": draw.heatmap({"": make_shares()}, "Method", "Property", "Share", low=-1),
        "image_grid": draw.image_grid(pictures, ["a", "b", "c"], maps, overlay_label="Map"),
        "versions": draw.versions({"original": pictures, "changed": pictures}),
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return make_figures()


def lines_named(figure: Figure, name: str) -> list[Line2D]:
    return [line for line in figure.findobj(Line2D) if line.get_gid() == name]


def bars_named(figure: Figure, name: str) -> list[np.ndarray]:
    """From where to where the bars of the marks of that name reach, along the horizontal axis."""
    all_bars = [bar for axis in figure.axes for bar in axis.containers]
    return [bar[2][0].get_segments()[0][:, 0] for bar in all_bars if bar[0].get_gid() == name]


def shown_texts(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


# Colour vision deficiency at full severity, on linear RGB: Machado, Oliveira and Fernandes (2009),
# "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 15(6).
DEFICIENCIES = {
    "none": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
# sRGB to CIE XYZ: IEC 61966-2-1.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def as_lab(colour: str, deficiency: str) -> np.ndarray:
    """CIE 1976 L*a*b* of a colour as a person with the deficiency sees it."""
    encoded = np.array(to_rgb(colour))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1)
    relative = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    cubic = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * 841 / 108 + 4 / 29)
    x, y, z = cubic
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lab_of_known_colours() -> None:
    # Reference values of sRGB red and white under D65 (Lindbloom's colour calculator).
    np.testing.assert_allclose(as_lab("#FF0000", "none"), [53.24, 80.09, 67.20], atol=0.1)
    np.testing.assert_allclose(as_lab("#FFFFFF", "none"), [100, 0, 0], atol=0.1)


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
def test_arms_seen_together_stay_apart(deficiency: str) -> None:
    labs = {arm.name: as_lab(draw.colour(arm.name), deficiency) for arm in SEEN_TOGETHER}
    closest = min(
        float(np.linalg.norm(labs[a] - labs[b])) for a, b in itertools.combinations(labs, 2)
    )
    # A difference of 2.3 is just noticeable side by side; figures need several times that.
    assert closest > 12


def test_every_arm_differs_in_more_than_colour() -> None:
    seen = [looks.of(arm.name) for arm in SEEN_TOGETHER]
    assert len({look.colour for look in seen}) == len(seen)
    assert len({look.label for look in seen}) == len(seen)
    assert len({(look.marker, look.hollow) for look in seen}) == len(seen)


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_all_arms_of_a_cast_have_looks_of_their_own(chapter: str) -> None:
    for name, plan in study_of(chapter).plans.items():
        shown = [looks.of(arm) for arm in plan.arms]
        assert set(plan.arms) <= set(looks.order()), name
        assert len({look.label for look in shown}) == len(shown), name
        assert len({look.short for look in shown}) == len(shown), name
        seen = {(look.colour, look.marker, look.hollow) for look in shown}
        assert len(seen) == len(shown), name


def test_unknown_arm_has_a_fixed_look_and_a_readable_name() -> None:
    assert looks.of("my-method") == looks.of("my-method")
    assert draw.label("my-method") == "My method"
    assert "my-method" not in looks.order()


def test_the_last_word_on_an_arm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_declared", {})
    mine = looks.Look("mine", "My method", "Mine", "#123456", "o")
    looks.declare(mine)
    looks.declare(replace(mine, name="another", label="Another"))
    looks.declare(mine)  # a module that is read again says nothing new
    assert looks.order() == ("mine", "another")
    assert (draw.label("mine"), draw.colour("mine")) == ("My method", "#123456")
    looks.declare(replace(mine, colour="#654321"))  # a cell that was edited, run again
    assert draw.colour("mine") == "#654321"
    assert looks.order() == ("mine", "another")


def test_looks_are_declared_without_anything_that_draws() -> None:
    heavy = "{'torch', 'matplotlib', 'pandas', 'numpy', 'seaborn'}"
    code = f"import sys, kdnotes.figures.looks as _; print({heavy} & set(sys.modules) or 'none')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "none"


def test_public_names_are_there() -> None:
    for name in draw.__all__:
        assert getattr(draw, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'pie'"):
        draw.pie  # noqa: B018


def test_same_arm_same_colour_in_every_figure(figures: dict[str, Figure]) -> None:
    blue = draw.colour("kl").lower()
    named = {
        "points": "kl:mean",
        "paired": "kl:0",
        "closed": "kl:mean",
        "plane": "kl",
        "panels": "kl:mean",
        "grouped": "kl:mean",
        "curve": "kl",
    }
    for figure, name in named.items():
        lines = lines_named(figures[figure], name)
        assert lines, figure
        assert {to_hex(line.get_color()) for line in lines} == {blue}, figure


def test_axes_are_labelled(figures: dict[str, Figure]) -> None:
    for name in ("points", "closed", "panels", "grouped"):
        assert figures[name].axes[0].get_xlabel(), name
    for name in ("curve", "heatmap", "plane"):
        assert figures[name].axes[0].get_xlabel(), name
        assert figures[name].axes[0].get_ylabel(), name
    assert figures["paired"].get_supylabel()
    assert not any(axis.get_title() for axis in figures["points"].axes)


def test_points_draw_the_values_of_the_table(figures: dict[str, Figure]) -> None:
    figure = figures["points"]
    for arm in ("independent", "kl", "hint", "control-smoothed"):
        values = np.array(VALUES[arm])
        (seeds,) = lines_named(figure, arm)
        np.testing.assert_allclose(seeds.get_xdata(), values)
        (mean,) = lines_named(figure, f"{arm}:mean")
        np.testing.assert_allclose(mean.get_xdata(orig=False), [values.mean()])
        (interval,) = bars_named(figure, f"{arm}:mean")
        expected = scipy_stats.t.interval(
            0.95, len(values) - 1, values.mean(), scipy_stats.sem(values)
        )
        np.testing.assert_allclose(interval, expected)
    (teacher,) = lines_named(figure, "teacher")
    np.testing.assert_allclose(teacher.get_xdata(), [0.98, 0.98])
    (chance,) = lines_named(figure, "chance")
    np.testing.assert_allclose(chance.get_xdata(), [0.5, 0.5])
    ticks = [text.get_text().replace("\n", " ") for text in figure.axes[0].get_yticklabels()]
    assert ticks == [draw.label(a) for a in ("independent", "kl", "hint", "control-smoothed")]


def test_points_can_show_teachers_as_rows() -> None:
    figure = draw.points(make_table(), "same_answer", teacher_line=False)
    (row,) = lines_named(figure, "teacher")
    np.testing.assert_allclose(row.get_xdata(), [0.98])
    assert len(figure.axes[0].get_yticks()) == len(VALUES)


def test_tables_name_what_is_not_there() -> None:
    table = make_table(("strength=0.3", "strength=0.6"))
    with pytest.raises(stats.NotMeasuredError, match=r"'fooled'.*measured: same_answer"):
        draw.points(table, "fooled")
    with pytest.raises(stats.NotMeasuredError, match=r"measured: strength=0\.3; strength=0\.6"):
        draw.points(table, "same_answer")
    with pytest.raises(stats.NotMeasuredError, match="'crd'"):
        draw.points(table, "same_answer", "strength=0.3", arms=["crd"])


def test_selected_values_stand_by_seed_and_arm() -> None:
    table = make_table()
    table.loc[0, "value"] = np.inf
    values = select(table, "same_answer")
    np.testing.assert_array_equal(values["independent"], [np.nan, *VALUES["independent"][1:]])
    np.testing.assert_array_equal(values["hint"], VALUES["hint"])
    assert choose(values) == [
        *("teacher", "second-teacher", "independent", "kl", "hint", "control-smoothed")
    ]
    assert choose(["mine", "kl", "teacher"]) == ["teacher", "kl", "mine"]
    assert choose(["mine", "kl", "teacher"], ["kl", "teacher"]) == ["kl", "teacher"]


def test_paired_joins_the_two_students_of_a_seed(figures: dict[str, Figure]) -> None:
    figure = figures["paired"]
    for seed, (start, end) in enumerate(zip(VALUES["independent"], VALUES["kl"], strict=True)):
        (line,) = lines_named(figure, f"kl:{seed}")
        np.testing.assert_allclose(line.get_ydata(), [start, end])
    assert not lines_named(figure, "control-smoothed:3")
    below = figure.axes[0].get_xlabel()
    difference = np.subtract(VALUES["kl"], VALUES["independent"])
    low, high = scipy_stats.t.interval(0.95, 4, difference.mean(), scipy_stats.sem(difference))
    assert below == f"difference .12\n[{low:.2f}, {high:.2f}]".replace("0.", ".")


def test_closed_draws_ratios_and_says_where_there_is_no_gap(figures: dict[str, Figure]) -> None:
    ratio = stats.gap_closed(make_table(), None, "same_answer", "", "kl").ratio
    assert ratio is not None
    (mean,) = lines_named(figures["closed"], "kl:mean")
    np.testing.assert_allclose(mean.get_xdata(orig=False), [0.122 / 0.27])
    (interval,) = bars_named(figures["closed"], "kl:mean")
    np.testing.assert_allclose(interval, [ratio.low, ratio.high])
    words = [text for text in figures["closed"].findobj(Text) if text.get_gid() == "hint:words"]
    assert "no gap to close" in words[0].get_text()
    assert "difference .03" in words[0].get_text()
    assert not lines_named(figures["closed"], "hint:mean")


def test_plane_puts_two_measures_of_a_network_together(figures: dict[str, Figure]) -> None:
    values = np.array(VALUES["kl"])
    (seeds,) = lines_named(figures["plane"], "kl")
    np.testing.assert_allclose(seeds.get_xdata(), values)
    np.testing.assert_allclose(seeds.get_ydata(), values - 0.1)
    (mean,) = lines_named(figures["plane"], "kl:mean")
    np.testing.assert_allclose(
        [mean.get_xdata(orig=False), mean.get_ydata(orig=False)], [[0.832], [0.732]]
    )
    (chance,) = lines_named(figures["plane"], "chance")
    np.testing.assert_allclose(chance.get_xdata(), [0.5, 0.5])


def test_plane_needs_both_measures_of_a_network() -> None:
    table = make_table(("a", "b"))
    table.loc[(table["condition"] == "b") & (table["seed"] == 4), "value"] = np.nan
    pair = ("same_answer", "a"), ("same_answer", "b")
    (seeds,) = lines_named(draw.plane(table, *pair, ["kl"], "a", "b"), "kl")
    assert len(seeds.get_xdata()) == 4
    with pytest.raises(stats.NotMeasuredError, match="'crd'"):
        draw.plane(table, *pair, ["kl", "crd"], "a", "b")
    with pytest.raises(stats.NotMeasuredError, match="fooled"):
        draw.plane(table, pair[0], ("fooled", ""), ["kl"], "a", "b")


def test_panels_draw_each_measure_in_a_panel_of_its_own(figures: dict[str, Figure]) -> None:
    figure = figures["panels"]
    mild, strong = lines_named(figure, "kl:mean")
    np.testing.assert_allclose(mild.get_xdata(orig=False), [np.mean(VALUES["kl"])])
    np.testing.assert_allclose(strong.get_xdata(orig=False), [np.mean(VALUES["kl"]) - 0.1])
    assert [line.axes for line in (mild, strong)] == list(figure.axes)
    assert mild.axes.get_xlim() == strong.axes.get_xlim()
    assert mild.axes.get_xlabel() == "mild jitter"
    assert not lines_named(figure, "crd:mean")  # asked for, but not measured: an empty row
    rows = [text.get_text() for text in mild.axes.get_yticklabels()]
    assert rows == ["Teacher", "Independent", "KL", "CRD"]


def test_panels_of_different_measures_have_scales_of_their_own() -> None:
    table = pd.concat([make_table(), make_table().assign(measure="margin", value=5.0)])
    shown = {"same": ("same_answer", ""), "margin": ("margin", "")}
    left, right = draw.panels(table, shown, ["kl"], same_scale=False).axes
    assert left.get_xlim()[1] < 2 < right.get_xlim()[0]
    with pytest.raises(stats.NotMeasuredError, match="'fooled'"):
        draw.panels(table, {"fooled": ("fooled", "")}, ["kl"])


def test_an_axis_of_epochs_has_no_half_epochs() -> None:
    epochs = {f"epoch={number}": number for number in range(1, 13)}
    figure = draw.curve(make_table(tuple(epochs)), "same_answer", epochs, ["kl"], "Epoch", "Same")
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) > 2
    assert all(tick == int(tick) for tick in ticks)


def test_curve_draws_means_and_networks_at_the_given_places() -> None:
    table = make_table(("eps=8/255", "eps=2/255", ""))
    places = {"eps=8/255": 8, "eps=2/255": 2}
    figure = draw.curve(table, "same_answer", places, ["kl", "teacher"], "Size", "Same")
    (line,) = lines_named(figure, "kl")
    np.testing.assert_allclose(line.get_xdata(), [2, 8])
    mean = np.mean(VALUES["kl"])
    np.testing.assert_allclose(line.get_ydata(), [mean - 0.1, mean])
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["8", "2"]
    low, high = scipy_stats.t.interval(0.95, 4, mean, scipy_stats.sem(VALUES["kl"]))
    band = axis.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(sorted(set(band[band[:, 0] == 8, 1])), [low, high])
    (networks,) = [each for each in axis.lines if len(each.get_xdata()) == 10]
    np.testing.assert_allclose(networks.get_ydata()[:5], VALUES["kl"])
    with pytest.raises(stats.NotMeasuredError, match=r"eps=4/255"):
        draw.curve(table, "same_answer", {"eps=4/255": 4}, ["kl"], "Size", "Same")
    with pytest.raises(stats.NotMeasuredError, match="'crd'"):
        draw.curve(table, "same_answer", places, ["crd"], "Size", "Same")


@pytest.mark.parametrize(("second", "bound"), [(0.9, True), (1.2, False)])
def test_no_view_of_shares_beyond_nothing_and_everything(second: float, bound: bool) -> None:
    rows = [("kl", seed, "tau=4", "same_answer", value) for seed, value in enumerate((0.1, second))]
    table = pd.DataFrame(rows, columns=["arm", "seed", "condition", "measure", "value"])
    figure = draw.curve(table, "same_answer", {"tau=4": 4}, ["kl"], "Temperature", "Same")
    low, high = figure.axes[0].get_ylim()
    assert (low >= -0.05 and high <= 1.05) == bound


def test_curve_draws_nothing_of_an_arm_without_a_value() -> None:
    rows = [(arm, 0, "tau=4", "kappa", value) for arm, value in (("kl", 0.5), ("hint", math.nan))]
    table = pd.DataFrame(rows, columns=["arm", "seed", "condition", "measure", "value"])
    figure = draw.curve(table, "kappa", {"tau=4": 4}, ["kl", "hint"], "Temperature", "Kappa")
    assert len(lines_named(figure, "kl")[0].get_xdata()) == 1
    assert not len(lines_named(figure, "hint")[0].get_xdata())


def test_curve_sets_names_side_by_side() -> None:
    table = make_table(("layer=stem", "layer=stages.2"))
    places = {"layer=stem": "stem", "layer=stages.2": "last"}
    figure = draw.curve(table, "same_answer", places, ["kl"], "Layer", "Same")
    (line,) = lines_named(figure, "kl")
    np.testing.assert_allclose(line.get_xdata(), [0, 1])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["stem", "last"]


def test_heatmap_prints_numbers_and_a_dash_for_none(figures: dict[str, Figure]) -> None:
    axis = figures["heatmap"].axes[0]
    cells = np.ma.filled(axis.collections[0].get_array(), np.nan).reshape(2, 2)
    np.testing.assert_allclose(cells, make_shares().to_numpy())
    assert axis.collections[0].get_clim() == (-1, 1)
    assert {text.get_text() for text in axis.texts} == {".38", ".02", ".70", draw.NOTHING}
    named = draw.heatmap({"kl": make_shares(), "two": make_shares()}, "", "", "Share")
    assert [axis.get_title() for axis in named.axes[:2]] == [draw.looks.of("kl").short, "two"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["KL", "Hint"]


def test_heatmaps_stand_side_by_side_on_one_scale() -> None:
    layers = ["1", "features"]
    frames = {
        name: pd.DataFrame({"1": [0.1, 0.2], "2": [0.3, value], "logits": [0.5, 0.6]}, index=layers)
        for name, value in (("KL", 0.4), ("Hint", 0.8), ("CRD", np.nan))
    }
    figure = draw.heatmap(frames, "Network's layer", "Teacher's layer", "CKA")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == list(frames)
    assert {axis.collections[0].get_clim() for axis in panels} == {(0, 1)}
    numbers = [[text.get_text() for text in axis.texts] for axis in panels]
    assert numbers[1] == [".10", ".30", ".50", ".20", ".80", ".60"]
    assert numbers[2].count(draw.NOTHING) == 1
    assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["1", "2", "logits"]
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == layers
    assert [axis.get_ylabel() for axis in panels] == ["Teacher's layer", "", "Teacher's layer"]


def test_image_grid_keeps_one_scale_for_all_maps() -> None:
    pictures = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    pictures[1] = 255
    maps = np.array([[[0.0, 0.1], [0.2, 0.1]], [[0.0, 4.0], [2.0, 1.0]]])
    figure = draw.image_grid(pictures, ["one", "two"], maps)
    for place, axis in enumerate(figure.axes[:2]):
        grey, heat = axis.images
        np.testing.assert_allclose(grey.get_array(), pictures[place].mean(axis=0) / 255)
        np.testing.assert_allclose(heat.get_array(), maps[place])
        assert heat.get_clim() == (0.0, 4.0)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["one", "two"]


def test_image_grid_without_maps_keeps_colours_and_refuses_wrong_shapes() -> None:
    pictures = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    pictures[:, 0] = 255
    figure = draw.image_grid(pictures, ["a", "b"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[0, 0], [1, 0, 0])
    with pytest.raises(ValueError, match="3 titles for 2 images"):
        draw.image_grid(pictures, ["a", "b", "c"])
    with pytest.raises(ValueError, match="shape"):
        draw.image_grid(pictures[0], ["a"])


def test_versions_stand_side_by_side() -> None:
    original = np.zeros((2, 3, 4, 4))
    figure = draw.versions({"original": original, "white": original + 1})
    assert [axis.get_title() for axis in figure.axes] == ["original", "white", "", ""]
    shades = [float(axis.images[0].get_array().mean()) for axis in figure.axes]
    assert shades == [0, 1, 0, 1]


def test_text_is_legible_on_a_phone_and_nothing_is_cut_off(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        texts = shown_texts(figure)
        assert texts, name
        width, height = figure.get_size_inches() * figure.dpi
        for text in texts:
            pixels = text.get_fontsize() / 72 * figure.dpi * PHONE_WIDTH / width
            assert pixels >= 8, (name, text.get_text())
        drawn = figure.get_tightbbox()
        assert drawn.x0 > -0.03, name
        assert drawn.y0 > -0.03, name
        assert drawn.x1 < width / figure.dpi + 0.03, name
        assert drawn.y1 < height / figure.dpi + 0.03, name


def test_tick_labels_have_no_zero_before_the_point(figures: dict[str, Figure]) -> None:
    for name in ("points", "closed", "curve"):
        for text in shown_texts(figures[name]):
            assert not text.get_text().lstrip("-").startswith("0."), name


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_bytes_do_not_depend_on_settings_or_time() -> None:
    first = make_figures()
    plt.rcParams.update({"font.size": 20, "axes.facecolor": "red", "figure.dpi": 50})
    again = make_figures()
    assert plt.rcParams["font.size"] == 20
    for name, figure in first.items():
        assert png(figure) == png(again[name]), name
        assert to_hex(figure.get_facecolor()) == "#ffffff"


def test_figures_are_not_left_open_for_pyplot() -> None:
    before = plt.get_fignums()
    draw.points(make_table(), "same_answer")
    assert plt.get_fignums() == before


def test_style_sets_the_look_of_ones_own_figures() -> None:
    draw.style()
    assert plt.rcParams["figure.facecolor"] == "white"
    assert plt.rcParams["figure.dpi"] * draw.WIDTH == 572  # as wide as a page's text
    assert plt.rcParams["font.size"] >= 11


def test_numbers_as_the_book_prints_them() -> None:
    assert draw.number(0.384) == ".38"
    assert draw.number(-0.05) == "-.05"
    assert draw.number(1.2) == "1.20"
    assert draw.number(float("nan")) == "–"
    assert draw.number(stats.t_interval([0.1, 0.1, 0.1])) == ".10 [.10, .10]"
    nowhere = stats.Interval(math.nan, math.nan, math.nan, 0, math.nan, math.nan)
    assert draw.number(nowhere) == "–"


def test_markdown_table() -> None:
    frame = pd.DataFrame(
        {
            "arm": ["kl", "independent"],
            "seeds": [5, 3],
            "accuracy": [0.953, np.nan],
            "gap": [stats.t_interval([0.4, 0.4]), None],
            "note": ["a|b", "c"],
        }
    )
    assert draw.markdown_table(frame).split("\n") == [
        "|  | seeds | accuracy | gap | note |",
        "| :--- | ---: | ---: | :--- | :--- |",
        r"| KL (soft labels) | 5 | .95 | .40 [.40, .40] | a\|b |",
        "| Independent (no teacher) | 3 | – | – | c |",
    ]


def test_gains_draw_every_student_against_zero() -> None:
    fooled = pd.DataFrame(
        {
            "arm": ["kl", "kl", "independent"],
            "accuracy_gain": [-0.02, 0.01, 0.005],
            "inheritance": [0.1, 0.2, -0.03],
        }
    )
    steady = fooled[fooled["arm"] == "kl"].assign(inheritance=[-0.1, -0.2])
    figure = draw.gains({"fooled": fooled, "steady": steady, "like": fooled})
    first, second, third, spare = figure.axes
    for axis, frame in ((first, fooled), (second, steady)):
        for arm in ("kl", "independent"):
            (line,) = [each for each in axis.lines if each.get_gid() == arm]
            rows = frame[frame["arm"] == arm]
            drawn = np.column_stack(line.get_data()).tolist()
            assert drawn == rows[["accuracy_gain", "inheritance"]].to_numpy().tolist()
            assert to_hex(line.get_color()) == to_hex(draw.colour(arm))
        for low, high in (axis.get_xlim(), axis.get_ylim()):
            assert low < 0 < high
    assert [axis.get_title() for axis in (first, second, third)] == ["fooled", "steady", "like"]
    assert not spare.get_visible()
    assert {text.get_text() for text in figure.legends[0].texts} == {
        draw.label("kl"),
        draw.label("independent"),
    }


def test_doses_stand_side_by_side_beside_their_reference_and_teacher() -> None:
    rows = [
        ("teacher", 0, 0.9),
        ("teacher-0.5", 0, 0.5),
        *[("independent", seed, 0.1 + 0.01 * seed) for seed in range(3)],
        *[("independent-tau-1", seed, 0.2) for seed in range(2)],
        *[("kl", seed, 0.6 + 0.02 * seed) for seed in range(3)],
        *[("kl-tau-1", seed, 0.3) for seed in range(2)],
        ("mixture-0.5", 0, np.nan),
        ("hint", 0, 0.2),
        ("hint-logits", 0, 0.4),
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "value"])
    table = table.assign(condition="conflict", measure="shape_bias")
    ladders = {
        "Temperature": [
            (1.0, "kl-tau-1", "independent-tau-1", "teacher"),
            (4.0, "kl", "independent", "teacher"),
        ],
        "Mixture": [
            (0.0, "kl", "independent", "teacher"),
            (0.25, "mixture-0.5", "independent", "teacher-0.5"),
        ],
        "Depth": [
            ("2", "hint", "independent", "teacher"),
            ("logits", "hint-logits", "independent", "teacher"),
        ],
    }
    figure = draw.doses(table, "shape_bias", "conflict", ladders, "Share")
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in panels] == list(ladders)

    def line(panel: int, arm: str) -> np.ndarray:
        lines = {each.get_gid(): each for each in panels[panel].get_lines()}
        return np.column_stack(lines[arm].get_data())

    np.testing.assert_allclose(line(0, "kl"), [[0, 0.3], [1, 0.62]])
    np.testing.assert_allclose(line(0, "independent"), [[0, 0.2], [1, 0.11]])
    np.testing.assert_allclose(line(1, "teacher"), [[0, 0.9], [1, 0.5]])
    np.testing.assert_allclose(line(1, "kl"), [[0, 0.62]])
    np.testing.assert_allclose(line(2, "hint"), [[0, 0.2], [1, 0.4]])
    ticks = [[text.get_text() for text in axis.get_xticklabels()] for axis in panels]
    assert ticks == [["1", "4"], ["0", ".25"], ["2", "logits"]]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names)) == 4
    missing = {"Temperature": [(16.0, "kl-tau-16", "independent", "teacher")]}
    with pytest.raises(stats.NotMeasuredError, match="kl-tau-16"):
        draw.doses(table, "shape_bias", "conflict", missing, "Share")


def test_groups_hold_a_row_per_arm_in_the_given_order() -> None:
    table = make_table(("domain=seen", "domain=edge"))
    shown = {"seen": "domain=seen", "edges": "domain=edge"}
    figure = draw.grouped(table, "same_answer", shown, ["kl", "independent", "crd"], "Same")
    first, second = lines_named(figure, "kl:mean")
    np.testing.assert_allclose(first.get_xdata(orig=False), [np.mean(VALUES["kl"])])
    np.testing.assert_allclose(second.get_xdata(orig=False), [np.mean(VALUES["kl"]) - 0.1])
    np.testing.assert_allclose(first.get_ydata(orig=False), [-0.25])
    np.testing.assert_allclose(second.get_ydata(orig=False), [0.75])
    np.testing.assert_allclose(
        lines_named(figure, "independent:mean")[0].get_ydata(orig=False), [0]
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["seen", "edges"]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 2  # an arm that was not measured has no row
    with pytest.raises(stats.NotMeasuredError, match="domain=sketch"):
        draw.grouped(table, "same_answer", {"sketch": "domain=sketch"}, ["kl"], "Same")
