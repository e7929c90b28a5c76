"""How a mask is made from clicks once a backbone is trained: as published, or refined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from uscl.backbone import VARIANTS, SamMed3DConfig
from uscl.errors import InputError

Shifts = Literal[1, 2, 4, 8]
"""How many positions of the token grid a mask is averaged over."""


@dataclass(frozen=True)
class Inference:
    """What is done beside decoding each click once; the default is SAM-Med3D's published inference.

    Attributes:
        shifts: positions of the token grid that the mask is averaged over: 1, 2, 4 or 8. More positions follow borders
            better; encoding takes that many times as long. It is cycle spinning: Coifman and Donoho 1995,
            Translation-invariant de-noising.
        guided_filter: let the mask take the edges of the image, and the clicks (see
            :class:`~uscl.prompting.guided_filter.GuidedFilter`).
        first_twice: decode the first click twice, the second time with its own mask as the mask prompt: the decoder
            then revises a mask, as it does at every later click.
    """

    shifts: Shifts = 1
    guided_filter: bool = False
    first_twice: bool = False

    def __post_init__(self) -> None:
        if self.shifts not in get_args(Shifts):
            raise InputError(f"inference.shifts must be one of {get_args(Shifts)}, found {self.shifts!r}")

    @property
    def in_words(self) -> str:
        """The name in result rows, tables and messages, e.g. ``4 shifts, guided filter``."""
        parts = [f"{self.shifts} shifts"] * (self.shifts > 1)
        parts += ["guided filter"] * self.guided_filter + ["first click twice"] * self.first_twice
        return ", ".join(parts) or "published"


PUBLISHED = Inference()
REFINED = Inference(shifts=4, guided_filter=True, first_twice=True)
Preset = Literal["published", "refined"]
_MEASURED = ("mini", "mini_fine")
"""Variants whose refined inference was measured (``uscl/backbone/embedded/*.md``)."""


def refined_for(backbone: SamMed3DConfig) -> Inference:
    """The refined inference of a backbone: all of :data:`REFINED` for ``mini_fine``.

    Others decode the first click once: ``mini`` loses by decoding it twice, the rest was not measured.
    """
    return REFINED if backbone == VARIANTS["mini_fine"] else replace(REFINED, first_twice=False)


def resolve_inference(choice: Inference | Preset | None, backbone: SamMed3DConfig) -> Inference:
    """The inference that a setting means for a backbone.

    Args:
        choice: an inference, a preset, or None: refined where that was measured, else published.
        backbone: the configuration of the model.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(choice, Inference):
        return choice
    if choice not in (None, *get_args(Preset)):
        raise InputError(f"inference is {choice!r}; expected published, refined, an uscl.prompting.Inference, or null")
    measured = any(backbone == VARIANTS[name] for name in _MEASURED)
    return refined_for(backbone) if choice == "refined" or (choice is None and measured) else PUBLISHED
