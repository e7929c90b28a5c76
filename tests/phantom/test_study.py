import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from uscl.data import read_image, read_label
from uscl.data.datasets import read_folder
from uscl.errors import InputError
from uscl.phantom import LAYOUTS, SweepStudy, simulate_study
from uscl.phantom.layouts import amos, brats, totalsegmentator
from uscl.phantom.layouts.scans import ScanStudy
from uscl.phantom.layouts.ultrasound import PAPER, view_of
from uscl.phantom.structures import SWEEP_LABELS
from uscl.phantom.study import all_patients, simulate_patient

SMALL = SweepStudy(patients=3, sweeps_per_patient=2, frames=12, size=64)


def simulate(kind: str, folder, settings, workers: int = 1):
    return simulate_study(LAYOUTS[kind], folder, settings, workers)


def digest(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.suffix != ".png" and path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_sweeps_are_read_by_the_data_layer(study):
    data_set = read_folder(study)
    assert data_set.label_names == SWEEP_LABELS
    assert len(data_set.cases) == 6
    for case in data_set.cases:
        image, label = read_image(case.image), read_label(case.label)
        assert image.shape == label.shape == (64, 64, 12)
        assert image.same_grid(label) is None
        assert image.array.dtype == np.uint8
        assert label.array.max() <= 5
        drawn = json.loads((study / "parameters" / f"{case.name}.json").read_text())
        assert drawn["spacing_mm"] == pytest.approx(image.spacing, rel=1e-5)
        assert len(drawn["probe_origin_mm"]) == 12
    assert (study / "contact_sheet.png").stat().st_size > 10000


def test_all_five_targets_occur(study):
    data_set = read_folder(study)
    present = set().union(*(np.unique(read_label(case.label).array).tolist() for case in data_set.cases))
    assert present == {0, 1, 2, 3, 4, 5}


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_workers(study, tmp_path):
    assert digest(simulate("ultrasound", tmp_path / "again", SMALL, workers=2)) == digest(study)


def test_same_bytes_after_an_interruption(study, tmp_path):
    """One sweep is gone, another was written but not yet noted as complete."""
    again = shutil.copytree(study, tmp_path / "again")
    (again / "contact_sheet.png").unlink()
    (again / "imagesTr" / "train000_sweep01.nii.gz").unlink()
    (again / "parameters" / "train000_sweep01.json").unlink()
    (again / "parameters" / "val000_sweep00.json").unlink()
    untouched = again / "imagesTs" / "test000_sweep00.nii.gz"
    before = untouched.stat().st_mtime_ns
    simulate("ultrasound", again, SMALL)
    assert digest(again) == digest(study)
    assert untouched.stat().st_mtime_ns == before, "what was complete is left alone"


def test_another_seed_is_another_study(study, tmp_path):
    simulate_patient(LAYOUTS["ultrasound"], tmp_path, replace(SMALL, seed=1), all_patients(3)[0])
    name = "imagesTr/train000_sweep00.nii.gz"
    assert digest(tmp_path)[name] != digest(study)[name]


def test_nothing_else_is_written_over(study, tmp_path):
    with pytest.raises(InputError, match=r"holds a study with other settings \({'patients': 3"):
        simulate("ultrasound", study, SweepStudy(patients=4, frames=12, size=64))
    with pytest.raises(InputError, match="holds a study with other settings"):
        simulate("amos", study, ScanStudy())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"is not empty and holds no study\.json"):
        simulate("ultrasound", tmp_path / "mine", SweepStudy())


def test_patients_of_different_sides_are_different_people():
    patients = all_patients(39)
    assert len({(patient.split, patient.number) for patient in patients}) == 39
    assert Counter(patient.split for patient in patients) == {"train": 27, "val": 4, "test": 8}
    with pytest.raises(InputError, match="at least 3 patients"):
        all_patients(2)


def test_the_papers_set():
    patients = all_patients(PAPER.patients)
    assert Counter(view_of(patient) for patient in patients) == {"pleural": 25, "abdominal": 14}
    assert sum(PAPER.sweeps_of(patient) for patient in patients) == 500
    for split in ("train", "val", "test"):
        assert {view_of(patient) for patient in patients if patient.split == split} == {"pleural", "abdominal"}
    assert {view_of(patient) for patient in all_patients(3)} == {"pleural", "abdominal"}


def test_a_threshold_does_not_solve_it(study):
    """The best window of grey values for each organ, chosen with the answer known, still segments it badly."""
    for case in read_folder(study).cases:
        image, label = read_image(case.image).array, read_label(case.label).array
        for label_id in (3, 4, 5):
            target = label == label_id
            if target.sum() < 500:
                continue
            best = 0.0
            for low in range(0, 250, 25):
                for high in range(low + 25, 275, 25):
                    mask = (image >= low) & (image < high)
                    best = max(best, 2 * (mask & target).sum() / (mask.sum() + target.sum()))
            assert best < 0.8, (case.name, SWEEP_LABELS[label_id])


def test_clicks_for_prediction_lie_on_their_objects(study):
    lines = (study / "prompts.csv").read_text().splitlines()[1:]
    assert lines
    names = {name: label_id for label_id, name in SWEEP_LABELS.items()}
    for line in lines:
        image, i, j, k, label, name = line.split(",")
        array = read_label(study / image.replace("images", "labels")).array
        assert array[int(i), int(j), int(k)] == names[name]
        assert label == "1"


@pytest.mark.parametrize("video", ["frames", "mp4"])
def test_videos_and_key_frames(tmp_path, video):
    from PIL import Image

    av = pytest.importorskip("av", reason="the extra `video` is not installed") if video == "mp4" else None
    settings = SweepStudy(3, 1, frames=8, size=64, video=video, key_frames=3)
    simulate_patient(LAYOUTS["ultrasound"], folder := tmp_path / "study", settings, all_patients(3)[0])
    name = "train000_sweep00"
    image, label = (read_image(folder / f"{kind}Tr/{name}.nii.gz").array for kind in ("images", "labels"))
    keys = sorted((folder / "key_frames" / name).iterdir())
    assert [path.stem for path in keys] == ["0000", "0004", "0007"]
    for path in keys:
        assert np.array_equal(np.asarray(Image.open(path)), label[:, :, int(path.stem)].T), "masks are kept exactly"
    if video == "frames":
        frames = [np.asarray(Image.open(path)) for path in sorted((folder / "frames" / name).iterdir())]
        assert np.array_equal(np.stack(frames).transpose(2, 1, 0), image)
    else:
        with av.open(str(folder / "videos" / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert len(frames) == 8
        assert np.abs(np.stack(frames).transpose(2, 1, 0).astype(int) - image).mean() < 4


def test_label_maps_as_patients(tmp_path):
    from phantom.test_anatomy import fake_organs

    for number in range(3):
        fake_organs(tmp_path, False).rename(tmp_path / f"map{number}.nii.gz")
    settings = SweepStudy(3, 1, frames=4, size=64, labels=str(tmp_path / "map*.nii.gz"))
    folder = simulate("ultrasound", tmp_path / "study", settings)
    drawn = json.loads((folder / "parameters/test000_sweep00.json").read_text())
    assert drawn["patient"]["labels"] == "map2.nii.gz"
    few = SweepStudy(4, 1, labels=str(tmp_path / "map*.nii.gz"))
    with pytest.raises(InputError, match="3 label maps for 4 patients"):
        simulate("ultrasound", tmp_path / "few", few)


def test_amos_layout(sized_scans):
    root = sized_scans[0]["amos"]
    description = json.loads((root / "dataset.json").read_text())
    assert len(description["labels"]) == 16
    assert len(description["training"]) == 3
    assert len(description["validation"]) == 1
    for entry in description["training"] + description["validation"]:
        image, label = read_image(root / entry["image"]), read_label(root / entry["label"])
        assert image.same_grid(label) is None
        assert {6, 8} <= set(np.unique(label.array).tolist()) <= set(range(16))
    assert (root / "imagesTr/amos_0509.nii.gz").is_file(), "numbers above 506 are MR"
    liver = read_image(root / "imagesTr/amos_0001.nii.gz").array[
        read_label(root / "labelsTr/amos_0001.nii.gz").array == 6
    ]
    assert 20 < liver.mean() < 150
    assert set(amos.LABEL_OF.values()) == set(range(1, 14))


def test_totalsegmentator_layout(sized_scans):
    root = sized_scans[0]["totalsegmentator"]
    meta = [line.split(";") for line in (root / "meta.csv").read_text().splitlines()]
    assert meta[0] == ["image_id", "age", "gender", "institute", "study_type", "split"]
    assert [row[0] for row in meta[1:]] == ["s0000", "s0001", "s0002", "s0003"]
    assert [row[5] for row in meta[1:]] == ["train", "train", "val", "test"]
    assert (root / "s0000/ct.nii.gz").is_file()
    assert (root / "s0002/mri.nii.gz").is_file()
    image = read_image(root / "s0000/ct.nii.gz")
    assert image.spacing == pytest.approx([1.5 * sized_scans[1]] * 3)
    total = np.zeros(image.shape, int)
    for name in totalsegmentator.CLASSES:
        mask = read_label(root / f"s0000/segmentations/{name}.nii.gz")
        assert mask.same_grid(image) is None
        total += mask.array
    assert total.max() == 1, "classes do not overlap"


def test_brats_layout(sized_scans):
    root, coarser = sized_scans[0]["brats"], sized_scans[1]
    for case in sorted(root.glob("BraTS-GLI-*")):
        label = read_label(case / f"{case.name}-seg.nii.gz")
        assert label.shape == (240 // coarser, 240 // coarser, -(-155 // coarser))
        assert label.spacing == (coarser, coarser, coarser)
        assert set(np.unique(label.array).tolist()) == {0, 1, 2, 3}
        images = {suffix: read_image(case / f"{case.name}-{suffix}.nii.gz") for suffix in brats.SUFFIXES}
        for image in images.values():
            assert image.same_grid(label) is None
            assert image.array[0, 0, 0] == 0, "skull-stripped"
        rim, white = label.array == 3, (label.array == 0) & (images["t1n"].array > 0)
        assert images["t1c"].array[rim].mean() > 1.3 * images["t1c"].array[white].mean()
        assert images["t2f"].array[label.array == 2].mean() > 1.3 * images["t2f"].array[white].mean()


def test_scans_are_reproducible_and_what_is_complete_is_left_alone(scans, tmp_path):
    patient, settings = all_patients(4)[0], ScanStudy(4, coarsen=3)
    simulate_patient(brats.LAYOUT, tmp_path, settings, patient)
    assert digest(tmp_path / "BraTS-GLI-00000-000") == digest(scans["brats"] / "BraTS-GLI-00000-000")
    assert digest(tmp_path / "parameters") == {
        name: value for name, value in digest(scans["brats"] / "parameters").items() if "00000" in str(name)
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert simulate_patient(brats.LAYOUT, tmp_path, settings, patient)[0].name == "BraTS-GLI-00000-000"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
