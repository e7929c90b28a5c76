"""The VCL losses: equations 1 and 3 to 6 of the paper, and VoCo's own form of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossForm = Literal["paper", "voco"]


@dataclass(frozen=True)
class VCLOutput:
    """Losses and what to watch while they fall; scalars.

    Attributes:
        prediction: L_p.
        regularisation: L_reg.
        region_accuracy: share of crops whose highest logit is the base with the largest overlap; chance is 1 / n.
        dead_positives: share of (crop, base) pairs that overlap but whose cosines are both clamped at 0, so that they
            get no gradient.
        base_similarity: mean |s_ij|.
    """

    prediction: Tensor
    regularisation: Tensor
    region_accuracy: Tensor
    dead_positives: Tensor
    base_similarity: Tensor


def vcl_losses(
    crop_student: Tensor,
    crop_teacher: Tensor,
    base_student: Tensor,
    base_teacher: Tensor,
    labels: Tensor,
    form: LossForm = "paper",
) -> VCLOutput:
    """Compares crops with the bases of their own volume.

    The cosines are clamped at 0 before they are averaged (as VoCo does; equation 1 does not say), so that d <= 1.
    Everything is computed in float32, whatever the features were computed in; call it outside autocast.

    Args:
        crop_student: student features of the crops [B, k, P].
        crop_teacher: teacher features of the crops [B, k, P], without gradient.
        base_student: student features of the bases [B, n, P].
        base_teacher: teacher features of the bases [B, n, P], without gradient.
        labels: position labels [B, k, n] in [0, 1].
        form: ``paper``: L_p = mean of -log(1 - d) with 1 - d clamped at 1e-3, L_reg = mean |s_ij|. ``voco``: positive
            and negative terms apart, squared clamped similarities with a stopped gradient on one side.

    Returns:
        Losses averaged over volumes, crops and bases.
    """
    crop_s, crop_t, base_s, base_t = (
        F.normalize(x.float(), dim=-1) for x in (crop_student, crop_teacher, base_student, base_teacher)
    )
    first = torch.einsum("bkp,bnp->bkn", crop_s, base_t).relu()
    second = torch.einsum("bkp,bnp->bkn", crop_t, base_s).relu()
    logits = (first + second) / 2
    pair = torch.triu_indices(base_s.shape[1], base_s.shape[1], offset=1, device=base_s.device)
    similarity = (base_s[:, pair[0]] * base_s[:, pair[1]]).sum(-1)
    distance = (labels - logits).abs()
    if form == "paper":
        prediction = -(1 - distance).clamp_min(1e-3).log().mean()
        regularisation = similarity.abs().mean()
    else:
        prediction = _voco_prediction(logits, labels, distance)
        stopped = (base_s[:, pair[0]] * base_s[:, pair[1]].detach()).sum(-1)
        regularisation = stopped.relu().square().mean()
    positive = labels > 0
    dead = positive & (first == 0) & (second == 0)
    return VCLOutput(
        prediction=prediction,
        regularisation=regularisation,
        region_accuracy=(logits.argmax(-1) == labels.argmax(-1)).float().mean(),
        dead_positives=dead.sum() / positive.sum().clamp_min(1),
        base_similarity=similarity.abs().mean().detach(),
    )


def _voco_prediction(logits: Tensor, labels: Tensor, distance: Tensor) -> Tensor:
    """VoCo's positive term, weighted by the label, plus its squared negative term, averaged over volumes."""
    eps = 1e-6
    axes = (1, 2)
    positive = -(labels * (1 - distance + eps).log()).sum(axes) / (labels.sum(axes) + eps)
    absent = (labels == 0).float()
    negative = (absent * logits.square()).sum(axes) / (absent.sum(axes) + eps)
    return (positive + negative).mean()
