from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from uscl.backbone import build_sam_med3d
from uscl.backbone.config import VARIANTS
from uscl.backbone.initial_decoder import LEVELS, MARKED, NEIGHBOURHOODS, STEEP, set_aside
from uscl.backbone.initial_weights import cosines, intensity_code, start_at_clicks
from uscl.backbone.mask_decoder import cells_in_place

SIZE = 32


FINE = replace(VARIANTS["mini_fine"], image_size=SIZE, patch_size=4)


def started(config=FINE):
    torch.manual_seed(0)
    model = build_sam_med3d(config).eval()
    start_at_clicks(model)
    return model


def scene(seed: int = 0) -> torch.Tensor:
    """Soft blobs of intensities between -2 and 2 [1, 1, S, S, S]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.rand(1, 1, 4, 4, 4, generator=generator) - 2
    return F.interpolate(coarse, size=(SIZE,) * 3, mode="trilinear")


def test_marks_are_the_kernel_density_of_the_clicks():
    model, image = started(), scene()
    channels = set_aside(started())
    # In the middle of their tokens, so that a click takes over the intensity of one token.
    clicks = torch.tensor([[[9, 9, 9], [21, 13, 17], [17, 25, 9]]])
    labels = torch.tensor([[1, 1, 0]])
    seen = []
    model.mask_decoder.transformer.layers[0].register_forward_hook(lambda *call: seen.append(call[2][1]))
    with torch.no_grad():
        model.decode(model.encode_image(image), (clicks, labels), torch.zeros(1, 1, SIZE, SIZE, SIZE))
    plus, minus = channels.marks[0]
    marks = (seen[0][0, :, plus] - seen[0][0, :, minus]) / (2 * MARKED)

    tokens = F.avg_pool3d(image, 4)[0, 0]
    at = 4 * torch.arange(SIZE // 4) + 2.0
    places = torch.stack(torch.meshgrid(at, at, at, indexing="ij"), dim=-1)
    wanted = torch.zeros_like(tokens)
    for near, alike, none in NEIGHBOURHOODS:
        distance = (places[..., None, :] - clicks[0] - 0.5).square().sum(-1)
        difference = tokens[..., None] - tokens[tuple((clicks[0] // 4).T)]
        density = torch.exp(-distance / 2 / near**2 - difference.square() / 2 / alike**2)
        on, beside = (density * labels[0]).sum(-1), (density * (1 - labels[0])).sum(-1)
        wanted += (on - beside - none) / (on + beside + none) / 4
    assert torch.corrcoef(torch.stack([marks, wanted.flatten()]))[0, 1] > 0.97
    assert ((marks > 0) == (wanted.flatten() > 0)).float().mean() > 0.9
    assert 20 < int((wanted > 0).sum()) < 400  # otherwise the line above says nothing


def test_an_untrained_model_segments_what_is_clicked():
    model = started()
    at = torch.arange(SIZE) + 0.5
    x, y, z = torch.meshgrid(at, at, at, indexing="ij")
    balls = [((x - c).square() + (y - c).square() + (z - c).square()) < 36 for c in (9, 23)]
    image = torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 4
    image = image + 1.5 * balls[0] - 1.5 * balls[1]
    with torch.no_grad():
        embedding = model.encode_image(image[None, None])
        for ball, other, centre in zip(balls, reversed(balls), (9, 23), strict=True):
            points = (torch.full((1, 1, 3), centre), torch.ones(1, 1, dtype=torch.long))
            mask = model.decode(embedding, points, torch.zeros(1, 1, SIZE, SIZE, SIZE))[0][0, 0] > 0
            assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.6
            assert (mask & other).sum() < 0.02 * mask.sum()


@pytest.mark.parametrize("variant", ["mini", "mini_fast", "mini_fine"])
@pytest.mark.parametrize("value", [-7.0, -1.0, 0.3, 2.5])
def test_the_embedding_holds_the_code_of_the_intensity(variant, value):
    model = started(replace(VARIANTS[variant], image_size=64))
    code = set_aside(model).code
    with torch.no_grad():
        embedding = model.encode_image(torch.full((1, 1, 64, 64, 64), value))[0, :, 1, 1, 1]
    held = torch.stack([(embedding[plus] - embedding[minus]) / 2 for plus, minus in code])
    torch.testing.assert_close(held, intensity_code(torch.tensor(value)), atol=0.1, rtol=0)


@pytest.mark.parametrize("config", [VARIANTS["tiny"], replace(FINE, published_positions=True)])
def test_models_without_room_are_left_alone(config, caplog):
    """Too narrow, or with dense positions that exchange two axes against the clicks'."""
    torch.manual_seed(0)
    model = build_sam_med3d(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_at_clicks(model)
    assert "keeps its random weights" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("patch_size", [4, 8])
def test_cells_begin_compared_with_levels_of_intensity(patch_size):
    model = started(replace(FINE, image_size=8 * patch_size, patch_size=patch_size))
    image = F.interpolate(scene(), size=(8 * patch_size,) * 3, mode="trilinear")
    seen = []
    model.mask_decoder.output_upscaling.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        points = (torch.full((1, 1, 3), 9), torch.ones(1, 1, dtype=torch.long))
        model.decode(model.encode_image(image), points, torch.zeros(1, 1, SIZE, SIZE, SIZE))
    shown = cells_in_place(seen[0].flatten(1, 2).transpose(1, 2).unflatten(2, (-1, 64)), (8, 8, 8))[0]
    cells = F.avg_pool3d(image, patch_size // 4)[0, 0]
    for number in (0, 1, 3):  # 0, -0.5 and -1; the rest of the decoder begins at random and makes noise
        wanted = F.gelu(STEEP * (cells - LEVELS[number]))
        assert torch.corrcoef(torch.stack([shown[4 + number].flatten(), wanted.flatten()]))[0, 1] > 0.75


@pytest.mark.parametrize(("edge", "count"), [(4, 64), (8, 88), (2, 20)])
def test_cosines_are_an_orthonormal_set_from_slow_to_fast(edge, count):
    waves, frequencies = cosines(edge, count)
    flat = waves.flatten(1)
    assert len(flat) == min(count, edge**3)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=1e-5, rtol=0)
    assert (frequencies.diff() >= 0).all()
    torch.testing.assert_close(waves[0], torch.full((edge,) * 3, edge**-1.5))
