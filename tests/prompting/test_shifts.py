"""Masks averaged over positions of the token grid."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uscl.backbone import build_sam_med3d
from uscl.errors import InputError
from uscl.prompting import Click, Inference, SamMed3DSegmenter
from uscl.prompting.segmenter import grid_offsets, moved

CONFIG = build_sam_med3d("tiny").config
TOKEN, SIZE = CONFIG.patch_size, CONFIG.image_size


class WholeTokens(torch.nn.Module):
    """Stands in for a backbone that decides token by token; notes the clicks."""

    def __init__(self):
        super().__init__()
        self.config = CONFIG
        self.images, self.clicks = [], []

    def encode_image(self, image):
        self.images.append(image[0, 0])
        return F.avg_pool3d(image, TOKEN)

    def decode(self, embedding, points=None, mask=None, multimask=False):
        self.clicks.append(points)
        assert mask.shape == (len(embedding), 1, *(CONFIG.mask_size,) * 3)
        return F.interpolate(embedding - 0.5, size=CONFIG.mask_size, mode="nearest"), None


@pytest.mark.parametrize("shifts", [2, 4, 8])
@pytest.mark.parametrize("token", [8, 16])
def test_grids_lie_around_the_patch_half_a_token_apart(shifts, token):
    offsets = np.array(grid_offsets(shifts, token))
    assert offsets.shape == (shifts, 3)
    assert len(np.unique(offsets, axis=0)) == shifts
    assert np.array_equal(offsets.sum(0), [0, 0, 0])
    assert np.array_equal(np.unique(offsets), [-token // 4, token // 4])
    assert grid_offsets(1, token) == [(0, 0, 0)]


@pytest.mark.parametrize("shifts", [0, 3, 16, "4"])
def test_other_numbers_are_refused(shifts):
    with pytest.raises(InputError, match="shifts must be one of"):
        Inference(shifts=shifts)


def test_moving_repeats_the_border():
    values = torch.arange(SIZE**3).reshape(1, 1, SIZE, SIZE, SIZE)
    out = moved(values, (3, 0, -2))
    assert torch.equal(out[..., 3:, :, :-2], values[..., :-3, :, 2:])
    assert torch.equal(out[..., 0, :, 5], values[..., 0, :, 7])
    assert torch.equal(out[..., 5, :, -1], values[..., 2, :, -1])
    assert torch.equal(moved(values, (0, 0, 0)), values)


def test_borders_within_tokens_are_followed_better():
    place = torch.stack(torch.meshgrid(*(torch.arange(SIZE, dtype=torch.float),) * 3, indexing="ij"))
    inside = (place - torch.tensor([31.0, 33.0, 30.0])[:, None, None, None]).square().sum(0) < 25**2
    dice = {}
    for shifts in (1, 2, 4, 8):
        segmenter = SamMed3DSegmenter(WholeTokens(), Inference(shifts=shifts))
        segmenter.set_image(inside.float()[None, None])
        found = segmenter.segment([Click((30, 33, 27))]) > 0
        dice[shifts] = float(2 * (found & inside).sum() / (found.sum() + inside.sum()))
    assert dice[1] < 0.8
    assert min(dice[2], dice[4], dice[8]) > dice[1] + 0.1


def test_clicks_move_with_the_image():
    model = WholeTokens()
    segmenter = SamMed3DSegmenter(model, Inference(shifts=8))
    image = torch.arange(float(SIZE**3)).reshape(1, 1, SIZE, SIZE, SIZE)
    segmenter.set_image(image)
    clicks = [Click((20, 9, 40)), Click((0, SIZE - 1, 30), False)]
    segmenter.segment(clicks)
    coords, labels = model.clicks[-1]
    assert coords.shape == (8, 2, 3)
    assert labels.tolist() == [[1, 0]] * 8
    # The first lies on the same voxel of every moved patch; the second, at an edge, stays in the patch at the edge.
    assert {float(view[tuple(at[0])]) for view, at in zip(model.images, coords, strict=True)} == {
        float(image[0, 0, 20, 9, 40])
    }
    assert coords.min() >= 0
    assert coords.max() <= SIZE - 1
    assert {float(view[tuple(at[1])]) for view, at in zip(model.images, coords, strict=True)} <= set(
        image[0, 0, :TOKEN, -TOKEN:, 30].flatten().tolist()
    )


@torch.no_grad()
def test_every_grid_goes_its_own_way_and_the_mean_is_returned():
    model = build_sam_med3d("tiny").eval()
    image, clicks = torch.randn(1, 1, SIZE, SIZE, SIZE), [Click((30, 30, 30)), Click((22, 40, 25), False)]
    segmenter = SamMed3DSegmenter(model, Inference(shifts=2))
    segmenter.set_image(image)
    for count in (1, 2):
        found = segmenter.segment(clicks[:count])
    total = 0
    for by in (-TOKEN // 4, TOKEN // 4):
        single = SamMed3DSegmenter(model)
        single.set_image(moved(image, (by, by, by)))
        at = [Click(tuple(i + by for i in click.index), click.foreground) for click in clicks]
        total = total + moved(single.segment(at), (-by, -by, -by))
    torch.testing.assert_close(found, total / 2, rtol=1e-4, atol=1e-5)
