"""Full tuning: every weight of the tuned parts is trained, as SAM-Med3D itself was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from uscl.backbone import SamMed3D
from uscl.tuning.method import Modules, Part, TuningMethod

NEVER_USED = ("prompt_encoder.no_mask_embed.", "prompt_encoder.pe_layer.", "mask_decoder.iou_prediction_head.")
"""Without a gradient in any protocol: no mask prompt, the positions (a buffer), the IoU head (as in the original)."""


@dataclass(frozen=True)
class FullTuning(TuningMethod):
    """Trains all weights of the tuned parts, but for those that no loss ever reaches.

    What it leaves behind is as large as the backbone.

    Attributes:
        modules: train the image ``encoder``, the mask ``decoder`` (with the prompt encoder), or ``both``.
    """

    title: ClassVar[str] = "SAM-Med3D, fully tuned"
    modules: Modules = "both"

    def insert(self, model: SamMed3D, part: Part) -> None:
        """Adds nothing."""

    def owns(self, name: str) -> bool:
        """Every weight, but those that no loss reaches."""
        return not name.startswith(NEVER_USED)

    def merge(self, model: SamMed3D) -> bool:
        """There is nothing to fold in."""
        return True
