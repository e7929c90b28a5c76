"""Sweeps of every kind in one manifest, as a lab has them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from dicom_files import region, write_dicom

from uscl.cli import main
from uscl.data import Preprocessing, SweepReading, VolumeDataModule
from uscl.data.cache import read_case
from uscl.data.datasets import Splitting, read_ultrasound, write_manifest
from uscl.data.datasets.ultrasound import CLASSES, COLUMNS
from uscl.data.store import open_case
from uscl.data.training_patches import PatchSampling
from uscl.data.volume import Volume, write_volume
from uscl.errors import InputError
from uscl.phantom.video import write_frames, write_video

SMALL = Preprocessing(spacing=(4.0, 4.0, 4.0), patch_size=32)


def clip(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and label ids [frame, depth, lateral]: a bright liver that wanders, on something darker."""
    random = np.random.default_rng(number)
    z, y, x = np.mgrid[:20, :48, :64]
    liver = np.hypot(x - 24 - number - z, y - 24) < 12
    speckle = random.integers(0, 40, z.shape, np.uint8)
    return np.where(liver, 160, 60).astype(np.uint8) + speckle, 3 * liver.astype(np.uint8)


@pytest.fixture
def lab(tmp_path) -> Path:
    """Five sweeps of three patients, each of another kind, and things that are no sweep."""
    root = tmp_path / "Daten äöü"
    for number, (folder, kind) in enumerate(
        [("p1", "volume"), ("p1", "video"), ("p2", "frames"), ("p2", "dicom"), ("p3", "series")]
    ):
        frames, ids = clip(number)
        below = root / folder
        if kind == "volume":
            write_volume(below / "images" / "a.nii.gz", Volume(frames.transpose(2, 1, 0), (2.0, 2.0, 5.0)))
            write_volume(below / "labels" / "a.nii.gz", Volume(ids.transpose(2, 1, 0), (2.0, 2.0, 5.0)))
        elif kind == "video":
            write_video(below / "videos" / "b.mp4", frames)
            write_volume(below / "labels" / "b.nii.gz", Volume(ids.transpose(2, 1, 0)))
        elif kind == "frames":
            write_frames(below / "images" / "c", frames, range(20))
            write_frames(below / "masks" / "c", ids, range(20))
        elif kind == "dicom":
            known = region(RegionLocationMaxX1=63, RegionLocationMaxY1=47, PhysicalDeltaX=0.2, PhysicalDeltaY=0.2)
            write_dicom(below / "d.dcm", frames, SequenceOfUltrasoundRegions=known)
        else:
            for place, frame in enumerate(frames):
                write_dicom(below / "e" / f"IM{place}", frame, InstanceNumber=place)
    (root / "p3" / "e.txt").write_text("no sweep")
    (root / ".hidden.mp4").write_text("no sweep either")
    return root


def rows(manifest: Path) -> dict[str, dict[str, str]]:
    with manifest.open(encoding="utf-8") as stream:
        return {row["sweep"]: row for row in csv.DictReader(stream)}


def rewrite(manifest: Path, lines: list[dict[str, str]]) -> None:
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def test_a_fresh_manifest_lists_every_sweep_with_its_label(lab, tmp_path, capsys):
    before = sorted(lab.rglob("*"))
    manifest = tmp_path / "mine" / "sweeps.csv"
    assert main(["prepare", "ultrasound", "--root", str(lab), "--new-manifest", str(manifest)]) == 0
    assert sorted(lab.rglob("*")) == before, "nothing may be written into the download"
    found = rows(manifest)
    assert {
        name: (row["patient"], Path(row["image"]).name, Path(row["label"]).parent.name, row["spacing"], row["step"])
        for name, row in found.items()
    } == {
        "p1_images_a": ("p1", "a.nii.gz", "labels", "", ""),
        "p1_videos_b": ("p1", "b.mp4", "labels", "assumed", "assumed"),
        "p2_d": ("p2", "d.dcm", "", "assumed", "assumed"),
        "p2_images_c": ("p2", "c", "masks", "assumed", "assumed"),
        "p3_e": ("p3", "e", "", "assumed", "assumed"),
    }
    # What its owner has edited is never lost.
    assert main(["prepare", "ultrasound", "--root", str(lab), "--new-manifest", str(manifest)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_dicom_files_that_are_named_by_their_uid(tmp_path):
    frames = clip(0)[0]
    for name in ("1.2.840.113619.2.55.3", "MR.1.3.12.2.1107"):
        write_dicom(tmp_path / "export" / name, frames)
    write_dicom(tmp_path / "export" / "DICOMDIR", frames)
    write_video(tmp_path / "export" / "b.mp4", frames)
    assert write_manifest(tmp_path / "export", tmp_path / "sweeps.csv") == 3


def test_labels_of_another_patient_are_not_taken(tmp_path):
    frames, ids = clip(0)
    for patient in ("p1", "p2"):
        write_volume(tmp_path / patient / "clip.nrrd", Volume(frames.transpose(2, 1, 0)))
    write_volume(tmp_path / "p1" / "clip_label.nrrd", Volume(ids.transpose(2, 1, 0)))
    assert write_manifest(tmp_path, tmp_path / "sweeps.csv") == 2
    found = rows(tmp_path / "sweeps.csv")
    assert found["p1_clip"]["label"] == "p1/clip_label.nrrd"
    assert found["p2_clip"]["label"] == ""


def test_two_label_files_for_one_sweep_are_reported(tmp_path, caplog):
    frames, ids = clip(0)
    write_volume(tmp_path / "p1" / "a.nii.gz", Volume(frames.transpose(2, 1, 0)))
    for folder in ("labels", "masks"):
        write_volume(tmp_path / "p1" / folder / "a.nii.gz", Volume(ids.transpose(2, 1, 0)))
    assert write_manifest(tmp_path, tmp_path / "sweeps.csv") == 1
    assert rows(tmp_path / "sweeps.csv")["p1_a"]["label"] == ""
    assert "could be its labels; none is entered" in caplog.text


def test_a_broken_header_does_not_stop_the_list(tmp_path):
    frames, _ = clip(0)
    for number in range(3):
        path = write_dicom(tmp_path / "p1" / "s" / f"{number}.dcm", frames[number], InstanceNumber=number)
    path.write_bytes(path.read_bytes()[:140] + b"\xff" * 40)
    write_dicom(tmp_path / "p2" / "good.dcm", frames)
    write_manifest(tmp_path, tmp_path / "sweeps.csv")
    assert set(rows(tmp_path / "sweeps.csv")) == {"p1_s", "p2_good"}


def test_what_lies_beside_the_sweeps_is_not_lost_without_a_word(tmp_path, caplog):
    frames, ids = clip(0)
    write_video(tmp_path / "Label Clinic" / "a.mp4", frames)  # a video is never a label map
    write_frames(tmp_path / "Label Clinic" / "a", frames, range(20))
    write_dicom(tmp_path / "cut.dcm", frames)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:140])
    write_volume(tmp_path / "b.nrrd", Volume(frames.transpose(2, 1, 0)))
    write_dicom(tmp_path / "b.dcm", frames)
    write_volume(tmp_path / "masks" / "elsewhere.nrrd", Volume(ids.transpose(2, 1, 0)))
    assert write_manifest(tmp_path, tmp_path / "sweeps.csv") == 4
    assert set(rows(tmp_path / "sweeps.csv")) == {"Label Clinic_a", "b", "b_2", "cut"}
    assert "elsewhere.nrrd: looks like labels, but no sweep goes with it" in caplog.text


def test_every_kind_reaches_the_model(lab):
    write_manifest(lab, lab / "sweeps.csv")
    found = read_ultrasound(lab)
    assert found.label_names == CLASSES
    for case in found.cases:
        image, label = read_case(case, found)
        assert image.shape == (64, 48, 20)
        assert (label is None) == (case.label is None)
        if label is not None:
            inside = image.array[label.array == 3]
            assert inside.mean() > image.array[label.array == 0].mean() + 80
    spacing = {case.name: read_case(case, found)[0].spacing for case in found.cases}
    assert spacing["p1_images_a"] == (2.0, 2.0, 5.0)
    assert spacing["p2_d"] == pytest.approx((2.0, 2.0, 7.5))


def test_the_store_serves_what_the_manifest_says(lab, tmp_path):
    manifest, out = lab / "sweeps.csv", tmp_path / "store"
    write_manifest(lab, manifest)
    rewrite(manifest, [row for row in rows(manifest).values() if row["label"]])
    command = ["prepare", "ultrasound", "--root", str(lab), "--out", str(out), "--preprocessing.spacing", "[4, 4, 4]"]
    assert main(command) == 0
    sampling = PatchSampling(centre="label_box", minimum_foreground=1)
    batches = {}
    for dataset, root in (("ultrasound", lab), ("prepared", out)):
        data = VolumeDataModule(
            str(root),
            SMALL,
            sampling,
            dataset=dataset,
            split=Splitting(0.0, 0.0),
            batch_size=1,
            classes=["liver"],
        )
        data.setup("fit")
        batches[dataset] = [data.train_dataloader().dataset[n] for n in range(4)]
        assert [case.reading for case in data.data_set.cases] == [
            SweepReading(),
            *[SweepReading("assumed", "assumed")] * 2,
        ]
    for file, stored in zip(batches["ultrasound"], batches["prepared"], strict=True):
        assert (file.target == stored.target).all()
        assert (file.image - stored.image).abs().max() < 0.05
    # A sweep that is to be read in another way is prepared again.
    changed = rows(manifest)
    changed["p2_images_c"] |= {"spacing": "1.5 1.5", "step": "2"}
    rewrite(manifest, list(changed.values()))
    assert main(command) == 0
    with (out / "prepare_report.csv").open() as stream:
        told = {row["case"]: row["spacing"] for row in csv.DictReader(stream)}
    assert told["p2_images_c"] == "1.5 x 1.5 x 2"
    assert open_case(out, Preprocessing(spacing=(4.0, 4.0, 4.0)), "p2_images_c")[2].source_spacing == (1.5, 1.5, 2.0)


def test_sites_and_splits(tmp_path):
    frames, _ = clip(0)
    write_frames(tmp_path / "c", frames, range(20))
    (tmp_path / "sweeps.csv").write_text(
        "patient,sweep,image,site,split,operator\np1,s1,c,pleural,train,me\np2,s2,c,abdominal,test,you\n"
    )
    found = read_ultrasound(tmp_path)
    assert [(case.name, case.patient, case.split) for case in found.cases] == [
        ("s1", "p1", "train"),
        ("s2", "p2", "test"),
    ]
    assert [case.name for case in read_ultrasound(tmp_path, "Abdominal").cases] == ["s2"]
    with pytest.raises(InputError, match="no sweep of site 'cardiac'; it has abdominal, pleural"):
        read_ultrasound(tmp_path, "cardiac")


def test_a_missing_file_is_a_problem_of_its_sweep(lab, tmp_path, capsys):
    write_manifest(lab, lab / "sweeps.csv")
    (lab / "p1" / "videos" / "b.mp4").unlink()
    with pytest.raises(InputError, match=r"sweeps\.csv, line 3: .*b\.mp4 is not there"):
        read_ultrasound(lab).require_sound()
    command = ["prepare", "ultrasound", "--root", str(lab), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert main([*command, "--skip-bad"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,sweep,image\n", "holds no sweep"),
        ("patient,image\np1,c\n", "lacks the columns sweep"),
        ("patient,sweep,image\np1,a/../b,c\n", "line 2: sweep is 'a/../b'"),
        ("patient,sweep,image\np1,.s,c\n", "line 2: sweep is '.s'"),
        ("patient,sweep,image\np1,,c\n", "line 2: patient, sweep and image must be given"),
        ("patient,sweep,image,split\np1,s,c,training\n", "line 2: split is 'training'"),
        ("patient,sweep,image,spacing\np1,s,c,wide\n", "line 2: spacing is 'wide'"),
        ("patient,sweep,image,mask\np1,s,c,text\n", "line 2: reading: no rule text"),
        ("patient,sweep,image\np1,s,c\np2,s,c\n", "several cases are called s"),
        ("patient,sweep,image\np1,s,\xff\n", "not readable as CSV in UTF-8"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, text, message):
    write_frames(tmp_path / "c", clip(0)[0], range(20))
    (tmp_path / "sweeps.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_ultrasound(tmp_path)


def test_no_manifest_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(InputError, match="uscl prepare ultrasound --root FOLDER --new-manifest"):
        read_ultrasound(tmp_path)


def test_a_clip_is_segmented_on_its_own_grid(lab, tmp_path, caplog):
    common = [
        "--backbone",
        "tiny",
        "--weights",
        "null",
        "--preprocessing.patch_size",
        "64",
        "--preprocessing.spacing",
        "[3, 3, 3]",
        "--points",
        "24,24,2;40,24,18",
    ]
    video = ["segment", str(lab / "p1/videos/b.mp4"), "--out", str(tmp_path / "mask.nii.gz"), *common]
    assert main(video) == 2
    with caplog.at_level("INFO"):
        assert (
            main(
                [
                    *video,
                    "--reading.spacing",
                    "[1.5, 1.5]",
                    "--reading.step",
                    "assumed",
                    "--picture",
                    str(tmp_path / "mask.png"),
                ]
            )
            == 0
        )
        assert " ml" not in caplog.text, "millilitres of assumed distances are none"
        assert main([*video, "--reading.spacing", "[1.5, 1.5]", "--reading.step", "7.5", "--overwrite"]) == 0
        assert " ml, " in caplog.text
    from uscl.data import read_label

    mask = read_label(tmp_path / "mask.nii.gz")
    assert mask.shape == (64, 48, 20)
    assert mask.spacing == pytest.approx((1.5, 1.5, 7.5))
    assert (tmp_path / "mask.png").stat().st_size > 1000


@pytest.mark.shared
def test_a_folder_of_real_clips(shared_data, tmp_path):
    count = write_manifest(shared_data / "us_pocus", tmp_path / "sweeps.csv")
    assert count == 13
    data = VolumeDataModule(
        str(tmp_path / "sweeps.csv"),
        SMALL,
        PatchSampling(centre="volume"),
        dataset="ultrasound",
        split=Splitting(0.0, 0.0),
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (2, 1, 32, 32, 32)
    assert batch.image.std() > 0.3
