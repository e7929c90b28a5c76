"""Means over classes with bootstrap intervals, for one set of results and for paired differences; Wilcoxon's test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from uscl.evaluation.rows import ResultRow

DRAWS = 2000


@dataclass(frozen=True)
class Sample:
    """One figure of one object.

    Attributes:
        class_name: the structure.
        patient: whom it belongs to.
        seed: of the training it comes from; None where nothing was trained.
        case: name of the case.
        value: Dice, or a difference of two.
    """

    class_name: str
    patient: str
    seed: int | None
    case: str
    value: float


@dataclass(frozen=True)
class Estimate:
    """A mean over classes.

    Attributes:
        mean: mean of the class means, each over objects and seeds; nan if there is no object.
        low: lower end of the 95 % interval; nan with fewer than two patients.
        high: upper end.
        n: number of objects, each counted once however many seeds there are.
        patients: number of patients.
        seeds: number of trainings.
    """

    mean: float
    low: float
    high: float
    n: int
    patients: int
    seeds: int


def samples_of(rows: Iterable[ResultRow], clicks: int, seed: int | None = None) -> list[Sample]:
    """The Dice of rows at one number of clicks; objects without any voxel to find are left out."""
    return [
        Sample(row.class_name, row.patient, seed, row.case, row.dice)
        for row in rows
        if row.clicks == clicks and not isnan(row.dice)
    ]


def differences(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[Sample]:
    """Ours minus theirs, object by object, for the seeds that both have; what was not trained goes with every seed."""
    if ours and all(sample.seed is None for sample in ours):
        return [replace(sample, value=-sample.value) for sample in _minus(theirs, ours)]
    return _minus(ours, theirs)


def _minus(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[Sample]:
    other = {(s.case, s.class_name, s.seed): s.value for s in theirs}
    untrained = {(s.case, s.class_name): s.value for s in theirs if s.seed is None}
    found = []
    for sample in ours:
        value = other.get(
            (sample.case, sample.class_name, sample.seed), untrained.get((sample.case, sample.class_name))
        )
        if value is not None:
            found.append(Sample(sample.class_name, sample.patient, sample.seed, sample.case, sample.value - value))
    return found


def estimate(samples: Sequence[Sample]) -> Estimate:
    """Mean over the class means with its 95 % interval.

    The interval is a percentile bootstrap, 2000 draws from seed 0. Patients are drawn with replacement, because the
    objects of one patient are not independent; where there are several seeds these are drawn too, because a training
    could have turned out otherwise.
    """
    if not samples:
        return Estimate(nan, nan, nan, 0, 0, 0)
    classes = sorted({s.class_name for s in samples})
    patients = sorted({s.patient for s in samples})
    seeds = sorted({s.seed for s in samples}, key=str)
    totals = np.zeros((2, len(classes), len(patients), len(seeds)))  # sums and counts
    places = ({name: i for i, name in enumerate(names)} for names in (classes, patients, seeds))
    of_class, of_patient, of_seed = places
    for s in samples:
        totals[:, of_class[s.class_name], of_patient[s.patient], of_seed[s.seed]] += (s.value, 1)
    sums, counts = totals.sum((2, 3))
    low = high = nan
    if len(patients) > 1:
        random = np.random.default_rng(0)
        drawn = _times_drawn(random, len(patients))
        again = _times_drawn(random, len(seeds)) if len(seeds) > 1 else np.ones((DRAWS, 1))
        resampled = np.einsum("tcps,dp,ds->tdc", totals, drawn, again, optimize=True)
        there = resampled[1] > 0
        with np.errstate(invalid="ignore"):  # nan where none of those drawn has any object
            means = np.where(there, resampled[0] / resampled[1], 0).sum(1) / there.sum(1)
        low, high = (float(q) for q in np.nanpercentile(means, (2.5, 97.5)))
    objects = {(s.case, s.class_name) for s in samples}
    return Estimate(float((sums / counts).mean()), low, high, len(objects), len(patients), len(seeds))


def signed_rank(pairs: Sequence[Sample]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences lie around 0.

    Over patients, each with the mean of their objects and seeds: objects of one patient are not independent, and
    counted one by one they would make p too small. With four patients p cannot be below 1/8, with six not below 1/32.

    Args:
        pairs: of :func:`differences`.

    Returns:
        p in (0, 1]; 1 if no patient differs, nan if there is none.
    """
    by_patient: dict[str, list[float]] = {}
    for pair in pairs:
        by_patient.setdefault(pair.patient, []).append(pair.value)
    means = np.array([fmean(sorted(values)) for _, values in sorted(by_patient.items())])
    if not means.any():
        return 1.0 if means.size else nan
    return float(wilcoxon(means[means != 0]).pvalue)  # by itself, older scipy turns to an approximation at zeros


def _times_drawn(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """How often each of ``count`` was drawn, draw by draw."""
    draws = random.integers(count, size=(DRAWS, count)) + count * np.arange(DRAWS)[:, None]
    return np.bincount(draws.ravel(), minlength=DRAWS * count).reshape(DRAWS, count).astype(np.float64)
