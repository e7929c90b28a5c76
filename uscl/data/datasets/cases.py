"""What a data set is: a list of cases and the names of its labels. It does no image processing."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uscl.data.sweeps import SweepReading
from uscl.data.volume import Array
from uscl.errors import InputError
from uscl.seeds import derive_seed

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def parse_split(text: str, where: str) -> Split | None:
    """A side as tables write it; empty is None.

    Raises:
        InputError: there is no such side; the message begins with ``where``.
    """
    if text and text not in SPLITS:
        raise InputError(f"{where}: split is {text!r}, expected {', '.join(SPLITS)} or nothing")
    return next((split for split in SPLITS if split == text), None)


@dataclass(frozen=True)
class Case:
    """One image with its label map, if it has one.

    Attributes:
        name: unique within the data set.
        image: image file.
        label: label map on the same grid; or a folder with one mask per class, named after it; or None.
        patient: whom it was taken from; a patient is never on two sides of a split.
        split: where it belongs, or None where the data set leaves that open.
        reading: how the files of a sweep are read; None for volumes that say everything themselves.
    """

    name: str
    image: Path
    label: Path | None
    patient: str
    split: Split | None = None
    reading: SweepReading | None = None


@dataclass(frozen=True)
class DataSet:
    """Cases, label names and classes.

    Attributes:
        name: stands in every result row.
        cases: in a fixed order.
        label_names: structure of each label id; 0 is background and not listed.
        regions: classes made of several ids, which may overlap, as BraTS has them; without any, every label id is a
            class of its own.
        problems: cases that cannot be used as they lie there, by name, and why.
        store: folder of the prepared cases, where ``uscl prepare`` wrote them.
    """

    name: str
    cases: tuple[Case, ...]
    label_names: dict[int, str]
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    store: Path | None = None

    def require_sound(self) -> DataSet:
        """Returns the data set if every case can be used.

        Raises:
            InputError: one cannot; the message names the first and how many there are.
        """
        if self.problems:
            more = f" ({len(self.problems) - 1} more such cases)" if len(self.problems) > 1 else ""
            raise InputError(f"{next(iter(self.problems.values()))}{more}")
        return self

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """The label ids that each class is made of."""
        return self.regions or {name: (label_id,) for label_id, name in self.label_names.items()}

    def only(self, classes: Sequence[str] | None) -> DataSet:
        """The data set with some of its classes, in the order asked for; None for all.

        Raises:
            InputError: it has no such class.
        """
        if classes is None:
            return self
        unknown = sorted(set(classes) - set(self.classes))
        if unknown:
            raise InputError(
                f"data.classes: {', '.join(unknown)} not among the classes {', '.join(self.classes) or '(none)'}"
            )
        return replace(self, regions={name: self.classes[name] for name in classes})

    def mask(self, label: Array, class_name: str) -> NDArray[np.bool_]:
        """Where a class is in a label map, bool."""
        ids = self.classes[class_name]
        inside: NDArray[np.bool_] = label == ids[0] if len(ids) == 1 else np.isin(label, ids)
        return inside

    def in_split(self, split: Split) -> tuple[Case, ...]:
        """The cases of one side."""
        return tuple(case for case in self.cases if case.split == split)


@dataclass(frozen=True)
class Splitting:
    """Which patients train, validate and test, where the data set leaves that open.

    Attributes:
        val_fraction: share of the open patients for validation.
        test_fraction: share of the open patients for testing.
        seed: decides which patients these are.
        fold: [i, k] for cross-validation: part i of k, counted from 0, of all patients that are not for testing is the
            validation side.
        fold_test: part i of k of ALL patients, whatever the data set says of them, is the test side instead, and the
            validation side ``val_fraction`` of the others: over all k parts every patient is tested once.
        train_cases: train on so many labelled cases alone (few-shot); null for all.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    fold: tuple[int, int] | None = None
    fold_test: bool | None = None
    train_cases: int | None = None

    def of(self, data_set: DataSet) -> DataSet:
        """The data set with a side for every case (see :func:`assign_splits` and :func:`few_shot`).

        Raises:
            InputError: ``fold_test`` without ``fold``.
        """
        if self.fold_test and self.fold is None:
            raise InputError("data.split.fold_test says which side data.split.fold is; give both, or neither")
        if self.fold_test and self.fold is not None:
            split = folds_to_test(data_set, self.fold, self.val_fraction, self.seed)
        else:
            split = assign_splits(data_set, self.val_fraction, self.test_fraction, self.seed, self.fold)
        return split if self.train_cases is None else few_shot(split, self.train_cases, self.seed)


def assign_splits(
    data_set: DataSet, val_fraction: float, test_fraction: float, seed: int, fold: tuple[int, int] | None = None
) -> DataSet:
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
        fold: (i, k) makes part i of k, counted from 0, of all patients that are not for testing the validation side,
            and the others the training side, whatever the data set says of them.

    Raises:
        InputError: the data set itself puts one patient on two sides, or there is no such fold.
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
    if fold is not None:
        placed |= _fold(sorted(patient for patient, side in placed.items() if side != "test"), fold, seed)
    return replace(data_set, cases=tuple(replace(case, split=placed[case.patient]) for case in data_set.cases))


def folds_to_test(data_set: DataSet, fold: tuple[int, int], val_fraction: float, seed: int) -> DataSet:
    """Cross-validated testing: part i of k of all patients is the test side, whatever the data set says.

    Args:
        data_set: the cases.
        fold: (i, k), i counted from 0.
        val_fraction: share of the other patients for validation, rounded; at least one where it is above 0 and two are
            there.
        seed: of the order of the patients.

    Raises:
        InputError: there is no such fold.
    """
    placed = _fold(sorted({case.patient for case in data_set.cases}), fold, seed, "test")
    others = [patient for patient, side in placed.items() if side == "train"]
    count = max(round(val_fraction * len(others)), int(val_fraction > 0 and len(others) > 1))
    order = sorted(others, key=lambda patient: derive_seed("split", seed, patient))
    placed |= dict.fromkeys(order[:count], "val")
    return replace(data_set, cases=tuple(replace(case, split=placed[case.patient]) for case in data_set.cases))


def _fold(patients: list[str], fold: tuple[int, int], seed: int, side: Split = "val") -> dict[str, Split]:
    part, parts = fold
    if not 0 <= part < parts or not 2 <= parts <= len(patients):
        which = "" if side == "test" else " that are not for testing"
        raise InputError(
            f"data.split.fold is [{part}, {parts}]; expected [i, k] with i from 0 to k - 1 and k from 2 to the "
            f"{len(patients)} patients{which}"
        )
    order = sorted(patients, key=lambda patient: derive_seed("fold", seed, patient))
    return {patient: side if place % parts == part else "train" for place, patient in enumerate(order)}


def few_shot(data_set: DataSet, count: int, seed: int) -> DataSet:
    """Keeps ``count`` training cases that have a label map, and all cases of the other sides.

    The cases of a smaller count are among those of a larger one.

    Raises:
        InputError: there are not as many.
    """
    usable = [case for case in data_set.in_split("train") if case.label is not None]
    if not 1 <= count <= len(usable):
        raise InputError(f"data.split.train_cases is {count}; the training side has {len(usable)} labelled cases")
    kept = {case.name for case in sorted(usable, key=lambda case: derive_seed("few shot", seed, case.name))[:count]}
    cases = tuple(case for case in data_set.cases if case.split != "train" or case.name in kept)
    return replace(data_set, cases=cases)


def write_splits(data_set: DataSet, path: Path) -> None:
    """Writes who is on which side, as CSV with the columns case, patient and split, which ``patients.csv`` has too."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("case", "patient", "split"))
        writer.writerows((case.name, case.patient, case.split) for case in data_set.cases)


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
