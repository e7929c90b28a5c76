"""The callback that measures the cost of a training: time, memory, parameters, bytes, and energy where readable."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from uscl.evaluation.cost import COST_FILE, Cost


class CostMeter(Callback):
    """Writes ``cost.json`` (:class:`Cost`) into the run folder when a fit has ended."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._seconds, self._timed, self._steps, self._batch_size = 0.0, 0, 0, 0
        self._since: float | None = None
        self._energy: Callable[[], float | None] = lambda: None
        self._joules: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self._begin()
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._energy = _energy_meter(device)
        self._joules = self._energy()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock runs from here, but not over the first step of all."""
        self._since = self._now(trainer) if self._steps else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Goes on after a validation within an epoch."""
        if self._since is None and self._steps:
            self._since = self._now(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step."""
        self._steps += 1
        if self._steps == 1:
            self._since = self._now(trainer)
            # Lightning's own guess warns of names beside tensors.
            self._batch_size = len(batch.image) if hasattr(batch, "image") else extract_batch_size(batch)
        else:
            self._timed += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock: Lightning validates before an epoch ends."""
        self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._stop(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        if not trainer.is_global_zero or not self._steps or getattr(trainer, "fast_dev_run", False):
            return
        folder, device = Path(trainer.default_root_dir), trainer.strategy.root_device
        seconds = self._seconds / self._timed if self._timed else None
        now = self._energy()
        net = getattr(pl_module, "net", pl_module)
        parts: dict[str, list[torch.nn.Parameter]] = {name: [*part.parameters()] for name, part in net.named_children()}
        inside = {id(p) for p in net.parameters()}
        parts["beside the backbone"] = [p for p in pl_module.parameters() if id(p) not in inside]
        trainable = {name: sum(p.numel() for p in own if p.requires_grad) for name, own in parts.items()}
        cost = Cost(
            seconds_per_step=seconds,
            samples_per_second=self._batch_size * trainer.world_size / seconds if seconds else None,
            steps=self._steps,
            batch_size=self._batch_size,
            processes=trainer.world_size,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            precision=str(trainer.precision),
            peak_device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            peak_host_bytes=_peak_host_bytes(),
            parameters=sum(p.numel() for p in net.parameters()),
            trainable={name: count for name, count in trainable.items() if count},
            checkpoint_bytes=_size(folder / "checkpoints" / "last.ckpt"),
            artefact_bytes=_size(folder / "adapter.safetensors") or _size(folder / "weights.safetensors"),
            joules=None if now is None or self._joules is None else now - self._joules,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COST_FILE).write_text(json.dumps(asdict(cost), indent=2) + "\n", encoding="utf-8")

    def _stop(self, trainer: Trainer) -> None:
        # Not at every step: waiting for the device would slow it down.
        if self._since is not None:
            self._seconds += self._now(trainer) - self._since
            self._since = None

    def _now(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return perf_counter()


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _peak_host_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _energy_meter(device: torch.device) -> Callable[[], float | None]:
    """Reads the joules a device used since its driver was loaded, if NVML (package ``nvidia-ml-py``) reports them."""
    if device.type != "cuda":
        return lambda: None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, or a device that does not report it
        return lambda: None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
