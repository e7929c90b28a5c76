"""The evaluation protocol: who clicks where, what is shown, what counts."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from uscl.backbone import build_sam_med3d
from uscl.errors import InputError
from uscl.prompting import Click, ClickProtocol, SamMed3DSegmenter, evaluation_rollout, protocol
from uscl.seeds import seeded_draw


class Scripted:
    """Answers with prepared masks, whatever is clicked."""

    def __init__(self, answers):
        self.answers, self.shown = answers, []

    def set_image(self, image):
        self.shown = []

    def segment(self, clicks):
        self.shown.append(list(clicks))
        return self.answers[len(self.shown) - 1]


@pytest.fixture
def target() -> torch.Tensor:
    mask = torch.zeros(12, 12, 12, dtype=torch.bool)
    mask[3:9, 3:9, 3:9] = True
    return mask


def as_logits(mask: torch.Tensor, height: float = 5.0) -> torch.Tensor:
    return torch.where(mask, height, -height)


def roll(answers, target, count, protocol=ClickProtocol(), **options):
    segmenter = Scripted(answers)
    draw = partial(seeded_draw, "protocol")
    image = torch.zeros(1, 1, *target.shape)
    return segmenter, list(evaluation_rollout(segmenter, image, target, count, draw, protocol, **options))


def test_the_value_at_n_clicks_or_the_best_so_far(target):
    worse = target.clone()
    worse[3:6] = False
    answers = [as_logits(worse), as_logits(target), as_logits(worse)]
    _, plain = roll(answers, target, 3)
    assert [torch.equal(step.logits, answer) for step, answer in zip(plain, answers, strict=True)] == [True] * 3
    _, best = roll(answers, target, 3, ClickProtocol(best_so_far=True))
    assert torch.equal(best[0].logits, answers[0])
    assert torch.equal(best[1].logits, answers[1])
    assert torch.equal(best[2].logits, answers[1]), "the third is worse, so the second counts"
    # Clicks go on from what the model gave, not from the best.
    assert [step.clicks for step in best] == [step.clicks for step in plain]
    assert [step.number for step in best] == [1, 2, 3]


def test_errors_are_sought_above_the_threshold_and_scored_above_zero(target):
    """Logits of 0.3 are a mask for the score; a user of the older script does not see them."""
    answers = [as_logits(target, 0.3)] * 2
    _, steps = roll(answers, target, 2, ClickProtocol(threshold=0.5))
    assert steps[1].clicks[1].foreground
    assert target[steps[1].clicks[1].index]
    outside = torch.zeros_like(target)
    outside[0] = True
    _, steps = roll([as_logits(target | outside, 0.3)] * 2, target, 2)
    assert steps[1].clicks[1].index[0] == 0, "above 0 the spilled slab is the error"
    assert not steps[1].clicks[1].foreground


def test_deepest_clicks_come_first(target):
    empty = [as_logits(torch.zeros_like(target))] * 6
    middle = []
    for seed in range(20):
        draw = partial(seeded_draw, seed)
        image = torch.zeros(1, 1, 12, 12, 12)
        steps = list(evaluation_rollout(Scripted(empty), image, target, 4, draw, ClickProtocol(deepest_clicks=2)))
        middle.append([all(4 <= i <= 7 for i in click.index) for click in steps[-1].clicks])
    assert all(first and second for first, second, *_ in middle)
    assert not all(third and fourth for *_, third, fourth in middle)
    with pytest.raises(InputError, match="deepest_clicks"):
        ClickProtocol(deepest_clicks=-1)


def test_a_click_that_placed_the_patch_comes_first(target):
    segmenter, steps = roll([as_logits(target)] * 2, target, 2, first=Click((4, 5, 6)))
    assert segmenter.shown[0] == [Click((4, 5, 6))]
    assert len(steps[1].clicks) == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_click_on_every_slice(target, axis):
    target = target.clone()
    target[:, :, 8:] = False
    segmenter, steps = roll([as_logits(torch.zeros_like(target))] * 2, target, 2, slice_axis=axis)
    holding = target.movedim(axis, 0).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert [click.index[axis] for click in segmenter.shown[0]] == holding
    assert [click.index[axis] for click in segmenter.shown[1]] == holding * 2
    assert all(target[click.index] and click.foreground for click in steps[1].clicks)
    assert [step.number for step in steps] == [1, 2]


@torch.no_grad()
def test_showing_the_newest_click_alone_is_another_thing():
    model = build_sam_med3d("tiny").eval()
    image = torch.randn(1, 1, 64, 64, 64)
    clicks = [Click((10, 20, 30)), Click((40, 50, 6), False), Click((33, 3, 3))]
    shown = []
    original = model.decode
    model.decode = lambda embedding, points, mask: shown.append(points[0].shape[1]) or original(embedding, points, mask)
    answers = []
    for accumulate in (True, False):
        segmenter = SamMed3DSegmenter(model, accumulate=accumulate)
        segmenter.set_image(image)
        answers.append(segmenter.segment(clicks))
        at_once = answers[-1]
        segmenter.set_image(image)
        for count in (1, 2, 3):
            stepwise = segmenter.segment(clicks[:count])
        assert torch.equal(at_once, stepwise)
    assert shown == [1, 2, 3, 1, 2, 3, 1, 1, 1, 1, 1, 1]
    assert not torch.equal(*answers)


def test_time_is_taken_when_the_device_is_done(target, monkeypatch):
    """A GPU answers before it has worked: without waiting, an encoder would seem to take no time."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    protocol._clock(torch.device("cpu"))
    assert not waited
    protocol._clock(torch.device("cuda", 0))
    assert waited == [torch.device("cuda", 0)]
    ticks = iter(range(100))
    monkeypatch.setattr(protocol, "_clock", lambda device: next(ticks))
    _, steps = roll([as_logits(target)] * 3, target, 3)
    assert [step.seconds for step in steps] == [2, 3, 4], "the image once, then every round"


def test_a_protocol_in_words():
    assert ClickProtocol().in_words == "clicks drawn from all wrong voxels, the mask after as many clicks scored"
    older = ClickProtocol(deepest_clicks=2, accumulate=False, threshold=0.5, best_so_far=True).in_words
    assert all(word in older for word in ("first 2 clicks", "newest click alone", "logit of 0.5", "BEST mask so far"))


@dataclass(frozen=True)
class AtPlace(ClickProtocol):
    place: object = (0, 0, 0)

    def click(self, number, predicted, target, draw):
        return Click(self.place, True) if isinstance(self.place, tuple) else self.place


@pytest.mark.parametrize("place", [(12, 0, 0), (0, -1, 0), (0, 0), (1.0, 2, 3), None], ids=str)
def test_a_click_outside_the_patch_is_refused(target, place):
    """Python counts negative numbers from the end: the object would be clicked on elsewhere."""
    with pytest.raises(InputError, match=r"click protocol AtPlace: set .* within a patch of \(12, 12, 12\) voxels"):
        roll([as_logits(target)], target, 1, AtPlace(place=place))


def test_a_protocol_of_ones_own_is_known_by_its_module_and_settings():
    words = AtPlace(place=(1, 2, 3), accumulate=False).placement
    assert words == f"clicks by {__name__}.AtPlace(place=(1, 2, 3))"

    class Undescribed(ClickProtocol):
        place: int = 3

        def click(self, number, predicted, target, draw):
            return Click((0, 0, 0), True)

    with pytest.raises(InputError, match="Undescribed: rows would not hold place, for it is no dataclass"):
        Undescribed()


def test_numbers_of_numpy_are_whole_numbers_too(target):
    _, (step,) = roll([as_logits(target)], target, 1, AtPlace(place=tuple(np.array([4, 4, 4]))))
    assert step.clicks == (Click((4, 4, 4), True),)
    assert all(type(i) is int for i in step.clicks[0].index)


@pytest.mark.parametrize("place", [(0, 50, 5), (0, -1, 5), (1, 5, 5)])
def test_a_click_outside_its_slice_is_refused(target, place):
    with pytest.raises(InputError, match=r"within a patch of \(1, 12, 12\) voxels"):
        roll([as_logits(target)], target, 1, AtPlace(place=place), slice_axis=2)
