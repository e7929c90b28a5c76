"""The ultrasound simulator: time and memory per sweep, per anatomy, against the number of sweeps and of workers.

python benchmarks/simulator.py [--device cpu] [--repeats 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np
import torch
from memory import Peak
from rich.console import Console
from rich.table import Table

from uscl.phantom.brain import build_brain
from uscl.phantom.machine import draw_machine, draw_pose
from uscl.phantom.medium import Medium
from uscl.phantom.torso import TorsoAnatomy, build_torso, draw_pathology
from uscl.phantom.ultrasound import simulate_sweep

# frames x beams x samples -> pixels along both sides
SIZES = {"64 x 96 x 256 -> 128^2": (64, 96, 256, 128), "128 x 128 x 400 -> 160^2": (128, 128, 400, 160)}


def patient(seed: int = 0) -> TorsoAnatomy:
    """A patient with a pleural effusion."""
    return build_torso(seed, draw_pathology(np.random.default_rng(seed), "pleural"))


def sweep(medium: Medium, anatomy: TorsoAnatomy, size: tuple[int, int, int, int], seed: int) -> None:
    """One sweep with everything switched on."""
    frames, beams, samples, pixels = size
    random = np.random.default_rng(seed)
    machine = replace(draw_machine(random, "any", beams, samples), mirror=True, b_lines=3, smoothing=1.0)
    pose = draw_pose(random, anatomy, "right", "pleural", frames)
    simulate_sweep(medium, pose, machine, (pixels, pixels), seed)


def batch(seeds: list[int]) -> float:
    """Seconds for some sweeps of the small size on one thread."""
    torch.set_num_threads(1)
    anatomy = patient()
    medium = Medium.of(anatomy)
    sweep(medium, anatomy, SIZES["64 x 96 x 256 -> 128^2"], 0)
    begin = perf_counter()
    for seed in seeds:
        sweep(medium, anatomy, SIZES["64 x 96 x 256 -> 128^2"], seed)
    return perf_counter() - begin


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title=f"{options.device}, {options.threads} threads, median of {options.repeats}")
    for column in ("", "seconds", "peak", "peak of the process"):
        table.add_column(column, justify="right")
    anatomy = patient()
    for name, build in (("torso", patient), ("head", build_brain)):
        seconds = []
        with Peak() as peak:
            for seed in range(options.repeats):
                begin = perf_counter()
                build(seed)
                seconds.append(perf_counter() - begin)
        table.add_row(f"anatomy of a {name}", *_cells(seconds, peak))
    seconds = []
    with Peak() as peak:
        for _ in range(options.repeats):
            begin = perf_counter()
            medium = Medium.of(anatomy, options.device)
            seconds.append(perf_counter() - begin)
    table.add_row("medium, once per patient", *_cells(seconds, peak))
    for name, size in SIZES.items():
        seconds = []
        sweep(medium, anatomy, size, 0)
        with Peak(options.device) as peak:
            for seed in range(options.repeats):
                begin = perf_counter()
                sweep(medium, anatomy, size, seed)
                seconds.append(perf_counter() - begin)
        table.add_row(f"sweep {name}", *_cells(seconds, peak))
    Console(width=120).print(table)
    if options.device != "cpu":
        return
    few, many = batch([1, 2, 3, 4]), batch(list(range(1, 13)))
    print(f"12 sweeps take {many / few:.2f} times as long as 4 (3 is linear)")
    ratios = []
    for _ in range(2):
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            (alone,) = pool.map(batch, [list(range(8))])
            together = max(pool.map(batch, [list(range(8)), list(range(8, 16))]))
        ratios.append(2 * alone / together)
    print(f"two single-thread workers do {median(ratios):.2f} times the work of one in the same time")


def _cells(seconds: list[float], peak: Peak) -> tuple[str, str, str]:
    return f"{median(seconds):.2f}", f"{peak.bytes / 2**20:.0f} MiB", f"{peak.total / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
