"""Intervals, paired differences and tests: what they hold where the truth is known."""

import numpy as np
import pytest
from scipy.stats import t

from benchmarks import coverage
from uscl.evaluation.rows import ResultRow
from uscl.evaluation.statistics import (
    DICE,
    Sample,
    differences,
    estimate,
    ratio_interval,
    samples_of,
    signed_rank,
)


def sample(class_name: str, patient: str, value: float, seed: int | None = None, case: str | None = None) -> Sample:
    return Sample(class_name, patient, seed, case or patient, value)


def test_classes_count_alike_however_many_objects_they_have():
    found = estimate(
        [sample("liver", "a", 0.2), sample("liver", "b", 0.4), sample("liver", "c", 0.6), sample("kidney", "a", 0.9)]
    )
    assert found.mean == pytest.approx((0.4 + 0.9) / 2)
    assert (found.n, found.patients, found.seeds) == (4, 3, 1)


def test_the_order_of_samples_does_not_matter():
    random = np.random.default_rng(0)
    samples = [sample(name, patient, random.random(), seed) for name in "xy" for patient in "abcd" for seed in range(3)]
    expected = estimate(samples)
    for _ in range(3):
        random.shuffle(samples)
        assert estimate(samples) == expected


@pytest.mark.parametrize("patients", [3, 6, 20])
def test_the_interval_covers_what_it_should(patients):
    """95 % of the intervals hold the truth, from three patients on, and fewer than 5 % of the verdicts are false."""
    printed, covered, false = coverage.coverage(coverage.WORLDS["patients differ"], patients, 500)
    assert printed == 1
    assert 0.92 <= covered <= 0.98
    assert false < (0.08 if patients >= 6 else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("patients", coverage.PATIENTS)
@pytest.mark.parametrize("world", coverage.WORLDS)
def test_the_interval_covers_what_it_should_to_the_point(patients, world):
    """Where three trainings differ as much as patients do, two degrees of freedom leave more room."""
    printed, covered, false = coverage.coverage(coverage.WORLDS[world], patients, 1000)
    low, high = (0.92, 0.985) if coverage.WORLDS[world].training else (0.93, 0.97)
    assert printed < 0.1 or low <= covered <= high
    assert false < (0.08 if patients >= 6 else 1e-9)


def test_equal_numbers_give_the_t_interval_of_a_textbook():
    random = np.random.default_rng(3)
    values = random.normal(size=(7, 3))
    found = estimate(
        [sample(name, str(p), v) for p, row in enumerate(values) for name, v in zip("xyz", row, strict=True)]
    )
    wanted = t.interval(0.95, 6, values.mean(), values.mean(1).std(ddof=1) / 7**0.5)
    assert (found.low, found.high) == pytest.approx(wanted)


def test_seeds_do_not_replace_patients():
    """Three trainings scored on the same patients say no more of other patients than one does."""
    random = np.random.default_rng(4)
    patients = random.normal(size=5)
    once, thrice = (
        estimate(
            [sample("x", str(p), v + 1e-3 * random.normal(), seed) for p, v in enumerate(patients) for seed in range(n)]
        )
        for n in (1, 3)
    )
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.05)


def test_patients_and_trainings_give_the_interval_of_a_two_way_table():
    """With every class in every patient: mean squares of patients, trainings and rest, Satterthwaite's degrees."""
    random = np.random.default_rng(6)
    values = random.normal(size=(4, 1)) + random.normal(size=(1, 3)) + 0.3 * random.normal(size=(4, 3))
    found = estimate([sample("x", str(p), value, seed) for (p, seed), value in np.ndenumerate(values)])
    rows, columns, whole = values.mean(1), values.mean(0), values.mean()
    of_patients = 3 * rows.var(ddof=1)
    of_trainings = 4 * columns.var(ddof=1)
    rest = ((values - rows[:, None] - columns + whole) ** 2).sum() / 6
    assert of_trainings > rest
    variance = of_patients + of_trainings - rest
    freedom = variance**2 / (of_patients**2 / 3 + of_trainings**2 / 2 + rest**2 / 6)
    half = t.ppf(0.975, freedom) * (variance / 12) ** 0.5
    assert (found.low, found.high) == pytest.approx((whole - half, whole + half))


@pytest.mark.slow
@pytest.mark.parametrize("patients", [(30, 2), (20, 2, 2, 2), (9, 1, 1, 1), (10, 3)], ids=str)
def test_classes_of_few_patients_do_not_make_it_narrow(patients):
    random = np.random.default_rng(7)
    held = []
    for _ in range(600):
        drawn = [sample(f"c{c}", str(p), random.normal()) for c, count in enumerate(patients) for p in range(count)]
        found = estimate(drawn)
        held.append(found.low <= 0 <= found.high)
    assert np.mean(held) > 0.93


def test_a_dice_stays_within_its_bounds():
    few = [sample("x", str(p), value) for p, value in enumerate((0.7, 0.99, 0.99))]
    assert estimate(few, DICE).high == 1
    assert estimate(few).high > 1
    none = [sample("x", str(p), value) for p, value in enumerate((0.0, 0.0, 0.2))]
    assert estimate(none, DICE).low == 0


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_patients_have_no_interval(count):
    found = estimate([sample("x", str(p), 0.5 + p / 10, seed) for p in range(count) for seed in range(3)])
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_a_class_of_one_patient_counts_as_uncertain_as_the_others():
    random = np.random.default_rng(5)
    whole = [sample(name, str(p), random.normal()) for name in "xy" for p in range(6)]
    with_lone = [*whole, sample("z", "0", 0.0)]
    lone, both = estimate(with_lone), estimate(whole)
    assert lone.high - lone.low > 0.9 * (both.high - both.low)
    alone = [sample(str(p), str(p), random.normal()) for p in range(6)]
    assert np.isnan(estimate(alone).low), "no class says how much patients differ"


def test_intervals_of_ratios():
    assert ratio_interval([4.0, 4.0], [2.0, 2.0]) == pytest.approx((2.0, 2.0))
    low, high = ratio_interval([20.0, 22.0, 24.0], [1.0, 1.1, 1.2])
    assert low < 20 < high
    inverse = ratio_interval([1.0, 1.1, 1.2], [20.0, 22.0, 24.0])
    assert inverse == pytest.approx((1 / high, 1 / low))


def test_objects_of_one_patient_are_not_taken_for_independent():
    random = np.random.default_rng(2)
    patients = random.normal(0.5, 0.1, 8)
    few = estimate([sample("liver", str(p), value) for p, value in enumerate(patients)])
    many = estimate(
        [sample("liver", str(p), value, case=f"{p}-{i}") for p, value in enumerate(patients) for i in range(50)]
    )
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.05)


def test_trainings_that_differ_widen_the_interval():
    alike = [sample("liver", str(p), 0.5 + 0.01 * p, seed) for p in range(6) for seed in range(3)]
    apart = [sample("liver", str(p), 0.5 + 0.01 * p + 0.2 * (seed - 1), seed) for p in range(6) for seed in range(3)]
    narrow, wide = estimate(alike), estimate(apart)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.n == 6
    assert wide.seeds == 3


def test_nothing_has_no_mean():
    assert np.isnan(estimate([]).mean)


def test_differences_are_paired_by_object_and_seed():
    ours = [sample("liver", "a", 0.8, 0), sample("liver", "a", 0.9, 1), sample("liver", "b", 0.7, 0)]
    theirs = [sample("liver", "a", 0.5, 0), sample("liver", "a", 0.5, 2), sample("kidney", "b", 0.1, 0)]
    assert [(s.seed, round(s.value, 6)) for s in differences(ours, theirs)] == [(0, 0.3)]
    untrained = [sample("liver", "a", 0.5)]
    assert [(s.seed, round(s.value, 6)) for s in differences(ours, untrained)] == [(0, 0.3), (1, 0.4)]
    assert [(s.seed, round(s.value, 6)) for s in differences(untrained, ours)] == [(0, -0.3), (1, -0.4)]


def test_objects_that_are_empty_are_left_out():
    rows = [
        ResultRow("d", "c", "liver", "m", clicks, dice, 0, 0, 0, "p", "w", clicks, 0.0)
        for clicks, dice in ((1, 0.5), (10, 0.7), (10, float("nan")))
    ]
    assert [s.value for s in samples_of(rows, 10)] == [0.7]


def test_signed_rank_goes_over_patients():
    # Six of six patients better: the exact two-sided p is 2 / 2^6, however many objects and trainings each has.
    once = [sample("liver", str(p), 0.01 * (p + 1)) for p in range(6)]
    often = [
        sample(name, str(p), 0.01 * (p + 1), seed, f"{p}-{i}")
        for p in range(6)
        for i in range(9)
        for seed in range(3)
        for name in ("liver", "spleen")
    ]
    assert signed_rank(once) == pytest.approx(2 / 64)
    assert signed_rank(often) == pytest.approx(2 / 64)
    assert signed_rank([sample("liver", str(p), (-1) ** p * 0.1 * (p + 1)) for p in range(6)]) > 0.5
    assert signed_rank([sample("liver", str(p), 0.0) for p in range(6)]) == 1
    assert np.isnan(signed_rank([]))
    # Patients who do not differ are left out, and the rest stays exact: three of three.
    assert signed_rank([sample("liver", str(p), 0.1 * p) for p in range(4)]) == pytest.approx(2 / 8)
