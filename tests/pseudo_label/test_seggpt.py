"""The SegGPT engine: what the network is shown, what becomes of its answers."""

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from PIL import Image
from safetensors.torch import load_file, save_file
from small_seggpt import random_weights, small_engine

from uscl.data.volume import read_image, read_label
from uscl.errors import InputError
from uscl.pseudo_label import seggpt
from uscl.pseudo_label.engine import dice
from uscl.pseudo_label.seggpt import normalised, plausible, resized_image, resized_mask, restored_scores


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def sweep():
    """Ten frames with a bright disc that wanders, on noise, wider than high, and where it is."""
    rows, columns = np.mgrid[:48, :80]
    discs = np.stack([(rows - 24) ** 2 + (columns - 25 - 3 * frame) ** 2 < 14**2 for frame in range(10)])
    noise = np.random.default_rng(0).integers(0, 40, discs.shape)
    return (180 * discs + noise).astype(np.uint8), discs


class Painter:
    """In the network's place: writes down what it is shown and paints what a rule says."""

    def __init__(self, rule):
        self.rule, self.calls = rule, []

    def __call__(self, images, masks, queries, prompt_type):
        self.calls.append((images, masks, queries))
        grey = self.rule(*((part[..., 0, :, :] * 0.229 + 0.485) for part in (images, masks, queries)))
        return normalised((grey.clamp(0, 1) * 255).round().byte())


def bright(images, masks, queries):
    """Whatever is bright in the query."""
    return (queries > 0.4).float()


def painting(weights, rule, **settings):
    engine = small_engine(weights, **settings)
    engine._network = Painter(rule)
    return engine


def shown_frames(engine, frames):
    """For every canvas: the query's frame and those of its prompts, by their pictures."""
    pictures = {resized_image(frame, 64).numpy().tobytes(): number for number, frame in enumerate(frames)}

    def frame(picture):
        return pictures[((picture[0] * 0.229 + 0.485) * 255).round().byte().numpy().tobytes()]

    calls = engine._network.calls
    canvases = [pair for images, _, queries in calls for pair in zip(queries, images, strict=True)]
    return [(frame(query), [frame(image) for image in prompts]) for query, prompts in canvases]


@pytest.mark.parametrize("shape", [(48, 80), (200, 33), (64, 64), (1, 7)])
def test_pictures_are_resampled_as_the_original_does(shape):
    frame = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    mask = frame > 90
    as_rgb = Image.fromarray(np.stack([frame] * 3, -1)).resize((64, 64))  # the original's call, on its three channels
    assert np.array_equal(resized_image(frame, 64), np.asarray(as_rgb)[..., 0])
    picture = resized_mask(mask, 64)
    assert set(picture.unique().tolist()) <= {0, 255}
    rows, columns = ((np.arange(64) + 0.5) * edge // 64 for edge in shape)
    assert np.array_equal(picture == 255, mask[np.ix_(rows.astype(int), columns.astype(int))])
    back = restored_scores(normalised(picture[None]), shape)
    assert back.shape == (1, *shape)
    assert 0 <= back.min() <= back.max() <= 1


def test_a_mask_survives_the_way_in_and_out():
    rows, columns = np.mgrid[:150, :260]
    mask = ((rows - 70) / 50) ** 2 + ((columns - 120) / 90) ** 2 < 1
    back = restored_scores(normalised(resized_mask(mask, 448)[None]), mask.shape)[0] > 0.5
    assert 2 * (back.numpy() & mask).sum() / (back.numpy().sum() + mask.sum()) > 0.99


def test_the_answer_is_clipped_by_channel_before_the_mean():
    painted = normalised(torch.zeros(1, 2, 2, dtype=torch.uint8))
    painted[:, 0] = 100  # far beyond white in one channel
    torch.testing.assert_close(restored_scores(painted, (2, 2)), torch.full((1, 2, 2), 1 / 3))


def test_masks_of_zeros_and_ones_mean_the_same_as_bool(weights, sweep):
    frames, discs = sweep
    engine = small_engine(weights)
    found = [
        engine.scores(frames, {0: discs[0].astype(kind) * value, 4: discs[4].astype(kind) * value}, [2]).scores
        for kind, value in ((bool, True), (np.uint8, 1), (np.uint8, 255), (np.int64, 7))
    ]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    without = engine.scores(frames, {0: discs[0], 4: discs[5]}, [2]).scores
    assert not np.array_equal(found[0], without), "the mask has no say"


@pytest.mark.parametrize("memory", [0, 2])
def test_every_pass_is_shown_its_own_key_frames_the_nearest_first(weights, sweep, memory):
    frames, discs = sweep
    engine = painting(weights, bright, keys_per_side=2, memory=memory)
    assert engine.reach == 2
    keys = {frame: discs[frame] for frame in (1, 3, 7, 9)}
    found = engine.scores(frames, keys, [5, 2])
    calls = shown_frames(engine, frames)
    if memory:
        forwards = [(4, [3, 1]), (5, [3, 1, 4])]
        backwards = [(6, [7, 9]), (5, [7, 9, 6])]
    else:
        forwards, backwards = [(5, [3, 1])], [(5, [7, 9])]
    assert sorted(calls) == sorted([*forwards, *backwards, (2, [1]), (2, [3, 7])])
    for row, frame in enumerate((5, 2)):
        assert dice(found.scores[row] > 0.5, discs[frame]) > 0.9, "but for the corners of 64 x 64 pixels"
    assert found.agreement == pytest.approx([1, 1])


def test_memory_holds_so_many_plausible_predictions(weights, sweep):
    frames, discs = sweep
    engine = painting(weights, bright)
    engine.scores(frames, {0: discs[0]}, [6])
    assert shown_frames(engine, frames) == [
        (1, [0]),
        (2, [0, 1]),
        (3, [0, 1, 2]),
        (4, [0, 2, 3]),
        (5, [0, 3, 4]),
        (6, [0, 4, 5]),
    ]
    masks = engine._network.calls[-1][1][0, :, 0] > 0
    painted = normalised((resized_image(frames[5], 64) > 0.4 * 255).byte()[None] * 255)
    answered = restored_scores(painted, discs[5].shape)[0].numpy() > 0.5
    assert np.array_equal(masks[2], resized_mask(answered, 64) == 255), "the prediction itself is the prompt"
    frames = frames.copy()
    frames[3] = 200  # all bright: not plausible after a disc
    engine = painting(weights, bright)
    engine.scores(frames, {0: discs[0]}, [5])
    assert shown_frames(engine, frames)[3:] == [(4, [0, 1, 2]), (5, [0, 2, 4])]


def test_what_is_plausible():
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 12**2
    nothing = np.zeros_like(disc)
    assert plausible(disc, disc)
    assert not plausible(nothing, disc)
    assert not plausible(disc, nothing)
    half, twice = ((rows - 30) ** 2 + (columns - 40) ** 2 < 144 * factor for factor in (0.4, 2.2))
    assert not plausible(half, disc)
    assert not plausible(twice, disc)
    assert plausible(np.roll(disc, 9, 1), disc)
    assert not plausible(np.roll(disc, 11, 1), disc), "ten pixels are a tenth of the diagonal"
    split = disc.copy()
    split[:, 35:37] = False  # about a third and two thirds
    assert not plausible(split, disc)
    speck = disc.copy()
    speck[2, 2] = True
    assert plausible(speck, disc)


def test_passes_are_fused_by_distance_and_their_agreement_reported(weights, sweep):
    """Forwards half of the frame is painted, backwards all of it."""
    frames, discs = sweep
    keys = {2: discs[2], 6: discs[6]}

    last = resized_image(frames[6], 64) / 255

    def rule(images, masks, queries):
        back = (images[:, 0] - last).abs().flatten(1)
        grey = torch.zeros_like(queries)
        grey[:, :, :32] = 1
        grey[back.amax(1) < 0.01] = 1
        return grey

    found = painting(weights, rule, memory=0).scores(frames, keys, [0, 3, 4, 5, 9])
    right = found.scores[:, 24, 70]  # painted backwards alone
    assert right == pytest.approx([0, 1 / 4, 1 / 2, 3 / 4, 1], abs=1e-6)
    assert found.scores[1:, 24, 5] == pytest.approx([1] * 4)
    assert np.array_equal(np.isnan(found.agreement), [True, False, False, False, True])
    assert found.agreement[1:4] == pytest.approx([2 / 3] * 3, abs=0.01)
    assert found.scores.dtype == found.agreement.dtype == np.float32


@pytest.mark.parametrize("memory", [0, 2])
def test_time_may_run_the_other_way(weights, sweep, memory):
    frames, discs = sweep
    wanted = [0, 3, 4, 6, 9]
    engine = small_engine(weights, memory=memory, keys_per_side=2)
    found = engine.scores(frames, {1: discs[1], 5: discs[5], 8: discs[8]}, wanted)
    flipped = engine.scores(frames[::-1], {8: discs[1], 4: discs[5], 1: discs[8]}, [9 - frame for frame in wanted])
    np.testing.assert_allclose(flipped.scores, found.scores, atol=1e-5)
    np.testing.assert_allclose(flipped.agreement, found.agreement, atol=1e-3)


@pytest.mark.parametrize("memory", [0, 1])
def test_a_frame_does_not_depend_on_what_else_is_asked_for_nor_on_the_batch(weights, sweep, memory):
    frames, discs = sweep
    keys = {0: discs[0], 6: discs[6]}
    # A painter that passes the prompts' masks on makes the memory matter.
    found = painting(weights, lambda images, masks, queries: masks.mean(1) * queries.clamp(0.6, 1), memory=memory)
    all_of_them = found.scores(frames, keys, [1, 2, 3, 4, 5, 8])
    for batch_size in (1, 8):
        engine = painting(weights, found._network.rule, memory=memory, batch_size=batch_size)
        alone = engine.scores(frames, keys, [4])
        assert np.array_equal(alone.scores[0], all_of_them.scores[3])
        assert alone.agreement[0] == all_of_them.agreement[3]
        assert max(images.shape[0] * images.shape[1] for images, *_ in engine._network.calls) <= max(
            batch_size, 1 + memory
        )


def test_frames_without_memory_are_painted_together(weights, sweep):
    frames, discs = sweep
    engine = painting(weights, bright, memory=0, batch_size=6)
    engine.scores(frames, {0: discs[0], 9: discs[9]}, range(1, 9))
    assert [len(queries) for *_, queries in engine._network.calls] == [6, 6, 4]


def test_where_the_class_is_on_no_key_frame_of_a_pass_nothing_is_painted(weights, sweep):
    frames, discs = sweep
    nothing = np.zeros_like(discs[0])
    engine = painting(weights, bright)
    found = engine.scores(frames, {0: discs[0], 4: nothing, 9: nothing}, [2, 6])
    assert {query for query, _ in shown_frames(engine, frames)} == {1, 2}
    assert found.scores[0].max() == pytest.approx(0.5), "one pass of two"
    assert found.agreement.tolist() == [0, 1]
    assert not found.scores[1].any()


@pytest.mark.parametrize("memory", [0, 2])
def test_another_key_frame_repaints_what_it_touches_alone(weights, sweep, tmp_path, memory):
    frames, discs = sweep
    engine = painting(weights, bright, kept=tmp_path / "kept", memory=memory)
    keys = {0: discs[0], 9: discs[9]}
    first = engine.scores(frames, keys, range(1, 9))
    assert len(shown_frames(engine, frames)) == 16
    again = painting(weights, bright, kept=tmp_path / "kept", memory=memory)
    second = again.scores(frames, keys, range(1, 9))
    assert not again._network.calls
    assert np.array_equal(first.scores, second.scores)
    assert np.array_equal(first.agreement, second.agreement)
    again.scores(frames, keys | {4: discs[4]}, [1, 2, 3, 5, 6, 7, 8])
    painted = shown_frames(again, frames)
    assert sorted(query for query, _ in painted) == [1, 2, 3, 5, 6, 7, 8]
    assert all(prompts[0] == 4 for _, prompts in painted)
    # Nothing is kept of other masks, frames or settings.
    for other, drawn, settings in (
        (frames, discs[1], {}),
        (np.roll(frames, 1, 1), discs[0], {}),
        (frames, discs[0], {"prompt_type": "semantic"}),
    ):
        engine = painting(weights, bright, kept=tmp_path / "kept", memory=memory, **settings)
        engine.scores(other, keys | {0: drawn}, [1])
        assert (1, [0]) in (shown_frames(engine, other))
    # What was kept is what an engine that keeps nothing gives.
    assert np.array_equal(
        painting(weights, bright, memory=memory).scores(frames, keys, range(1, 9)).scores, first.scores
    )


def test_two_passes_that_lose_the_class_do_not_agree(weights, sweep):
    frames, discs = sweep
    engine = painting(weights, lambda images, masks, queries: torch.zeros_like(queries))
    found = engine.scores(frames, {0: discs[0], 4: discs[4], 8: np.zeros_like(discs[0])}, [2, 6])
    assert not (found.scores > 0.5).any()
    assert found.agreement.tolist() == [0, 1]


def test_beyond_the_outermost_key_frames_only_on_request(weights, sweep):
    frames, discs = sweep
    engine = painting(weights, bright, extrapolate=False)
    found = engine.scores(frames, {2: discs[2], 5: discs[5]}, [1, 3, 7])
    assert {query for query, _ in shown_frames(engine, frames)} == {3, 4}
    assert not found.scores[[0, 2]].any()
    assert np.isnan(found.agreement).tolist() == [True, False, True]


def test_the_same_twice_on_a_phantom(weights, study, caplog, monkeypatch):
    """End to end with random weights: another engine on the same file gives the same, bit for bit."""
    images = [file for file in sorted(study.rglob("*.nii.gz")) if "image" in str(file)]
    labels = [file for file in sorted(study.rglob("*.nii.gz")) if "label" in str(file)]
    image, label = read_image(images[0]).array, read_label(labels[0]).array
    frames = np.moveaxis(image, (2, 1, 0), (0, 1, 2)).astype(np.uint8)
    masks = np.moveaxis(label, (2, 1, 0), (0, 1, 2))
    drawn = masks == np.bincount(masks[masks > 0].astype(int)).argmax()
    monkeypatch.setattr(seggpt, "_REPORTED_EVERY", 0.0)
    keys = {0: drawn[0], 5: drawn[5], 11: drawn[11]}
    wanted = [frame for frame in range(12) if frame not in keys]
    with caplog.at_level(logging.INFO, "uscl"):
        found = [small_engine(weights).scores(frames, keys, wanted) for _ in range(2)]
    assert "of 18 paintings" in caplog.text
    assert np.array_equal(found[0].scores, found[1].scores)
    assert np.array_equal(found[0].agreement, found[1].agreement)
    assert found[0].scores.shape == (9, *frames.shape[1:])
    assert 0 <= found[0].scores.min() < found[0].scores.max() <= 1
    assert found[0].scores.std(0).max() > 0, "every frame got the same"


def test_half_precision_is_near_the_full_one(weights, sweep):
    frames, discs = sweep
    keys = {0: discs[0], 4: discs[4]}
    full, half = (small_engine(weights, precision=kind) for kind in ("auto", "bfloat16"))
    found, halved = (engine.scores(frames, keys, [1, 2, 3]).scores for engine in (full, half))
    assert 0 < np.abs(found - halved).max() < 0.02
    assert full.identity != half.identity
    assert full.report.sha256 in full.identity


def test_what_cannot_be_meant_is_reported(weights, sweep):
    frames, discs = sweep
    engine = small_engine(weights)
    keys = {0: discs[0]}
    for given, message in (
        ((frames, {}, [1]), "no key frame is given"),
        ((frames.astype(float), keys, [1]), r"expected uint8 \[frame, row, column\], found float64"),
        ((frames[0], keys, [1]), "expected uint8"),
        ((frames, {10: discs[0]}, [1]), "frame 10: the sweep has frames 0 to 9"),
        ((frames, keys, [-1]), "frame -1: the sweep has frames 0 to 9"),
        ((frames, keys, [0, 1]), "frame 0: is a key frame"),
        ((frames, keys, [1, 1]), "named twice"),
        ((frames, {0: discs[0].T}, [1]), r"key frame 0: its mask is \[80, 48\], the frames are \[48, 80\]"),
        ((frames, {0: discs[0] + 2 * discs[5]}, [1]), r"one value beside 0, found \[1, 2, 3\]"),
    ):
        with pytest.raises(InputError, match=message):
            engine.scores(*given)
    for settings, message in (
        ({"keys_per_side": 0}, "seggpt.keys_per_side must be at least 1, found 0"),
        ({"memory": -1}, "at least 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "is not here"),
    ):
        with pytest.raises(InputError, match=message):
            small_engine(weights, **settings)


def test_a_network_that_overflows_is_reported(weights, sweep, tmp_path):
    frames, discs = sweep
    tensors = load_file(weights)
    tensors["decoder.decoder_pred.head.weight"] = torch.full_like(tensors["decoder.decoder_pred.head.weight"], 3e38)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="SegGPT gives values that are not finite"):
        small_engine(tmp_path / "w.safetensors").scores(frames, {0: discs[0]}, [1])
