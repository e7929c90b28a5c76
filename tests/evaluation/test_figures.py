import numpy as np
import pytest

from uscl.evaluation.figures import make_panel, radiological, save_panels


def test_right_is_on_the_left_and_anterior_on_top():
    plane = np.zeros((4, 3))
    plane[3, 2] = 1  # far right, far anterior in RAS
    shown = radiological(plane)
    assert shown.shape == (3, 4)
    assert shown[0, 0] == 1


def test_a_sweep_shows_as_on_the_machine():
    """Lateral to the right, depth downwards: what is near the probe and lateral 0 is at the top left."""
    from uscl.data.patches import Preprocessing
    from uscl.data.volume import Volume

    sweep = np.zeros((8, 6, 4), np.float32)
    sweep[0, 0, :] = 1
    image, _ = Preprocessing(spacing=(1.0,) * 3).prepare_image(Volume(sweep))
    assert radiological(image[:, :, 0])[0, 0] == 1


def test_a_panel_keeps_its_slice_and_not_the_volume():
    """A test of thousands of objects keeps as many panels."""
    image, mask = np.zeros((16, 12, 8), np.float32), np.ones((16, 12, 8), bool)
    panel = make_panel("case", image, mask, {1: mask}, [((6, 6, 4), True)], {}, (1, 1, 1))
    for array in (panel.image, panel.reference, panel.predictions[1]):
        assert array.base is None or array.base.nbytes == array.nbytes


@pytest.mark.parametrize("reference", [True, False])
def test_a_picture_is_written_even_without_reference_or_mask(tmp_path, reference):
    image = np.random.default_rng(0).normal(size=(16, 16, 8))
    mask = np.zeros((16, 16, 8), bool)
    mask[4:9, 5:9, 3:6] = True
    wanted = mask if reference else None
    predictions = {1: np.zeros_like(mask), 3: mask}
    panel = make_panel("case", image, wanted, predictions, [((6, 6, 4), True), ((1, 1, 0), False)], {}, (1, 1, 1))
    assert len(panel.clicks) == 1, "only clicks near the slice"
    y, x, foreground = panel.clicks[0]
    assert panel.predictions[3][y, x]
    assert foreground
    save_panels(tmp_path / "new" / "picture.png", [panel, panel], "heading")
    assert (tmp_path / "new" / "picture.png").stat().st_size > 5000
