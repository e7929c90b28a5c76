from dataclasses import replace

import pytest
import torch

from uscl.backbone import SamMed3DConfig, build_sam_med3d, save_weights
from uscl.errors import InputError
from uscl.stages import PretrainModule
from uscl.stages.enlarge import load_smaller

SMALL = SamMed3DConfig(
    image_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, window_size=4, global_attention_blocks=(),
    prompt_dim=48, decoder_heads=2, decoder_mlp_dim=24, published_positions=False,
)  # fmt: skip
LARGE = replace(SMALL, image_size=64, window_size=8)


@pytest.fixture
def small(tmp_path):
    torch.manual_seed(0)
    model = build_sam_med3d(SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name:
                parameter.normal_()
    save_weights(model, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors", model


@torch.no_grad()
def test_positions_keep_their_place_and_their_scale_in_voxels(small):
    file, before = small
    after = build_sam_med3d(LARGE)
    load_smaller(after, file)
    middle = (slice(None), *(slice(2, 6),) * 3)
    old, new = (model.image_encoder for model in (before, after))
    close = {"rtol": 1e-3, "atol": 1e-3}  # weights files are in half precision
    torch.testing.assert_close(new.pos_embed[middle], old.pos_embed, **close)
    assert torch.equal(new.pos_embed[0, 0, 0, 0], new.pos_embed[0, 2, 2, 2])
    # The same distance of query and key has the same entry, counted from the middle.
    torch.testing.assert_close(new.blocks[0].attn.rel_pos_h[4:11], old.blocks[0].attn.rel_pos_h, **close)
    # A cell of the middle has the code of the small patch's cell.
    old, new = (model.prompt_encoder.dense_positions() for model in (before, after))
    torch.testing.assert_close(new[(slice(None), *middle)], old, rtol=0, atol=2e-2)
    # So has a click.
    points = (torch.tensor([[[3, 30, 17]]]), torch.ones(1, 1, dtype=torch.long))
    old = before.prompt_encoder(points, None, 1)[0]
    new = after.prompt_encoder((points[0] + 16, points[1]), None, 1)[0]
    torch.testing.assert_close(new, old, rtol=0, atol=2e-2)


def test_stage_0_goes_on_from_smaller_patches(small):
    file, before = small
    module = PretrainModule(LARGE, smaller=str(file))
    torch.testing.assert_close(
        module.net.mask_decoder.mask_tokens.weight, before.mask_decoder.mask_tokens.weight, rtol=1e-3, atol=1e-3
    )
    with pytest.raises(InputError, match="not both"):
        PretrainModule(LARGE, weights=str(file), smaller=str(file))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(LARGE, embed_dim=36), "only image_size and window_size may differ"),
        (replace(LARGE, depth=2), "names differ"),
        (replace(SMALL, image_size=16, window_size=2), "of a model with larger patches"),
    ],
)
def test_weights_of_another_model_are_refused(small, config, said):
    with pytest.raises(InputError, match=said):
        load_smaller(build_sam_med3d(config), small[0])
