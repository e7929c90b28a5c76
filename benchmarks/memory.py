"""Peak memory of a block of code, for the other benchmarks."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch


class Peak:
    """Peak memory above what was in use before, bytes: of the device, or resident on Linux.

    Args:
        device: cpu or cuda.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device == "cpu":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            self.before = _status("VmRSS")
        else:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        after = _status("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()
        self.bytes = after - self.before
        self.total = after


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
