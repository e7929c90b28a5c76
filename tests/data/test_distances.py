"""Where millimetres come from: files keep it, readings change it, and sizes that cannot be are noted."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk

from uscl.cli import main
from uscl.data import Preprocessing, Volume, VolumeDataModule, read_image, write_volume
from uscl.data.plausible import size_note
from uscl.data.sweeps import SweepReading, read_sweep
from uscl.data.volume import note_beside, vaguest
from uscl.errors import InputError

ARRAY = np.random.default_rng(0).integers(0, 255, (20, 18, 16)).astype(np.uint8)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("origin", ["measured", "given", "assumed"])
def test_every_kind_of_file_keeps_it(ending, origin, tmp_path):
    file = write_volume(tmp_path / f"a{ending}", Volume(ARRAY, (1, 2, 3), distances=origin))
    assert read_image(file).distances == origin
    assert note_beside(file).is_file() == (origin == "assumed")


def test_the_note_beside_outlives_another_program(tmp_path):
    file = write_volume(tmp_path / "a.nii.gz", Volume(ARRAY, (1, 2, 3), distances="assumed"))
    image = sitk.ReadImage(str(file))
    image.EraseMetaData("ITK_FileNotes")
    sitk.WriteImage(image, str(file))
    assert read_image(file).distances == "assumed"
    note = note_beside(file)
    assert note.name == "a.nii.gz.distances.json"
    write_volume(tmp_path / "a.mha", Volume(ARRAY, (1, 2, 3), distances="measured"))
    assert read_image(file).distances == "assumed", "whatever lies beside it under another ending"
    assert read_image(tmp_path / "a.mha").distances == "measured"
    # Replaced by one whose distances are known.
    write_volume(file, Volume(ARRAY, (1, 2, 3), distances="measured"), overwrite=True)
    assert read_image(file).distances == "measured"
    assert not note.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"distances": "guessed"}'])
def test_a_note_that_cannot_be_read_is_no_measurement(content, tmp_path):
    file = write_volume(tmp_path / "a.nii.gz", Volume(ARRAY))
    note_beside(file).write_text(content)
    with pytest.raises(InputError, match="distances"):
        read_image(file)


def test_notes_of_other_programs_say_nothing_about_distances(tmp_path):
    image = sitk.GetImageFromArray(ARRAY)
    image.SetMetaData("ITK_FileNotes", "FSL5.0")
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    assert read_image(tmp_path / "a.nii.gz").distances == "measured"


@pytest.mark.parametrize(
    ("found", "spacing", "step", "wanted"),
    [
        ("measured", None, None, "measured"),
        ("measured", (1.0, 2.0), None, "measured"),
        ("measured", (1.0, 2.0), 3.0, "measured"),
        ("measured", (0.5, 0.5), None, "given"),
        ("measured", None, 7.0, "given"),
        ("measured", "assumed", None, "assumed"),
        ("measured", None, "assumed", "assumed"),
        ("measured", (0.5, 0.5), "assumed", "assumed"),
        ("given", None, None, "given"),
        ("assumed", None, None, "assumed"),
        ("assumed", (0.5, 0.5), None, "assumed"),
        ("assumed", (1.0, 2.0), 3.0, "given"),
        ("assumed", (0.5, 0.5), 7.0, "given"),
    ],
)
def test_what_a_reading_makes_of_a_volume(found, spacing, step, wanted, tmp_path):
    """Only who gives all of what is assumed makes it known."""
    file = write_volume(tmp_path / "a.nii.gz", Volume(ARRAY, (1, 2, 3), distances=found))
    volume = read_sweep(file, SweepReading(spacing, step))
    assert volume.distances == wanted
    lateral, depth = spacing if isinstance(spacing, tuple) else (1, 2)
    assert volume.spacing == (lateral, depth, step if isinstance(step, float) else 3)


def test_the_vaguest_of_several():
    assert vaguest("measured") == "measured"
    assert vaguest("given", "measured") == "given"
    assert vaguest("measured", "assumed", "given") == "assumed"


@pytest.mark.parametrize(
    ("shape", "spacing", "odd"),
    [
        ((44, 59, 41), (0.4, 0.4, 0.4), True),
        ((44, 59, 41), (1.35, 1.35, 1.35), False),
        ((512, 512, 900), (0.9, 0.9, 1.0), False),
        ((512, 512, 900), (9.0, 9.0, 9.0), True),
        ((400, 300, 90), (0.05, 0.05, 0.5), False),
    ],
)
def test_sizes_that_no_scan_has(shape, spacing, odd):
    assert bool(size_note(shape, spacing)) == odd


def scan(folder, distances: str = "measured"):
    """A scan of 8 x 7 x 6 mm, in the plain layout."""
    label = np.zeros(ARRAY.shape, np.uint8)
    label[4:16, 4:14, 4:12] = 1
    for kind, array in (("imagesTr", ARRAY), ("labelsTr", label)):
        write_volume(folder / kind / "a.nii.gz", Volume(array, (0.4, 0.4, 0.4), distances=distances))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "prostate": 1}}))
    return folder


def test_a_wrong_header_is_noted_by_prepare(tmp_path, caplog, capsys):
    pytest.importorskip("blosc2")
    root = scan(tmp_path / "scans")
    small = ["--preprocessing.spacing", "[0.5, 0.5, 0.5]", "--preprocessing.patch_size", "16"]
    assert main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "store"), *small]) == 0
    assert "a: measures 8 x 7.2 x 6.4 mm, which no scan of a patient does" in caplog.text
    with (tmp_path / "store" / "prepare_report.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["note"].startswith("measures 8 x 7.2 x 6.4 mm")
    assert (row["status"], row["distances"]) == ("usable", "measured")
    assert " ml" in row["classes"]


def test_a_wrong_header_is_noted_before_training(tmp_path, caplog):
    root = scan(tmp_path / "scans")
    data = VolumeDataModule(str(root), Preprocessing((0.5, 0.5, 0.5), 16))
    data.split = type(data.split)(0.0, 1.0)
    data.setup("test")
    assert "1 of 1 test cases have a size that cannot be: a measures 8 x 7.2 x 6.4 mm" in caplog.text


def test_labels_of_an_image_with_assumed_distances_have_none(tmp_path):
    """Whichever of both files says so, surfaces are compared in voxels."""
    root = scan(tmp_path / "scans")
    image = read_image(root / "imagesTr" / "a.nii.gz")
    write_volume(
        root / "imagesTr" / "a.nii.gz", Volume(image.array, image.spacing, distances="assumed"), overwrite=True
    )
    data = VolumeDataModule(str(root), Preprocessing((0.5, 0.5, 0.5), 16))
    data.split = type(data.split)(0.0, 1.0)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert (batch.truth.distances, batch.truth.spacing) == ("assumed", (1, 1, 1))
