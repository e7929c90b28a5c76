"""Patches per second from the files of a download and from the store of ``uscl prepare``, side by side in one run.

    python benchmarks/data.py [--patients 6] [--patches 100] [--data data/phantom/benchmark]

Simulates a study in AMOS's layout, prepares it, and draws the same numbered patches from both. The raw path keeps one
case in memory, as a data set that does not fit into it would have to. *Cold*: the operating system was asked to forget
the store's files first. The step of ``mini`` that data must not hold up is stage 2's: LoRA, batch 2, 11 clicks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from uscl.cli.commands.prepare import prepare
from uscl.data import PatchSampling, VolumeDataModule
from uscl.data.datasets import Splitting
from uscl.data.patches import Preprocessing
from uscl.phantom import LAYOUTS, simulate_study
from uscl.phantom.layouts.scans import ScanStudy

CT = Preprocessing(clamp=(-1000, 1000))
SAMPLING = PatchSampling("foreground", jitter=8, minimum_foreground=1)


def loader(root: Path, dataset: Literal["amos", "prepared"], workers: int, patches: int) -> Any:
    """Batches of two patches."""
    module = VolumeDataModule(
        str(root),
        CT,
        SAMPLING,
        dataset,
        batch_size=2,
        patches_per_epoch=patches,
        split=Splitting(0.0, 0.0),
        num_workers=workers,
        cached_cases=1,
    )
    module.setup("fit")
    return module.train_dataloader()


def rate(root: Path, dataset: Literal["amos", "prepared"], workers: int, patches: int) -> float:
    """Patches per second, without the first batch, which starts the workers."""
    batches = iter(loader(root, dataset, workers, patches + 2))
    next(batches)
    begin = perf_counter()
    count = sum(len(batch.image) for batch in batches)
    return count / (perf_counter() - begin)


def forget(folder: Path) -> None:
    """Asks the operating system to drop the files from its cache."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(root: Path, queue: Any) -> None:
    """Memory after 100 and after 1,000 patches from the store, in a process of its own."""
    dataset = loader(root, "prepared", 0, 2).dataset
    for number in range(1000):
        dataset[number]
        if number in (99, 999):
            queue.put(resident_mb())


def step_seconds() -> float:
    """A training step of stage 2 with ``mini``, median of 3."""
    from monai.losses.dice import DiceCELoss

    from uscl.backbone import load_trunk
    from uscl.prompting import TrainingClicks, training_rollout
    from uscl.seeds import seeded_draw
    from uscl.tuning import LoRA

    loss = DiceCELoss(sigmoid=True, squared_pred=True, reduction="mean")
    model = load_trunk("mini", None).model.train()
    LoRA(rank=8, modules="both").apply(model)
    image, target = torch.randn(2, 1, 128, 128, 128), torch.zeros(2, 1, 128, 128, 128)
    target[..., 40:80, 40:80, 40:80] = 1
    taken = []
    for number in range(4):
        begin = perf_counter()
        training_rollout(model, image, target, loss, TrainingClicks(), seeded_draw("step", number))[0].backward()
        taken.append(perf_counter() - begin)
    return sorted(taken[1:])[1]


def size_mb(folder: Path) -> float:
    """Megabytes of everything below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--patches", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path("data/phantom/benchmark"))
    arguments = parser.parse_args()
    raw = simulate_study(LAYOUTS["amos"], arguments.data / "amos", ScanStudy(arguments.patients), 2)
    store = arguments.data / "store"
    shutil.rmtree(store, ignore_errors=True)
    prepare("amos", str(raw), str(store), preprocessing=CT, workers=2)
    table = Table(title="patches of 128^3 per second")
    for column in ("workers", "files", "store, cold", "store, warm", "warm / files"):
        table.add_column(column, justify="right")
    console = Console(width=100)
    for workers in (0, 1, 2):
        files = rate(raw, "amos", workers, max(10, arguments.patches // 10))
        forget(store)
        cold, warm = (rate(store, "prepared", workers, arguments.patches) for _ in range(2))
        table.add_row(str(workers), f"{files:.2f}", f"{cold:.1f}", f"{warm:.1f}", f"{warm / files:.0f}")
    console.print(table)
    queue = multiprocessing.get_context("spawn").Queue()
    reader = multiprocessing.get_context("spawn").Process(target=memory, args=(store, queue))
    reader.start()
    early, late = queue.get(), queue.get()
    reader.join()
    console.print(f"memory after 100 patches {early:.0f} MiB, after 1,000 {late:.0f} MiB")
    images = (
        size_mb(raw / "imagesTr") + size_mb(raw / "imagesVa") + size_mb(raw / "labelsTr") + size_mb(raw / "labelsVa")
    )
    console.print(f"on disk: files {images:.1f} MB, store {size_mb(store):.1f} MB")
    step = step_seconds()
    console.print(f"a training step of mini takes {step:.2f} s and needs 2 patches: {2 / step:.2f} patches/s")


if __name__ == "__main__":
    main()
