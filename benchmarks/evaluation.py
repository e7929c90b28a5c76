"""A test against the loops that one would write first: what keeping prepared volumes and embeddings saves.

Every loop scores the same (case, class) pairs with the same clicks, protocol and metrics, one after the other in one
process; Dice must come out the same. Ours keeps prepared volumes, and the surface of a reference for all its masks.
``by itself`` is the published scripts' loop: every pair reads and prepares its volume and encodes it once. ``every
click`` besides encodes the image at every click, as a stateless service does.

    python benchmarks/evaluation.py [--pairs 100] [--clicks 10] [--root data/phantom/amos]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uscl.backbone import load_trunk
from uscl.data import Preprocessing
from uscl.data.batches import single
from uscl.data.cache import CaseCache
from uscl.data.datasets.amos import read_amos
from uscl.data.evaluation_patches import LabelledObjects
from uscl.evaluation.metrics import Reference
from uscl.prompting import SamMed3DSegmenter, evaluation_rollout
from uscl.seeds import seeded_draw

SCORED = (1, 3, 5, 10)


class Stateless(SamMed3DSegmenter):
    """Encodes the image anew at every click; what it knows of earlier clicks is the mask alone."""

    def set_image(self, image: torch.Tensor) -> None:
        """Keeps the image."""
        self.image = image
        super().set_image(image)

    def segment(self, clicks: list) -> torch.Tensor:
        """Encodes, then decodes the newest click."""
        self._embedding = self.model.encode_image(self.image)
        return super().segment(clicks)


def main() -> None:
    """Runs the loops and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--root", default="data/phantom/amos")
    arguments = parser.parse_args()
    model = load_trunk("mini", "embedded").model
    preprocessing = Preprocessing(spacing=(1.5, 1.5, 1.5), patch_size=128, clamp=(-1000, 1000))
    data_set = read_amos(Path(arguments.root), "ct")
    cache = CaseCache(preprocessing, data_set, 64)
    cases = [case for case in data_set.cases if case.label is not None]
    pairs = [
        (case, name)
        for case in cases
        for name, ids in data_set.classes.items()
        if set(cache.labelled(case)[0].summary) & set(ids)
    ][: arguments.pairs]

    def run(kept: bool, segmenter: SamMed3DSegmenter, title: str) -> tuple[dict[str, float], list[float]]:
        seconds = dict.fromkeys(("read and prepare", "encode and decode", "score"), 0.0)
        found = []
        objects = LabelledObjects(CaseCache(preprocessing, data_set, 64), pairs, with_truth=True)
        for number in track(range(len(pairs)), title):
            begin = perf_counter()
            if not kept:
                objects = LabelledObjects(CaseCache(preprocessing, data_set, 1), pairs, with_truth=True)
            item = single([objects[number]])
            seconds["read and prepare"] += perf_counter() - begin
            reference = Reference(item.truth.mask, item.truth.spacing)
            draw = partial(seeded_draw, *item.click_key)
            begin = perf_counter()
            for step in evaluation_rollout(segmenter, item.image, item.target, arguments.clicks, draw):
                seconds["encode and decode"] += perf_counter() - begin
                begin = perf_counter()
                if step.number in SCORED:
                    mask = item.grid.restore(step.logits.numpy(), item.corner).astype(bool)
                    if not kept:
                        reference = Reference(item.truth.mask, item.truth.spacing)
                    found.append(reference.score(mask).dice)
                seconds["score"] += perf_counter() - begin
                begin = perf_counter()
        return seconds, found

    loops = {
        "ours": run(True, SamMed3DSegmenter(model), "ours"),
        "by itself": run(False, SamMed3DSegmenter(model), "every pair by itself"),
        "every click": run(False, Stateless(model), "every click by itself"),
    }
    reference = loops["ours"][1]
    table = Table(
        title=f"{len(pairs)} (case, class) pairs of {len({case.name for case, _ in pairs})} volumes, "
        f"{arguments.clicks} clicks, {torch.get_num_threads()} threads"
    )
    for column in ("loop", *loops["ours"][0], "seconds", "ratio"):
        table.add_column(column)
    own = sum(loops["ours"][0].values())
    for name, (seconds, found) in loops.items():
        assert np.allclose(found, reference, atol=1e-9), "the loops must score alike"
        total = sum(seconds.values())
        table.add_row(name, *(f"{value:.1f}" for value in seconds.values()), f"{total:.1f}", f"{total / own:.2f}")
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)


if __name__ == "__main__":
    with torch.no_grad():
        main()
