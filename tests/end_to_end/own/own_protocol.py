"""A click protocol of one's own: the first clicks as far from the border of the error as possible, later ones at it."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from uscl.prompting import Click, ClickProtocol


@dataclass(frozen=True)
class BorderClicks(ClickProtocol):
    inside_first: int = 2

    def click(self, number, predicted, target, draw):
        wrong = (predicted ^ target).cpu().numpy()
        wrong = wrong if wrong.any() else target.cpu().numpy()
        depth = ndimage.distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1, 1:-1]
        wanted = depth.max() if number <= self.inside_first else 1.0
        places = np.argwhere(depth == wanted)
        x, y, z = places[draw(len(places))].tolist()
        return Click((x, y, z), bool(target[x, y, z]))
