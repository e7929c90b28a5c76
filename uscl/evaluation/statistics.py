"""Means over classes with intervals over patients, for results and for paired differences; Wilcoxon's test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t
from scipy.stats import wilcoxon

from uscl.evaluation.rows import ResultRow

LEAST_PATIENTS = 3
"""Patients that an interval takes, in the mean over classes: fewer say too little of how patients differ."""
LEAST_FOR_VERDICT = 6
"""Patients that a verdict takes: with fewer Wilcoxon's test cannot reach p < 0.05."""
SIGNIFICANT = 0.05
DICE = (0.0, 1.0)


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
        low: lower end of the 95 % interval; nan with fewer than :data:`LEAST_PATIENTS` patients a class.
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


def estimate(samples: Sequence[Sample], within: tuple[float, float] | None = None) -> Estimate:
    """Mean over the class means with its 95 % interval.

    The interval is Student's t over patients, because the objects of one patient are not independent; where there are
    several seeds, what differs between them by more than chance is added, because a training could have turned out
    otherwise, and the degrees of freedom are Satterthwaite's (1946, An approximate distribution of estimates of
    variance components). A class that a single patient has is taken to vary between patients as the others do.
    ``benchmarks/coverage.py`` measures how often it holds the truth.

    Args:
        samples: of any number of classes, patients and seeds.
        within: bounds of the values, which an interval does not exceed; None for differences.
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
    mean = float((sums / counts).mean())
    having = (totals[1].sum(2) > 0).sum(1)
    half = _half_width(*totals) if having.mean() >= LEAST_PATIENTS else nan
    low, high = mean - half, mean + half
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    objects = {(s.case, s.class_name) for s in samples}
    return Estimate(mean, low, high, len(objects), len(patients), len(seeds))


def _half_width(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of the mean over class means; some class must have two patients.

    Args:
        sums: of the values [class, patient, seed].
        counts: of the values [class, patient, seed].
    """
    per_class = counts.sum((1, 2))
    means = sums.sum((1, 2)) / per_class
    # What every patient and seed moves the mean by: a linearisation, which is exact where all have every class.
    moved = (sums - counts * means[:, None, None]) / per_class[:, None, None] / len(means)
    there = counts.sum(2) > 0
    having = there.sum(1)
    corrected = np.sqrt(having / np.maximum(having - 1, 1)) * (having > 1)
    by_patient = (moved * corrected[:, None, None]).sum((0, 2))
    variance = float((by_patient**2).sum()) + _of_single_patients(sums, counts)
    # As many patients as weigh alike: those of a class that few have weigh more.
    weights = ((there / having[:, None] / len(means)) ** 2).sum(0)
    freedom = max(float(weights.sum() ** 2 / (weights**2).sum()) - 1, 1.0)
    cells = moved.sum(0)
    patients, seeds = cells.shape
    if seeds > 1:
        between = seeds / (seeds - 1) * float((cells.sum(0) ** 2).sum())
        rest = cells - cells.sum(1, keepdims=True) / seeds - cells.sum(0) / patients
        degrees = (patients - 1) * (seeds - 1)
        chance = rest.size / degrees * float((rest**2).sum())
        if between > chance:
            parts = variance**2 / freedom + between**2 / (seeds - 1) + chance**2 / degrees
            variance += between - chance
            freedom = max(variance**2 / parts, 1.0)
    return float(student_t.ppf(0.975, freedom)) * math.sqrt(variance)


def _of_single_patients(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Variance of the mean from classes of a single patient: that between patients, pooled over all other classes."""
    there = counts.sum(2) > 0
    having = there.sum(1)
    values = np.where(there, sums.sum(2) / np.maximum(counts.sum(2), 1), nan)[having > 1]
    squares = np.nansum((values - np.nanmean(values, axis=1, keepdims=True)) ** 2)
    pooled = squares / (having[having > 1] - 1).sum()
    return float((having == 1).sum() * pooled / len(having) ** 2)


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


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the ratio of two means of positive figures, e.g. seconds per step of several trainings each.

    Welch's t on the logarithms (Welch 1947, The generalization of Student's problem), so that the ratio and its
    inverse have the same interval.

    Args:
        above: two or more.
        below: two or more.
    """
    logs = [np.log(np.asarray(figures, float)) for figures in (above, below)]
    ratio = float(logs[0].mean() - logs[1].mean())
    shares = [float(some.var(ddof=1)) / len(some) for some in logs]
    if not sum(shares):
        return math.exp(ratio), math.exp(ratio)
    freedom = sum(shares) ** 2 / sum(share**2 / (len(some) - 1) for share, some in zip(shares, logs, strict=True))
    half = float(student_t.ppf(0.975, freedom)) * math.sqrt(sum(shares))
    return math.exp(ratio - half), math.exp(ratio + half)
