from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from uscl.backbone import build_sam_med3d
from uscl.errors import InputError
from uscl.prompting import Click, Inference, SamMed3DSegmenter, TrainingClicks, evaluation_rollout, training_rollout
from uscl.prompting.clicks import as_points
from uscl.seeds import seeded_draw


def test_mask_only_iterations_follow_the_published_script():
    protocol = TrainingClicks()
    drawn = Counter()
    draw = seeded_draw("mask only")
    for _ in range(500):
        chosen = protocol.without_points(draw)
        assert 10 in chosen
        drawn.update(chosen - {10})
    assert set(drawn) == set(range(2, 9))
    assert TrainingClicks(count=1).without_points(draw) == set()
    assert TrainingClicks(count=3).without_points(draw) == {2}
    with pytest.raises(InputError, match=r"clicks\.count"):
        TrainingClicks(count=0)


class Recorder(torch.nn.Module):
    """Stands in for the backbone: notes what it is asked and answers with a fixed mask."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.config = build_sam_med3d("tiny").config
        self.answer = answer
        self.calls = []
        self.encoded = 0

    def encode_image(self, image):
        self.encoded += 1
        return torch.zeros(image.shape[0], 48, 4, 4, 4)

    def decode(self, embedding, points=None, mask=None, multimask=False):
        self.calls.append((points, mask))
        return self.answer.expand(embedding.shape[0], -1, -1, -1, -1) + len(self.calls), None


@pytest.fixture
def target() -> torch.Tensor:
    mask = torch.zeros(2, 1, 64, 64, 64)
    mask[:, :, 20:40, 20:40, 20:40] = 1
    return mask


@pytest.mark.parametrize("accumulate", [False, True])
def test_training_shows_newest_click_or_all_and_feeds_back_logits(target, accumulate):
    model = Recorder(torch.full((1, 1, 16, 16, 16), -9.0))
    losses = []
    total, logits = training_rollout(
        model,
        torch.zeros(2, 1, 64, 64, 64),
        target,
        lambda out, _: losses.append(out) or out.mean(),
        TrainingClicks(accumulate=accumulate),
        seeded_draw("rollout"),
    )
    assert model.encoded == 1
    assert len(model.calls) == len(losses) == 11
    assert total.item() == pytest.approx(sum(out.mean().item() for out in losses))
    assert torch.equal(logits, losses[-1])
    assert model.calls[0][1].abs().max() == 0, "the first mask prompt is zeros, never None"
    assert model.calls[5][1].mean() == -9 + 5, "then the logits of the step before"
    without = [i for i, (points, _) in enumerate(model.calls) if points is None]
    assert len(without) == 2
    assert without[1] == 10
    shown = [points[0].shape[1] for points, _ in model.calls if points is not None]
    assert shown == ([i + 1 for i in range(11) if i not in without] if accumulate else [1] * 9)
    coords, labels = model.calls[0][0]
    assert labels.eq(1).all()
    assert all(target[i, 0][tuple(coords[i, 0])] == 1 for i in range(2))


def test_gradients_flow_through_all_iterations(target):
    model = build_sam_med3d("tiny")
    seen = []
    total, _ = training_rollout(
        model,
        torch.randn(2, 1, 64, 64, 64),
        target,
        lambda out, _: seen.append(out) or out.square().mean(),
        TrainingClicks(count=3),
        seeded_draw("gradients"),
    )
    # The last loss alone reaches the parameters that only the first click used: the mask is not detached in between.
    last = seen[-1].square().mean()
    (gradient,) = torch.autograd.grad(last, model.prompt_encoder.point_embeddings[1].weight, retain_graph=True)
    assert gradient.abs().max() > 0
    total.backward()


@torch.no_grad()
@pytest.mark.parametrize("shifts", [1, 4])
def test_segmenter_replays_clicks_one_by_one(shifts):
    model = build_sam_med3d("tiny").eval()
    image = torch.randn(1, 1, 64, 64, 64)
    clicks = [Click((30, 30, 30)), Click((10, 50, 20), False), Click((40, 30, 31))]
    step_by_step = SamMed3DSegmenter(model, Inference(shifts=shifts))
    step_by_step.set_image(image)
    for count in (1, 2, 3):
        grown = step_by_step.segment(clicks[:count])
    at_once = SamMed3DSegmenter(model, Inference(shifts=shifts))
    at_once.set_image(image)
    assert torch.equal(at_once.segment(clicks), grown)
    assert torch.equal(at_once.segment(clicks), grown), "asking again changes nothing"
    other = at_once.segment([clicks[1], clicks[0]][::-1])
    assert torch.equal(other, step_by_step.segment(clicks[:2])), "going back replays"
    with pytest.raises(InputError, match="at least one click"):
        at_once.segment([])
    with pytest.raises(InputError, match="needs an image"):
        SamMed3DSegmenter(model).segment(clicks)


@torch.no_grad()
def test_the_first_click_alone_is_decoded_twice():
    """The second time it meets its own mask; from there on every click is decoded once, as always."""
    model = build_sam_med3d("tiny").eval()
    image = torch.randn(1, 1, 64, 64, 64)
    clicks = [Click((30, 30, 30)), Click((10, 50, 20), False), Click((40, 30, 31))]
    segmenter = SamMed3DSegmenter(model, Inference(first_twice=True))
    segmenter.set_image(image)
    embedding, low = model.encode_image(image), torch.zeros(1, 1, *(model.config.mask_size,) * 3)
    for shown in (clicks[:1], clicks[:1], clicks[:2], clicks):
        low = model.decode(embedding, as_points(shown), low)[0]
    wanted = F.interpolate(low, size=(64, 64, 64), mode="trilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(segmenter.segment(clicks), wanted)


class Oracle:
    """Knows the object but for what the clicks have not told it: adds a slab around each foreground click."""

    def set_image(self, image):
        self.seen = 0

    def segment(self, clicks):
        self.seen += 1
        logits = torch.full((64, 64, 64), -1.0)
        for click in clicks:
            logits[max(0, click.index[0] - 4) : click.index[0] + 5, 20:40, 20:40] = 1.0
        return logits


def test_evaluation_clicks_on_errors_and_is_reproducible(target):
    objects = target[0, 0] > 0
    runs = []
    for _ in range(2):
        steps = list(
            evaluation_rollout(Oracle(), torch.zeros(1, 1, 64, 64, 64), objects, 4, lambda k: seeded_draw("click", k))
        )
        runs.append([step.clicks for step in steps])
    assert runs[0] == runs[1]
    assert [len(clicks) for clicks in runs[0]] == [1, 2, 3, 4]
    assert objects[runs[0][0][0].index]
    assert all(a == b[: len(a)] for a, b in zip(runs[0][:-1], runs[0][1:], strict=True)), "clicks accumulate"
    for before, step in zip(steps[:-1], steps[1:], strict=True):
        wrong = (before.logits > 0) ^ objects
        assert wrong[step.clicks[-1].index]
        assert step.clicks[-1].foreground == bool(objects[step.clicks[-1].index])
        assert step.seconds >= before.seconds
