"""The check: what left-out key frames say, confidence, flags, suggestions, clean-up."""

import numpy as np
import pytest

from uscl.data.volume import Volume, read_label
from uscl.errors import InputError
from uscl.pseudo_label.engine import EngineResult
from uscl.pseudo_label.output import write_pairs
from uscl.pseudo_label.pages import page, save_contact_sheet
from uscl.pseudo_label.quality import (
    ClassQuality,
    class_quality,
    flag_frames,
    leave_out,
    outline_distance,
    suggest_frames,
)
from uscl.pseudo_label.sweep import CheckSettings, label_sweep, trusted_runs

COUNT, SIZE = 13, 24


class Copier:
    """An engine whose every answer is known: the mask of the key frame before, shifted by what it is told."""

    name = identity = "copier"

    def __init__(self, shift: int = 0, agreement: float = 0.9, score: float = 0.8) -> None:
        self.shift, self.agreement, self.score = shift, agreement, score

    def scores(self, frames, key_masks, wanted):
        numbers = sorted(key_masks)
        found, agreed = np.zeros((len(wanted), *frames.shape[1:]), np.float32), []
        for i, t in enumerate(wanted):
            inside = numbers[0] < t < numbers[-1]
            if inside:
                found[i] = self.score * np.roll(key_masks[max(n for n in numbers if n < t)], self.shift, 1)
            agreed.append(self.agreement if inside else np.nan)
        return EngineResult(found, np.array(agreed, np.float32))


def square(value: int = 3, left: int = 6) -> np.ndarray:
    labels = np.zeros((SIZE, SIZE), np.int32)
    labels[8:16, left : left + 8] = value
    return labels


FRAMES = np.random.default_rng(0).integers(0, 255, (COUNT, SIZE, SIZE)).astype(np.uint8)


def test_left_out_key_frames_are_predicted_by_the_others():
    masks = {t: square(1) > 0 for t in (0, 4, 8, 12)}
    found = leave_out(Copier(shift=2), FRAMES, masks, (0.5, 2.0))
    assert [one.frame for one in found] == [4, 8]
    assert [one.dice for one in found] == pytest.approx([0.75, 0.75])  # 6 of 8 columns overlap
    assert [one.hd95 for one in found] == pytest.approx([4.0, 4.0])  # two columns of 2 mm
    assert not leave_out(Copier(), FRAMES, {t: masks[t] for t in (0, 12)}, (1, 1))


def test_distances_between_outlines():
    one, other = square(1) > 0, square(1, left=9) > 0
    assert outline_distance(one, one, (1, 1)) == 0
    assert outline_distance(one, other, (1.0, 0.5)) == outline_distance(other, one, (1.0, 0.5)) == pytest.approx(1.5)
    assert np.isnan(outline_distance(one, np.zeros_like(one), (1, 1)))


def test_confidence_is_one_on_key_frames_and_falls_towards_the_middle():
    masks = np.repeat(square(1)[None] > 0, COUNT, 0)
    found = class_quality("liver", (), masks, {**dict.fromkeys(range(3, 9), 0.5), 0: np.nan, 1: np.nan}, (2, 9, 12))
    assert found.confidence[[2, 9, 12]].tolist() == [1, 1, 1]
    assert found.confidence[[0, 1]].tolist() == [0, 0]
    assert np.all(np.diff(found.confidence[2:6]) < 0)
    assert 0.5 <= found.confidence[5] < 0.55
    assert found.consistency == 1


def quality(confidence: list[float], area: list[int] | None = None) -> ClassQuality:
    return ClassQuality("liver", (), np.array(confidence), np.array(area or [400] * len(confidence)), 0.9)


def test_flags_and_their_reasons():
    found = flag_frames([quality([0, 1, 0.9, 0.3, 0.9, 1, 0])], (1, 5), 0.6)
    assert list(found) == [0, 3, 6]
    assert found[0] == ["beyond the outer key frames"]
    assert found[3] == ["liver: confidence is 0.30"]
    sudden = flag_frames([quality([1, 0.9, 0.9, 0.9, 1], [400, 400, 100, 400, 400])], (0, 4), 0.6)
    assert list(sudden) == [1, 2, 3]
    assert "changes suddenly" in sudden[2][0]
    assert not flag_frames([quality([1, 0.9, 0.9, 1], [10, 1, 10, 10])], (0, 3), 0.6), "a few pixels mean nothing"


def test_suggestions_go_where_confidence_is_low_and_not_twice_to_one_place():
    confidence = np.ones(41)
    confidence[1:20], confidence[21:40] = 0.5, 0.8
    found = suggest_frames([quality(confidence.tolist())], (0, 20, 40), 3)
    assert len(set(found)) == 3
    assert found[0] == 10
    assert found[1] == 30
    assert suggest_frames([quality([1, 1, 1])], (0, 1, 2), 3) == []


def test_key_frames_stay_as_they_were_annotated_and_higher_scores_win():
    keys = {0: square(3) + square(1, left=2) * (square(3) == 0), 6: square(3), 12: square(3)}
    made = label_sweep(FRAMES, keys, {1: "effusion", 3: "liver", 5: "kidney"}, Copier())
    for number, labels in keys.items():
        assert np.array_equal(made.labels[number], labels)
    assert set(made.quality) == {1, 3}
    assert np.array_equal(made.labels[2], keys[0])
    other = label_sweep(FRAMES, keys, {1: "effusion", 3: "liver"}, Copier(), other=Copier(shift=4))
    assert other.compared[3] == pytest.approx(0.5)
    assert np.array_equal(other.labels, made.labels), "what is compared with is not used"


def test_flagged_frames_are_those_below_the_threshold():
    keys = {2: square(), 12: square()}
    made = label_sweep(FRAMES, keys, {3: "liver"}, Copier(agreement=0.7), check=CheckSettings(threshold=0.75))
    assert list(made.flags) == [0, 1, 6, 7, 8]
    assert not made.labels[:2].any()
    with pytest.raises(InputError, match="threshold is 7"):
        CheckSettings(threshold=7)


@pytest.mark.parametrize("keys", [{3: square()}, {3: square() * 0, 5: square() * 0}])
def test_too_little_is_annotated(keys):
    with pytest.raises(InputError, match="annotate at least the first and the last frame"):
        label_sweep(FRAMES, keys, {3: "liver"}, Copier())


def test_stretches_of_trusted_frames():
    flags = {3: ["x"], 4: ["x"], 9: ["x"]}
    assert trusted_runs(13, flags, 3) == [(0, 3), (5, 9), (10, 13)]
    assert trusted_runs(13, flags, 4) == [(5, 9)]
    assert trusted_runs(4, {}, 4) == [(0, 4)]


class Messy(Copier):
    """Leaves an island far from everything and a hole."""

    def scores(self, frames, key_masks, wanted):
        found = super().scores(frames, key_masks, wanted)
        found.scores[:, 0:2, 20:23] = 0.9
        found.scores[3, 11, 9] = 0
        return found


def test_clean_up_is_reported_and_leaves_key_frames_alone():
    keys = {0: square(), 12: square()}
    keys[0][10, 10] = 0
    messy = label_sweep(FRAMES, keys, {3: "liver"}, Messy())
    clean = label_sweep(FRAMES, keys, {3: "liver"}, Messy(), check=CheckSettings(clean_up=True))
    assert not messy.cleaned
    taken, added = clean.cleaned[3]
    assert taken == 11 * 6
    assert added >= 1
    assert messy.labels[5, 0, 20]
    assert not clean.labels[5, 0, 20]
    assert clean.labels[4, 11, 9]
    assert clean.labels[0, 10, 10] == 0


@pytest.mark.parametrize("key", [{COUNT: square()}, {5: square()[:-1]}])
def test_key_frames_of_another_sweep(key):
    with pytest.raises(InputError, match="the sweep has frames 0 to 12 of"):
        label_sweep(FRAMES, {0: square(), 12: square()} | key, {3: "liver"}, Copier())


def test_more_classes_than_colours_and_ids_beyond_a_byte(tmp_path):
    keys = {t: np.zeros((SIZE, SIZE), np.int32) for t in (0, 12)}
    names = {250 + number: f"part {number}" for number in range(9)}
    for number in names:
        for labels in keys.values():
            labels[2 * (number - 250) : 2 * (number - 250) + 2] = number
    made = label_sweep(FRAMES, keys, names, Copier(), check=CheckSettings(clean_up=True))
    text = page(FRAMES, made, names, "many", [], range(COUNT))
    assert all(name in text for name in names.values())
    assert "pixels cleaned away, added" in text
    save_contact_sheet(tmp_path / "sheet.png", FRAMES, made, names, "many", range(COUNT))
    write_pairs(tmp_path, Volume(FRAMES.transpose(2, 1, 0)), made, "many", True, 2)
    assert np.array_equal(read_label(tmp_path / "label.nii.gz").array.transpose(2, 1, 0), made.labels)
