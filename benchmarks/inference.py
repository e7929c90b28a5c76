"""What the refined inference costs, part by part: shifts of the token grid, the guided filter, the first click twice.

All take turns in one run. What it gains: ``python benchmarks/mini.py --inference refined``.

    python benchmarks/inference.py [--backbone mini_fine] [--device cpu] [--rounds 5]
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table

from uscl.backbone import load_trunk
from uscl.prompting import PUBLISHED, REFINED, Click, Inference, SamMed3DSegmenter
from uscl.prompting.inference import Shifts


def main() -> None:
    """Prints seconds, and how many times those of the published inference they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini_fine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = load_trunk(arguments.backbone, None).model.to(arguments.device).eval()
    size = model.config.image_size
    image = torch.randn(1, 1, size, size, size, device=arguments.device)
    clicks = [Click((size // 2 + number, size // 2, size // 2)) for number in range(5)]
    kinds = [*(Inference(shifts) for shifts in get_args(Shifts)), Inference(4, guided_filter=True), REFINED]
    segmenters = {kind.in_words: SamMed3DSegmenter(model, kind) for kind in kinds}
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in segmenters}
    for number in range(arguments.rounds + 1):
        for name, segmenter in segmenters.items():
            start = perf_counter()
            segmenter.set_image(image)
            segmenter.segment(clicks[:1]).cpu()  # waits for the device
            encoded = perf_counter()
            for count in range(2, len(clicks) + 1):
                segmenter.segment(clicks[:count]).cpu()
            clicked = perf_counter()
            if number:  # the first warms up
                taken[name][0].append(encoded - start)
                taken[name][1].append((clicked - encoded) / (len(clicks) - 1))
    title = f"{arguments.backbone}, {arguments.device}, {torch.get_num_threads()} threads, median of {arguments.rounds}"
    table = Table("inference", "patch and first click, s", "times", "further click, s", "times", title=title)
    first = [median(times) for times in taken[PUBLISHED.in_words]]
    for name, own in taken.items():
        cells = [(median(times), median(times) / one) for times, one in zip(own, first, strict=True)]
        table.add_row(name, *(text for seconds, ratio in cells for text in (f"{seconds:.2f}", f"{ratio:.1f}")))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
