"""The folded window attention against the plain padded one, in float64."""

import pytest
import torch
from backbone.padded_oracle import padded_attention, padded_encoder

from uscl.backbone import build_sam_med3d
from uscl.backbone.attention import WindowAttention

# window, grid: one window larger than the grid (as published), windows that divide the grid, that do not, whole grid
SIZES = [(6, (4, 4, 4)), (2, (4, 4, 4)), (3, (4, 4, 4)), (3, (5, 5, 5)), (4, (3, 5, 2)), (3, (4, 3, 7)), (0, (4, 4, 4))]


def layer_with_random_weights(window: int, edge: int, published: bool) -> WindowAttention:
    layer = WindowAttention(12, 3, edge=edge, window_size=window, published_positions=published).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(("window", "grid"), SIZES)
def test_output_and_every_gradient_equal_the_padded_form(window, grid, published):
    layer = layer_with_random_weights(window, window or grid[0], published)
    results = []
    for attention in (layer, lambda tokens: padded_attention(layer, tokens)):
        tokens = torch.randn(2, *grid, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        tokens.requires_grad_()
        layer.zero_grad()
        out = attention(tokens)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)).sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
        results.append({"output": out.detach(), "tokens": tokens.grad, **gradients})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_extreme_logits_stay_finite():
    layer = layer_with_random_weights(6, 6, published=True)
    with torch.no_grad():
        layer.rel_pos_d.mul_(200)
        layer.rel_pos_h.mul_(200)
    tokens = torch.randn(1, 4, 4, 4, 12, dtype=torch.float64, requires_grad=True)
    out = layer(tokens)
    out.sum().backward()
    assert out.isfinite().all()
    assert tokens.grad.isfinite().all()
    torch.testing.assert_close(out, padded_attention(layer, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["tiny", "mini"])
@torch.no_grad()
def test_whole_encoder(variant):
    model = build_sam_med3d(variant).double()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            parameter.normal_(std=0.3)
    size = model.config.image_size
    image = torch.randn(1, 1, size, size, size, dtype=torch.float64)
    found, wanted = model.encode_image(image), padded_encoder(model.image_encoder, image)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_positions_matter():
    """The published and the textbook form are different functions of the same weights."""
    published = layer_with_random_weights(3, 3, published=True)
    textbook = layer_with_random_weights(3, 3, published=False)
    textbook.load_state_dict(published.state_dict())
    tokens = torch.randn(1, 4, 4, 4, 12, dtype=torch.float64)
    assert (published(tokens) - textbook(tokens)).abs().max() > 1e-2


def test_activation_checkpointing_changes_nothing():
    model = build_sam_med3d("tiny").double()
    image = torch.randn(1, 1, 64, 64, 64, dtype=torch.float64)
    gradients = []
    for checkpointing in (False, True):
        model.image_encoder.activation_checkpointing = checkpointing
        model.zero_grad()
        model.encode_image(image).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.image_encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-12)


@torch.no_grad()
def test_bfloat16_autocast_stays_close():
    model = build_sam_med3d("mini").eval()
    image = torch.randn(1, 1, 128, 128, 128)
    exact = model.encode_image(image)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.encode_image(image)
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.std()
