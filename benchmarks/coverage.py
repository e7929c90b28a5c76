"""How often the intervals and verdicts of reports are right, where the truth is known.

Paired differences of six classes and three trainings are drawn around a true difference of 0, with deviations of
patients, of their objects and, in the second half of the table, of trainings. ``covered`` is the share of 95 %
intervals that hold the 0, ``false`` that of verdicts that say otherwise.

    python benchmarks/coverage.py [--draws 2000]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uscl.evaluation.claims import verdict
from uscl.evaluation.statistics import Sample, estimate, signed_rank

PATIENTS = (3, 4, 6, 8, 12, 20)
CLASSES, SEEDS = 6, 3


@dataclass(frozen=True)
class World:
    """Standard deviations of the deviations, and how often a patient has a class."""

    patient: float = 0.0
    object: float = 0.0
    training: float = 0.0
    rest: float = 0.0
    having: float = 1.0


WORLDS = {
    "patients differ": World(patient=1, object=0.5, rest=0.3),
    "objects differ": World(patient=0.3, object=1, rest=0.5),
    "half of the classes in a patient": World(patient=0.5, object=1, rest=0.5, having=0.5),
    "trainings differ as patients do": World(patient=1, object=0.5, training=1, rest=0.3),
    "trainings differ, half of the classes": World(patient=0.5, object=1, training=0.5, rest=0.5, having=0.5),
}


def samples(world: World, patients: int, random: np.random.Generator) -> Iterator[Sample]:
    """Paired differences around 0; every patient has a class or more, and every class a patient."""
    there = random.random((CLASSES, patients)) < world.having
    there[random.integers(CLASSES, size=patients), np.arange(patients)] = True
    values = (
        world.patient * random.normal(size=(1, patients, 1))
        + world.object * random.normal(size=(CLASSES, patients, 1))
        + world.training * random.normal(size=(1, 1, SEEDS))
        + world.rest * random.normal(size=(CLASSES, patients, SEEDS))
    )
    for name, patient in np.argwhere(there).tolist():
        for seed in range(SEEDS):
            yield Sample(str(name), f"p{patient}", seed, f"case{patient}", float(values[name, patient, seed]))


def coverage(world: World, patients: int, draws: int, seed: int = 0) -> tuple[float, float, float]:
    """Share of draws with an interval, share of these that hold 0 (nan if there are none), share of false verdicts."""
    random = np.random.default_rng([seed, patients])
    covered, false = [], []
    for _ in range(draws):
        drawn = list(samples(world, patients, random))
        found = estimate(drawn)
        if found.low == found.low:
            covered.append(found.low <= 0 <= found.high)
        false.append(verdict(found, signed_rank(drawn)) in ("holds here", "does not hold here"))
    return len(covered) / draws, fmean(covered) if covered else nan, fmean(false)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    table = Table(title=f"Six classes, three trainings, true difference 0, {arguments.draws} draws")
    for column in ("world", "patients", "with an interval, %", "covered, %", "false verdicts, %"):
        table.add_column(column)
    cells = [(name, world, count) for name, world in WORLDS.items() for count in PATIENTS]
    for name, world, count in track(cells, "Drawing", transient=True):
        table.add_row(name, str(count), *(f"{100 * share:.1f}" for share in coverage(world, count, arguments.draws)))
    Console().print(table)


if __name__ == "__main__":
    main()
