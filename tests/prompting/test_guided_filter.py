from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from uscl.backbone import VARIANTS, build_sam_med3d
from uscl.prompting import Click, SamMed3DSegmenter
from uscl.prompting.guided_filter import GuidedFilter


def by_hand(image: Tensor, logits: Tensor, radius: int, noise: float) -> Tensor:
    """The paper's algorithm, one cube after the other: a least-squares line in each, then the mean of the lines."""
    size = image.shape[-1]
    voxels = list(product(range(size), repeat=3))
    cubes = {voxel: tuple(slice(max(0, at - radius), at + radius + 1) for at in voxel) for voxel in voxels}
    slope, offset = torch.zeros_like(image), torch.zeros_like(image)
    for voxel, cube in cubes.items():
        guide, values = image[cube].flatten(), logits[cube].clamp(-4, 4).flatten()
        covariance = ((guide - guide.mean()) * (values - values.mean())).mean()
        slope[voxel] = covariance / (guide.var(unbiased=False) + noise)
        offset[voxel] = values.mean() - slope[voxel] * guide.mean()
    means = [(slope[cubes[voxel]].mean() * image[voxel] + offset[cubes[voxel]].mean()) for voxel in voxels]
    return torch.stack(means).reshape(image.shape)


@pytest.mark.parametrize("radius", [1, 2])
def test_is_the_published_filter(radius):
    torch.manual_seed(0)
    image, logits = torch.randn(7, 7, 7), 3 * torch.randn(7, 7, 7)
    found = GuidedFilter(image, radius, 0.1, gain=1.0)(logits)
    torch.testing.assert_close(found, by_hand(image, logits, radius, 0.1), rtol=1e-4, atol=1e-4)


def scene() -> tuple[Tensor, Tensor]:
    """An image with an object of odd place and size in noise, and the object."""
    torch.manual_seed(0)
    inside = torch.zeros(32, 32, 32, dtype=torch.bool)
    inside[7:22, 5:25, 9:24] = True
    image = inside.float() + 0.1 * torch.randn(32, 32, 32)
    return (image - image.mean()) / image.std(), inside


def dice(logits: Tensor, inside: Tensor) -> float:
    found = logits > 0
    return float(2 * (found & inside).sum() / (found.sum() + inside.sum()))


def test_masks_of_cells_take_the_edges_of_the_image():
    image, inside = scene()
    cells = torch.nn.functional.avg_pool3d(inside[None].float(), 4).gt(0.5).float()
    blocks = 8 * torch.nn.functional.interpolate(cells[None], scale_factor=4)[0, 0] - 4
    assert dice(blocks, inside) < 0.85
    assert dice(GuidedFilter(image)(blocks), inside) > 0.95
    assert dice(GuidedFilter(torch.randn(32, 32, 32))(blocks), inside) < 0.85


def test_edges_far_from_the_mask_s_own_draw_nothing():
    image, _ = scene()
    for value in (-9.0, 9.0):
        assert torch.allclose(GuidedFilter(image)(torch.full((32, 32, 32), value)), torch.tensor(value).clamp(-4, 4))
    half = torch.where(torch.arange(32)[:, None, None] < 16, -4.0, 4.0).expand(32, 32, 32)
    far = torch.zeros(32, 32, 32)
    far[26:] = 5.0
    assert torch.equal(GuidedFilter(far)(half) > 0, half > 0)


def test_axes_are_alike():
    image, inside = scene()
    logits = 8 * inside.float() - 4
    found = GuidedFilter(image)(logits)
    for axes in permutations(range(3)):
        turned = GuidedFilter(image.permute(axes))(logits.permute(axes))
        torch.testing.assert_close(turned, found.permute(axes), rtol=1e-3, atol=1e-3)


def test_half_precision_around_it_changes_nothing():
    image, inside = scene()
    logits = 8 * inside.float() - 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = GuidedFilter(image)(logits)
    assert torch.equal(found, GuidedFilter(image)(logits))


@pytest.mark.parametrize("shifts", [1, 2])
def test_a_segmenter_filters_what_it_would_say_else(shifts):
    torch.manual_seed(0)
    model = build_sam_med3d(replace(VARIANTS["tiny"], published_positions=False)).eval()
    plain = SamMed3DSegmenter(model, shifts=shifts)
    filtered = SamMed3DSegmenter(model, shifts=shifts, guided_filter=True)
    for _ in range(2):  # another image brings another guide
        image = torch.randn(1, 1, 64, 64, 64)
        for segmenter in (plain, filtered):
            segmenter.set_image(image)
        for clicks in ([Click((30, 20, 40))], [Click((30, 20, 40)), Click((1, 2, 3), False)]):
            logits = filtered.segment(clicks)
            assert not torch.equal(logits, plain.segment(clicks))
            assert torch.equal(logits, GuidedFilter(image[0, 0])(plain.segment(clicks)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_does_not_reach_it(monkeypatch):
    image, inside = scene()
    image, logits = 3 + image, 8 * inside.float() - 4
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    found = GuidedFilter(image.cuda())(logits.cuda())
    torch.testing.assert_close(found.cpu(), GuidedFilter(image)(logits), rtol=1e-3, atol=1e-3)
