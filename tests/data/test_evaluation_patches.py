"""What a test is given to score against."""

import numpy as np
import pytest
from PIL import Image

from uscl.data import Preprocessing
from uscl.data.cache import CaseCache
from uscl.data.datasets import Case, DataSet
from uscl.data.evaluation_patches import LabelledObjects
from uscl.data.sweeps import SweepReading
from uscl.data.volume import Volume, write_volume


@pytest.mark.parametrize(
    ("reading", "spacing"),
    [
        (SweepReading("assumed", "assumed"), (1, 1, 1)),
        (SweepReading((0.5, 0.5), "assumed"), (1, 1, 1)),
        (SweepReading((0.5, 0.25), 2.0), (0.5, 0.25, 2.0)),
    ],
)
def test_surfaces_are_compared_in_voxels_where_distances_are_assumed(tmp_path, reading, spacing):
    random = np.random.default_rng(0)
    for folder in ("image", "label"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            frame = random.integers(0, 255, (24, 30), np.uint8)
            if folder == "label":
                frame = np.zeros_like(frame)
                frame[5:15, 8:20] = 1
            Image.fromarray(frame).save(tmp_path / folder / f"{number}.png")
    case = Case("a", tmp_path / "image", tmp_path / "label", "p", "test", reading)
    data_set = DataSet("sweeps", (case,), {1: "liver"})
    cache = CaseCache(Preprocessing(patch_size=16), data_set, 1)
    item = LabelledObjects(cache, [(case, "liver")], with_truth=True)[0]
    assert item.truth.spacing == spacing
    assert (item.truth.distances != "assumed") == (spacing != (1, 1, 1))
    assert item.truth.mask.shape == (30, 24, 6)
    assert item.grid.source_spacing != (1, 1, 1), "the patch is cut in millimetres all the same"


def test_an_object_in_two_distant_parts_is_in_its_patch(tmp_path):
    """The middle of its box holds none of it."""
    array = np.random.default_rng(0).integers(1, 255, (80, 20, 20)).astype(np.uint8)
    label = np.zeros_like(array)
    label[2:8, 5:12, 5:12] = label[71:78, 5:12, 5:12] = 1
    for name, values in (("image", array), ("label", label)):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(values))
    case = Case("a", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", "p", "test")
    data_set = DataSet("scans", (case,), {1: "kidney"})
    cache = CaseCache(Preprocessing(spacing=(1.0, 1.0, 1.0), patch_size=16), data_set, 1)
    item = LabelledObjects(cache, [(case, "kidney")], with_truth=True)[0]
    assert item.target.any()
    restored = item.grid.restore(item.target.numpy() - 0.5, item.corner).astype(bool)
    assert (restored & item.truth.mask).sum() == restored.sum() > 0
