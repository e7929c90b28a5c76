import pytest
import torch

from uscl.backbone import VARIANTS, SamMed3DConfig, build_sam_med3d, load_trunk
from uscl.errors import InputError


def test_variants_have_the_sizes_they_are_said_to_have():
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build_sam_med3d(name).parameters()) for name in VARIANTS}
    assert counts["vit_b_ori"] == 100_509_232
    assert 4.0e6 < counts["mini"] < 4.9e6
    assert 4.2e6 < counts["mini_fine"] < 4.4e6
    assert VARIANTS["mini"].image_size == VARIANTS["mini_fine"].image_size == 128


def test_published_defaults():
    assert SamMed3DConfig() == VARIANTS["vit_b_ori"]
    assert SamMed3DConfig().published_positions


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": 100}, {"embed_dim": 770}, {"prompt_dim": 64}, {"global_attention_blocks": (12,)}],
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SamMed3DConfig(**wrong)


def test_unknown_variant():
    with pytest.raises(InputError, match="no SAM-Med3D variant 'vit_x'.*vit_b_ori"):
        build_sam_med3d("vit_x")


@torch.no_grad()
def test_random_weights_are_the_same_whatever_device_is_the_default():
    """Lightning builds models on the device of the run, whose generator is another one."""
    usual = load_trunk("tiny", None)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.device("meta"):
        trunk = load_trunk("tiny", None)
    assert trunk.fingerprint == usual.fingerprint
    assert torch.equal(torch.rand(3), expected), "the run's own draws go on after"


def test_shapes_of_the_two_calls():
    model = build_sam_med3d("tiny")
    embedding = model.encode_image(torch.randn(2, 1, 64, 64, 64))
    assert embedding.shape == (2, 48, 4, 4, 4)
    points = (torch.randint(0, 64, (4, 3, 3)), torch.tensor([[1, 0, -1]] * 4))
    logits, iou = model.decode(embedding, points, torch.zeros(4, 1, 16, 16, 16))
    assert logits.shape == (4, 1, 16, 16, 16)
    assert iou.shape == (4, 1)
    assert model.decode(embedding, points, multimask=True)[0].shape == (4, 3, 16, 16, 16)
    assert model.decode(embedding)[0].shape == (2, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="3 prompts cannot be shared out over 2"):
        model.decode(embedding, (points[0][:3], points[1][:3]))
    with pytest.raises(ValueError, match="the image encoder takes"):
        model.encode_image(torch.randn(1, 1, 64, 64, 32))


@torch.no_grad()
def test_objects_of_one_image_decoded_together_or_apart():
    model = build_sam_med3d("tiny")
    embedding = model.encode_image(torch.randn(2, 1, 64, 64, 64))
    coords, labels, masks = (
        torch.randint(0, 64, (6, 2, 3)),
        torch.ones(6, 2, dtype=torch.long),
        torch.randn(6, 1, 16, 16, 16),
    )
    together = model.decode(embedding, (coords, labels), masks)[0]
    for prompt in range(6):
        image = prompt // 3
        one = slice(prompt, prompt + 1)
        apart = model.decode(embedding[image : image + 1], (coords[one], labels[one]), masks[one])[0]
        torch.testing.assert_close(together[one], apart, rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_points_say_nothing():
    model = build_sam_med3d("tiny")
    coords, labels = torch.tensor([[[5, 6, 7], [9, 9, 9]], [[5, 6, 7], [40, 1, 2]]]), torch.tensor([[1, -1], [1, -1]])
    sparse, _ = model.prompt_encoder((coords, labels), None, 2)
    assert torch.equal(sparse[0], sparse[1])
