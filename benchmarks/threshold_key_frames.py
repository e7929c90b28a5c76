"""Key-frame masks of fluid for a trial, by thresholding and cleaning: no clinician drew them, and they are no truth.

Inside a box the smoothed frame is thresholded; of what is darker the largest part is kept, opened and filled.

    python benchmarks/threshold_key_frames.py CLIP --frames 0 46 92 --box 60 250 120 430 --below 45 --out keys
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from uscl.data.sweeps import SweepReading, read_sweep
from uscl.pseudo_label.sweep import frames_of


def main() -> None:
    """Writes a mask with label 1 for every frame that was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--frames", type=int, nargs="+", required=True)
    parser.add_argument("--box", type=int, nargs=4, required=True, metavar=("TOP", "BOTTOM", "LEFT", "RIGHT"))
    parser.add_argument("--below", type=float, required=True, help="grey value, of 255")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    frames = frames_of(read_sweep(arguments.clip, SweepReading("assumed", "assumed")))
    top, bottom, left, right = arguments.box
    shown = ndimage.binary_erosion(frames.max(0) > 8, iterations=6)  # the sector: something is seen there at some time
    inside = np.zeros(shown.shape, bool)
    inside[top:bottom, left:right] = shown[top:bottom, left:right]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in arguments.frames:
        dark = (ndimage.gaussian_filter(frames[number].astype(float), 4) < arguments.below) & inside
        parts, count = ndimage.label(ndimage.binary_opening(dark, iterations=4))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        mask = ndimage.binary_fill_holes(parts == 1 + int(sizes.argmax())) if count else dark & False
        Image.fromarray(mask.astype(np.uint8)).save(arguments.out / f"{number:04d}.png")
        print(f"frame {number}: {int(mask.sum())} pixels")


if __name__ == "__main__":
    main()
