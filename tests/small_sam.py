"""Comparators small enough for tests, on the loading path of the published ones."""

from dataclasses import dataclass

from uscl.comparators import Sam, SamMed2D
from uscl.comparators.sam import PromptedSam, SamSize
from uscl.comparators.sam_med2d import SamMed2D as SamMed2DModel

SMALL = SamSize(
    dim=32,
    depth=3,
    heads=4,
    global_blocks=(1,),
    image_size=128,
    window=5,
    prompt_dim=64,
    decoder_mlp_dim=96,
    iou_hidden_dim=48,
)


@dataclass(frozen=True)
class SmallSam(Sam):
    def build(self) -> PromptedSam:
        return PromptedSam(SMALL)


@dataclass(frozen=True)
class SmallSamMed2D(SamMed2D):
    def build(self) -> PromptedSam:
        return SamMed2DModel(SMALL)
