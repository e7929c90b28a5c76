"""FastSAM3D: its block, its size, and the stage that distils a student."""

import pytest
import torch

from uscl.backbone import VARIANTS, build_sam_med3d, load_checkpoint, save_weights
from uscl.callbacks import WeightsExport
from uscl.data import Preprocessing
from uscl.errors import InputError, WeightsNotFoundError
from uscl.phantom.pretraining import Curriculum, PretrainDataModule
from uscl.stages import DistillModule

FAST = {
    **vars(VARIANTS["tiny"]),
    "depth": 2,
    "global_attention_blocks": (),
    "attention_free_blocks": 1,
    "residual_after_norm": True,
}


def fast(**changes):
    return type(VARIANTS["tiny"])(**{**FAST, **changes})


@pytest.fixture
def teacher(tmp_path):
    save_weights(build_sam_med3d("tiny"), tmp_path / "teacher.safetensors")
    return {"teacher": "tiny", "teacher_weights": str(tmp_path / "teacher.safetensors")}


@pytest.fixture
def data(anatomies) -> PretrainDataModule:
    return PretrainDataModule(
        str(anatomies),
        torsos=1,
        heads=1,
        objects=1,
        batch_size=2,
        patches_per_epoch=4,
        preprocessing=Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64),
        curriculum=Curriculum(1, (0.7, 0.25), (20.0, 1.5)),
        val_patches=2,
        workers=0,
    )


def test_the_published_student_has_its_published_size():
    """Counted on the original: 45,639,936 parameters in the encoder, relative positions of 15 by 128."""
    with torch.device("meta"):
        model = build_sam_med3d("fastsam3d")
    assert sum(parameter.numel() for parameter in model.image_encoder.parameters()) == 45_639_936
    names = set(model.state_dict())
    assert not any("blocks.0.attn" in name or "blocks.1.attn" in name or "blocks.0.norm1" in name for name in names)
    assert model.state_dict()["image_encoder.blocks.2.attn.rel_pos_d"].shape == (15, 128)


@torch.no_grad()
def test_its_blocks_add_to_the_normalised_tokens():
    model = build_sam_med3d(fast())
    free, attending = model.image_encoder.blocks
    tokens = torch.randn(2, 4, 4, 4, 48)
    normed = free.norm2(tokens)
    torch.testing.assert_close(free(tokens), normed + free.mlp(normed))
    mixed = tokens + attending.attn(attending.norm1(tokens))
    normed = attending.norm2(mixed)
    torch.testing.assert_close(attending(tokens), normed + attending.mlp(normed))
    # SAM-Med3D's own block adds to the tokens themselves; the two must never be taken for one another.
    plain = build_sam_med3d("tiny").image_encoder.blocks[0]
    mixed = tokens + plain.attn(plain.norm1(tokens))
    torch.testing.assert_close(plain(tokens), mixed + plain.mlp(plain.norm2(mixed)))


def test_a_teachers_file_is_not_taken_for_a_students(teacher):
    with pytest.raises(InputError, match="missing|shape"):
        load_checkpoint(build_sam_med3d(fast(depth=5)), teacher["teacher_weights"]).require_complete()


@pytest.mark.slow
def test_a_student_learns_its_teachers_embeddings(teacher, data, make_trainer, tmp_path):
    torch.manual_seed(0)
    module = DistillModule(fast(), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3), **teacher)
    trainer = make_trainer(6, callbacks=[WeightsExport()])
    trainer.fit(module, datamodule=data)
    again = build_sam_med3d("tiny")
    load_checkpoint(again, teacher["teacher_weights"])
    image = next(iter(data.val_dataloader())).image
    student = build_sam_med3d(fast())
    with torch.no_grad():
        wanted = again.encode_image(image)
        before = (DistillModule(fast(), **teacher), student)[1].encode_image(image)
        load_checkpoint(student, tmp_path / "run" / "weights.safetensors").require_complete()
        after = student.encode_image(image)
    assert (after - wanted).square().mean() < 0.8 * (before - wanted).square().mean()
    # Prompt encoder and decoder are the teacher's and stay so.
    for part in ("prompt_encoder", "mask_decoder"):
        for name, value in getattr(student, part).state_dict().items():
            torch.testing.assert_close(value, getattr(again, part).state_dict()[name], rtol=1e-3, atol=1e-4)
    # A checkpoint holds the student alone.
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert all(name.startswith("net.") for name in saved)
    assert len(saved) == len(student.state_dict())


def test_what_cannot_be_distilled_is_reported(teacher):
    for module, message in (
        (DistillModule(fast(), teacher="tiny"), "random embeddings teach nothing"),
        (DistillModule(fast(patch_size=8), **teacher), "has patch_size 8, the teacher 16"),
        (DistillModule(fast(prompt_dim=96), **teacher), "has prompt_dim 96, the teacher 48"),
        (DistillModule(fast(decoder_mlp_dim=64), **teacher), "another decoder"),
    ):
        with pytest.raises(InputError, match=message):
            module.configure_model()
    with pytest.raises(WeightsNotFoundError):
        DistillModule(fast(), teacher="tiny", teacher_weights="absent.pth").configure_model()


def test_a_teacher_follows_to_the_device_where_nothing_was_trained(teacher, data, make_trainer):
    module = DistillModule(fast(), **teacher)
    module.configure_model()
    moved, to = [], module._teacher[0].model.to
    module._teacher[0].model.to = lambda device: (moved.append(device), to(device))[1]
    make_trainer(1).validate(module, datamodule=data, verbose=False)
    assert moved == [module.device]
