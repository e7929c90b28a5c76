"""Folded against padded window attention: time and memory, forward and LoRA training step.

Both compute the same function (the tests compare them to 1e-10); the padded one is the plain form of the original. All
figures of one line come from one run, the two forms taken in turn, each in a process of its own.

    python benchmarks/encoder.py [--variant vit_b_ori] [--device cpu] [--repeats 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from backbone.padded_oracle import padded_attention
from memory import Peak

from uscl.backbone import SamMed3D, build_sam_med3d
from uscl.backbone.attention import WindowAttention
from uscl.prompting import TrainingClicks, training_rollout
from uscl.seeds import seeded_draw
from uscl.tuning import LoRA

TASKS = {
    "attention": "one windowed attention, forward",
    "encoder": "encoder, forward",
    "training": "LoRA training step, batch 1, 11 clicks",
}


def prepare(task: str, variant: str, padded: bool, device: str):
    """Returns what is to be timed."""
    if padded:
        WindowAttention.forward = padded_attention
    torch.manual_seed(0)
    model: SamMed3D = build_sam_med3d(variant).to(device)
    size = model.config.image_size
    image = torch.randn(1, 1, size, size, size, device=device)
    if task == "attention":
        layer = model.image_encoder.blocks[0].attn
        tokens = torch.randn(1, *(model.config.grid_size,) * 3, model.config.embed_dim, device=device)
        return lambda: layer(tokens)
    if task == "encoder":
        return lambda: model.encode_image(image)
    LoRA(rank=32).apply(model)
    target = torch.zeros_like(image)
    target[..., 40:90, 30:80, 50:100] = 1
    loss = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        total, _ = training_rollout(model, image, target, loss, TrainingClicks(), seeded_draw("benchmark"))
        total.backward()
        model.zero_grad()

    return step


def measure(task: str, variant: str, padded: bool, device: str, repeats: int, threads: int) -> dict[str, float]:
    """Median seconds and peak bytes of one form, in this process."""
    torch.set_num_threads(threads)
    run = prepare(task, variant, padded, device)
    gradients = task == "training"
    seconds = []
    with torch.set_grad_enabled(gradients):
        with Peak(device) as peak:
            run()
        for _ in range(repeats):
            begin = perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(perf_counter() - begin)
    return {"seconds": median(seconds), "bytes": peak.bytes}


def main() -> None:
    """Runs every task in both forms and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="vit_b_ori")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    common = (options.variant, options.device, options.repeats, options.threads)
    if options.one:
        task, form = options.one
        print(json.dumps(measure(task, options.variant, form == "padded", *common[1:])))
        return
    table = Table(title=f"{options.variant}, {options.device}, {options.threads} threads, median of {options.repeats}")
    for column in ("", "padded", "folded", "ratio", "padded peak", "folded peak", "ratio "):
        table.add_column(column, justify="right")
    for task, described in TASKS.items():
        found = {}
        for form in ("padded", "folded"):
            command = [sys.executable, __file__, "--one", task, form, "--variant", options.variant]
            command += ["--device", options.device, "--repeats", str(options.repeats)]
            command += ["--threads", str(options.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[form] = json.loads(done.stdout.splitlines()[-1])
        slow, fast = found["padded"], found["folded"]
        table.add_row(
            described,
            f"{slow['seconds']:.3f} s",
            f"{fast['seconds']:.3f} s",
            f"{slow['seconds'] / fast['seconds']:.1f}",
            f"{slow['bytes'] / 2**20:.0f} MiB",
            f"{fast['bytes'] / 2**20:.0f} MiB",
            f"{slow['bytes'] / max(fast['bytes'], 1):.1f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
