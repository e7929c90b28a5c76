"""`uscl segment`: every backbone, file and way to click, in one process; errors end with 2 and one line."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data.test_volume import WORDS, broken

from uscl.backbone import build_sam_med3d
from uscl.cli import main
from uscl.data import Volume, read_image, read_label, write_volume


@pytest.fixture
def scan(tmp_path) -> Path:
    array = np.random.default_rng(0).normal(100, 30, (40, 50, 30)).astype(np.float32)
    direction = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    return write_volume(tmp_path / "in" / "scan.nii.gz", Volume(array, (1.1, 0.8, 2.0), (-20.0, 5.0, 300.0), direction))


def segment(*args) -> int:
    return main(["segment", *map(str, args), "--backbone", "tiny", "--weights", "null"])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_segment_writes_a_mask_on_the_grid_of_the_image(scan, tmp_path, caplog):
    out = tmp_path / "out" / "mask.nii.gz"
    picture = tmp_path / "out" / "mask.png"
    assert segment(scan, "--points", "20,25,15,1;2,2,2,0", "--out", out, "--picture", picture) == 0
    image, mask = sitk.ReadImage(str(scan)), sitk.ReadImage(str(out))
    assert mask.GetSize() == image.GetSize()
    assert mask.GetSpacing() == image.GetSpacing()
    assert mask.GetOrigin() == image.GetOrigin()
    np.testing.assert_allclose(mask.GetDirection(), image.GetDirection(), atol=1e-6)  # NIfTI keeps a quaternion
    assert picture.stat().st_size > 5000
    assert "RANDOM WEIGHTS" in caplog.text
    assert "not a medical device" in caplog.text


def test_physical_and_voxel_points_mean_the_same(scan, tmp_path):
    point = sitk.ReadImage(str(scan)).TransformIndexToPhysicalPoint((20, 25, 15))
    physical = ",".join(f"{value:.4f}" for value in point)
    assert segment(scan, "--points", "20,25,15", "--out", tmp_path / "a.nii.gz") == 0
    assert segment(scan, "--points", physical, "--space", "physical", "--out", tmp_path / "b.nii.gz") == 0
    assert np.array_equal(read_label(tmp_path / "a.nii.gz").array, read_label(tmp_path / "b.nii.gz").array)


def test_segment_takes_inference_as_tests_and_predictions_do(scan, tmp_path, capsys, caplog):
    kinds = {
        "1": ["--inference", "published"],
        "2": ["--inference.shifts", "2"],
        "f": ["--inference.guided_filter", "true"],
        "t": ["--inference.first_twice", "true"],
        "r": ["--inference", "refined"],
    }
    for name, options in kinds.items():
        assert segment(scan, "--points", "20,25,15", "--out", tmp_path / f"{name}.nii.gz", *options) == 0
    masks = [read_label(tmp_path / f"{name}.nii.gz").array for name in kinds]
    assert not any(np.array_equal(one, other) for one, other in combinations(masks, 2))
    assert "Inference: 2 shifts" in caplog.text
    assert "Inference: 4 shifts, guided filter" in caplog.text
    assert segment(scan, "--points", "20,25,15", "--out", tmp_path / "usual.nii.gz") == 0
    usual = read_label(tmp_path / "usual.nii.gz").array
    assert np.array_equal(usual, masks[0]), "published where refined was not measured"
    assert segment(scan, "--points", "20,25,15", "--out", tmp_path / "3.nii.gz", "--inference.shifts", 3) == 2
    assert "shifts" in capsys.readouterr().err
    assert not (tmp_path / "3.nii.gz").exists()


def test_an_empty_mask_is_noted(scan, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(
        "uscl.prompting.segmenter.GuidedFilter.__call__", lambda self, logits, _: logits.clamp(max=-1.0)
    )
    assert segment(scan, "--points", "20,25,15", "--out", tmp_path / "a.nii.gz", "--inference", "refined") == 0
    assert "The mask is EMPTY: add clicks, or try --inference published" in caplog.text
    assert not read_label(tmp_path / "a.nii.gz").array.any()


@pytest.mark.parametrize("kind", WORDS)
def test_bad_images(kind, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    path = broken(kind, folder)
    before = files(tmp_path)
    assert segment(path, "--points", "2,2,2,1", "--out", tmp_path / "out" / "mask.nii.gz") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert [line for line in error if line.startswith("uscl: error: ")] == error[-1:]
    assert str(path) in error[-1]
    assert WORDS[kind] in error[-1]
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("40,0,0,1", "lies outside the volume of (40, 50, 30)"),
        ("0,0,0,0", "no foreground point"),
        ("a,b,c", "expected i,j,k"),
    ],
)
def test_bad_points(scan, tmp_path, capsys, points, words):
    before = files(tmp_path)
    assert segment(scan, "--points", points, "--out", tmp_path / "mask.nii.gz") == 2
    assert words in capsys.readouterr().err
    assert files(tmp_path) == before


def test_bad_weights_and_outputs(scan, tmp_path, capsys):
    torch.save(build_sam_med3d("tiny").state_dict(), tmp_path / "tiny.pth")
    before = files(tmp_path)
    common = [str(scan), "--points", "20,25,15,1"]
    wrong = {
        "no such checkpoint file": ["--out", "m.nii.gz", "--weights", "nothing.pth", "--backbone", "tiny"],
        "fits the variant 'tiny'": ["--out", "m.nii.gz", "--weights", str(tmp_path / "tiny.pth"), "--backbone", "mini"],
        "no such adapter file": ["--out", "m.nii.gz", "--adapter", "nothing.safetensors"],
        "expected a name ending in": ["--out", "m.png"],
        "exists already": ["--out", str(scan)],
        "no SAM-Med3D variant 'huge'": ["--out", "m.nii.gz", "--backbone", "huge"],
        "no weights are embedded for the backbone tiny": ["--out", "m.nii.gz", "--backbone", "tiny"],
    }
    for words, options in wrong.items():
        assert main(["segment", *common, *options]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in error
    assert files(tmp_path) == before
    assert read_image(scan).shape == (40, 50, 30)
