"""Against arrays of the original SAM-Med3D, to 1e-5 absolute in float32."""

import json

import numpy as np
import pytest
import torch
from backbone.padded_oracle import padded_encoder
from monai.losses import DiceCELoss
from parity.recipe import PARITY, recipe_image, recipe_weights

from uscl.backbone import SamMed3D, build_sam_med3d
from uscl.prompting.segmenter import upsample

TOLERANCE = 1e-5
# Twelve blocks of width 768 round more than the small fixtures do; processors differ by up to 1.7e-5 here.
FULL_SIZE = 2e-5
PROMPTS = ("p1_nomask", "p1_zeromask", "p3_mask", "nopoint_mask", "p3_nomask")


@pytest.fixture(scope="module")
def tiny(load_parity) -> SamMed3D:
    model = build_sam_med3d("tiny")
    weights = load_parity("sam_med3d/tiny_weights.npz")
    model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def encoder_arrays(load_parity) -> dict:
    return load_parity("sam_med3d/tiny_encoder.npz")


@pytest.fixture(scope="module")
def decoder_arrays(load_parity) -> dict:
    return load_parity("sam_med3d/tiny_prompt_decoder.npz")


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def prompts(arrays: dict, name: str):
    points = (arrays[f"{name}/points"], arrays[f"{name}/labels"]) if f"{name}/points" in arrays else None
    return points, arrays.get(f"{name}/mask")


def test_names_and_shapes_equal_the_published_checkpoint():
    published = json.loads((PARITY / "sam_med3d/state_dict_vit_b_ori.json").read_text())["state_dict"]
    with torch.device("meta"):
        ours = build_sam_med3d("vit_b_ori").state_dict()
    assert list(ours) == list(published)
    assert {key: list(value.shape) for key, value in ours.items()} == {k: v["shape"] for k, v in published.items()}


@torch.no_grad()
def test_every_encoder_stage(tiny, encoder_arrays):
    found = {}
    encoder = tiny.image_encoder
    hooks = [
        block.register_forward_hook(lambda _, __, out, i=i: found.update({f"after_block{i}": out}))
        for i, block in enumerate(encoder.blocks)
    ]
    image = encoder_arrays["image"].float()
    embedding = tiny.encode_image(image)
    for hook in hooks:
        hook.remove()
    close(encoder.patch_embed(image), encoder_arrays["after_patch_embed"])
    for name, value in found.items():
        close(value, encoder_arrays[name])
    close(embedding, encoder_arrays["image_embedding"])


@torch.no_grad()
def test_the_padded_oracle_of_the_other_tests_is_the_original_too(tiny, encoder_arrays):
    close(padded_encoder(tiny.image_encoder, encoder_arrays["image"].float()), encoder_arrays["image_embedding"])


@torch.no_grad()
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_and_masks(tiny, decoder_arrays, name):
    points, mask = prompts(decoder_arrays, name)
    sparse, dense = tiny.prompt_encoder(points, mask, 2)
    close(sparse, decoder_arrays[f"{name}/sparse"])
    close(dense if mask is not None else dense[..., :1, :1, :1], decoder_arrays[f"{name}/dense"])
    for multimask in (False, True):
        logits, iou = tiny.decode(decoder_arrays["image_embedding"], points, mask, multimask)
        close(logits, decoder_arrays[f"{name}/logits_multi{int(multimask)}"])
        close(iou, decoder_arrays[f"{name}/iou_multi{int(multimask)}"])


@torch.no_grad()
def test_dense_positions(tiny, decoder_arrays):
    close(tiny.prompt_encoder.dense_positions(), decoder_arrays["dense_pe"])


@torch.no_grad()
def test_several_objects_of_one_image(tiny, decoder_arrays):
    points = (decoder_arrays["broadcast/points"], decoder_arrays["broadcast/labels"])
    logits, iou = tiny.decode(decoder_arrays["image_embedding"][:1], points, None, multimask=True)
    close(logits, decoder_arrays["broadcast/logits_multi1"])
    close(iou, decoder_arrays["broadcast/iou_multi1"])


@pytest.mark.parametrize("tag", ["single", "multi"])
def test_eleven_training_clicks_and_their_gradients(tiny, encoder_arrays, load_parity, tag):
    arrays = load_parity("sam_med3d/tiny_training_interaction.npz")
    norms = json.loads(bytes(arrays["grad_norms_json"].numpy()))[tag]
    target = torch.from_numpy(np.unpackbits(arrays["gt"].numpy()).reshape(arrays["gt_shape"].tolist())).float()
    points, labels = arrays[f"{tag}/points"], arrays[f"{tag}/labels"]
    loss_of = DiceCELoss(sigmoid=True, squared_pred=True)
    tiny.zero_grad()
    embedding = tiny.encode_image(encoder_arrays["image"].float())
    low, losses = torch.zeros(2, 1, 16, 16, 16), []
    for click in range(11):
        shown = slice(0, click + 1) if tag == "multi" else slice(click, click + 1)
        given = None if arrays[f"{tag}/points_is_none"][click] else (points[:, shown], labels[:, shown])
        low = tiny.decode(embedding, given, low)[0]
        # A mask that is fed back carries its rounding, which differs between processors, through every pass.
        close(low.detach(), arrays[f"{tag}/low_res"][click], (click + 1) * TOLERANCE)
        losses.append(loss_of(upsample(low, 64), target))
    sum(losses).backward()
    found = torch.stack(losses).detach().double()
    torch.testing.assert_close(found, arrays[f"{tag}/loss_per_click"], rtol=0, atol=TOLERANCE)
    parameters = dict(tiny.named_parameters())
    assert {key for key, value in parameters.items() if value.grad is None} == {k for k, v in norms.items() if v < 0}
    for key, norm in norms.items():
        if norm >= 0:
            assert parameters[key].grad.norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-6), key
    tiny.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("rule", ["random", "ritm"])
def test_five_inference_clicks(tiny, encoder_arrays, load_parity, rule):
    from uscl.prompting import Click, SamMed3DSegmenter

    arrays = load_parity("sam_med3d/tiny_inference.npz")
    points, labels = arrays[f"{rule}/points"][0].tolist(), arrays[f"{rule}/labels"][0].tolist()
    segmenter = SamMed3DSegmenter(tiny)
    segmenter.set_image(encoder_arrays["image"][:1].float())
    clicks = [Click(tuple(point), bool(label)) for point, label in zip(points, labels, strict=True)]
    logits = segmenter.segment(clicks)
    close(segmenter._low, arrays[f"{rule}/low_res"])
    mask = np.unpackbits(arrays[f"{rule}/mask_packbits"].numpy())[: logits.numel()].reshape(logits.shape)
    assert (mask == (logits > 0).numpy()).all()


@pytest.mark.slow
@torch.no_grad()
def test_full_size_model(load_parity):
    arrays = load_parity("sam_med3d/full_vit_b_ori_recipe.npz")
    model = build_sam_med3d("vit_b_ori")
    recipe_weights(model)
    image = recipe_image()
    torch.testing.assert_close(image[..., ::16, ::16, ::16], arrays["image_probe"], rtol=0, atol=1e-6)
    embedding = model.encode_image(image)
    close(embedding[:, ::3], arrays["image_embedding"], FULL_SIZE)
    close(model.prompt_encoder.dense_positions()[:, ::6], arrays["dense_pe"])
    mask = torch.from_numpy((4 * np.random.RandomState(9).standard_normal((1, 1, 32, 32, 32))).astype(np.float32))
    points, labels = arrays["points"], arrays["labels"]
    given = {
        "p1_zeromask": ((points[:, :1], labels[:, :1]), torch.zeros_like(mask)),
        "p3_mask": ((points, labels), mask),
        "nopoint_mask": (None, mask),
        "p1_nomask": ((points[:, :1], labels[:, :1]), None),
    }
    for name, (clicks, prompt) in given.items():
        one, many = (model.decode(embedding, clicks, prompt, multimask) for multimask in (False, True))
        close(torch.cat([one[0], many[0]], 1)[..., ::2, ::2, ::2], arrays[f"{name}/logits"], FULL_SIZE)
        close(torch.cat([one[1], many[1]], 1), arrays[f"{name}/iou"], FULL_SIZE)
