import pytest
import torch
from torch import nn

from uscl.backbone import build_sam_med3d
from uscl.errors import InputError
from uscl.prompting.objects import ObjectClicks, _click, objects_rollout, soft_dice_bce


@pytest.fixture
def objects():
    masks = torch.zeros(2, 3, 64, 64, 64, dtype=torch.bool)
    for image in range(2):
        for number in range(3):
            begin = 5 + 13 * number + image
            masks[image, number, begin : begin + 17, 10:30, 20:45] = True
    return masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_first_clicks_lie_on_the_object(objects):
    flat = objects.flatten(0, 1)
    share = torch.nn.functional.avg_pool3d(flat[:, None].float(), 4)[:, 0]
    for seed in range(20):
        coords, labels = _click(flat, share, None, generator(seed))
        assert labels.tolist() == [1] * 6
        assert all(flat[(n, *coords[n].tolist())] for n in range(6))


def test_corrections_lie_where_the_mask_is_wrong_and_say_what_is_there(objects):
    flat = objects.flatten(0, 1)
    wanted = torch.nn.functional.avg_pool3d(flat[:, None].float(), 4)[:, 0] > 0.5
    wrong = torch.zeros(6, 16, 16, 16)
    wrong[:, 3:6, 3:6, 6:9] = 1
    seen = set()
    for seed in range(30):
        coords, labels = _click(flat, wrong, wanted, generator(seed))
        for n, (x, y, z) in enumerate(coords.tolist()):
            assert 3 <= x // 4 < 6
            assert 3 <= y // 4 < 6
            assert 6 <= z // 4 < 9
            assert bool(flat[n, x, y, z]) == bool(labels[n])
            seen.add(int(labels[n]))
    assert seen == {0, 1}


@pytest.mark.parametrize("all_shown", [0.0, 1.0])
def test_rollout_reaches_every_part_of_the_model(objects, all_shown):
    model = build_sam_med3d("tiny")
    embedding = model.encode_image(torch.randn(2, 1, 64, 64, 64))
    clicks = ObjectClicks(3, 3, all_shown=all_shown)
    loss, dice = objects_rollout(model, embedding, objects, soft_dice_bce, clicks, generator())
    loss.backward()
    assert 0 <= float(dice) <= 1
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    for name in (
        "image_encoder.patch_embed.proj.weight",
        "prompt_encoder.point_embeddings.1.weight",
        "prompt_encoder.mask_downscaling.0.weight",
        "mask_decoder.mask_tokens.weight",
    ):
        assert name not in idle


def test_one_click_equals_decode_by_hand(objects):
    """The number of objects per encoded image changes nothing for any of them."""
    model = build_sam_med3d("tiny").eval()
    embedding = model.encode_image(torch.randn(2, 1, 64, 64, 64)).detach()
    losses = []

    def keep(logits, share):
        losses.append((logits.detach(), share))
        return soft_dice_bce(logits, share)

    objects_rollout(model, embedding, objects, keep, ObjectClicks(1, 1, all_shown=1.0), generator(3))
    rewound = generator(3)
    torch.randint(1, 2, (1,), generator=rewound)
    torch.rand(1, generator=rewound)
    flat = objects.flatten(0, 1)
    share = torch.nn.functional.avg_pool3d(flat[:, None].float(), 4)[:, 0]
    coords, labels = _click(flat, share, None, rewound)
    for n in range(6):
        points = coords[n : n + 1, None], labels[n : n + 1, None]
        alone = model.decode(embedding[n // 3][None], points, torch.zeros(1, 1, 16, 16, 16))[0]
        torch.testing.assert_close(alone[0], losses[0][0][n], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses[0][1][:, 0], share)


def test_clicks_that_are_not_learned_from_only_lead_there(objects):
    model = build_sam_med3d("tiny").eval()
    embedding = model.encode_image(torch.randn(2, 1, 64, 64, 64)).detach()
    seen = {}
    for learned, first in ((None, False), (2, False), (9, False), (2, True), (3, True)):
        logits, losses = seen[learned, first] = [], []

        def keep(low, share, logits=logits, losses=losses):
            logits.append(low)
            losses.append(soft_dice_bce(low, share))
            return losses[-1]

        clicks = ObjectClicks(4, 4, all_shown=1.0, learned=learned, first_learned=first)
        loss, _ = objects_rollout(model, embedding, objects, keep, clicks, generator(3))
        assert loss.requires_grad
        torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert [len(logits) for logits, _ in seen.values()] == [4, 2, 4, 3, 4]
    whole = seen[None, False][0]
    torch.testing.assert_close(seen[2, False][0], whole[2:])
    torch.testing.assert_close(seen[2, True][0], [whole[0], *whole[2:]])


def test_a_finished_object_gets_a_click_on_itself(objects):
    """Where no cell is wrong the next click confirms the object, as in SAM-Med3D's inference."""

    class Knows(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.points = build_sam_med3d("tiny").config, []

        def decode(self, embedding, points, low):
            self.points.append(points)
            flat = torch.nn.functional.avg_pool3d(objects.flatten(0, 1)[:, None].float(), 4)
            return (flat - 0.5) * 20, None

    model = Knows()
    objects_rollout(model, torch.zeros(2, 1), objects, soft_dice_bce, ObjectClicks(3, 3, all_shown=1.0), generator())
    coords, labels = model.points[-1]
    assert coords.shape == (6, 3, 3)
    assert labels.eq(1).all()
    assert all(objects.flatten(0, 1)[(n, *c)] for n in range(6) for c in coords[n].tolist())


def test_loss_is_least_at_the_truth():
    share = torch.rand(2, 1, 8, 8, 8)
    truth = torch.logit(share)
    least = soft_dice_bce(truth, share)
    assert least < soft_dice_bce(truth + 0.5, share)
    assert least < soft_dice_bce(truth - 0.5, share)
    assert soft_dice_bce(torch.full_like(share, -30.0), torch.zeros_like(share)) < 1e-3


def test_impossible_protocols():
    with pytest.raises(InputError, match="fewest"):
        ObjectClicks(3, 2)
    with pytest.raises(InputError, match=r"clicks\.learned must be at least 1"):
        ObjectClicks(learned=0)
