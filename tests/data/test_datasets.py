import csv
import json

import numpy as np
import pytest

from uscl.data.datasets import Case, DataSet, assign_splits, read_folder
from uscl.data.volume import Volume, write_volume
from uscl.errors import InputError


def make_folder(root, names=("a_0000", "b_0000", "c"), labelled=True, patients=None):
    array = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    for name in names:
        write_volume(root / "imagesTr" / f"{name}.nii.gz", Volume(array))
        if labelled:
            label = Volume((array > 0.5).astype(np.uint8))
            write_volume(root / "labelsTr" / f"{name.removesuffix('_0000')}.nii.gz", label)
    if labelled:
        (root / "dataset.json").write_text(json.dumps({"name": "set", "labels": {"background": 0, "liver": 1}}))
    if patients:
        with (root / "patients.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(patients)
    return root


def test_plain_layout(tmp_path):
    root = make_folder(
        tmp_path / "data", patients=[("case", "patient", "split"), ("a", "p1", "val"), ("b", "p1", "val")]
    )
    write_volume(root / "imagesTs" / "t.nrrd", Volume(np.random.default_rng(0).random((6, 5, 4))))
    found = read_folder(root)
    assert found.name == "set"
    assert found.label_names == {1: "liver"}
    assert [(case.name, case.patient, case.split, case.label is not None) for case in found.cases] == [
        ("a", "p1", "val", True), ("b", "p1", "val", True), ("c", "c", None, True), ("t", "t", "test", False),
    ]  # fmt: skip


def test_unlabelled_images_need_no_description(tmp_path):
    found = read_folder(make_folder(tmp_path / "sweeps", labelled=False))
    assert found.name == "sweeps"
    assert all(case.label is None for case in found.cases)


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    with pytest.raises(InputError, match="no such data folder"):
        read_folder(tmp_path / "nothing")
    (tmp_path / "empty" / "imagesTr").mkdir(parents=True)
    with pytest.raises(InputError, match=r"imagesTr: no volumes"):
        read_folder(tmp_path / "empty")
    root = make_folder(tmp_path / "data")
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match=r'dataset\.json: missing; it names the labels: {"name"'):
        read_folder(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json: expected"):
        read_folder(root)
    (root / "dataset.json").write_text('{"labels": {"background": 0}}')
    with pytest.raises(InputError, match="names no label"):
        read_folder(root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("case", "patient"), ("zzz", "p")], "no image for case zzz"),
        ([("case",), ("a",)], "line 2: expected the columns case, patient"),
        ([("case", "patient", "split"), ("a", "p", "training")], "split is 'training', expected train, val, test"),
        ([("case", "patient"), ("a", "p"), ("a", "q")], "line 3: case a stands there twice"),
    ],
)
def test_what_is_wrong_with_patients_csv_is_told(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_folder(make_folder(tmp_path / "data", patients=rows))


def test_two_files_of_one_case(tmp_path):
    root = make_folder(tmp_path / "data", names=("a", "b"))
    write_volume(root / "imagesTs" / "a.nii.gz", Volume(np.random.default_rng(0).random((6, 5, 4))))
    with pytest.raises(InputError, match="several cases are called a"):
        read_folder(root)


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
