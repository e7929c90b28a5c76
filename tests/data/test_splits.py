"""Sides, folds and few shots: by patient, whatever the order."""

from pathlib import Path

import pytest

from uscl.data.datasets import (
    Case,
    DataSet,
    Splitting,
    assign_splits,
    few_shot,
)
from uscl.errors import InputError


def cases(patients: int, sweeps: int = 3, split=None) -> DataSet:
    made = [Case(f"p{p}_{s}", None, None, f"p{p}", split) for p in range(patients) for s in range(sweeps)]
    return DataSet("set", tuple(made), {})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("patients", [1, 2, 3, 10, 39])
def test_no_patient_is_on_two_sides_and_the_shares_hold(patients, seed):
    split = assign_splits(cases(patients), 0.1, 0.2, seed)
    sides = {}
    for case in split.cases:
        assert sides.setdefault(case.patient, case.split) == case.split
    counts = {side: list(sides.values()).count(side) for side in ("train", "val", "test")}
    assert sum(counts.values()) == patients
    assert counts["train"] >= 1
    if patients >= 3:
        assert counts["test"] == max(1, round(0.2 * patients))
        assert counts["val"] >= 1


def test_splits_depend_on_the_seed_and_not_on_the_order():
    made = cases(20)
    reverse = DataSet("set", made.cases[::-1], {})
    by_name = [{c.name: c.split for c in assign_splits(d, 0.1, 0.2, 0).cases} for d in (made, reverse)]
    assert by_name[0] == by_name[1]
    assert by_name[0] != {c.name: c.split for c in assign_splits(made, 0.1, 0.2, 1).cases}


def test_a_given_split_is_kept():
    given = DataSet("set", cases(4).cases + tuple(Case(f"t{i}", None, None, f"t{i}", "test") for i in range(2)), {})
    split = assign_splits(given, 0.25, 0.5, 0)
    assert {case.name for case in split.in_split("test")} == {"t0", "t1"}, "a test side that is given is not added to"
    assert len({case.patient for case in split.in_split("val")}) == 1


def test_a_patient_on_two_sides_is_an_error():
    with pytest.raises(InputError, match="patient p0 is in train and in test"):
        assign_splits(
            DataSet("set", (Case("a", None, None, "p0", "train"), Case("b", None, None, "p0", "test")), {}), 0, 0, 0
        )


def test_every_patient_is_in_one_fold_and_testing_stays():
    data_set = cases(11)
    sides = {}
    for part in range(4):
        found = assign_splits(data_set, 0.1, 0.2, 0, (part, 4))
        sides[part] = {side: {case.patient for case in found.in_split(side)} for side in ("train", "val", "test")}
        assert not sides[part]["train"] & sides[part]["val"]
        assert sides[part]["test"] == sides[0]["test"] != set()
    folds = [side["val"] for side in sides.values()]
    assert sum(len(fold) for fold in folds) == len(set().union(*folds)) == 9
    assert {len(fold) for fold in folds} == {2, 3}
    for wrong in ((4, 4), (-1, 3), (0, 1), (0, 10)):
        with pytest.raises(InputError, match=r"data\.split\.fold is \[.*the 9 patients that are not for testing"):
            assign_splits(data_set, 0.1, 0.2, 0, wrong)


def test_few_shots_are_nested_and_leave_the_other_sides_alone():
    made = [Case(f"p{p}", None, Path("label") if p else None, f"p{p}") for p in range(12)]
    data_set = assign_splits(DataSet("set", tuple(made), {}), 0.2, 0.2, 0)
    chosen = [{case.name for case in few_shot(data_set, n, 0).in_split("train")} for n in (1, 2, 4)]
    assert [len(names) for names in chosen] == [1, 2, 4]
    assert chosen[0] < chosen[1] < chosen[2]
    for side in ("val", "test"):
        assert few_shot(data_set, 1, 0).in_split(side) == data_set.in_split(side)
    with pytest.raises(InputError, match=r"data\.split\.train_cases is 20; the training side has \d labelled cases"):
        few_shot(data_set, 20, 0)


def test_every_patient_is_tested_in_one_fold_whatever_the_data_set_says():
    """Its own sides and those of validation give way; who is tested is never trained on."""
    given = tuple(Case(f"t{i}", None, None, f"t{i}", "test") for i in range(4))
    data_set = DataSet("set", cases(19).cases + given, {})
    tested = []
    for part in range(5):
        found = Splitting(val_fraction=0.2, fold=(part, 5), fold_test=True).of(data_set)
        sides = {case.patient: case.split for case in found.cases}
        assert list(sides.values()).count("val") in (3, 4)
        tested += [patient for patient, side in sides.items() if side == "test"]
    assert sorted(tested) == sorted({case.patient for case in data_set.cases})
    assert {"t0", "t1", "t2", "t3"} < set(tested)
    assert not Splitting(val_fraction=0.0, fold=(0, 5), fold_test=True).of(data_set).in_split("val")


def test_folds_to_test_need_a_fold():
    with pytest.raises(InputError, match=r"data\.split\.fold_test says which side data\.split\.fold is"):
        Splitting(fold_test=True).of(cases(5))
    with pytest.raises(InputError, match=r"k from 2 to the 5 patients$"):
        Splitting(fold=(5, 5), fold_test=True).of(cases(5))
