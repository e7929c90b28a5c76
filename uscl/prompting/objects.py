"""Training clicks on several objects of an image at once, at the resolution of the decoder's own masks.

The image is encoded once for all its objects, and errors are looked for on the low-resolution grid, where a cell counts
as object where more than half of it is. A click then costs little beside the encoder; its voxel is still exact: it is
drawn inside the cell, from the voxels that really are what the click says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone import SamMed3D
from uscl.errors import InputError
from uscl.prompting.training import ClickTraining
from uscl.seeds import derive_seed

if TYPE_CHECKING:
    from uscl.types import PatchBatch

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ObjectClicks(ClickTraining):
    """Clicks on all objects of an image at once, on the decoder's own grid: many more clicks in the same time.

    Attributes:
        fewest: clicks per step.
        most: clicks per step; the number is drawn evenly.
        all_shown: share of steps that see all clicks so far, as at inference; the others see the newest alone, as
            SAM-Med3D trains.
        learned: the last so many clicks of a step are learned from; those before only lead there, which takes a third
            of the time. Null learns from all.
        first_learned: the first click of every step is learned from, too: what it cannot know from clicks it must know
            from the image.
    """

    fewest: int = 1
    most: int = 6
    all_shown: float = 0.7
    learned: int | None = None
    first_learned: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most or not 0 <= self.all_shown <= 1:
            raise InputError(f"clicks need 1 <= fewest <= most and all_shown in [0, 1]; found {self}")
        if self.learned is not None and self.learned < 1:
            raise InputError(f"clicks.learned must be at least 1, or null for all; found {self.learned}")

    def loss(
        self, model: SamMed3D, image: PatchBatch, target: Tensor, key: tuple[str | int, ...]
    ) -> tuple[Tensor, Tensor]:
        """See :class:`ClickTraining`; the loss is :func:`soft_dice_bce`, the mean over clicks."""
        generator = torch.Generator().manual_seed(derive_seed(*key))
        loss, _ = objects_rollout(model, model.encode_image(image), target > 0, soft_dice_bce, self, generator)
        return loss, loss.detach()


def objects_rollout(
    model: SamMed3D,
    embedding: Tensor,
    target: Tensor,
    loss: Loss,
    clicks: ObjectClicks,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One step's clicks on K objects of each of B images; gradients flow through all that are learned from.

    Args:
        model: the backbone.
        embedding: of the images [B, E, g, g, g].
        target: masks [B, K, S, S, S], bool; every one must hold an object.
        loss: takes low-resolution logits [B * K, 1, m, m, m] and the share of each cell that is object, the same shape.
        clicks: the protocol.
        generator: of every draw, on the CPU.

    Returns:
        The mean of the losses after each click that is learned from, and the mean Dice on the low-resolution grid after
        the last.
    """
    count = int(torch.randint(clicks.fewest, clicks.most + 1, (1,), generator=generator))
    accumulate = float(torch.rand(1, generator=generator)) < clicks.all_shown
    objects = target.flatten(0, 1)
    share = _share_of_cells(objects, model.config.mask_size)
    wanted = share > 0.5
    low = embedding.new_zeros(len(objects), 1, *share.shape[1:])
    coords = torch.zeros(len(objects), 0, 3, dtype=torch.long, device=objects.device)
    labels = torch.zeros(len(objects), 0, dtype=torch.long, device=objects.device)
    losses = []
    unlearned = range(int(clicks.first_learned), count - (clicks.learned or count))
    for step in range(count):
        wrong = ((low[:, 0].detach() > 0) != wanted).float()
        # The first click, and one where nothing is wrong, lie on the object, as in SAM-Med3D's inference.
        done = wrong.flatten(1).sum(1) == 0
        if step == 0 or bool(done.all()):
            new, is_object = _click(objects, share, None, generator)
        else:
            finished = done[:, None, None, None]
            new, is_object = _click(objects, torch.where(finished, share, wrong), wanted | finished, generator)
        coords, labels = torch.cat([coords, new[:, None]], 1), torch.cat([labels, is_object[:, None]], 1)
        points = (coords, labels) if accumulate else (coords[:, -1:], labels[:, -1:])
        if step in unlearned:
            with torch.no_grad():
                low = model.decode(embedding, points, low)[0]
            continue
        low = model.decode(embedding, points, low)[0]
        losses.append(loss(low, share[:, None]))
    return torch.stack(losses).mean(), _dice(low.detach(), wanted)


def soft_dice_bce(logits: Tensor, share: Tensor, balance: float = 0.0) -> Tensor:
    """Dice with squared denominator plus binary cross-entropy against shares in [0, 1], mean over objects.

    A model that knows nothing yet learns first that objects are small, answers with empty masks and then hardly gets a
    gradient. Cross-entropy that weighs inside and outside of each object alike keeps it from there.

    Args:
        logits: [N, 1, m, m, m].
        share: of each cell that is object, the same shape.
        balance: how far the cross-entropy is balanced, from 0 (every cell counts the same; the loss is then least where
            the probability is the share) to 1.
    """
    probability = logits.sigmoid()
    axes = tuple(range(1, logits.ndim))
    overlap = (probability * share).sum(axes)
    dice = (2 * overlap + 1e-3) / (probability.square().sum(axes) + share.square().sum(axes) + 1e-3)
    inside = share.mean(axes, keepdim=True).clamp(1e-4, 0.5)
    even = 0.5 * share / inside + 0.5 * (1 - share) / (1 - inside)
    weight = 1 - balance + balance * even
    return 1 - dice.mean() + F.binary_cross_entropy_with_logits(logits, share, weight)


def _dice(low: Tensor, wanted: Tensor) -> Tensor:
    """Mean Dice of logits [N, 1, m, m, m] and masks [N, m, m, m]."""
    predicted = low[:, 0] > 0
    both, either = (predicted & wanted).flatten(1).sum(1), predicted.flatten(1).sum(1) + wanted.flatten(1).sum(1)
    return (2 * both / either.clamp_min(1)).mean()


def _share_of_cells(objects: Tensor, grid: int) -> Tensor:
    """The share of every cell that is object [N, m, m, m], of masks [N, S, S, S].

    Adds up bytes, axis by axis: a float copy of all masks costs as much as decoding them.
    """
    edge = objects.shape[1] // grid
    count = objects.to(torch.uint8) if edge**3 <= 255 else objects.int()
    for axis in (1, 2, 3):
        count = reduce(torch.add, count.unflatten(axis, (grid, edge)).unbind(axis + 1))
    return count.float() / edge**3


def _draw(weight: Tensor, generator: torch.Generator) -> Tensor:
    """An index [N] for every row of weights [N, n], in proportion to them; every row needs one above 0.

    One random number a row: ``torch.multinomial`` draws as many as there are weights. Weights are shares of cells,
    whose sums a double holds exactly, so that every device draws the same.
    """
    counted = weight.cpu() if weight.device.type == "mps" else weight  # which knows no doubles
    below = counted.double().cumsum(1)
    at = torch.rand(len(weight), 1, generator=generator, dtype=torch.float64).to(below.device) * below[:, -1:]
    return torch.searchsorted(below, at, right=True)[:, 0].clamp_max(weight.shape[1] - 1).to(weight.device)


def _click(objects: Tensor, wrong: Tensor, wanted: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A voxel [N, 3] from the cells that are wrong, and whether the click is on the object [N].

    Args:
        objects: masks [N, S, S, S], bool.
        wrong: weight of each cell in the draw [N, m, m, m], none without any.
        wanted: which cells count as object [N, m, m, m]; None if every click is to lie on the object.
        generator: of the draw.
    """
    grid, rows = wrong.shape[1], torch.arange(len(objects), device=objects.device)
    edge = objects.shape[1] // grid
    cell = _draw(wrong.flatten(1), generator)
    corner = [cell // grid ** (2 - axis) % grid for axis in range(3)]
    is_object = torch.ones_like(rows, dtype=torch.bool) if wanted is None else wanted[rows, *corner]
    split = objects.reshape(len(objects), grid, edge, grid, edge, grid, edge)
    inside = split[rows, corner[0], :, corner[1], :, corner[2]].flatten(1)
    voxel = _draw((inside == is_object[:, None]).float(), generator)
    coords = [c * edge + voxel // edge ** (2 - axis) % edge for axis, c in enumerate(corner)]
    return torch.stack(coords, dim=1), is_object.long()
