"""What a test is given to score against."""

import numpy as np
import pytest
from PIL import Image

from uscl.data import Preprocessing
from uscl.data.datasets import Case, DataSet
from uscl.data.evaluation_patches import LabelledObjects
from uscl.data.store import PreparedStore
from uscl.data.sweeps import SweepReading


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
    store = PreparedStore(Preprocessing(patch_size=16), data_set, 1)
    item = LabelledObjects(store, [(case, "liver")], with_reference=True)[0]
    assert item["spacing"] == spacing
    assert item["reference"].shape == (30, 24, 6)
    assert item["grid"].source_spacing != (1, 1, 1), "the patch is cut in millimetres all the same"
