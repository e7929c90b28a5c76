from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
import torch

from uscl.data import Preprocessing
from uscl.errors import InputError
from uscl.phantom.canvas import Anatomy
from uscl.phantom.contrast import render
from uscl.phantom.layouts.scans import draw_torso
from uscl.phantom.pretraining import IGNORED, SHUFFLED, Curriculum, RenderedPatches, _z_score, build_anatomies
from uscl.phantom.structures import Structure
from uscl.phantom.worlds import HEAD_OBJECTS, TORSO_OBJECTS, World, body_world, members, shape_world

FLIPS = list(chain.from_iterable(combinations((1, 2, 3), n) for n in range(4)))
PREPROCESSING = Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64)


@pytest.fixture(scope="module")
def torso() -> Anatomy:
    return draw_torso(5)


@pytest.fixture(scope="module")
def files(anatomies):
    return build_anatomies(anatomies, 1, 1, 0, 1)


def body(torso: Anatomy, *options) -> World:
    return body_world(torch.from_numpy(torso.structure), torso.voxel, *options)


def stream(files, seed: int = 0, **options) -> RenderedPatches:
    torsos, heads = files
    curriculum = options.pop("curriculum", Curriculum(patches=10))
    return RenderedPatches(tuple(torsos), tuple(heads), PREPROCESSING, 3, curriculum, seed, options.get("uses", 1))


def test_patches_lie_as_volumes_are_prepared(torso):
    """x to the right, y to the front, z to the head: the liver right of the spleen, the spine behind both."""
    tables = members(TORSO_OBJECTS)
    found = 0
    for seed in range(40):
        world = body(torso, tables, np.random.default_rng(seed), 64, 3.0)
        places = {name: np.argwhere(world.masks([name])[0].numpy()) for name in ("liver", "spleen", "spine", "heart")}
        centre = {name: at.mean(0) for name, at in places.items() if len(at) > 300}
        if {"liver", "spleen", "spine"} <= centre.keys():
            assert centre["liver"][0] > centre["spleen"][0]
            assert centre["spine"][1] < min(centre["liver"][1], centre["spleen"][1])
            found += 1
        if {"heart", "liver"} <= centre.keys():
            assert centre["heart"][2] > centre["liver"][2]
    assert found > 3


def test_objects_keep_their_size(torso):
    """Deformations change volumes by some tens of per cent, not by factors."""
    whole = np.isin(torso.structure, TORSO_OBJECTS["spleen"]).sum() * torso.voxel**3
    volumes = []
    for seed in range(40):  # patches large enough to hold all of it
        world = body(torso, members(TORSO_OBJECTS), np.random.default_rng(seed), 64, 6.0)
        mask = world.masks(["spleen"])[0].numpy()
        if mask.any() and not any(mask.take(side, axis).any() for axis in range(3) for side in (0, -1)):
            volumes.append(mask.sum() * 6.0**3)
    assert len(volumes) > 10
    assert 0.7 < np.median(volumes) / whole < 1.4


def test_targets_are_often_off_centre(torso):
    distance = []
    for seed in range(30):
        world = body(torso, members(TORSO_OBJECTS), np.random.default_rng(seed), 64, 3.0)
        inside = np.argwhere(world.masks(["liver"])[0].numpy())
        if len(inside) > 300:
            distance.append(np.abs((inside.min(0) + inside.max(0)) / 2 - 31.5).max())
    assert np.mean(np.array(distance) > 10) > 0.3


def test_shapes_are_objects_of_their_own():
    for seed in range(5):
        world = shape_world(np.random.default_rng(seed), 64)
        ids = set(np.unique(world.structure)) - {0}
        assert ids <= {int(np.flatnonzero(table)[0]) for table in world.objects.values()}
        assert len(ids) > 2


def test_contrasts_differ_and_stay_finite(torso):
    world = body(torso, members(TORSO_OBJECTS), np.random.default_rng(6), 64, 3.0)
    liver, spleen = world.masks(["liver"])[0], world.masks(["spleen"])[0]
    brighter = []
    assert min(liver.sum(), spleen.sum()) > 300
    for seed in range(30):
        image = render(world, np.random.default_rng(seed))
        assert image.dtype == torch.float32
        assert image.isfinite().all()
        brighter.append(float(image[liver].mean()) > float(image[spleen].mean()))
    assert 0.1 < np.mean(brighter) < 0.9


def test_ct_is_among_the_contrasts(torso):
    tables = members(TORSO_OBJECTS)
    lowest = [
        float(render(body(torso, tables, np.random.default_rng(n), 64, 3.0), np.random.default_rng(n)).min())
        for n in range(30)
    ]
    assert 0.1 < np.mean(np.array(lowest) < -500) < 0.6


def test_a_patch_is_the_same_whoever_asks(files):
    first, again = stream(files), stream(files)
    again[3]
    assert all(torch.equal(one, other) for one, other in zip(first[7], again[7], strict=True))
    assert not torch.equal(first[7].image, first[8].image)
    assert not torch.equal(first[7].image, stream(files, seed=1)[7].image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_worlds(files):
    torsos, heads = files
    options = tuple(torsos), tuple(heads), PREPROCESSING, 3, Curriculum(patches=10), 0, 1
    for number in range(4):
        here, there = (RenderedPatches(*options, device=device)[number] for device in ("cpu", "cuda"))
        assert there.image.device.type == there.target.device.type == "cuda"
        assert (here.target == there.target.cpu()).float().mean() > 0.999
        assert (here.semantic == there.semantic.cpu()).float().mean() > 0.999
        # Other noise, but the same tissues.
        assert torch.corrcoef(torch.stack([here.image.flatten(), there.image.cpu().flatten()]))[0, 1] > 0.5


def test_every_image_is_used_as_often_as_asked_and_not_in_a_row(files):
    patches = stream(files, uses=3)
    shown = [patches.image_of(number) for number in range(3 * SHUFFLED * 2)]
    assert Counter(shown) == dict.fromkeys(range(2 * SHUFFLED), 3)
    assert set(shown[: 3 * SHUFFLED]) == set(range(SHUFFLED))
    again = [number for number in range(3 * SHUFFLED) if shown[number] == shown[0]]
    assert again[1] >= SHUFFLED - shown[:SHUFFLED].index(shown[0])
    first, second = (patches[number] for number in again[:2])
    same_image = any(torch.equal(first.image.flip(flips), second.image) for flips in FLIPS)
    assert same_image, "the same image, flipped or not"


def test_a_stream_without_objects_ends(files):
    with pytest.raises(InputError, match=r"no object of 100000\.0 ml or more in 100 patches"):
        stream(files, curriculum=Curriculum(1, (0.0, 0.0), (1e5, 1e5)))[0]


def test_what_a_patch_holds(files):
    patches = stream(files, curriculum=Curriculum(1000, (0.7, 0.25), (20.0, 1.5)))
    kinds = set()
    for number in range(12):
        patch = patches[number]
        assert patch.image.shape == (1, 64, 64, 64)
        assert patch.image.dtype == torch.float32
        assert patch.target.shape == (3, 64, 64, 64)
        assert patch.target.dtype == torch.bool
        assert patch.target.flatten(1).any(1).all()
        assert patch.semantic.shape == (8, 8, 8)
        kinds.add(bool((patch.semantic == IGNORED).all()))
    assert kinds == {True, False}


def test_semantic_names_what_the_cells_hold(files):
    """Turned over together with image and targets."""
    patches = stream(files, curriculum=Curriculum(1, (0.0, 0.0), (1.0, 1.0)))
    agreeing = []
    for number in range(1, 15):
        patch = patches[number]
        middle = patch.target[:, 4::8, 4::8, 4::8]
        allowed = [set(table) for table in {**TORSO_OBJECTS, **HEAD_OBJECTS}.values()]
        for mask in middle:
            if mask.sum() > 2:
                ids = {Structure(int(i)) for i in patch.semantic[mask].unique()}
                agreeing.append(any(ids <= table for table in allowed))
    assert len(agreeing) > 10
    assert all(agreeing)


@pytest.mark.parametrize("normalisation", ["z_score_positive", "z_score"])
@pytest.mark.parametrize("image", [torch.linspace(-1000, 500, 4096).reshape(16, 16, 16), torch.zeros(16, 16, 16)])
def test_patches_are_normalised_as_those_of_volumes(normalisation, image):
    wanted = Preprocessing(patch_size=16, normalisation=normalisation).normalise(image.numpy(), (0, 0, 0), (16, 16, 16))
    found = _z_score(image, normalisation == "z_score_positive")
    assert np.allclose(found.numpy(), wanted, atol=1e-5)


def test_small_objects_come_later():
    curriculum = Curriculum(100, (0.8, 0.2), (20.0, 2.0))
    assert curriculum.at(0) == (0.8, 20.0)
    assert curriculum.at(50) == pytest.approx((0.5, 11.0))
    assert curriculum.at(500) == pytest.approx((0.2, 2.0))


def test_anatomies_are_built_once_and_alike(tmp_path):
    torsos, heads = build_anatomies(tmp_path / "a", 1, 0, 3, 1)
    stamp = torsos[0].stat().st_mtime_ns
    assert build_anatomies(tmp_path / "a", 1, 0, 3, 1) == (torsos, heads)
    assert torsos[0].stat().st_mtime_ns == stamp
    again, _ = build_anatomies(tmp_path / "b", 1, 0, 3, 2)
    with np.load(torsos[0]) as one, np.load(again[0]) as two:
        assert np.array_equal(one["structure"], two["structure"])
