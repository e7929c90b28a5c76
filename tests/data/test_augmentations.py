from dataclasses import fields

import numpy as np
import pytest

from uscl.data.augmentations import DEPTH, FRAMES, Augmentation, augment
from uscl.data.cache import CaseCache
from uscl.data.datasets import Case, DataSet
from uscl.data.patches import Preprocessing
from uscl.data.training_patches import PatchSampling, TrainingPatches
from uscl.data.volume import Volume, write_volume
from uscl.errors import InputError

ENTRIES = [entry.name for entry in fields(Augmentation) if entry.name != "probability"]
MOVING = ("rotation", "scaling", "twist")
STRENGTH = {
    "rotation": 20.0,
    "scaling": 0.3,
    "twist": 25.0,
    "speckle": 0.5,
    "blur": 1.5,
    "bias_field": 0.5,
    "sector": 0.9,
}


def patch(size: int = 32):
    """Grey blobs in a sector, black beyond it, and a target."""
    random = np.random.default_rng(3)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    image = (100 + 60 * np.sin(4 * x) * np.cos(3 * y) + 5 * random.standard_normal(x.shape)) * (np.abs(x) < 0.8)
    target = (x + 0.4) ** 2 + (y - 0.3) ** 2 + z**2 < 0.2
    return np.maximum(image, 0).astype(np.float32), target


def only(name: str, strength: float | None = None) -> Augmentation:
    return Augmentation(1.0, **{name: STRENGTH.get(name, 0.3) if strength is None else strength})


@pytest.mark.parametrize("name", ENTRIES)
def test_no_strength_no_change(name):
    image, target = patch()
    changed, moved = augment(image, target, only(name, 0.0), np.random.default_rng(0))
    assert np.array_equal(changed, image)
    assert np.array_equal(moved, target)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_vanishing_strength_hardly_changes_anything(name):
    image, _ = patch()
    changed, _ = augment(image, None, only(name, 1e-6), np.random.default_rng(0))
    assert np.abs(changed - image).max() < 0.1


@pytest.mark.parametrize("name", ENTRIES)
def test_each_entry_does_something_and_intensities_leave_the_target_alone(name):
    image, target = patch()
    before, marked = image.copy(), target.copy()
    changed, moved = augment(image, target, only(name), np.random.default_rng(1))
    assert changed.dtype == np.float32
    assert changed.shape == image.shape
    assert np.isfinite(changed).all()
    assert np.abs(changed - image).mean() > 0.05
    assert np.array_equal(image, before), "the cached volume is not written to"
    assert np.array_equal(target, marked)
    assert moved.dtype == bool
    assert np.array_equal(moved, target) == (name not in MOVING)


@pytest.mark.parametrize("name", MOVING)
def test_image_and_target_move_together(name):
    _, target = patch()
    for seed in range(5):
        image, moved = augment(target.astype(np.float32), target, only(name), np.random.default_rng(seed))
        both = (image > 0.5) & moved
        assert 2 * both.sum() / ((image > 0.5).sum() + moved.sum()) > 0.95


@pytest.mark.parametrize("name", ["gain", "attenuation", "speckle", "shadow", "sector"])
def test_black_stays_black_in_ultrasound(name):
    image, _ = patch()
    for seed in range(5):
        changed, _ = augment(image, None, only(name), np.random.default_rng(seed))
        assert (changed[image == 0] == 0).all()
        assert changed.min() >= 0


def test_attenuation_grows_with_depth_and_twist_along_the_sweep():
    image = np.full((32, 32, 32), 100, np.float32)
    changed, _ = augment(image, None, only("attenuation"), np.random.default_rng(2))
    profile = changed.mean(tuple(axis for axis in range(3) if axis != DEPTH)) - 100
    steps = np.diff(profile)
    assert abs(profile.mean()) < 1e-3
    assert (np.sign(steps) == np.sign(steps[0])).all()
    line = np.zeros((33, 33, 33), np.float32)
    line[16:, 16, :] = 1  # from the middle to one side, the same in every frame
    turned, _ = augment(line, None, only("twist"), np.random.default_rng(2))
    angles = []
    for frame in (0, 8, 16, 24, 32):
        x, y = np.nonzero(turned.take(frame, FRAMES) > 0.3)
        angles.append(np.degrees(np.arctan2((y - 16).sum(), (x - 16).sum())))
    assert abs(angles[2]) < 2
    assert (np.sign(np.diff(angles)) == np.sign(angles[4] - angles[0])).all()
    assert 3 < abs(angles[4] - angles[0]) < 50


def test_shadows_and_sectors_only_darken():
    image, _ = patch()
    for name in ("shadow", "sector"):
        for seed in range(5):
            changed, _ = augment(image, None, only(name), np.random.default_rng(seed))
            assert (changed <= image + 1e-4).all()


def test_same_draw_same_patch_and_probability():
    image, target = patch()
    everything = Augmentation(0.5, **{name: STRENGTH.get(name, 0.3) for name in ENTRIES})
    first, second = (augment(image, target, everything, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    never = Augmentation(0.0, **dict.fromkeys(ENTRIES, 0.3))
    assert augment(image, target, never, np.random.default_rng(4))[0] is image


def test_an_empty_patch_passes():
    empty = np.zeros((16, 16, 16), np.float32)
    everything = Augmentation(1.0, **{name: STRENGTH.get(name, 0.3) for name in ENTRIES})
    changed, _ = augment(empty, empty > 0, everything, np.random.default_rng(0))
    assert np.isfinite(changed).all()


@pytest.mark.parametrize(("name", "value"), [("gain", -0.1), ("shadow", 1.5), ("probability", 2.0)])
def test_impossible_strengths(name, value):
    with pytest.raises(InputError, match=rf"augmentation\.{name} is {value}, expected a number from 0"):
        Augmentation(**{name: value})


@pytest.mark.parametrize("name", ["shadow", "sector", "attenuation"])
def test_depth_is_that_of_the_file_however_it_lies_in_space(tmp_path, name):
    """Clips have no orientation and are turned by preparation; the probe still lies at depth 0 of the file."""
    array = np.random.default_rng(0).integers(50, 255, (32, 32, 32)).astype(np.uint8)
    patches = []
    for kind, direction in {"clip": np.eye(3), "turned": np.diag([-1.0, -1.0, 1.0])}.items():
        case = Case("a", write_volume(tmp_path / f"{kind}.nii.gz", Volume(array, direction=direction)), None, "p")
        preprocessing = Preprocessing(spacing=(1.0, 1.0, 1.0), patch_size=32)
        cache = CaseCache(preprocessing, DataSet("sweeps", (case,), {}), 1)
        grid = cache.get(case).grid
        sampling = PatchSampling("volume", flip_probability=0.0)
        patch = TrainingPatches(cache, {None: (case,)}, sampling, 0, only(name))[0]
        patches.append(grid.restore_axes(patch.image[0].numpy()))
    assert np.array_equal(*patches)
    assert not np.array_equal(patches[0][::-1, ::-1], patches[1])
