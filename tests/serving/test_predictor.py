from itertools import combinations

import numpy as np
import pytest
from data.test_patches import COPIES, rearranged

from uscl.data.patches import Preprocessing
from uscl.data.sweeps import SweepReading
from uscl.data.volume import Volume
from uscl.errors import InputError
from uscl.phantom.video import write_frames
from uscl.prompting import PUBLISHED, REFINED, Inference
from uscl.serving import Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("tiny", None, preprocessing=Preprocessing(spacing=(2.0, 2.0, 2.0), patch_size=64))


@pytest.fixture(scope="module")
def volume() -> Volume:
    array = np.random.default_rng(0).normal(100, 30, (40, 50, 30)).astype(np.float32)
    return Volume(array, (1.1, 0.8, 2.0), (-20.0, 5.0, 300.0), np.diag([-1.0, -1.0, 1.0]))


@pytest.mark.parametrize(("axes", "flips", "rotation"), COPIES[::4])
def test_a_mask_of_a_flipped_or_oblique_copy_is_the_mask_of_the_original_moved_back(
    predictor, volume, axes, flips, rotation
):
    points = [((20, 25, 15), True), ((5, 40, 3), False)]
    predictor.set_image(volume)
    wanted = predictor.segment(points).mask
    copy = rearranged(volume, axes, flips, rotation)
    moved = []
    for index, foreground in points:
        place = [index[a] for a in axes]
        place = [n - 1 - i if flip else i for i, flip, n in zip(place, flips, copy.shape, strict=True)]
        moved.append((tuple(place), foreground))
    predictor.set_image(copy)
    found = predictor.segment(moved).mask
    assert found.same_grid(copy) is None
    back = found.array
    for axis in range(3):
        if flips[axis]:
            back = np.flip(back, axis)
    assert 0 < wanted.array.mean() < 1
    assert np.array_equal(back.transpose(np.argsort(axes)), wanted.array)


def test_clicks_given_one_by_one_or_together(predictor, volume):
    points = [((20, 25, 15), True), ((21, 26, 15), False), ((18, 25, 14), True)]
    predictor.set_image(volume)
    for count in (1, 2, 3):
        grown = predictor.segment(points[:count]).mask.array
    predictor.set_image(volume)
    assert np.array_equal(predictor.segment(points).mask.array, grown)


def test_volume_in_millilitres(predictor, volume):
    predictor.set_image(volume)
    prediction = predictor.segment([((20, 25, 15), True)])
    assert prediction.volume_ml == pytest.approx(prediction.mask.array.sum() * 1.1 * 0.8 * 2.0 / 1000)
    assert prediction.mask.array.dtype == np.uint8


def test_no_millilitres_where_distances_are_assumed(predictor, tmp_path):
    frames = np.random.default_rng(0).integers(20, 200, (12, 40, 60), dtype=np.uint8)
    write_frames(tmp_path / "clip", frames, range(12))
    found = {}
    for name, reading in {
        "assumed": SweepReading(spacing="assumed", step="assumed"),
        "known": SweepReading(spacing=(0.5, 0.5), step=2.0),
    }.items():
        predictor.set_image(tmp_path / "clip", reading)
        found[name] = predictor.segment([((30, 20, 6), True)])
    assert found["assumed"].volume_ml is None
    assert found["known"].volume_ml == pytest.approx(found["known"].mask.array.sum() * 0.5 / 1000)
    with pytest.raises(InputError, match="spacing"):
        predictor.set_image(tmp_path / "clip")


def test_a_mask_of_other_inference_is_another_one_of_the_same_object(volume):
    points, masks = [((20, 25, 15), True), ((5, 40, 3), False)], []
    for inference in (PUBLISHED, Inference(shifts=4), Inference(guided_filter=True), Inference(first_twice=True)):
        one = Predictor(weights="embedded", backbone="mini", inference=inference)
        one.set_image(volume)
        masks.append(one.segment(points).mask)
        assert masks[-1].same_grid(volume) is None
    assert not any(np.array_equal(one.array, other.array) for one, other in combinations(masks, 2))


def test_masks_are_refined_where_that_was_measured():
    once = Inference(shifts=4, guided_filter=True)
    known = (("mini", "embedded", once), ("mini_fine", "embedded", REFINED), ("tiny", None, PUBLISHED))
    for backbone, weights, usual in known:
        assert Predictor(backbone, weights).inference == usual
        assert Predictor(backbone, weights, inference="published").inference == PUBLISHED
    assert Predictor("tiny", None, inference="refined").inference == once, "nobody has measured decoding twice"


def test_misuse(predictor, volume):
    with pytest.raises(InputError, match="set_image comes before"):
        Predictor("tiny", None).segment([((0, 0, 0), True)])
    with pytest.raises(InputError, match="patch_size is 128, but the backbone takes 64"):
        Predictor("tiny", None, preprocessing=Preprocessing())
