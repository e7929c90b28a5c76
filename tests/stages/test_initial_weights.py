import pytest
import torch

from uscl.backbone import build_sam_med3d
from uscl.stages.initial_weights import cosines, start_as_filter_bank, start_at_clicks


def explained(model, seed: int = 0, objects: int = 40) -> float:
    """Share of the variance of balls around clicks that the decoder's image tokens explain, on balls not fitted."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    at = (torch.arange(config.grid_size) + 0.5) * config.patch_size
    cells = torch.stack(torch.meshgrid(at, at, at, indexing="ij"), dim=-1).flatten(0, 2)
    clicks = torch.randint(config.image_size, (objects, 1, 3), generator=generator)
    balls = ((cells - clicks).norm(dim=-1) < 24).double()[..., None]
    noise = torch.randn(1, config.prompt_dim, *(config.grid_size,) * 3, generator=generator)
    tokens = []
    hook = model.mask_decoder.transformer.register_forward_hook(lambda _, __, out: tokens.append(out[1]))
    with torch.no_grad():
        embedding = model.image_encoder.neck[-1](noise)
        empty = torch.zeros(objects, 1, *(config.mask_size,) * 3)
        model.decode(embedding, (clicks, torch.ones(objects, 1, dtype=torch.long)), empty)
    hook.remove()
    features = torch.cat([tokens[0], torch.ones_like(tokens[0][..., :1])], dim=-1).double()
    fitted, tested = slice(0, objects // 2), slice(objects // 2, None)
    x, y = features[fitted].flatten(0, 1), balls[fitted].flatten(0, 1)
    weights = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return 1 - float((balls[tested] - features[tested] @ weights).square().mean() / balls[tested].var())


def test_masks_begin_as_balls_around_clicks():
    torch.manual_seed(0)
    model = build_sam_med3d("mini")
    assert explained(model) < 0.05
    start_at_clicks(model)
    assert explained(model) > 0.3


def test_clicks_beside_the_object_mark_the_opposite():
    torch.manual_seed(0)
    model = build_sam_med3d("mini")
    start_at_clicks(model)
    background, foreground = (embedding.weight for embedding in model.prompt_encoder.point_embeddings)
    assert torch.equal(background, -foreground)


def test_heads_too_narrow_are_left_alone():
    torch.manual_seed(0)
    model = build_sam_med3d("tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_at_clicks(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("edge", "count"), [(4, 64), (8, 88), (2, 20)])
def test_cosines_are_an_orthonormal_set_from_slow_to_fast(edge, count):
    waves, frequencies = cosines(edge, count)
    flat = waves.flatten(1)
    assert len(flat) == min(count, edge**3)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=1e-5, rtol=0)
    assert (frequencies.diff() >= 0).all()
    torch.testing.assert_close(waves[0], torch.full((edge,) * 3, edge**-1.5))


@pytest.mark.parametrize("variant", ["tiny", "mini", "mini_fast"])
def test_the_filter_bank_keeps_the_intensity_of_a_uniform_image(variant):
    """A norm over channels after a projection without a constant would return the same for all of them."""
    torch.manual_seed(0)
    model = build_sam_med3d(variant)
    start_as_filter_bank(model)
    size = model.config.image_size
    with torch.no_grad():
        low, high = (model.encode_image(torch.full((1, 1, size, size, size), value)) for value in (0.5, 1.0))
        tokens = model.image_encoder.patch_embed(torch.randn(1, 1, size, size, size))
        passed = tokens.clone()
        for block in model.image_encoder.blocks:
            passed = block(passed)
    middle = model.config.grid_size // 2
    assert (low - high)[0, :, middle, middle, middle].norm() > 0.1 * high[0, :, middle, middle, middle].norm()
    if not model.config.residual_after_norm:
        assert torch.equal(passed, tokens)
