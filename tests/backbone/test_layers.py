"""Convolutions written as matrix products equal torch's own, weights and gradients included."""

import pytest
import torch
from torch import nn

from uscl.backbone.config import SamMed3DConfig
from uscl.backbone.layers import PatchConv3d
from uscl.backbone.mask_decoder import Upscaling, cells_in_place


def agree(found, wanted, inputs, layers) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weight = torch.randn(wanted.shape)
    for one, other in zip(
        *(torch.autograd.grad((out * weight).sum(), [inputs, *layers], retain_graph=True) for out in (found, wanted)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "edge"), [(1, 8), (4, 2)])
def test_patch_convolution(channels, edge):
    torch.manual_seed(0)
    layer = PatchConv3d(channels, 6, edge)
    image = torch.randn(2, channels, 3 * edge, 2 * edge, edge, requires_grad=True)
    plain = nn.Conv3d(channels, 6, edge, stride=edge)
    plain.weight, plain.bias = layer.weight, layer.bias
    agree(layer(image), plain(image), image, list(layer.parameters()))
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_upscaling():
    torch.manual_seed(0)
    dim, grid = SamMed3DConfig(prompt_dim=48).prompt_dim, (2, 3, 4)
    layer = Upscaling(dim)
    tokens = torch.randn(2, 24, dim, requires_grad=True)
    plain = tokens.transpose(1, 2).unflatten(2, grid)
    for part in layer:
        plain = part(plain)
    found = cells_in_place(layer(tokens).permute(0, 3, 1, 2), grid)
    assert found.shape == plain.shape == (2, dim // 8, 8, 12, 16)
    agree(found, plain, tokens, list(layer.parameters()))
