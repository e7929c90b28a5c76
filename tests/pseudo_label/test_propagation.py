"""Shapes, motion and the engine, on sweeps whose truth is a formula."""

import numpy as np
import pytest
from scipy import ndimage

from uscl.errors import InputError
from uscl.pseudo_label.engine import dice
from uscl.pseudo_label.propagation import WAYS, Propagation
from uscl.pseudo_label.registration import Motion, Registration, warp
from uscl.pseudo_label.shapes import around, between, key_distances, nearest, signed_distance

SIZE, COUNT = 64, 17


def disc(row: float, column: float, radius: float, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def moving_sweep(step: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A dark disc in bright speckle that moves with its surroundings to the right and grows."""
    random = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(random.rayleigh(size=(SIZE, SIZE + 60)), 1.5)
    texture = 90 * texture / texture.mean()
    frames, truth = [], []
    for t in range(COUNT):
        shift = step * t
        frame = ndimage.shift(texture, (0, shift - 30), order=1, mode="nearest")[:, :SIZE]
        mask = disc(30, 16 + shift, 8 + 0.2 * t)
        frame[mask] *= 0.3
        frames.append(frame + random.normal(0, 3, frame.shape))
        truth.append(mask)
    return np.clip(frames, 0, 255).astype(np.uint8), np.stack(truth)


@pytest.fixture(scope="module")
def sweep() -> tuple[np.ndarray, np.ndarray]:
    return moving_sweep()


def keys_of(truth: np.ndarray, *numbers: int) -> dict[int, np.ndarray]:
    return {n: truth[n] for n in numbers}


def test_distances_are_above_zero_exactly_inside():
    """A filter that puts 0 on border pixels would lose them."""
    for mask in (disc(20, 30, 9), np.eye(12, dtype=bool), disc(0, 0, 5, (9, 7))):
        assert np.array_equal(signed_distance(mask) > 0, mask)
    line = signed_distance(np.array([[0, 1, 1, 1, 0]], bool))
    assert np.allclose(line, [[-0.5, 0.5, 1.5, 0.5, -0.5]])


@pytest.mark.parametrize("absent", [(), (8,)])
def test_a_shape_between_concentric_discs(absent):
    distances = {t: signed_distance(disc(30, 30, 6 + t)) for t in (0, 4, 8, 12)}
    found = between(distances, 6, absent) > 0
    assert dice(found, disc(30, 30, 12)) > 0.97


def test_a_class_that_ends_vanishes_half_way():
    distances = key_distances({0: disc(30, 30, 10), 10: np.zeros((SIZE, SIZE), bool)})
    areas = [int((between(distances, t, {10}) > 0).sum()) for t in range(1, 10)]
    assert areas == sorted(areas, reverse=True)
    assert areas[3] > 0
    assert areas[5:] == [0, 0, 0, 0]


def test_neighbours_among_key_frames():
    assert around([0, 5, 9], 6) == (5, 9)
    assert nearest([0, 2, 5, 9, 12, 20], 6) == [2, 5, 9, 12]
    assert nearest([0, 9], 6) == [0, 9]


@pytest.mark.parametrize("longest", [64, 32])
def test_motion_is_followed_also_at_a_lower_resolution(sweep, longest):
    frames, truth = sweep
    motion = Motion(frames, Registration(longest=longest))
    for number, field in motion.carry(4, 1):
        if number == 8:
            moved = warp(signed_distance(truth[4]), motion.enlarge(field)) > 0
            shift = motion.enlarge(field)[:, truth[8]].mean(1)
            break
    assert dice(moved, truth[8]) > 0.88
    assert dice(truth[4], truth[8]) < 0.7, "standing still would not do"
    # Offsets lead back to where the pixels were, 1.5 pixels a frame to the left.
    assert shift == pytest.approx([0, -6], abs=1.5)


@pytest.mark.parametrize("way", [None, *WAYS])
def test_masks_between_key_frames(sweep, way):
    frames, truth = sweep
    wanted = [t for t in range(COUNT) if t not in (0, 8, 16)]
    found = Propagation(way=way).scores(frames, keys_of(truth, 0, 8, 16), wanted)
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1
    # Shapes alone cannot know that the disc moves evenly, but nearly.
    assert dice(found.scores > 0.5, truth[wanted]) > (0.9 if way == "shape" else 0.93)
    assert found.agreement.min() > 0.75


def test_an_unknown_way():
    with pytest.raises(ValueError, match="choose of shape, motion, blend"):
        Propagation(way="magic")


def test_nothing_beyond_the_outer_key_frames(sweep):
    frames, truth = sweep
    found = Propagation().scores(frames, keys_of(truth, 4, 8), [0, 3, 6, 9, 16])
    assert [bool(scores.any()) for scores in found.scores] == [False, False, True, False, False]
    assert np.isnan(found.agreement).tolist() == [True, True, False, True, True]
    alone = Propagation().scores(frames, keys_of(truth, 4), [0, 9])
    assert not alone.scores.any()


def test_backwards_is_the_same(sweep):
    frames, truth = sweep
    one = Propagation(way="blend").scores(frames, keys_of(truth, 0, 8, 16), [3, 11])
    keys = {COUNT - 1 - t: mask for t, mask in keys_of(truth, 0, 8, 16).items()}
    other = Propagation(way="blend").scores(np.ascontiguousarray(frames[::-1]), keys, [COUNT - 12, COUNT - 4])
    assert np.allclose(one.scores, other.scores[::-1], atol=1e-3)
    assert np.allclose(one.agreement, other.agreement[::-1], atol=1e-3)


def test_the_way_that_predicts_left_out_key_frames_is_taken():
    """A shape that stands still in a moving surrounding is none of the motion's."""
    frames, truth = moving_sweep(step=3.0)
    assert Propagation().scores(frames[:9], keys_of(truth, 0, 4, 8), [2]).way != "shape"
    still = dict.fromkeys((0, 4, 8), disc(30, 45, 9))
    assert Propagation().scores(frames[:9], still, [2]).way == "shape"
    assert Propagation().scores(frames[:9], {0: still[0], 8: still[8]}, [2]).way == "blend", "nothing can be left out"


def test_motion_is_found_once_for_all_runs(sweep, tmp_path, monkeypatch):
    frames, truth = sweep
    first = Propagation(cache=tmp_path).scores(frames, keys_of(truth, 0, 16), [5])
    steps = sorted(path.name for path in tmp_path.glob("motion-*/*.npy"))
    assert len(steps) == 2 * (COUNT - 1)

    def forbidden(*_):
        raise AssertionError("has been registered already")

    monkeypatch.setattr("uscl.pseudo_label.registration._register", forbidden)
    again = Propagation(cache=tmp_path).scores(frames, keys_of(truth, 0, 16), [5])
    assert np.array_equal(first.scores, again.scores), "an interrupted run ends as one that was not"
    Propagation(cache=tmp_path).scores(frames, keys_of(truth, 0, 8, 16), [5])  # one more key frame
    with pytest.raises(AssertionError, match="registered already"):
        Propagation(Registration(blur=2.0), tmp_path).scores(frames, keys_of(truth, 0, 16), [5])
    with pytest.raises(AssertionError, match="registered already"):
        Propagation(cache=tmp_path).scores(frames[:, ::-1].copy(), keys_of(truth, 0, 16), [5])


def test_one_more_key_frame_costs_what_it_touches(sweep, tmp_path, monkeypatch):
    frames, truth = sweep
    numbers, wanted = (0, 3, 6, 9, 12, 16), [1, 2, 10, 14]
    first = Propagation(cache=tmp_path, way="blend").scores(frames, keys_of(truth, *numbers), wanted)
    carried = []
    monkeypatch.setattr("uscl.pseudo_label.propagation.warp", lambda *given: carried.append(1) or warp(*given))
    again = Propagation(cache=tmp_path, way="blend").scores(frames, keys_of(truth, *numbers), wanted)
    assert not carried
    assert np.array_equal(first.scores, again.scores)
    assert np.array_equal(first.agreement, again.agreement)
    more = Propagation(cache=tmp_path, way="blend").scores(frames, keys_of(truth, *numbers, 15), wanted)
    assert len(carried) == 4 + 4, "frames 10 and 14; what lies further away than two key frames stays"
    assert np.array_equal(more.scores[:2], first.scores[:2])
    assert np.array_equal(
        more.scores, Propagation(way="blend").scores(frames, keys_of(truth, *numbers, 15), wanted).scores
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"longest": 0},
        {"blur": -1.0},
        {"smoothness": -1.0},
        {"iterations": ()},
        {"iterations": (5, 0)},
        {"iterations": (5,) * 8},
    ],
)
def test_registration_that_cannot_be_meant(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Registration(**settings)
