"""Statistics against other libraries, hand-worked cases, and their own error rates."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import cohen_kappa_score

from kdnotes import networks, stats
from kdnotes.stats import intervals

# Standard deviations of paired seed differences, as a share of images: the smallest, the median and
# the largest of the claims of the published laptop run. The error rate must hold over all of it.
SEED_SDS = (0.006, 0.018, 0.134)
ITEM_STANDARD_ERRORS = (0.0, 0.01, 0.02)


def rows(arm: str, values: list[float], measure: str = "m", condition: str = "") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": arm,
            "seed": range(len(values)),
            "condition": condition,
            "measure": measure,
            "value": values,
        }
    )


def table_of(**arms: list[float]) -> pd.DataFrame:
    return pd.concat([rows(arm.replace("_", "-"), values) for arm, values in arms.items()])


def item_tables(
    values: dict[str, np.ndarray], sources: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables like a probe's from arrays (items, seeds) per arm; NaN where an item is not kept."""
    table, items = [], []
    for arm, matrix in values.items():
        for seed in range(matrix.shape[1]):
            keep = np.isfinite(matrix[:, seed])
            table.append((arm, seed, "", "m", matrix[keep, seed].mean()))
            block = {
                "item": np.flatnonzero(keep),
                "source": sources[keep],
                "seed": seed,
                "prediction": np.int16(0),
                "value": matrix[keep, seed].astype(np.float32),
            }
            items.append(pd.DataFrame({**block, "arm": arm, "condition": "", "measure": "m"}))
    columns = ["arm", "seed", "condition", "measure", "value"]
    joined = pd.concat(items, ignore_index=True)
    for name in ("arm", "condition", "measure"):
        joined[name] = joined[name].astype("category")
    return pd.DataFrame(table, columns=columns), joined


def refill(table: pd.DataFrame, items: pd.DataFrame, values: dict[str, np.ndarray]) -> None:
    """New values in place, for tables of ``item_tables`` in which every item is kept."""
    table["value"] = np.concatenate([matrix.mean(axis=0) for matrix in values.values()])
    items["value"] = np.concatenate([matrix.T.ravel() for matrix in values.values()])


# --- intervals ------------------------------------------------------------------------------------


def test_t_interval_equals_scipy() -> None:
    values = [0.31, 0.44, 0.38, 0.35, 0.47, 0.29]
    ours = stats.t_interval(values)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert (ours.n, ours.degrees_of_freedom) == (6, 5)
    assert ours.standard_error == pytest.approx(scipy.stats.sem(values), abs=1e-12)


def test_paired_difference_equals_scipy() -> None:
    student, reference = [0.5, 0.61, 0.55, 0.52, 0.6], [0.41, 0.47, 0.5, 0.39, 0.44]
    ours = stats.paired_difference(student, reference)
    test = scipy.stats.ttest_rel(student, reference)
    theirs = test.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    greater = scipy.stats.ttest_rel(student, reference, alternative="greater").pvalue
    assert stats.p_value(ours, 0.0, "greater") == pytest.approx(greater, rel=1e-9)
    assert stats.p_value(ours, 0.0, "less") == pytest.approx(1 - greater, rel=1e-9)


def test_critical_value_by_hand() -> None:
    # Five seeds with mean .2 and variance .005: .001 for the mean. Item variance .003 from six
    # sources. A quarter of t(4) = 2.776445 and three quarters of t(5) = 2.570582 is 2.622048.
    ours = stats.paired_difference(
        [0.1, 0.2, 0.2, 0.3, 0.2], 0.0, 0.003**0.5, item_degrees_of_freedom=5
    )
    assert ours.seed_sd**2 == pytest.approx(0.005)
    assert ours.standard_error == pytest.approx(0.004**0.5)
    assert ours.high - ours.estimate == pytest.approx(2.622048 * 0.004**0.5, rel=1e-6)
    assert stats.p_value(ours, ours.low, "greater") == pytest.approx(0.025, rel=1e-9)
    assert stats.p_value(ours, ours.high, "less") == pytest.approx(0.025, rel=1e-9)
    assert stats.p_value(ours, ours.estimate + 1e-12, "less") == pytest.approx(0.5)
    assert stats.p_value(ours, ours.low, "less") == pytest.approx(0.975, rel=1e-9)


def test_p_values_far_out() -> None:
    sharp = stats.paired_difference([0.1, 0.1001, 0.0999], 0.0, 1e-4)
    tiny = stats.p_value(sharp, -1e6, "greater")
    assert 0 <= tiny < 1e-12
    wide = stats.paired_difference([0.1, 0.2, 0.3], 0.0, 1e-9)
    theirs = scipy.stats.ttest_1samp([0.1, 0.2, 0.3], 0, alternative="greater").pvalue
    assert stats.p_value(wide, 0.0, "greater") == pytest.approx(theirs, rel=1e-6)


def test_a_large_item_error_gives_a_normal_interval() -> None:
    ours = stats.paired_difference([0.1, 0.1, 0.1], 0.0, item_standard_error=0.05)
    assert ours.high - ours.estimate == pytest.approx(1.959964 * 0.05, abs=1e-6)


def test_no_variance_and_no_interval() -> None:
    same = stats.paired_difference([0.7, 0.8, 0.9], [0.6, 0.7, 0.8])
    assert same.low == same.high == same.estimate
    assert stats.p_value(same, 0.0, "greater") == 0
    assert stats.p_value(same, same.estimate, "greater") == 1
    alone = stats.t_interval([0.4])
    assert np.isnan(alone.low)
    assert alone.format() == ".40 [no interval]"
    assert np.isnan(stats.p_value(alone, 0.0, "greater"))
    on_items = stats.paired_difference([0.4], [0.3], 0.02)
    assert on_items.low == pytest.approx(0.1 - 1.959964 * 0.02, abs=1e-6)


@pytest.mark.parametrize("values", [[], [0.1, np.nan], [[0.1, 0.2]]])
def test_values_of_seeds_must_be_a_finite_list(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"finite|one value per seed"):
        stats.t_interval(values)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.384, 2, ".38"),
        (-0.05, 2, "-.05"),
        (-0.001, 2, ".00"),
        (1.2, 2, "1.20"),
        (10.5, 1, "10.5"),
        (-10.04, 1, "-10.0"),
        (0.6, 0, "1"),
        (float("nan"), 2, "not defined"),
    ],
)
def test_numbers_have_no_zero_before_the_point(value: float, digits: int, text: str) -> None:
    assert stats.format_number(value, digits) == text


def test_interval_prints_as_in_the_book() -> None:
    assert stats.Interval(0.38, 0.312, 0.448, 5, 4, 0.02).format() == ".38 [.31, .45]"


# --- test images ----------------------------------------------------------------------------------


def linearised_standard_error(
    student: np.ndarray, reference: np.ndarray, sources: np.ndarray
) -> float:
    """What sources give a mean over seeds of differences of ratios, the same at all seeds.

    The cluster-robust (sandwich) variance of the mean, less the part that is in the variance over
    seeds as well: (variance of a seed's own mean - variance of the mean over seeds) / (n - 1).
    """
    seeds = student.shape[1]
    influence = np.zeros((len(np.unique(sources)), seeds))  # on each seed's own mean
    for matrix, sign in ((student, 1), (reference, -1)):
        for column in range(seeds):
            values = matrix[:, min(column, matrix.shape[1] - 1)]  # a fixed network has one
            keep = np.isfinite(values)
            residual = np.where(keep, values - values[keep].mean(), 0.0) / keep.sum()
            influence[:, column] += sign * np.bincount(sources, weights=residual)
    clusters = len(influence)
    robust = clusters / (clusters - 1)
    of_mean = robust * (influence.mean(axis=1) ** 2).sum()
    of_one = robust * (influence**2).sum(axis=0).mean()
    return float(np.sqrt(of_mean - (of_one - of_mean) / max(seeds - 1, 1)))


@pytest.fixture
def many_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "REPETITIONS", 20_000)


def item_standard_error(values: np.ndarray, sources: np.ndarray) -> float:
    table, items = item_tables({"kl": values}, sources)
    return stats.contrast(table, items, "m", "", "kl", 0.0).item_standard_error


@pytest.mark.usefixtures("many_resamples")
def test_bootstrap_equals_the_cluster_robust_formula() -> None:
    rng = np.random.default_rng(1)
    sources = np.repeat(np.arange(80), 5)
    by_source = rng.normal(size=80)[sources]
    student = (rng.normal(size=(400, 5)) + by_source[:, None] > 0).astype(float)
    reference = (rng.normal(size=(400, 5)) > 0).astype(float)
    student[rng.random(student.shape) < 0.2] = np.nan
    tables = item_tables({"kl": student, "independent": reference}, sources)
    ours = stats.contrast(*tables, "m", "", "kl", "independent").item_standard_error
    assert ours == pytest.approx(linearised_standard_error(student, reference, sources), rel=0.03)


@pytest.mark.usefixtures("many_resamples")
def test_renderings_of_one_glyph_count_once() -> None:
    glyphs = np.random.default_rng(2).normal(size=(60, 1))
    once = item_standard_error(glyphs, np.arange(60))
    often = item_standard_error(np.tile(glyphs, (7, 1)), np.tile(np.arange(60), 7))
    assert often == pytest.approx(once, rel=0.03)
    assert once == pytest.approx(scipy.stats.sem(glyphs[:, 0]), rel=0.03)


@pytest.mark.usefixtures("many_resamples")
def test_few_sources_are_corrected_for_being_few() -> None:
    """Resampling 5 sources alone would give 4/5 of their variance, and too narrow intervals."""
    few = np.array([[0.1], [0.9], [0.4], [0.5], [0.0]])
    assert item_standard_error(few, np.arange(5)) == pytest.approx(
        scipy.stats.sem(few[:, 0]), rel=0.02
    )


def test_one_source_gives_no_standard_error() -> None:
    assert np.isnan(item_standard_error(np.array([[0.0], [1.0]]), np.array([4, 4])))


# --- contrasts ------------------------------------------------------------------------------------


def test_contrast_pairs_by_seed_number_and_not_by_order() -> None:
    table = table_of(kl=[0.5, 0.6, 0.7], independent=[0.4, 0.5, 0.55])
    shuffled = table.sample(frac=1, random_state=3)
    result = stats.contrast(shuffled, None, "m", "", "kl", "independent")
    expected = scipy.stats.ttest_rel([0.5, 0.6, 0.7], [0.4, 0.5, 0.55])
    assert result.low == pytest.approx(expected.confidence_interval(0.95).low)


def test_contrast_uses_the_seeds_that_both_arms_have() -> None:
    table = table_of(control=[0.5, 0.6], independent=[0.4, 0.45, 0.9])
    result = stats.contrast(table, None, "m", "", "control", "independent")
    assert result.n == 2
    assert result.estimate == pytest.approx(0.125)
    table.loc[(table["arm"] == "control") & (table["seed"] == 1), "value"] = np.nan
    assert stats.contrast(table, None, "m", "", "control", "independent").n == 1


def test_a_fixed_network_is_compared_with_every_seed_and_a_lone_student_is_not() -> None:
    table = table_of(teacher=[0.9], kl=[0.5, 0.6, 0.7], control_smoothed=[0.4])
    assert stats.contrast(table, None, "m", "", "kl", "teacher").estimate == pytest.approx(-0.3)
    assert stats.contrast(table, None, "m", "", "kl", "teacher").n == 3
    assert stats.contrast(table, None, "m", "", "kl", "control-smoothed").n == 1


def test_contrast_with_a_constant_equals_scipy() -> None:
    values = [0.6, 0.66, 0.55, 0.7, 0.61]
    result = stats.contrast(table_of(kl=values), None, "m", "", "kl", 0.5)
    theirs = scipy.stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
    shifted = (result.low + 0.5, result.high + 0.5)
    assert shifted == pytest.approx((theirs.low, theirs.high))


def test_seeds_are_paired_by_number_where_an_arm_lacks_the_first() -> None:
    """Students that are the same at each seed differ in nothing, on no image."""
    values = np.random.default_rng(5).random((40, 4))
    table, items = item_tables({"kl": values, "independent": values}, np.arange(40))
    late = table["arm"].eq("kl") & table["seed"].lt(2)
    late_items = items["arm"].eq("kl") & items["seed"].lt(2)
    result = stats.contrast(table[~late], items[~late_items], "m", "", "kl", "independent")
    assert (result.n, result.estimate, result.seed_sd) == (2, 0.0, 0.0)
    assert result.item_standard_error < 1e-9


@pytest.mark.usefixtures("many_resamples")
def test_contrast_adds_the_variance_of_the_test_images() -> None:
    rng = np.random.default_rng(4)
    sources = np.repeat(np.arange(50), 2)
    values = {
        "kl": (rng.random((100, 5)) < 0.6).astype(float),
        "independent": (rng.random((100, 5)) < 0.5).astype(float),
    }
    table, items = item_tables(values, sources)
    with_items = stats.contrast(table, items, "m", "", "kl", "independent")
    seeds_only = stats.contrast(table, None, "m", "", "kl", "independent")
    of_items = linearised_standard_error(values["kl"], values["independent"], sources)
    assert with_items.estimate == seeds_only.estimate
    # A difference of two variances that are nearly the same: more noise of the resampling.
    assert with_items.item_standard_error == pytest.approx(of_items, rel=0.06)
    assert with_items.standard_error == pytest.approx(
        np.hypot(seeds_only.standard_error, of_items), rel=0.02
    )
    again = stats.contrast(table, items, "m", "", "kl", "independent")
    assert again == with_items
    shuffled = items.sample(frac=1, random_state=0)
    assert stats.contrast(table, shuffled, "m", "", "kl", "independent") == with_items


def test_variance_is_that_of_seeds_and_images_with_nothing_counted_twice() -> None:
    # Value of seed s on source i: own effects of both and of the pair, sd .05, 1 and 2. The mean of
    # 4 seeds over 60 sources then has the variance .05^2/4 + 1/60 + 2^2/(4 * 60).
    rng, n, sources, repetitions = np.random.default_rng(8), 4, 60, 300
    truth = 0.05**2 / n + 1 / sources + 2**2 / (n * sources)
    found, twice = [], []
    for _ in range(repetitions):
        values = 0.05 * rng.normal(size=n) + rng.normal(size=(sources, 1))
        values = values + 2 * rng.normal(size=(sources, n))
        table, items = item_tables({"kl": values}, np.arange(sources))
        result = stats.contrast(table, items, "m", "", "kl", 0.0)
        found.append(result.standard_error**2)
        influence = values.mean(axis=1) - values.mean()
        of_images = (influence**2).sum() / sources / (sources - 1)
        twice.append(result.seed_sd**2 / n + of_images)
    # Variances are cut off at 0 from below, so that the mean is a little too large.
    assert np.mean(found) == pytest.approx(truth, rel=0.08)
    assert np.mean(twice) > 1.3 * truth


@pytest.mark.usefixtures("many_resamples")
def test_items_of_seeds_that_one_arm_has_alone_count_for_nothing() -> None:
    """Pairs are those of seeds that both have, of tables and of items alike."""
    rng = np.random.default_rng(6)
    sources = np.arange(80)
    values = {arm: rng.random((80, 5)) for arm in ("kl", "independent")}
    table, items = item_tables(values, sources)
    own = [(frame["arm"] == "independent") & frame["seed"].isin([0, 3]) for frame in (table, items)]
    fewer = stats.contrast(table[~own[0]], items[~own[1]], "m", "", "kl", "independent")
    left = [~frame["seed"].isin([0, 3]) for frame in (table, items)]
    assert fewer == stats.contrast(table[left[0]], items[left[1]], "m", "", "kl", "independent")
    assert fewer.n == 3
    assert fewer.item_standard_error > 0


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, n, sources, repetitions, covered = np.random.default_rng(9), 5, 80, 400, 0
    for _ in range(repetitions):
        values = 0.2 * rng.normal(size=n) + rng.normal(size=(sources, 1))
        values = values + 2 * rng.normal(size=(sources, n))
        table, items = item_tables({"kl": values}, np.arange(sources))
        result = stats.contrast(table, items, "m", "", "kl", 0.0)
        covered += result.low <= 0 <= result.high
    assert 0.92 <= covered / repetitions <= 0.99


@pytest.mark.usefixtures("many_resamples")
def test_contrast_with_a_fixed_network_that_has_items() -> None:
    rng = np.random.default_rng(5)
    sources = np.arange(120)
    values = {
        "kl": (rng.random((120, 4)) < 0.6).astype(float),
        "teacher": (rng.random((120, 1)) < 0.9).astype(float),
    }
    table, items = item_tables(values, sources)
    items.loc[items["arm"] == "teacher", "seed"] = 77
    table.loc[table["arm"] == "teacher", "seed"] = 77
    result = stats.contrast(table, items, "m", "", "kl", "teacher")
    of_items = linearised_standard_error(values["kl"], values["teacher"], sources)
    assert result.item_standard_error == pytest.approx(of_items, rel=0.03)


def test_what_was_not_measured_is_named() -> None:
    table = table_of(kl=[0.5, 0.6], independent=[0.4, 0.5])
    with pytest.raises(stats.NotMeasuredError, match=r"'m' for arm 'crd'; measured: kl, indep"):
        stats.contrast(table, None, "m", "", "crd", "independent")
    with pytest.raises(stats.NotMeasuredError, match="'m' under 'eps=1' for arm 'kl'"):
        stats.contrast(table, None, "m", "eps=1", "kl", "independent")
    twice = pd.concat([table, table])
    with pytest.raises(ValueError, match="several values of 'm' for one seed of arm 'kl'"):
        stats.contrast(twice, None, "m", "", "kl", "independent")
    nowhere = table.assign(value=np.nan)
    assert stats.contrast(nowhere, None, "m", "", "kl", "independent").n == 0


# --- ratios ---------------------------------------------------------------------------------------


def test_fieller_by_hand() -> None:
    # Independent means 2 and 4 with variances 1/t^2: (r - .5)^2 * 16 = 1 + r^2, that is
    # 15 r^2 - 16 r + 3 = 0, with roots (16 -+ sqrt(76)) / 30.
    t = scipy.stats.t.ppf(0.975, 9)
    bounds = stats.fieller(2, 4, 1 / t**2, 0.0, 1 / t**2, 9)
    assert bounds == pytest.approx(((16 - 76**0.5) / 30, (16 + 76**0.5) / 30))
    with pytest.raises(ValueError, match="unbounded"):
        stats.fieller(2, 1, 0.1, 0.0, 1.0, 9)


def ratio_bound_by_search(a: np.ndarray, b: np.ndarray, side: int) -> float:
    """The ratio at which a paired t-test of a - r b just reaches p = .05, by bisection."""
    inside = a.mean() / b.mean()
    outside = inside + side * 5
    for _ in range(60):
        middle = (inside + outside) / 2
        if scipy.stats.ttest_1samp(a - middle * b, 0).pvalue > 0.05:
            inside = middle
        else:
            outside = middle
    return inside


def test_gap_closed_equals_a_search_over_t_tests() -> None:
    independent = np.array([0.70, 0.72, 0.69, 0.74, 0.71, 0.70])
    student = np.array([0.80, 0.84, 0.79, 0.83, 0.82, 0.78])
    table = table_of(teacher=[0.93], kl=list(student), independent=list(independent))
    result = stats.gap_closed(table, None, "m", "", "kl")
    assert result.ratio is not None
    a, b = student - independent, 0.93 - independent
    assert result.ratio.estimate == pytest.approx(a.mean() / b.mean())
    assert result.ratio.low == pytest.approx(ratio_bound_by_search(a, b, -1))
    assert result.ratio.high == pytest.approx(ratio_bound_by_search(a, b, 1))
    greater = scipy.stats.ttest_1samp(a - 0.3 * b, 0, alternative="greater").pvalue
    assert stats.p_value(result, 0.3, "greater") == pytest.approx(greater)
    assert stats.p_value(result, result.ratio.low, "greater") == pytest.approx(0.025)
    assert stats.p_value(result, result.ratio.high, "less") == pytest.approx(0.025)
    assert result.format() == result.ratio.format()


def test_a_share_is_the_same_of_what_a_network_has_and_of_what_it_lacks() -> None:
    values = {
        "teacher": [0.93],
        "kl": [0.80, 0.84, 0.79, 0.83, 0.82],
        "independent": [0.70, 0.72, 0.69, 0.74, 0.71],
    }
    lacking = {arm: [1 - value for value in each] for arm, each in values.items()}
    has, lacks = (
        stats.gap_closed(table_of(**each), None, "m", "", "kl") for each in (values, lacking)
    )
    assert has.ratio is not None
    assert lacks.ratio is not None
    for name in ("estimate", "low", "high", "standard_error", "seed_sd"):
        assert getattr(lacks.ratio, name) == pytest.approx(getattr(has.ratio, name))
    assert lacks.gap.estimate == pytest.approx(-has.gap.estimate)
    for side in ("greater", "less"):
        expected = pytest.approx(stats.p_value(has, 0.4, side))
        assert stats.p_value(lacks, 0.4, side) == expected


def test_gap_closed_covers_the_truth_when_seeds_and_images_vary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "REPETITIONS", 200)
    rng = np.random.default_rng(6)
    truth, repetitions, covered = 0.4, 200, 0
    shares = {"independent": (0.5, 5), "kl": (0.66, 5), "teacher": (0.9, 1)}
    tables = item_tables(
        {arm: np.zeros((150, n)) for arm, (_, n) in shares.items()}, np.arange(150)
    )
    for _ in range(repetitions):
        hardness = rng.normal(size=(150, 1))
        values = {}
        for arm, (mean, seeds) in shares.items():
            luck = 0.1 * rng.normal(size=seeds) if seeds > 1 else np.zeros(1)
            level = scipy.special.ndtri(mean) * np.sqrt(2 + luck.any() * 0.01)
            noise = hardness + rng.normal(size=(150, seeds))
            values[arm] = (level + luck + noise > 0).astype(float)
        refill(*tables, values)
        result = stats.gap_closed(*tables, "m", "", "kl")
        assert result.ratio is not None
        covered += result.ratio.low < truth < result.ratio.high
    assert covered >= 0.93 * repetitions


@pytest.mark.parametrize(
    ("independent", "teacher", "reason"),
    [
        ([0.90, 0.90, 0.90, 0.90, 0.90], 0.94, stats.NO_GAP),  # certain, but only .04
        ([0.60, 0.80, 0.70, 0.75, 0.65], 0.90, stats.UNCERTAIN_GAP),  # .20 [.10, .30], sd .08
        ([0.60, 0.80, 0.70, 0.75, 0.65], 0.75, stats.NO_GAP),  # .05 [-.05, .15]
        ([0.40, 0.20, 0.30, 0.25, 0.35], 0.10, stats.UNCERTAIN_GAP),  # the teacher has less
        ([0.88, 0.92, 0.90, 0.89, 0.91], 0.95, stats.UNCERTAIN_GAP),  # .05 [.03, .07]
        ([0.70, 0.72, 0.69, 0.74, 0.71], 0.93, ""),
        ([0.70], 0.93, "needs two seeds"),
    ],
)
def test_no_ratio_without_a_gap(independent: list[float], teacher: float, reason: str) -> None:
    student = [value + 0.01 for value in independent]
    table = table_of(teacher=[teacher], kl=student, independent=independent)
    result = stats.gap_closed(table, None, "m", "", "kl")
    assert result.reason == reason
    assert (result.ratio is None) == bool(reason)
    assert result.difference.estimate == pytest.approx(0.01)
    if reason:
        assert result.format().startswith(f"{reason} (difference .01")
        assert np.isnan(stats.p_value(result, 0.3, "greater"))


def test_the_rule_compares_the_lower_bound_with_three_spreads() -> None:
    # sd .01, five seeds: the lower bound is gap - 2.776 * .01 / sqrt(5) = gap - .0124, and must
    # exceed .05 (three spreads are .03): gaps just above and below .0624.
    seeds = np.array([-1, -1, 0, 1, 1]) * 0.01
    for gap, has_ratio in ((0.0620, False), (0.0630, True)):
        table = table_of(teacher=[0.5 + gap], kl=list(0.5 + seeds), independent=list(0.5 - seeds))
        assert (stats.gap_closed(table, None, "m", "", "kl").ratio is not None) == has_ratio


def test_headroom_takes_the_second_teacher_as_ceiling() -> None:
    table = table_of(
        second_teacher=[0.9], teacher=[1.0], kl=[0.8, 0.81, 0.79], independent=[0.7, 0.7, 0.71]
    )
    result = stats.gap_closed(table, None, "m", "", "kl", ceiling="second-teacher")
    assert result.ratio is not None
    assert result.ratio.estimate == pytest.approx((0.8 - 2.11 / 3) / (0.9 - 2.11 / 3))
    assert float(result) == result.ratio.estimate
    assert np.isnan(float(replace(result, ratio=None)))


# --- agreement ------------------------------------------------------------------------------------


def test_kappa_equals_sklearn() -> None:
    rng = np.random.default_rng(7)
    a = rng.integers(10, size=500)
    b = np.where(rng.random(500) < 0.6, a, rng.integers(10, size=500))
    assert stats.cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    labels = rng.integers(10, size=500)
    assert stats.error_consistency(a == labels, b == labels) == pytest.approx(
        cohen_kappa_score(a == labels, b == labels)
    )
    assert stats.cohen_kappa(a, a) == pytest.approx(1)
    assert np.isnan(stats.cohen_kappa([1, 1], [1, 1]))
    with pytest.raises(ValueError, match="equally long"):
        stats.cohen_kappa([1, 2], [1])


def test_agreement_on_the_teachers_wrong_items() -> None:
    labels, teacher, student = [0, 1, 2, 3, 4], [0, 2, 2, 1, 1], [0, 2, 1, 3, 1]
    assert stats.agreement_on_wrong_items(student, teacher, labels) == pytest.approx(2 / 3)
    assert np.isnan(stats.agreement_on_wrong_items(student, labels, labels))


# --- verdicts -------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04, and never decreasing.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.holm([0.2, np.nan])


@pytest.mark.parametrize(
    ("low", "high", "direction", "margin", "label"),
    [
        (0.05, 0.09, "greater", 0.04, "agrees"),
        (0.03, 0.09, "greater", 0.04, "open"),
        (-0.02, 0.03, "greater", 0.04, "disagrees"),
        (0.04, 0.09, "greater", 0.04, "open"),
        (-0.02, 0.03, "less", 0.04, "agrees"),
        (0.05, 0.09, "less", 0.04, "disagrees"),
        (-0.02, 0.03, "equivalent", 0.05, "agrees"),
        (-0.02, 0.06, "equivalent", 0.05, "open"),
        (0.06, 0.08, "equivalent", 0.05, "disagrees"),
        (-0.09, -0.06, "equivalent", 0.05, "disagrees"),
        (np.nan, np.nan, "greater", 0.0, "open"),
    ],
)
def test_verdicts(
    low: float, high: float, direction: stats.Direction, margin: float, label: str
) -> None:
    interval = stats.Interval((low + high) / 2, low, high, 5, 4, 0.01)
    assert stats.verdict(interval, direction, margin).label == label
    assert label in stats.VERDICTS
    few = stats.verdict(replace(interval, n=4), direction, margin)
    assert few == ("open", "fewer than 5 seeds")


def test_p_values_and_intervals_say_the_same() -> None:
    rng = np.random.default_rng(8)
    seen = set()
    for direction, _ in itertools.product(("greater", "less", "equivalent"), range(300)):
        values = rng.normal(rng.choice([-0.1, 0, 0.1]), 0.03, size=5)
        interval = stats.paired_difference(values, 0.0, 0.01)
        margin = 0.05 if direction == "equivalent" else 0.02
        label = stats.verdict(interval, direction, margin).label
        reproduced, not_reproduced = stats.claim_p_values(interval, direction, margin)
        assert (label == "agrees") == (reproduced < 0.025)
        assert (label == "disagrees") == (not_reproduced < 0.025)
        seen.add((direction, label))
    assert len(seen) == 9


def claim_entry(
    name: str,
    verdict: str,
    p: tuple[float | None, float | None],
    seeds: int = 5,
    family: str = "exploratory",
    chapter: str = "c",
    dataset: str = "scenes",
) -> dict:
    return {
        "id": name,
        "chapter": chapter,
        "family": family,
        "decided_on": "scenes",
        "dataset": dataset,
        "measure": "m",
        "estimate": 0.1,
        "low": 0.05,
        "high": 0.15,
        "seeds": seeds,
        "verdict": verdict,
        "reason": "why",
        "p_agrees": p[0],
        "p_disagrees": p[1],
    }


def test_exploratory_claims_are_corrected_within_their_chapter() -> None:
    entries = [
        claim_entry("strong", "agrees", (0.001, 0.999)),
        claim_entry("weak", "agrees", (0.022, 0.978)),
        claim_entry("against", "disagrees", (0.996, 0.004)),
        claim_entry("open", "open", (0.2, 0.8)),
        claim_entry("few", "open", (0.001, 0.999), seeds=3),
        claim_entry("absent", "not applicable", (None, None), seeds=0),
        claim_entry("alone", "agrees", (0.022, 0.978), chapter="d"),
        claim_entry("sum", "agrees", (0.024, 0.976), family="check"),
    ]
    card = stats.scorecard_verdicts(json.loads(json.dumps(entries))).set_index("id")
    # Two-sided .002, .008, .044, .4 among four: times 4/1, 4/2, 4/3, 4/4.
    expected = {"strong": 0.008, "against": 0.016, "weak": 0.044 * 4 / 3, "open": 0.4}
    found = card.loc[list(expected), "p_adjusted"].to_numpy()
    assert found == pytest.approx(list(expected.values()))
    assert card.loc["alone", "p_adjusted"] == pytest.approx(0.044)
    assert card.loc[["few", "absent", "sum"], "p_adjusted"].isna().all()
    words = ["agrees", "open", "disagrees", "open", "open", "not applicable", "agrees", "agrees"]
    assert list(card["verdict"]) == words
    assert card.loc["weak", "reason"] == (
        "why, but not among the 4 exploratory claims of its chapter (Benjamini-Hochberg)"
    )
    assert card.loc["weak", "verdict_alone"] == "agrees"
    assert not card["is_primary"].any()


def test_primaries_are_one_family_of_twelve_and_parts_must_all_hold() -> None:
    entries = [
        claim_entry("one", "agrees", (0.001, 0.999), family="C1"),
        claim_entry("both-a", "agrees", (0.0001, 0.9999), family="C2"),
        claim_entry("both-b", "agrees", (0.0015, 0.9985), family="C2"),
        claim_entry("half-a", "agrees", (0.0001, 0.9999), family="C3"),
        claim_entry("half-b", "open", (0.3, 0.7), family="C3"),
        claim_entry("against-a", "agrees", (0.0001, 0.9999), family="C4"),
        claim_entry("against-b", "disagrees", (0.9995, 0.0005), family="C4"),
        claim_entry("elsewhere", "agrees", (0.001, 0.999), family="C5", dataset="digits"),
        claim_entry("gone", "not applicable", (None, None), seeds=0, family="C6"),
    ]
    card = stats.scorecard_verdicts(entries)
    found = stats.primaries(card).set_index("primary")
    assert list(found.index) == [f"C{number}" for number in range(1, 13)]
    # Two-sided: .002 (one), .003 (the larger of both), .6 (half), twice twice .0005 (against), and
    # 1 for all others. Holm multiplies the smallest, .002, by 12, the next, .002, by 11, and so on.
    assert found.loc[["C1", "C4"], "p_holm"].to_numpy() == pytest.approx([0.024, 0.024])
    assert found.loc["C2", "p_holm"] == pytest.approx(0.03)
    assert (found.loc[["C3", "C5", "C6", "C7", "C12"], "p_holm"] == 1).all()
    assert found["verdict"].to_dict() == {
        "C1": "agrees", "C2": "agrees", "C3": "open", "C4": "disagrees", "C5": "open",
        "C6": "not applicable", **{f"C{number}": "open" for number in range(7, 13)},
    }  # fmt: skip
    assert found.loc["C5", "reason"] == "not run on the images that decide it"
    by_id = card.set_index("id")
    assert by_id.loc["half-a", "verdict"] == "open"
    assert "among the twelve" in by_id.loc["half-a", "reason"]
    # Elsewhere the same contrast is one of the chapter's exploratory claims.
    assert not by_id.loc["elsewhere", "is_primary"]
    assert by_id.loc["elsewhere", "verdict"] == "agrees"


def test_a_primary_with_one_part_untested_stays_open() -> None:
    pair = [
        claim_entry("a", "agrees", (0.0001, 0.9999), family="C1"),
        claim_entry("b", "open", (0.0001, 0.9999), seeds=3, family="C1"),
    ]
    assert stats.primaries(stats.scorecard_verdicts(pair)).loc[
        0, ["verdict", "p_holm"]
    ].tolist() == [
        "open",
        1.0,
    ]


def test_scorecard_without_claims_is_empty() -> None:
    assert stats.scorecard_verdicts([]).empty


# --- the procedure's own error rate ---------------------------------------------------------------


@pytest.mark.parametrize("seed_sd", SEED_SDS)
@pytest.mark.parametrize("item_standard_error", ITEM_STANDARD_ERRORS)
def test_a_true_effect_on_the_margin_is_rarely_said_to_agree(
    seed_sd: float, item_standard_error: float
) -> None:
    rates = stats.simulate_error_rate(
        seed_sd, item_standard_error, 5, 20, np.random.default_rng(9), repetitions=8000
    )
    # Nominally .025; the rest is what the simulation itself can err by.
    assert rates.agrees <= 0.027
    assert rates.any_agrees <= 0.03
    assert rates.any_disagrees <= 0.03
    # A procedure that never says anything would pass the above.
    assert rates.agrees > 0.015
    assert rates.any_agrees > 0.004


@pytest.mark.parametrize("seeds", [5, [5, 10]])
def test_without_item_error_the_rate_is_the_t_tests(seeds: int | list[int]) -> None:
    rates = stats.simulate_error_rate(
        [0.03, 0.06], 0.0, seeds, 2, np.random.default_rng(10), repetitions=100_000
    )
    assert rates.agrees == pytest.approx(0.025, abs=0.002)
    assert rates.disagrees == pytest.approx(0.025, abs=0.002)
    # Two independent claims, each tested at .0125 per side.
    assert rates.any_agrees == pytest.approx(1 - (1 - 0.0125) ** 2, abs=0.002)


def test_each_claim_is_simulated_with_its_own_number_of_seeds() -> None:
    # Holm's first step asks 1.25% per side of every claim, which t with 4 and with 9 degrees of
    # freedom reach at other distances: with the wrong number of seeds one rate would be off.
    both = stats.simulate_error_rate(
        0.03, 0.0, [5, 10], 2, np.random.default_rng(12), repetitions=100_000
    )
    assert both.agrees == pytest.approx(0.025, abs=0.002)
    assert both.any_agrees == pytest.approx(1 - (1 - 0.0125) ** 2, abs=0.002)


def test_the_fast_simulation_equals_the_slow_procedure() -> None:
    seed_sd, item, claims, repetitions = 0.04, 0.02, 3, 200
    rng = np.random.default_rng(11)
    alone = together = 0
    for _ in range(repetitions):
        entries = []
        for number in range(claims):
            values = rng.normal(0.04, seed_sd, size=5) + rng.normal(0, item)
            interval = stats.paired_difference(values, 0.0, item)
            label = stats.verdict(interval, "greater", 0.04).label
            p = stats.claim_p_values(interval, "greater", 0.04)
            entries.append(claim_entry(str(number), label, p, family=f"C{number + 1}"))
        alone += sum(entry["verdict"] == "agrees" for entry in entries)
        together += (stats.scorecard_verdicts(entries)["verdict"] == "agrees").any()
    fast = stats.simulate_error_rate(seed_sd, item, 5, claims, rng, 40_000, family=12)
    assert alone / repetitions / claims == pytest.approx(fast.agrees, abs=0.02)
    assert together / repetitions == pytest.approx(fast.any_agrees, abs=0.03)


def test_simulation_without_variance_gives_no_verdict() -> None:
    rates = stats.simulate_error_rate(0.0, 0.0, 5, 2, np.random.default_rng(0), repetitions=10)
    assert rates == (0, 0, 0, 0)


@pytest.mark.parametrize("package", [stats, networks])
def test_every_name_of_a_package_is_found_where_it_is_said_to_be(package: ModuleType) -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'p_values'"):
        package.p_values  # noqa: B018


def test_exchanged_arms_differ_by_chance_alone_and_keep_every_outcome() -> None:
    rng = np.random.default_rng(3)
    rows = [
        (item, item // 2, arm, seed, float(rng.random() < chance))
        for arm, chance in (("kl", 0.9), ("independent", 0.5))
        for seed in range(5)
        for item in range(200)
    ]
    items = pd.DataFrame(rows, columns=["item", "source", "arm", "seed", "value"])
    items = items.assign(measure="share", condition="")
    table = items.groupby(["arm", "seed"])["value"].mean().reset_index()
    table = table.assign(measure="share", condition="")
    apart = stats.contrast(table, items, "share", "", "kl", "independent")
    assert apart.low > 0.2
    arms, estimates, wrong = ("kl", "independent"), [], 0
    for _ in range(100):
        swapped, moved = stats.with_arms_swapped(table, items, arms, rng)
        found = stats.contrast(swapped, moved, "share", "", *arms)
        estimates.append(found.estimate)
        wrong += not found.low <= 0 <= found.high
        pair = moved[(moved["item"] == 7) & (moved["seed"] == 2)]
        before = items[(items["item"] == 7) & (items["seed"] == 2)]
        assert sorted(pair["value"]) == sorted(before["value"])
    assert abs(np.mean(estimates)) < 0.01
    assert wrong <= 12  # of 100, where 5 are expected: more than 12 once in 400 times
