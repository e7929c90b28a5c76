"""A 3D comparator of one's own, which wants the scan itself: what is connected to the clicks and looks like them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from uscl.comparators import Comparator, Loaded


class GrowFromClicks:
    def __init__(self, band: float, reach_mm: float):
        self.band, self.reach_mm = band, reach_mm

    def set_image(self, volume):
        self.values, self.spacing = volume.array.astype(float), volume.spacing

    def segment(self, clicks):
        mask = np.zeros(self.values.shape, bool)
        for click in clicks:
            elsewhere = np.ones(mask.shape, bool)
            elsewhere[click.index] = False
            distance = ndimage.distance_transform_edt(elsewhere, sampling=self.spacing)
            alike = (abs(self.values - self.values[click.index]) <= self.band) & (distance <= self.reach_mm)
            parts = ndimage.label(alike)[0]
            mask[parts == parts[click.index]] = click.foreground
        return mask


@dataclass(frozen=True)
class Growing(Comparator):
    title: ClassVar[str] = "Region growing"
    takes: ClassVar[str] = "volume"
    band: float = 40.0
    reach_mm: float = 30.0

    def load(self):
        return Loaded(GrowFromClicks(self.band, self.reach_mm), "none")
