"""What a data set is: a list of cases and the names of its labels. It does no image processing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from uscl.errors import InputError
from uscl.seeds import derive_seed

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One image with its label map, if it has one.

    Attributes:
        name: unique within the data set.
        image: image file.
        label: label map on the same grid, or None.
        patient: whom it was taken from; a patient is never on two sides of a split.
        split: where it belongs, or None where the data set leaves that open.
    """

    name: str
    image: Path
    label: Path | None
    patient: str
    split: Split | None = None


@dataclass(frozen=True)
class DataSet:
    """Cases and label names.

    Attributes:
        name: stands in every result row.
        cases: in a fixed order.
        label_names: structure of each label id; 0 is background and not listed.
    """

    name: str
    cases: tuple[Case, ...]
    label_names: dict[int, str]

    def in_split(self, split: Split) -> tuple[Case, ...]:
        """The cases of one side."""
        return tuple(case for case in self.cases if case.split == split)


def assign_splits(data_set: DataSet, val_fraction: float, test_fraction: float, seed: int) -> DataSet:
    """Gives every case without a split one, patient by patient.

    Patients are ordered by a hash of their name and the seed; the first go to test, the next to validation, the rest to
    training. Sides that the data set itself provides are left alone and not added to. A patient that the data set has
    placed anywhere takes its other cases along.

    Args:
        data_set: the cases.
        val_fraction: share of the open patients for validation, rounded; at least one where it is above 0 and two are
            open.
        test_fraction: the same for testing.
        seed: of the order.

    Raises:
        InputError: the data set itself puts one patient on two sides.
    """
    placed: dict[str, Split] = {}
    for case in data_set.cases:
        if case.split is not None and placed.setdefault(case.patient, case.split) != case.split:
            raise InputError(
                f"{data_set.name}: patient {case.patient} is in {placed[case.patient]} and in {case.split}; "
                "a patient belongs to one side"
            )
    provided = set(placed.values())
    open_patients = sorted(
        {case.patient for case in data_set.cases if case.patient not in placed},
        key=lambda patient: derive_seed("split", seed, patient),
    )
    wanted: dict[Split, float] = {"test": test_fraction, "val": val_fraction}
    for side, fraction in wanted.items():
        if side in provided:
            continue
        count = max(round(fraction * len(open_patients)), int(fraction > 0 and len(open_patients) > 1))
        placed |= dict.fromkeys(open_patients[:count], side)
        open_patients = open_patients[count:]
    placed |= dict.fromkeys(open_patients, "train")
    return replace(data_set, cases=tuple(replace(case, split=placed[case.patient]) for case in data_set.cases))


def check_unique(data_set: DataSet) -> DataSet:
    """Returns the data set if its case names are unique.

    Raises:
        InputError: two cases share a name.
    """
    names: Sequence[str] = [case.name for case in data_set.cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{data_set.name}: several cases are called {', '.join(twice[:4])}; rename the files")
    return data_set
