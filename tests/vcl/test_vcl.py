import numpy as np
import pytest
import torch

from uscl.errors import InputError
from uscl.seeds import seeded_draw
from uscl.vcl import EmaTeacher, SubVolumes, VCLHead, VCLStudent, cut, position_labels, vcl_losses


@pytest.fixture(scope="module")
def voco(load_parity):
    return load_parity("voco/voco.npz")


@pytest.mark.parametrize("size", ["n4", "n16"])
def test_voco_form_equals_the_original_with_gradients(voco, size):
    crop, base = (voco[f"{size}.{name}"].clone().requires_grad_() for name in ("x_stu", "b_stu"))
    out = vcl_losses(crop, voco[f"{size}.x_tea"], base, voco[f"{size}.b_tea"], voco[f"{size}.labels"], "voco")
    torch.testing.assert_close(out.prediction, voco[f"{size}.pos"] + voco[f"{size}.neg"], rtol=0, atol=1e-6)
    torch.testing.assert_close(out.regularisation, voco[f"{size}.reg"], rtol=0, atol=1e-6)
    (out.prediction + out.regularisation).backward()
    torch.testing.assert_close(crop.grad, voco[f"{size}.grad_x_stu"], rtol=0, atol=1e-7)
    torch.testing.assert_close(base.grad, voco[f"{size}.grad_b_stu"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", ["n4", "n16"])
def test_paper_form_is_equations_4_and_6(voco, size):
    features = [voco[f"{size}.{name}"] for name in ("x_stu", "x_tea", "b_stu", "b_tea", "labels")]
    out = vcl_losses(*features, "paper")
    # The fixture has 1e-6 inside the logarithm where we clamp 1 - d at 1e-3; no d comes near 1 in it.
    torch.testing.assert_close(out.prediction, voco[f"{size}.eq4_relu_eps1e-6"], rtol=0, atol=5e-6)
    torch.testing.assert_close(out.regularisation, voco[f"{size}.eq6_abs_mean_pairs"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["paper", "voco"])
@pytest.mark.parametrize("kind", ["equal", "opposite", "orthogonal", "zero", "half precision"])
def test_finite_for_any_cosine(form, kind):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 4, 8, generator=generator)
    crop = base[:, :2].clone()
    if kind == "opposite":
        crop = -crop
    elif kind == "orthogonal":
        base = torch.eye(8)[:4].expand(2, 4, 8).clone()
        crop = torch.eye(8)[4:6].expand(2, 2, 8).clone()
    elif kind == "zero":
        crop = torch.zeros(2, 2, 8)
    elif kind == "half precision":
        base, crop = base.half(), crop.half()
    crop, base = crop.requires_grad_(), base.requires_grad_()
    for labels in (torch.eye(4)[:2], 1 - torch.eye(4)[:2], torch.full((2, 4), 0.25)):
        out = vcl_losses(crop, crop.detach(), base, base.detach(), labels.expand(2, 2, 4), form)
        loss = out.prediction + out.regularisation
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, [crop, base], retain_graph=True)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_perfect_features_have_no_loss_and_full_accuracy():
    base = torch.eye(8)[:4][None]
    crop = base[:, [1, 3]]
    labels = torch.eye(4)[[1, 3]][None]
    out = vcl_losses(crop, crop, base, base, labels)
    assert out.prediction.item() == pytest.approx(0, abs=1e-6)
    assert out.regularisation.item() == 0
    assert out.region_accuracy.item() == 1
    assert out.dead_positives.item() == 0
    assert vcl_losses(-crop, -crop, base, base, labels).dead_positives.item() == 1


def test_labels_equal_the_original(voco):
    subvolumes = SubVolumes(grid=(2, 2, 1))
    centres = voco["label2x2.centers"]
    corners = torch.cat([centres - 32, torch.zeros(len(centres), 1, dtype=torch.long)], dim=1)
    found = position_labels(corners, subvolumes.base_corners(128), subvolumes.edges(128))
    torch.testing.assert_close(found.double(), voco["label2x2.y"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("grid", [(2, 2, 1), (2, 2, 2), (4, 1, 2)])
def test_labels_are_overlap_shares(grid):
    """Against counting voxels one by one."""
    subvolumes = SubVolumes(grid=grid, crops=20)
    edges = subvolumes.edges(16)
    bases = subvolumes.base_corners(16)
    crops = subvolumes.draw_crop_corners(16, seeded_draw("labels", *grid))
    assert crops.min() >= 0
    assert (crops + torch.tensor(edges)).max() <= 16
    labels = position_labels(crops, bases, edges)
    torch.testing.assert_close(labels.sum(1), torch.ones(20))
    owner = np.full((16,) * 3, -1)
    for i, (x, y, z) in enumerate(bases.tolist()):
        assert (owner[x : x + edges[0], y : y + edges[1], z : z + edges[2]] == -1).all(), "bases do not overlap"
        owner[x : x + edges[0], y : y + edges[1], z : z + edges[2]] = i
    assert (owner >= 0).all(), "bases cover the patch"
    for (x, y, z), row in zip(crops.tolist(), labels, strict=True):
        inside = owner[x : x + edges[0], y : y + edges[1], z : z + edges[2]]
        counted = np.bincount(inside.ravel(), minlength=len(bases)) / inside.size
        np.testing.assert_allclose(row.numpy(), counted, atol=1e-6)


def test_crops_reach_every_place():
    corners = SubVolumes(crops=500).draw_crop_corners(16, seeded_draw("reach"))
    assert set(corners[:, 0].tolist()) == set(range(9))
    assert set(corners[:, 2].tolist()) == {0}


def test_cut_takes_the_right_voxels_and_the_encoder_size():
    patch = torch.arange(16.0)[:, None, None] * 100 + torch.arange(16.0)[None, :, None] + torch.zeros(16, 16, 16)
    boxes = cut(patch[None], torch.tensor([[0, 8, 0], [8, 0, 0]]), (8, 8, 16))
    assert boxes.shape == (2, 1, 16, 16, 16)
    torch.testing.assert_close(boxes[0, 0].mean(), patch[:8, 8:].mean())
    torch.testing.assert_close(boxes[1, 0].mean(), patch[8:, :8].mean())
    whole = cut(patch[None], torch.tensor([[0, 0, 0]]), (16, 16, 16))
    assert torch.equal(whole[0, 0], patch)
    halves = cut(patch[None], torch.tensor([[0, 8, 0]]), (8, 8, 16), 8)
    torch.testing.assert_close(halves[0, 0], patch[:8, 8:].unflatten(2, (8, 2)).mean(-1))


@pytest.mark.parametrize("wrong", [{"grid": (1, 1, 1)}, {"crops": 0}, {"grid": (2, 0, 1)}])
def test_impossible_subvolumes(wrong):
    with pytest.raises(InputError, match="at least two base volumes and one crop"):
        SubVolumes(**wrong)


def test_subvolumes_of_no_size():
    with pytest.raises(InputError, match="a size of at least one voxel, found 0"):
        SubVolumes(size=0)


def test_grid_that_does_not_divide_the_patch():
    with pytest.raises(InputError, match="does not divide a patch of 128"):
        SubVolumes(grid=(3, 2, 1)).edges(128)


def test_projector_equals_the_original(voco):
    head = VCLHead(24, 40, 40)
    names = {"layer1.0": 0, "layer2.0": 3, "layer3.0": 6}
    state = {
        f"projector.{names[key[8:16]]}.{key.rsplit('.', 1)[1]}": value
        for key, value in voco.items()
        if key.startswith("proj.sd.")
    }
    head.load_state_dict(state, strict=True)
    torch.testing.assert_close(head.projector(voco["proj.x"]), voco["proj.y_tensor"], rtol=0, atol=1e-5)
    torch.testing.assert_close(head(voco["proj.feat"]), voco["proj.y_featmap"], rtol=0, atol=1e-5)
    torch.testing.assert_close(head.eval()(voco["proj.feat"]), voco["proj.y_featmap"], rtol=0, atol=1e-5)


def make_student() -> VCLStudent:
    encoder = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 4, 4), torch.nn.Conv3d(4, 6, 1))
    encoder[0].requires_grad_(False)
    return VCLStudent(encoder, VCLHead(6, 8, 8, norm="layer"))


def test_teacher_is_the_moving_average_of_what_is_trained_and_shares_the_rest():
    student = make_student()
    teacher = EmaTeacher(student, momentum=0.9)
    volumes = torch.randn(3, 1, 8, 8, 8)
    assert torch.equal(teacher(student, volumes), student(volumes)), "it begins as a copy"
    expected = {name: parameter.clone() for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert set(teacher.names) == set(expected)
    for _ in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        teacher.update(student)
        now = dict(student.named_parameters())
        expected = {name: 0.9 * value + 0.1 * now[name] for name, value in expected.items()}
    with torch.no_grad():
        student.encoder[0].weight.mul_(2)  # the trunk is shared: a change shows in both
    reference = make_student()
    reference.load_state_dict({**student.state_dict(), **expected})
    torch.testing.assert_close(teacher(student, volumes), reference(volumes), rtol=0, atol=1e-5)
    assert not teacher(student, volumes).requires_grad
    assert len(teacher.state_dict()) == len(expected)


def test_a_whole_step_equals_voco(voco):
    """Student pass, update, teacher pass, losses and gradient on the original's small convolutional head."""

    def network(which: str, owner: str) -> VCLStudent:
        encoder = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 4, 4), torch.nn.ReLU())
        student = VCLStudent(encoder, VCLHead(8, 16, 16))
        prefix = f"head.{which}.{owner}."
        renamed = {"c": "encoder.0"} | {f"proj_head.layer{i + 1}.0": f"head.projector.{3 * i}" for i in range(3)}
        state = {}
        for key, value in voco.items():
            if key.startswith(prefix):
                module, leaf = key.removeprefix(prefix).rsplit(".", 1)
                state[f"{renamed[module]}.{leaf}"] = value
        student.load_state_dict(state, strict=True)
        return student

    student = network("sd0", "student")
    teacher = EmaTeacher(network("sd0", "teacher"), momentum=0.9)
    crops, bases = voco["head.img"], voco["head.crops"]
    features = student(torch.cat([crops, bases]))
    teacher.update(student)
    after = network("sd1", "teacher")
    for name, value in after.named_parameters():
        torch.testing.assert_close(teacher.get_buffer(name.replace(".", "__")), value.data, rtol=0, atol=1e-6)
    slow = teacher(student, torch.cat([crops, bases]))
    split = (len(crops), len(bases))
    crop_s, base_s = (part.unflatten(0, (2, -1)) for part in features.split(split))
    crop_t, base_t = (part.unflatten(0, (2, -1)) for part in slow.split(split))
    out = vcl_losses(crop_s, crop_t, base_s, base_t, voco["head.labels"], "voco")
    total = voco["head.pos"] + voco["head.neg"]
    torch.testing.assert_close(out.prediction, total, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.regularisation, voco["head.reg"], rtol=0, atol=1e-5)
    (out.prediction + out.regularisation).backward()
    torch.testing.assert_close(student.encoder[0].weight.grad, voco["head.grad.student.c.weight"], rtol=1e-3, atol=1e-5)
