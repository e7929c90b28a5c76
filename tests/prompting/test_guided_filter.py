from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from uscl.backbone import VARIANTS, build_sam_med3d
from uscl.prompting import Click, Inference, SamMed3DSegmenter
from uscl.prompting.guided_filter import GuidedFilter


def by_hand(image: Tensor, logits: Tensor, radius: int, noise: float, clicks=(), weight: int = 0) -> Tensor:
    """The paper's algorithm, one cube after the other: a least-squares line in each, then the mean of the lines.

    A click stands in every cube it lies in as so many voxels more, of its place's intensity and of its own logit.
    """
    size = image.shape[-1]
    voxels = list(product(range(size), repeat=3))
    cubes = {voxel: tuple(slice(max(0, at - radius), at + radius + 1) for at in voxel) for voxel in voxels}
    slope, offset = torch.zeros_like(image), torch.zeros_like(image)
    for voxel, cube in cubes.items():
        guide, values = image[cube].flatten(), logits[cube].clamp(-4, 4).flatten()
        for click in clicks:
            if all(abs(a - b) <= radius for a, b in zip(click.index, voxel, strict=True)):
                guide = torch.cat([guide, image[click.index].expand(weight)])
                values = torch.cat([values, torch.tensor(4.0 if click.foreground else -4.0).expand(weight)])
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


def test_a_click_counts_as_so_many_voxels():
    torch.manual_seed(0)
    image, logits = torch.randn(7, 7, 7), 3 * torch.randn(7, 7, 7)
    clicks = [Click((1, 5, 3)), Click((0, 0, 6), False), Click((2, 4, 3), False)]
    guided = GuidedFilter(image, 1, 0.1, gain=1.0, click_weight=20 / 27)
    torch.testing.assert_close(guided(logits, clicks), by_hand(image, logits, 1, 0.1, clicks, 20), rtol=1e-4, atol=1e-4)
    assert torch.equal(guided(logits, [Click((1, 5, 3), False), *clicks]), guided(logits, clicks))  # the last counts
    assert torch.equal(guided(logits, []), guided(logits))


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


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_a_mask_has_what_its_user_says(noise):
    """The model misses a vessel and takes its neighbour, sure of both; one click each, and nothing else moves."""
    torch.manual_seed(0)
    vessels = torch.zeros(2, 32, 32, 32, dtype=torch.bool)
    vessels[0, :, 8:12, 8:12] = vessels[1, :, 20:24, 20:24] = True
    image = vessels.any(0).float() + noise * torch.randn(32, 32, 32)
    image = (image - image.mean()) / image.std()
    wrong = 8 * vessels[1].float() - 4
    clicks = [Click((16, 10, 10)), Click((16, 22, 22), False)]
    guided = GuidedFilter(image)
    before, after = guided(wrong) > 0, guided(wrong, clicks) > 0
    assert after[16, 10, 10]
    assert not after[16, 22, 22]
    changed = (before != after).nonzero()
    near = [(changed - torch.tensor(click.index)).abs().amax(1) <= 6 for click in clicks]  # two radii
    assert (near[0] | near[1]).all()
    if noise < 1:  # where the image shows them, the vessels alone change
        assert (vessels.any(0)[tuple(changed.T)]).float().mean() > 0.9
        assert (after & vessels[0]).sum() > 10
        assert (vessels[1] & ~after).sum() > 10


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
        found = GuidedFilter(image)(logits, [Click((9, 9, 9), False)])
    assert torch.equal(found, GuidedFilter(image)(logits, [Click((9, 9, 9), False)]))


@pytest.mark.parametrize("shifts", [1, 2])
def test_a_segmenter_filters_what_it_would_say_else(shifts):
    torch.manual_seed(0)
    model = build_sam_med3d(replace(VARIANTS["tiny"], published_positions=False)).eval()
    plain = SamMed3DSegmenter(model, Inference(shifts=shifts))
    filtered = SamMed3DSegmenter(model, Inference(shifts=shifts, guided_filter=True))
    for _ in range(2):  # another image brings another guide
        image = torch.randn(1, 1, 64, 64, 64)
        for segmenter in (plain, filtered):
            segmenter.set_image(image)
        for clicks in ([Click((30, 20, 40))], [Click((30, 20, 40)), Click((1, 2, 3), False)]):
            logits = filtered.segment(clicks)
            assert not torch.equal(logits, plain.segment(clicks))
            assert torch.equal(logits, GuidedFilter(image[0, 0])(plain.segment(clicks), clicks))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_does_not_reach_it(monkeypatch):
    image, inside = scene()
    image, logits = 3 + image, 8 * inside.float() - 4
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    clicks = [Click((3, 20, 9)), Click((10, 10, 10), False)]
    found = GuidedFilter(image.cuda())(logits.cuda(), clicks)
    torch.testing.assert_close(found.cpu(), GuidedFilter(image)(logits, clicks), rtol=1e-3, atol=1e-3)
