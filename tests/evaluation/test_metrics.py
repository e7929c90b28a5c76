import math

import numpy as np
import pytest
from scipy import ndimage

from uscl.evaluation import score
from uscl.evaluation.metrics import Reference

surface_distance = pytest.importorskip("surface_distance", reason="the independent reference is a dev dependency")


def shapes(count: int):
    """Pairs of random smooth shapes on random anisotropic grids, some of them touching the border."""
    for seed in range(count):
        random = np.random.default_rng(seed)
        shape = random.integers(8, 24, 3)
        field = ndimage.gaussian_filter(random.normal(size=shape), random.uniform(1, 3))
        other = field + random.uniform(0.2, 1) * ndimage.gaussian_filter(random.normal(size=shape), 2)
        level = np.quantile(field, random.uniform(0.4, 0.9))
        spacing = tuple(float(s) for s in random.uniform(0.5, 3, 3))
        yield seed, field > level, other > level, spacing


def test_agrees_with_the_surface_distance_package():
    compared = 0
    for seed, prediction, reference, spacing in shapes(230):
        if not prediction.any() or not reference.any():
            continue
        compared += 1
        found = score(prediction, reference, spacing, tolerance=1.0)
        distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
        assert found.nsd == pytest.approx(
            surface_distance.compute_surface_dice_at_tolerance(distances, 1.0), abs=1e-6
        ), seed
        assert found.hd95 == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95), abs=1e-6), seed
        assert found.dice == pytest.approx(surface_distance.compute_dice_coefficient(reference, prediction)), seed
    assert compared >= 200


def test_one_reference_scores_many_masks_as_each_by_itself():
    _, first, reference, spacing = next(shapes(1))
    shared = Reference(reference, spacing)
    for mask in (first, np.roll(first, 2, 0), ~reference, reference, np.zeros_like(first)):
        assert shared.score(mask) == score(mask, reference, spacing)


def test_the_four_empty_cases():
    empty, full = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    full[1:4, 1:4, 1:4] = True
    nothing = score(empty, empty, (1, 1, 1))
    assert math.isnan(nothing.dice)
    assert math.isnan(nothing.nsd)
    assert math.isnan(nothing.hd95)
    assert math.isnan(nothing.volume_error)
    for prediction, reference, volume in ((full, empty, math.inf), (empty, full, -1)):
        missed = score(prediction, reference, (1, 1, 1))
        assert (missed.dice, missed.nsd, missed.hd95, missed.volume_error) == (0, 0, math.inf, volume)
    perfect = score(full, full, (1, 1, 1))
    assert (perfect.dice, perfect.nsd, perfect.hd95, perfect.volume_error) == (1, 1, 0, 0)


def test_volume_error_has_a_sign():
    small, large = np.zeros((2, 6, 6, 6), bool)
    small[:2, :2, :2], large[:4, :4, :4] = True, True
    assert score(large, small, (1, 2, 3)).volume_error == 7
    assert score(small, large, (1, 2, 3)).volume_error == -7 / 8


def test_spacing_counts():
    reference, moved = np.zeros((2, 12, 12, 12), bool)
    reference[3:8, 3:8, 3:8] = True
    moved[5:10, 3:8, 3:8] = True
    assert score(moved, reference, (1, 1, 1)).hd95 == pytest.approx(2)
    assert score(moved, reference, (3, 1, 1)).hd95 == pytest.approx(6)
    assert score(moved, reference, (0.4, 1, 1)).nsd > score(moved, reference, (3, 1, 1)).nsd


def test_different_grids_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="against a reference of shape"):
        score(np.zeros((3, 3, 3), bool), np.zeros((3, 3, 4), bool), (1, 1, 1))
