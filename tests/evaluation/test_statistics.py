import numpy as np
import pytest

from uscl.evaluation.rows import ResultRow
from uscl.evaluation.statistics import Sample, differences, estimate, samples_of, signed_rank


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


def test_the_interval_covers_what_it_should():
    """Means of 20 patients with a spread of their own: the truth lies inside about 95 times in 100."""
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = estimate([sample("liver", str(p), value) for p, value in enumerate(random.normal(0.5, 0.1, 20))])
        hits += found.low <= 0.5 <= found.high
    assert 178 <= hits <= 198


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


def test_one_patient_has_no_interval_and_nothing_has_no_mean():
    assert np.isnan(estimate([sample("liver", "a", 0.5)]).low)
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


def test_draws_that_meet_no_object_are_left_out():
    """A seed was tested on one patient alone, and that patient was not drawn with it."""
    found = estimate([sample("liver", "a", 0.2, 0), sample("liver", "b", 0.4, 1), sample("kidney", "b", 0.4, 0)])
    assert found.low == pytest.approx(0.2)
    assert found.high == pytest.approx(0.4)
