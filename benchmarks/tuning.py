"""LoRA, AdaptFormer and full tuning, and LoRA on small patches, side by side: time and memory of a training step.

The paper's paragraph on cost (section 3.3: 2.7 hours and 9.6 GB against 38.2 hours and 68.1 GB) on one machine and in
one run. The methods take turns, every measurement in a process of its own; memory counts the weights, the optimiser's
state and everything a step needs, but neither Python nor its libraries. On small patches a step is that of
experiments/lora.yaml: LoRA on every linear layer, four patches of half the edge, six objects each, six clicks (the
mean of 1 to 10), the last two of them learned from.

    python benchmarks/tuning.py [--variant mini] [--device cpu] [--batch 2] [--clicks 11] [--rounds 3] [--steps 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from time import perf_counter

import torch
from memory import Peak
from monai.losses.dice import DiceCELoss
from rich.console import Console
from rich.table import Table

from uscl.backbone import SamMed3D, build_sam_med3d
from uscl.backbone.small_patches import on_small_patches
from uscl.prompting import TrainingClicks, training_rollout
from uscl.prompting.objects import ObjectClicks, objects_rollout, soft_dice_bce
from uscl.seeds import seeded_draw
from uscl.tuning import AdaptFormer, FullTuning, LoRA, TuningMethod

SMALL, SMALL_PATCHES, SMALL_OBJECTS = "LoRA, small patches", 4, 6
METHODS: dict[str, TuningMethod] = {
    "LoRA, rank 32": LoRA(rank=32),
    "AdaptFormer": AdaptFormer(),
    "full tuning": FullTuning(),
    SMALL: LoRA(rank=32, projections=("q", "k", "v", "out", "mlp")),
}


def measure(name: str, variant: str, device: str, batch: int, clicks: int, steps: int) -> dict[str, float]:
    """Median seconds of a step and peak bytes of one method, in this process."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    seconds = []
    with Peak(device) as peak:
        model = build_sam_med3d(variant).to(device)
        METHODS[name].apply(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        small = name == SMALL
        size = model.config.image_size // 2 if small else model.config.image_size
        image = torch.randn(SMALL_PATCHES if small else batch, 1, size, size, size, generator=generator).to(device)
        target = torch.zeros_like(image)
        target[..., size // 4 : size // 2, size // 4 : size // 2, size // 3 : size // 2] = 1
        loss = DiceCELoss(sigmoid=True, squared_pred=True)
        for number in range(steps + 1):
            begin = perf_counter()
            if small:
                total = _on_small_patches(model, image, target > 0, number)
            else:
                draw = seeded_draw("cost", number)
                total = training_rollout(model, image, target, loss, TrainingClicks(clicks), draw)[0]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(perf_counter() - begin)
    objects = SMALL_PATCHES * SMALL_OBJECTS if small else batch
    count = sum(p.numel() for p in trained)
    return {"seconds": median(seconds[1:]), "bytes": peak.bytes, "trained": count, "objects": objects}


def _on_small_patches(model: SamMed3D, image: torch.Tensor, target: torch.Tensor, number: int) -> torch.Tensor:
    """The loss of one step on several objects of small patches."""
    small = on_small_patches(model, image.shape[-1])
    objects = target.expand(-1, SMALL_OBJECTS, -1, -1, -1)
    generator = torch.Generator().manual_seed(number)
    clicks = ObjectClicks(6, 6, 1.0, learned=2)
    return objects_rollout(small, small.encode_image(image), objects, soft_dice_bce, clicks, generator)[0]


def main() -> None:
    """Runs every method and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="mini")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--clicks", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(
            json.dumps(
                measure(options.one, options.variant, options.device, options.batch, options.clicks, options.steps)
            )
        )
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for _ in range(options.rounds):
        for name in METHODS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", name], check=True, capture_output=True, text=True
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    title = (
        f"{options.variant}, {options.device}, batch {options.batch}, {options.clicks} clicks, median of "
        f"{options.rounds} x {options.steps} steps"
    )
    table = Table(title=title, caption="ratios are to LoRA")
    for column in ("", "trained", "s per step", "ratio", "peak MiB", "ratio ", "s per object"):
        table.add_column(column, justify="right")
    base = middle["LoRA, rank 32"]
    for name, cost in middle.items():
        seconds, size = cost["seconds"], cost["bytes"]
        table.add_row(
            name,
            f"{cost['trained']:,.0f}",
            f"{seconds:.2f}",
            f"{seconds / base['seconds']:.2f}",
            f"{size / 2**20:.0f}",
            f"{size / base['bytes']:.2f}",
            f"{seconds / cost['objects']:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
