"""Simulated sweeps against real clips: grey levels, local statistics, and a picture of both side by side.

The clips are those of https://github.com/jannisborn/covid19_pocus_ultrasound (convex probes; licences per file) in
one folder; they carry no labels, so the regions of liver and effusion are boxes drawn by eye, listed below. Real
frames are averaged down to 128 rows first, which is about the pixel of the simulated ones.

    python benchmarks/realism.py --clips FOLDER [--sweeps 24] [--out runs/realism]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import wasserstein_distance

from uscl.phantom.machine import draw_machine, draw_pose
from uscl.phantom.medium import Medium
from uscl.phantom.torso import build_torso, draw_pathology
from uscl.phantom.ultrasound import Sweep, simulate_sweep

ROWS = 128
# Clip, frame, tissue, and the box left, top, right, bottom in its pixels.
REGIONS = [
    ("Pneu_northumbria_0409_set1_vid1.avi", 45, "fluid", (120, 120, 400, 210)),
    ("Pneu_northumbria_0409_set3_vid2.avi", 40, "fluid", (110, 90, 190, 180)),
    ("Pneu_northumbria_0409_set6_vid5.avi", 45, "fluid", (200, 80, 300, 150)),
    ("Pneu_northumbria_0409_set6_vid7.avi", 45, "fluid", (170, 110, 260, 170)),
    ("Pneu_northumbria_0409_set6_vid8.avi", 45, "fluid", (130, 100, 240, 160)),
    ("Pneu_northumbria_0409_set3_vid2.avi", 40, "liver", (200, 290, 280, 370)),
    ("Reg_pat4Image_140024.mpeg", 109, "liver", (165, 80, 225, 160)),
    ("Reg_pat4Image_140024.mpeg", 433, "liver", (250, 190, 330, 240)),
    ("Reg_pat1Image_132943.mpeg", 140, "liver", (140, 110, 210, 180)),
]
LABELS = {"fluid": (1, 2), "liver": (3,)}


def frame_of(clip: Path, number: int) -> np.ndarray:
    """One frame, grey."""
    with av.open(str(clip)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i == number:
                return frame.to_ndarray(format="gray")
    raise SystemExit(f"{clip}: has no frame {number}")


def shrink(frame: np.ndarray) -> np.ndarray:
    """Averaged down to :data:`ROWS` rows."""
    size = (round(frame.shape[1] * ROWS / frame.shape[0]), ROWS)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def local_snr(values: np.ndarray, mask: np.ndarray, window: int = 7) -> list[float]:
    """Mean over standard deviation of the grey values in windows that lie inside a mask."""
    found = []
    for y in range(0, values.shape[0] - window, window):
        for x in range(0, values.shape[1] - window, window):
            part = (slice(y, y + window), slice(x, x + window))
            if mask[part].all() and values[part].std() > 0:
                found.append(float(values[part].mean() / values[part].std()))
    return found


def simulated(count: int) -> list[Sweep]:
    """Sweeps of any machine, two per patient."""
    sweeps = []
    for number in range(count):
        random = np.random.default_rng(1000 + number)
        if number % 2 == 0:
            view = "pleural" if number % 4 == 0 else "abdominal"
            pathology = draw_pathology(random, view)
            anatomy = build_torso(1000 + number, pathology)
            medium = Medium.of(anatomy)
        side = next(iter(pathology.effusion_ml), ("right", "left")[number % 2])
        pose = draw_pose(random, anatomy, side, view, 24)
        sweeps.append(simulate_sweep(medium, pose, draw_machine(random), (ROWS, ROWS), number))
    return sweeps


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--sweeps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/realism"))
    options = parser.parse_args()
    sweeps = simulated(options.sweeps)
    table = Table(title=f"{len(sweeps)} simulated sweeps against {len(REGIONS)} regions of real clips")
    columns = ("", "real: grey mean, 5-95 %", "simulated", "Wasserstein, grey levels", "real: local SNR", "simulated ")
    for column in columns:
        table.add_column(column, justify="right")
    for tissue, labels in LABELS.items():
        real, real_snr = [], []
        for clip, number, kind, (left, top, right, bottom) in REGIONS:
            if kind == tissue:
                full = frame_of(options.clips / clip, number)
                scale = ROWS / full.shape[0]
                small = shrink(full)[
                    round(top * scale) : round(bottom * scale), round(left * scale) : round(right * scale)
                ]
                real.append(small.ravel())
                real_snr += local_snr(small.astype(float), np.ones_like(small, bool))
        made, made_snr = [], []
        for sweep in sweeps:
            image, label = sweep.image.numpy(), sweep.label.numpy()
            wanted = np.isin(label, labels) & (sweep.visible.numpy() > 0)
            made.append(image[wanted])
            frame = image.shape[2] // 2
            made_snr += local_snr(image[:, :, frame].T.astype(float), wanted[:, :, frame].T)
        # Every region and every sweep counts alike, however large it is.
        random = np.random.default_rng(0)
        real_sample, made_sample = (
            np.concatenate([random.choice(part, 500) for part in parts if part.size > 50]) for parts in (real, made)
        )
        table.add_row(
            tissue,
            _grey(real_sample),
            _grey(made_sample),
            f"{wasserstein_distance(real_sample, made_sample):.1f}",
            _snr(real_snr),
            _snr(made_snr),
        )
    Console(width=140).print(table)
    picture(options.out / "real_and_simulated.png", options.clips, sweeps)


def _grey(values: np.ndarray) -> str:
    low, high = np.percentile(values, (5, 95))
    return f"{values.mean():.0f}, {low:.0f}-{high:.0f}"


def _snr(values: list[float]) -> str:
    low, high = np.percentile(values, (25, 75))
    return f"{np.median(values):.1f} ({low:.1f}-{high:.1f}), n {len(values)}"


def picture(path: Path, clips: Path, sweeps: list[Sweep]) -> None:
    """Twelve simulated frames above twelve real ones."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    axes = np.asarray(figure.subplots(4, 6))
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, sweep in zip(axes[:2].ravel(), sweeps[:: max(1, len(sweeps) // 12)], strict=False):
        middle = sweep.image.shape[2] // 2
        aspect = sweep.spacing[1] / sweep.spacing[0]
        axis.imshow(sweep.image[:, :, middle].T, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        axis.set_title("simulated", size=8)
    files = sorted(path for path in clips.iterdir() if path.suffix in (".avi", ".mp4", ".mpeg"))
    for axis, clip in zip(axes[2:].ravel(), files, strict=False):
        axis.imshow(shrink(frame_of(clip, 40)), cmap="gray", vmin=0, vmax=255)
        axis.set_title(clip.name, size=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    print(path)


if __name__ == "__main__":
    main()
