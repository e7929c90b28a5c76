from dataclasses import replace

import pytest
import torch
from building import make_seg, make_vcl

from uscl.backbone import VARIANTS, build_sam_med3d
from uscl.backbone.attention import WindowAttention
from uscl.backbone.small_patches import on_small_patches
from uscl.data import PatchSampling, Preprocessing, VolumeDataModule
from uscl.errors import InputError
from uscl.prompting.objects import ObjectClicks
from uscl.seeds import seeded_draw
from uscl.stages import VCLPretrainModule
from uscl.tuning import AdaptFormer, FullTuning, LoRA
from uscl.vcl import SubVolumes

MIDDLE = slice(16, 48)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = build_sam_med3d(replace(VARIANTS["tiny"], published_positions=False)).eval()
    for parameter in made.parameters():  # positions begin as zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_on_patches_of_its_own_size_it_is_the_model(model):
    image = torch.randn(1, 1, 64, 64, 64)
    assert torch.equal(on_small_patches(model, 64).encode_image(image), model.encode_image(image))


def test_what_sees_single_tokens_answers_as_in_the_middle_of_the_large_patch():
    """With windows of one token nothing looks further than the neck's convolution, which stays inside here."""
    torch.manual_seed(0)
    local = replace(VARIANTS["tiny"], patch_size=8, window_size=1, global_attention_blocks=())
    model = build_sam_med3d(local).eval()
    torch.nn.init.normal_(model.image_encoder.pos_embed)
    image = torch.randn(1, 1, 64, 64, 64)
    small = on_small_patches(model, 32).encode_image(image[..., MIDDLE, MIDDLE, MIDDLE].contiguous())
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(small[inner], model.encode_image(image)[..., 2:-2, 2:-2, 2:-2][inner])


def test_places_of_tokens_and_clicks_are_those_in_the_middle_of_the_large_patch(model):
    small = on_small_patches(model, 32)
    dense = model.prompt_encoder.dense_positions()[..., 1:3, 1:3, 1:3]
    torch.testing.assert_close(small.prompt_encoder.dense_positions(), dense)
    click, on = torch.tensor([[[3, 30, 17]]]), torch.ones(1, 1, dtype=torch.long)
    there, _ = model.prompt_encoder((click + 16, on), None, 1)
    here, _ = small.prompt_encoder((click, on), None, 1)
    torch.testing.assert_close(here[:, 0], there[:, 0])


def test_relative_positions_keep_their_distance(model):
    pairs = zip(on_small_patches(model, 32).image_encoder.modules(), model.image_encoder.modules(), strict=True)
    compared = 0
    for small, large in pairs:
        if isinstance(small, WindowAttention):
            assert isinstance(large, WindowAttention)
            found, wanted = small.rel_pos_d, large.rel_pos_d
            cut = (len(wanted) - len(found)) // 2
            assert torch.equal(found, wanted[cut : len(wanted) - cut])
            assert len(found) == (3 if small.window_size == 0 else len(wanted))
            compared += small.window_size == 0
    assert compared == 2


def test_it_shares_every_weight_with_the_model_and_leaves_it_as_it_was(model):
    LoRA(rank=2).insert(model, "encoder")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = on_small_patches(model, 32)
    embedding = small.encode_image(torch.randn(1, 1, 32, 32, 32))
    points = torch.tensor([[[3, 4, 5]]]), torch.ones(1, 1, dtype=torch.long)
    logits, _ = small.decode(embedding, points, torch.zeros(1, 1, 8, 8, 8))
    assert logits.shape == (1, 1, 8, 8, 8)
    logits.square().mean().backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"image_encoder.pos_embed", "image_encoder.blocks.1.attn.rel_pos_w"} <= names
    assert any(".lora_B" in name for name in names)
    gradient = model.image_encoder.pos_embed.grad
    assert gradient[:, 1:3, 1:3, 1:3].abs().sum() > 0
    assert gradient[:, 0].abs().sum() == 0
    assert model.config.image_size == 64
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [80, 48, 40, 30, 0])
def test_other_sizes_are_refused(model, size):
    with pytest.raises(InputError, match=r"data\.sampling\.size is"):
        on_small_patches(model, size)


@pytest.mark.parametrize("tuning", [LoRA(rank=4), AdaptFormer(width=4), FullTuning()], ids=lambda t: type(t).__name__)
def test_stage_2_trains_on_several_objects_of_small_patches(tuning, study, make_trainer):
    data = small_patches(study)
    module = make_seg(tuning=tuning, clicks=ObjectClicks(1, 2, 1.0))
    module.configure_model()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    make_trainer(1, limit_val_batches=1).fit(module, datamodule=data)
    moved = {name for name, value in module.net.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in module.net.named_parameters() if parameter.requires_grad}
    unused = {name for name in trained if "hypernetworks_mlps" in name and "mlps.0." not in name}
    assert moved - unused == trained - unused, "all of what is trained, and nothing else"
    assert {name.split(".")[0] for name in moved} >= {"image_encoder", "mask_decoder"}


def test_several_objects_need_their_clicks(study, make_trainer):
    with pytest.raises(InputError, match=r"data\.sampling\.objects is 3: set model\.clicks to ObjectClicks"):
        make_trainer(1, limit_val_batches=1).fit(make_seg(), datamodule=small_patches(study))


def small_patches(study) -> VolumeDataModule:
    return VolumeDataModule(
        str(study),
        Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64),
        PatchSampling("foreground", minimum_foreground=20, size=32, objects=3),
        patches_per_epoch=4,
    )


def compared(size: int | None) -> tuple[VCLPretrainModule, list[tuple[int, ...]], torch.Tensor]:
    """Stage 1 with sub-volumes of a size: the module after a backward pass, what the encoder saw, the loss."""
    torch.manual_seed(0)
    module = make_vcl(subvolumes=SubVolumes(size=size))
    module.configure_model()
    torch.nn.init.normal_(module.net.image_encoder.pos_embed, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[int, ...]] = []
    module.net.image_encoder.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    image = torch.randn(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(2))
    out = module.compare(image, seeded_draw("sizes"))
    (out.prediction + out.regularisation).backward()
    return module, seen, out.prediction.detach()


def test_stage_one_encodes_subvolumes_of_the_size_that_is_set():
    module, seen, loss = compared(32)
    assert seen == [(12, 1, 32, 32, 32)] * 2, "student and teacher, two patches of four bases and two crops"
    moved = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name for name in moved if ".lora_B" in name} == {
        name for name, p in module.named_parameters() if p.requires_grad and ".lora_B" in name and "student" not in name
    }
    assert any("projector" in name for name in moved)
    own, whole = compared(64), compared(None)
    assert own[1] == whole[1] == [(12, 1, 64, 64, 64)] * 2
    assert torch.equal(own[2], whole[2])
    assert not torch.equal(loss, whole[2])


def test_subvolumes_that_do_not_fit_the_encoder():
    with pytest.raises(InputError, match=r"model\.subvolumes\.size is 48; the backbone takes 64"):
        make_vcl(subvolumes=SubVolumes(size=48)).configure_model()
