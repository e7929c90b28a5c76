import csv
import json

import numpy as np
import pytest

from uscl.data.cache import read_case
from uscl.data.datasets import (
    DataSet,
    read_amos,
    read_brats,
    read_folder,
    read_totalsegmentator,
)
from uscl.data.volume import Volume, read_image, read_label, write_volume
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
        ("a", "p1", "val", True),
        ("b", "p1", "val", True),
        ("c", "c", None, True),
    ]
    # Images to test on count once they have labels.
    write_volume(root / "labelsTs" / "t.nrrd", Volume(np.ones((6, 5, 4), np.uint8)))
    case = read_folder(root).cases[-1]
    assert (case.name, case.patient, case.split, case.label is not None) == ("t", "t", "test", True)


def test_unlabelled_images_need_no_description(tmp_path):
    found = read_folder(make_folder(tmp_path / "sweeps", labelled=False))
    assert found.name == "sweeps"
    assert all(case.label is None for case in found.cases)


def test_what_is_wrong_with_a_folder_is_reported(tmp_path):
    with pytest.raises(InputError, match="no such data folder"):
        read_folder(tmp_path / "nothing")
    (tmp_path / "empty" / "imagesTr").mkdir(parents=True)
    with pytest.raises(InputError, match=r"imagesTr: no volumes"):
        read_folder(tmp_path / "empty")
    root = make_folder(tmp_path / "data")
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match=r'dataset\.json: missing; it names the labels; expected {"name"'):
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
        ([("case", "patient"), ("a", "p"), ("a", "q")], "line 3: case a is listed twice"),
    ],
)
def test_what_is_wrong_with_patients_csv_is_reported(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_folder(make_folder(tmp_path / "data", patients=rows))


def test_two_files_of_one_case(tmp_path):
    root = make_folder(tmp_path / "data", names=("a", "b"))
    write_volume(root / "imagesTs" / "a.nii.gz", Volume(np.random.default_rng(0).random((6, 5, 4))))
    write_volume(root / "labelsTs" / "a.nii.gz", Volume(np.ones((6, 5, 4), np.uint8)))
    with pytest.raises(InputError, match="several cases are called a"):
        read_folder(root)
    root = make_folder(tmp_path / "other", names=("a", "b"))
    write_volume(root / "labelsTr" / "a.nii", Volume(np.ones((6, 5, 4), np.uint8)))
    with pytest.raises(InputError, match=r"a\.nii\.gz: a\.nii lies beside it and is of the same case"):
        read_folder(root)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_channels_of_an_nnunet_raw_data_set(tmp_path):
    root = touch(
        tmp_path,
        *[f"imagesTr/p{n}_000{c}.nii.gz" for n in range(2) for c in range(2)],
        "labelsTr/p0.nii.gz",
        "labelsTr/p1.nii.gz",
        "imagesTs/q_0000.nii.gz",
    )
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FLAIR", "1": "T1c"}, "labels": labels}))
    found = read_folder(root)
    assert [case.name for case in found.cases] == ["p0", "p1"]  # imagesTs has no labels
    assert [case.image.name for case in found.cases] == ["p0_0000.nii.gz", "p1_0000.nii.gz"]
    for modality in ("1", "t1c"):
        assert [case.image.name for case in read_folder(root, modality).cases] == ["p0_0001.nii.gz", "p1_0001.nii.gz"]
    assert found.classes == {"whole": (1, 2, 3), "core": (2, 3)}
    assert set(found.label_names) == {1, 2, 3, 4}  # voxels to ignore are known and never a target
    with pytest.raises(InputError, match=r"no channel 'T2'; it names \{0: 'FLAIR', 1: 'T1c'\}"):
        read_folder(root, "T2")


def test_missing_and_doubled_channels(tmp_path):
    root = touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"x": 1}}))
    assert len(read_folder(root).cases) == 2
    found = read_folder(root, "T2")
    assert [case.name for case in found.cases] == ["a"]
    with pytest.raises(InputError, match=r"channel 1 \(b_0001\) of case b is missing"):
        found.require_sound()
    touch(tmp_path, "imagesTr/a.nii.gz")
    with pytest.raises(InputError, match=r"a_0000\.nii\.gz: .*a\.nii\.gz is an image of the same case"):
        read_folder(root)


def test_dataset_json_of_nnunet_version_1(tmp_path):
    root = touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}
    (root / "dataset.json").write_text(json.dumps(content))
    assert read_folder(root).label_names == {1: "liver", 2: "spleen"}


def test_numbers_in_names_are_not_channels(tmp_path):
    root = touch(tmp_path, *[f"{kind}Tr/amos_000{n}.nii.gz" for kind in ("images", "labels") for n in range(3)])
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    cases = read_folder(root).cases
    assert [(case.image.name, case.label is not None) for case in cases][1:] == [
        ("amos_0001.nii.gz", True),
        ("amos_0002.nii.gz", True),
    ]


def test_amos(tmp_path, scans):
    found = read_amos(scans["amos"])
    assert [(case.name, case.split) for case in found.cases] == [
        ("amos_0001", None),
        ("amos_0002", None),
        ("amos_0509", None),
        ("amos_0004", "test"),
    ]
    assert len(found.label_names) == 15
    assert found.label_names[8] == "aorta"
    assert [case.name for case in read_amos(scans["amos"], "ct").cases] == ["amos_0001", "amos_0002", "amos_0004"]
    assert [case.name for case in read_amos(scans["amos"], "mr").cases] == ["amos_0509"]
    with pytest.raises(InputError, match="AMOS has ct and mr"):
        read_amos(scans["amos"], "us")
    with pytest.raises(InputError, match="no labelled  case under imagesTr"):
        read_amos(tmp_path)
    touch(tmp_path, "imagesTr/patient7.nii.gz", "labelsTr/patient7.nii.gz")
    with pytest.raises(InputError, match=r"patient7\.nii\.gz: expected a name like amos_0001"):
        read_amos(tmp_path)


def test_incomplete_amos(tmp_path):
    touch(tmp_path, "imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "imagesVa/amos_0002.nii.gz")
    assert [case.name for case in read_amos(tmp_path).cases] == ["amos_0001"]  # a side without any labels
    touch(tmp_path, "imagesTr/amos_0510.nii.gz")
    found = read_amos(tmp_path)
    assert [case.name for case in found.cases] == ["amos_0001"]
    with pytest.raises(InputError, match=r"amos_0510\.nii\.gz: no label of that name under labelsTr"):
        found.require_sound()
    assert len(read_amos(tmp_path, "ct").require_sound().cases) == 1


def test_totalsegmentator(tmp_path, scans):
    found = read_totalsegmentator(scans["totalsegmentator"])
    assert [case.name for case in found.cases] == ["s0000", "s0001", "s0002", "s0003"]
    assert [case.split for case in found.cases] == ["train", "train", "val", "test"]
    assert found.cases[2].image.name == "mri.nii.gz"
    assert found.label_names[1] == "adrenal_gland_left"  # sorted
    assert len(found.label_names) == 22
    assert len(read_totalsegmentator(scans["totalsegmentator"], "ct").cases) == 3
    with pytest.raises(InputError, match=r"no \*/ct\.nii\.gz or \*/mri\.nii\.gz"):
        read_totalsegmentator(tmp_path)
    touch(tmp_path, "s0001/ct.nii.gz")
    with pytest.raises(InputError, match="segmentations: no masks"):
        read_totalsegmentator(tmp_path).require_sound()
    touch(tmp_path, "s0001/segmentations/liver.nii.gz")
    (tmp_path / "meta.csv").write_text("image_id;split\ns0001;training\n")
    with pytest.raises(InputError, match="line 2: expected image_id and split"):
        read_totalsegmentator(tmp_path)


def test_incomplete_totalsegmentator(tmp_path, caplog):
    touch(
        tmp_path,
        "s1/ct.nii.gz",
        *[f"s1/segmentations/{name}.nii.gz" for name in ("liver", "spleen")],
        "s2/ct.nii.gz",
        "s2/segmentations/liver.nii.gz",
    )
    assert len(read_totalsegmentator(tmp_path).cases) == 2
    assert "1 of 2 cases lack the masks of some classes, first s2, which lacks spleen" in caplog.text
    touch(tmp_path, "s3/segmentations/liver.nii.gz")
    with pytest.raises(InputError, match=r"s3: has segmentations but neither ct\.nii\.gz nor mri\.nii\.gz"):
        read_totalsegmentator(tmp_path).require_sound()


def test_masks_become_one_map_of_the_classes_in_use(scans, caplog):
    found = read_totalsegmentator(scans["totalsegmentator"]).only(["spleen", "liver"])
    ids = {name: values[0] for name, values in found.classes.items()}
    _, label = read_case(found.cases[0], found)
    assert set(np.unique(label.array)) == {0, *ids.values()}
    for name, label_id in ids.items():
        alone = read_label(found.cases[0].label / f"{name}.nii.gz")
        assert np.array_equal(label.array == label_id, alone.array > 0)
    assert not caplog.records


def test_masks_that_overlap_are_reported(tmp_path, caplog):
    array = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    write_volume(tmp_path / "s1" / "ct.nii.gz", Volume(array))
    for name, limit in (("a", 0.3), ("b", 0.6)):
        write_volume(tmp_path / "s1" / "segmentations" / f"{name}.nii.gz", Volume((array > limit).astype(np.uint8)))
    found = read_totalsegmentator(tmp_path)
    _, label = read_case(found.cases[0], found)
    assert np.array_equal(label.array == 1, array > 0.3)
    assert f"{(array > 0.6).sum()} voxels lie in several masks" in caplog.text
    write_volume(tmp_path / "s1" / "segmentations" / "b.nii.gz", Volume(np.ones((6, 5, 3), np.uint8)), overwrite=True)
    with pytest.raises(InputError, match=r"b\.nii\.gz: does not lie on the grid of .*ct\.nii\.gz"):
        read_case(found.cases[0], found)


@pytest.mark.parametrize(
    ("case", "kinds", "ending", "enhancing", "patient"),
    [
        ("BraTS-GLI-00005-001", "t1n t1c t2w t2f seg", "nii.gz", (3,), "BraTS-GLI-00005"),
        ("BraTS2021_00005", "t1 t1ce t2 flair seg", "nii.gz", (4,), "BraTS2021_00005"),
        ("BraTS20_Training_005", "t1 t1ce t2 flair seg", "nii", (4,), "BraTS20_Training_005"),
        ("brats_2013_pat0005_1", "T1_x T1c_x T2_x Flair_x OTMultiClass", "nii.gz", (4,), "brats_2013_pat0005_1"),
    ],
)
def test_brats_of_every_year(tmp_path, case, kinds, ending, enhancing, patient):
    joint = "-" if case.startswith("BraTS-") else "_"
    root = touch(tmp_path, *[f"{case}/{case}{joint}{kind}.{ending}" for kind in kinds.split()], "notes.nii.txt")
    for modality, position in ((None, 3), ("t2f", 3), ("flair", 3), ("t1c", 1), ("t1ce", 1), ("t1n", 0), ("t2w", 2)):
        found = read_brats(root, modality)
        (only,) = found.cases
        assert (only.name, only.patient, only.split) == (case, patient, None)
        assert only.image.name == f"{case}{joint}{kinds.split()[position]}.{ending}"
        assert only.label.name == f"{case}{joint}{kinds.split()[4]}.{ending}"
    assert found.classes["enhancing tumour"] == enhancing
    assert set(found.classes["tumour core"]) < set(found.classes["whole tumour"])


def test_what_is_wrong_with_brats_is_reported(tmp_path):
    with pytest.raises(InputError, match="no BraTS files; expected e.g."):
        read_brats(tmp_path)
    touch(tmp_path, "a/BraTS2021_00005_t1.nii.gz")
    with pytest.raises(InputError, match="no t2f of BraTS2021_00005; complete the case"):
        read_brats(tmp_path)
    with pytest.raises(InputError, match="BraTS has t1, t1n"):
        read_brats(tmp_path, "dwi")
    touch(tmp_path, "a/BraTS2021_00005_flair.nii.gz", "b/BraTS-GLI-00001-000-t2f.nii.gz")
    with pytest.raises(InputError, match="mixes BraTS 2023"):
        read_brats(tmp_path)


def test_predictions_among_the_scans(tmp_path):
    touch(
        tmp_path,
        *[f"{folder}/BraTS-GLI-00001-000-seg.nii.gz" for folder in ("a", "predicted")],
        *[f"a/BraTS-GLI-0000{n}-000-t2f.nii.gz" for n in (1, 2)],
    )
    found = read_brats(tmp_path)
    assert [case.name for case in found.cases] == ["BraTS-GLI-00002-000"]
    with pytest.raises(InputError, match=r"predicted/BraTS.*has a seg already, .*keep copies and predictions outside"):
        found.require_sound()


def test_regions_may_overlap():
    found = DataSet("set", (), {1: "a", 2: "b"}, {"both": (1, 2), "b": (2,)})
    label = np.array([0, 1, 2])
    assert found.mask(label, "both").tolist() == [False, True, True]
    assert found.mask(label, "b").tolist() == [False, False, True]
    assert list(found.only(["b"]).classes) == ["b"]


def test_real_examples(shared_data, tmp_path):
    """The public files as they are named, without special cases."""
    found = read_brats(shared_data / "mr_brats2013", "t1c")
    assert len(found.cases) == 3
    _, label = read_case(found.cases[0], found)
    core, whole = (found.mask(label.array, name).sum() for name in ("tumour core", "whole tumour"))
    assert 0 < core < whole
    assert len(read_brats(shared_data / "mr_brats_gli").cases) >= 1


@pytest.mark.shared
@pytest.mark.parametrize(
    ("image", "label", "file", "organs"),
    [
        ("example_ct_sm", "example_seg", "ct", {1: "spleen", 5: "liver", 52: "aorta"}),
        ("example_mr_sm", "example_seg_mr", "mri", {1: "spleen", 5: "liver", 23: "aorta"}),
    ],
)
def test_real_totalsegmentator_scans(shared_data, tmp_path, image, label, file, organs):
    """The examples are label maps of all structures; a download has a mask of each in a folder."""
    source = shared_data / "ct_mr_totalseg"
    whole = read_label(source / f"{label}.nii.gz")
    write_volume(tmp_path / "s0011" / f"{file}.nii.gz", read_image(source / f"{image}.nii.gz"))
    for number, name in organs.items():
        mask = whole.with_array((whole.array == number).astype(np.uint8))
        write_volume(tmp_path / "s0011" / "segmentations" / f"{name}.nii.gz", mask)
    found = read_totalsegmentator(tmp_path)
    _, merged = read_case(found.cases[0], found)
    for number, name in organs.items():
        np.testing.assert_array_equal(found.mask(merged.array, name), whole.array == number)
    assert (merged.array > 0).sum() > 1000


@pytest.mark.shared
def test_real_label_maps_in_the_layout_of_amos(shared_data, tmp_path):
    """BTCV's organs have the ids of AMOS up to a point; there is no image, so one is made up on their grid."""
    for number, file in enumerate(sorted((shared_data / "labels_btcv_l2r").glob("*.nii.gz"))[:3], start=1):
        label = read_label(file)
        image = label.with_array((40 * label.array + 5).astype(np.int16))
        side = "Va" if number == 3 else "Tr"
        write_volume(tmp_path / f"images{side}" / f"amos_{number:04d}.nii.gz", image)
        write_volume(tmp_path / f"labels{side}" / f"amos_{number:04d}.nii.gz", label)
    found = read_amos(tmp_path)
    assert [(case.name, case.split) for case in found.cases][-1] == ("amos_0003", "test")
    for case in found.cases:
        _, label = read_case(case, found)
        assert 400 < found.mask(label.array, "liver").sum() * np.prod(label.spacing) / 1000 < 4000
