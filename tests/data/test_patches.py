import json
from itertools import permutations, product

import numpy as np
import pytest
import torch
from parity.recipe import PARITY

from uscl.data.patches import Preprocessing, corner_around_label, cut_box
from uscl.data.volume import Volume
from uscl.errors import InputError


def tilt(degrees: float) -> np.ndarray:
    """A rotation about an axis that is none of the three."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).normal(100, 30, (40, 50, 30)).astype(np.float32)
    return Volume(array, (1.1, 0.8, 2.0), (-20.0, 5.0, 300.0), np.diag([-1.0, -1.0, 1.0]))


def rearranged(
    volume: Volume, axes: tuple[int, int, int], flips: tuple[bool, bool, bool], rotation: np.ndarray
) -> Volume:
    """The same anatomy stored with other axes: permuted, reversed, and the whole scan tilted."""
    array = volume.array.transpose(axes)
    direction = volume.direction[:, list(axes)]
    spacing = tuple(volume.spacing[a] for a in axes)
    origin = np.array(volume.origin)
    for axis in range(3):
        if flips[axis]:
            origin = origin + direction[:, axis] * spacing[axis] * (array.shape[axis] - 1)
            direction = direction * np.where(np.arange(3) == axis, -1, 1)
            array = np.flip(array, axis)
    return Volume(np.ascontiguousarray(array), spacing, tuple(rotation @ origin), rotation @ direction)


COPIES = [
    (axes, flips, rotation)
    for axes, flips in product(permutations(range(3)), [(False,) * 3, (True, False, False), (True, True, True)])
    for rotation in (np.eye(3), tilt(20))
]


@pytest.mark.parametrize(("axes", "flips", "rotation"), COPIES)
def test_flipped_permuted_and_oblique_copies_are_prepared_alike_and_masks_move_back(volume, axes, flips, rotation):
    preprocessing = Preprocessing(spacing=(1.5, 1.5, 1.5), patch_size=32)
    copy = rearranged(volume, axes, flips, rotation)
    wanted, grid = preprocessing.prepare_image(volume)
    found, copied = preprocessing.prepare_image(copy)
    assert np.array_equal(found, wanted)
    logits = np.random.default_rng(1).normal(size=(32, 32, 32)).astype(np.float32)
    mask, copied_mask = grid.restore(logits, (2, -3, 5)), copied.restore(logits, (2, -3, 5))
    assert mask.shape == volume.shape
    assert copied_mask.shape == copy.shape
    assert 0 < mask.mean() < 1
    moved_back = copied_mask
    for axis in range(3):
        if flips[axis]:
            moved_back = np.flip(moved_back, axis)
    assert np.array_equal(moved_back.transpose(np.argsort(axes)), mask)


def test_prepared_axes_point_right_anterior_superior():
    """A ramp along each patient direction, stored in a layout of its own, comes out growing along its axis."""
    for axis, lps in enumerate(([-1, 0, 0], [0, -1, 0], [0, 0, 1])):  # R, A, S in LPS
        direction = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])
        index = np.stack(np.meshgrid(*(np.arange(n) for n in (6, 7, 8)), indexing="ij"), -1)
        position = index @ direction.T
        volume = Volume((position @ np.array(lps, float)).astype(np.float32), direction=direction)
        image, _ = Preprocessing(spacing=(1.0, 1.0, 1.0), patch_size=16).prepare_image(volume)
        steps = [np.diff(image, axis=a) for a in range(3)]
        assert (steps[axis] == 1).all()
        assert all((steps[a] == 0).all() for a in range(3) if a != axis)


def test_same_spacing_is_exact(volume):
    preprocessing = Preprocessing(spacing=volume.spacing, patch_size=32)
    image, grid = preprocessing.prepare_image(volume)
    assert np.array_equal(image, volume.array)
    assert grid.shape == volume.shape


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.5, 2.0, 3.0)])
def test_round_trip_of_a_smooth_object_on_an_oblique_anisotropic_scan(spacing):
    """Volume -> prepared -> patch -> logits -> mask: the object comes back where it was."""
    shape, own = (60, 70, 24), (0.8, 0.7, 2.5)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    middle = np.array([33, 30, 11])
    distance = np.linalg.norm((index - middle) * own, axis=-1)
    volume = Volume((15 - distance).astype(np.float32), own, (5.0, -7.0, 3.0), tilt(30) @ np.diag([1.0, -1.0, 1.0]))
    preprocessing = Preprocessing(spacing=spacing, patch_size=96)
    image, grid = preprocessing.prepare_image(volume)
    corner = corner_around_label(image > 0, 96)
    restored = grid.restore(preprocessing.cut(image, corner), corner)
    wanted = volume.array > 0
    dice = 2 * (restored * wanted).sum() / (restored.sum() + wanted.sum())
    assert dice > 0.97
    centre = np.argwhere(restored).mean(0)
    assert np.abs((centre - middle) * own).max() < 0.25, "mm"


def test_positions_map_to_the_prepared_grid(volume):
    """A single bright voxel is found where to_prepared says it is."""
    preprocessing = Preprocessing(spacing=(1.0, 1.0, 1.0), patch_size=32)
    for index in ((3, 7, 5), (0, 0, 0), (39, 49, 29), (20, 10, 28)):
        array = np.zeros(volume.shape, np.float32)
        array[index] = 1
        image, grid = preprocessing.prepare_image(volume.with_array(array))
        weight = np.argwhere(image > 0), image[image > 0]
        centre = (weight[0] * weight[1][:, None]).sum(0) / weight[1].sum()
        assert np.abs(centre - grid.to_prepared(index)).max() < 0.6


def test_labels_stay_label_values(volume):
    label = volume.with_array(np.random.default_rng(0).integers(0, 4, volume.shape))
    prepared = Preprocessing(patch_size=32).prepare_label(label)
    assert set(np.unique(prepared)) == {0, 1, 2, 3}
    assert prepared.shape == Preprocessing(patch_size=32).grid(volume).shape


def test_crop_or_pad_equals_torchio_as_the_original_uses_it():
    for case in json.loads((PARITY / "sam_med3d/preproc_meta.json").read_text())["crop_or_pad"]:
        mask = np.zeros(case["shape"], bool)
        low, high = case["bbox_lo"], case["bbox_hi_exclusive"]
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        assert list(corner_around_label(mask, case["target"])) == case["begin"]


def test_cut_box_pads_with_zeros():
    array = np.arange(1, 28).reshape(3, 3, 3)
    box = cut_box(array, (-1, 1, 2), 4)
    assert box[1, 0, 0] == array[0, 1, 2]
    assert box.sum() == array[:3, 1:3, 2:3].sum()
    assert cut_box(array, (10, 0, 0), 4).sum() == 0


def test_normalisation_equals_the_original_per_volume(load_parity):
    arrays = load_parity("sam_med3d/preproc_loss.npz")
    raw = arrays["z/in"][0, 0].numpy()
    found = Preprocessing(patch_size=16).normalise(raw, (0, 0, 0), raw.shape)
    torch.testing.assert_close(torch.from_numpy(found), arrays["z/out_sample0_alone"][0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalisation", ["z_score_positive", "z_score"])
@pytest.mark.parametrize("fill", [0.0, -5.0, 7.0])
def test_a_patch_without_contrast_gives_no_nan(normalisation, fill):
    patch = np.full((16, 16, 16), fill, np.float32)
    found = Preprocessing(patch_size=16, normalisation=normalisation).normalise(patch, (0, 0, 0), (16, 16, 16))
    assert np.isfinite(found).all()


def test_z_score_looks_at_the_volume_and_not_at_the_padding():
    array = np.random.default_rng(0).normal(50, 10, (10, 16, 16)).astype(np.float32)
    preprocessing = Preprocessing(patch_size=16, normalisation="z_score")
    patch = preprocessing.normalise(preprocessing.cut(array, (-3, 0, 0)), (-3, 0, 0), array.shape)
    inside = patch[3:13]
    assert inside.mean() == pytest.approx(0, abs=1e-5)
    assert inside.std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_clamp():
    volume = Volume(np.linspace(-3000, 3000, 27).reshape(3, 3, 3).astype(np.float32))
    image, _ = Preprocessing(spacing=(1.0,) * 3, clamp=(-1000, 1000)).prepare_image(volume)
    assert image.min() == -1000
    assert image.max() == 1000


def test_header_noise_does_not_move_the_grid(volume):
    noisy = Volume(volume.array, tuple(float(np.float32(s)) for s in volume.spacing), volume.origin, volume.direction)
    assert Preprocessing().grid(noisy) == Preprocessing().grid(volume)


def test_cut_short_is_reported_only_inside_the_volume(volume):
    grid = Preprocessing(spacing=volume.spacing, patch_size=32).grid(volume)
    mask = np.zeros((32, 32, 32), bool)
    mask[0, 5, 5] = True
    assert grid.cut_short(mask, (4, 0, 0))
    assert not grid.cut_short(mask, (0, 0, 0)), "the volume ends there too"
    assert not grid.cut_short(np.zeros_like(mask), (4, 4, 4))


@pytest.mark.parametrize("wrong", [{"spacing": (0.0, 1.0, 1.0)}, {"patch_size": 8}])
def test_impossible_settings(wrong):
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing(**wrong)
