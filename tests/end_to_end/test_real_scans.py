"""On real CT and MR scans, where they lie beside the checkout; geometry and plumbing, not accuracy."""

import numpy as np
import pytest
import SimpleITK as sitk

from uscl.cli import main
from uscl.data import Volume, read_image, read_label, write_volume

pytestmark = pytest.mark.shared

SCANS = {
    "ct_mr_totalseg/example_ct.nii.gz": (40, 50, 60),
    "ct_mr_totalseg/example_mr_sm.nii.gz": (50, 45, 10),
    "mr_brats_gli/BraTS-GLI-00001-000-t1c.nii.gz": (120, 110, 70),
    "pyradiomics/brain1_image.nrrd": (120, 120, 12),
    "us_plus/SpinePhantomFreehandReconstructed.mha": (70, 50, 50),
}


def tilted(volume: Volume) -> Volume:
    """The scan with its x axis stored the other way round and the header tilted by 25 degrees."""
    angle = np.radians(25)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    origin = np.array(volume.origin) + volume.direction[:, 0] * volume.spacing[0] * (volume.shape[0] - 1)
    direction = volume.direction * np.array([-1, 1, 1])
    return Volume(np.flip(volume.array, 0).copy(), volume.spacing, tuple(tilt @ origin), tilt @ direction)


@pytest.mark.parametrize("name", SCANS)
def test_masks_lie_on_the_grid_and_move_with_the_scan(shared_data, tmp_path, name):
    scan, (i, j, k) = shared_data / name, SCANS[name]
    common = [
        "--backbone",
        "tiny",
        "--weights",
        "null",
        "--preprocessing.patch_size",
        "64",
        "--preprocessing.spacing",
        "[3, 3, 3]",
        "--inference",
        "published",
    ]
    assert main(["segment", str(scan), "--points", f"{i},{j},{k}", "--out", str(tmp_path / "a.nii.gz"), *common]) == 0
    image, mask = sitk.ReadImage(str(scan)), sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert mask.GetSize() == image.GetSize()
    np.testing.assert_allclose(mask.GetSpacing(), image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(mask.GetOrigin(), image.GetOrigin(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(mask.GetDirection(), image.GetDirection(), atol=1e-6)
    copy = write_volume(tmp_path / "copy.nii.gz", tilted(read_image(scan)))
    i = image.GetSize()[0] - 1 - i
    assert main(["segment", str(copy), "--points", f"{i},{j},{k}", "--out", str(tmp_path / "b.nii.gz"), *common]) == 0
    first, second = read_label(tmp_path / "a.nii.gz").array, read_label(tmp_path / "b.nii.gz").array
    assert 0 < first.mean() < 1
    assert np.array_equal(np.flip(second, 0), first)
