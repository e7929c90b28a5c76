"""One step of Muon: torch's, matrix by matrix in bfloat16, against ours, those of one shape together in float32.

    python benchmarks/muon.py [--variant mini] [--device cpu] [--rounds 5] [--threads 2]

Both over the hidden matrices of a backbone, in turn in one run; medians, and how far the two steps lie apart.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from rich.console import Console

from uscl.backbone import build_sam_med3d
from uscl.optim.muon import Muon, is_hidden_matrix


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="mini")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    modules = build_sam_med3d(options.variant).modules()
    named = [(module, parameter) for module in modules for parameter in module.parameters(recurse=False)]
    start = [p.detach().to(options.device) for module, p in named if is_hidden_matrix(module, p)]
    copies = [[value.clone().requires_grad_() for value in start] for _ in range(2)]
    settings = {"lr": 0.02, "weight_decay": 0.02, "momentum": 0.95}
    optimizers = [torch.optim.Muon(copies[0], **settings), Muon([{"params": copies[1]}], **settings)]
    for pair in zip(*copies, strict=True):
        pair[0].grad = pair[1].grad = torch.randn_like(pair[0])
    seconds: list[list[float]] = [[], []]
    for _ in range(options.rounds):
        for optimizer, measured in zip(optimizers, seconds, strict=True):
            begin = time.perf_counter()
            optimizer.step()
            if options.device != "cpu":
                torch.cuda.synchronize()
            measured.append(time.perf_counter() - begin)
    apart = [
        float((a - b).norm() / (a - c).norm())
        for a, b, c in zip(*[[p.detach() for p in own] for own in copies], start, strict=True)
    ]
    theirs, ours = map(median, seconds)
    Console().print(
        f"{options.variant}, {options.device}: {len(start)} matrices, median of {options.rounds} steps: torch "
        f"{1000 * theirs:.0f} ms, ours {1000 * ours:.0f} ms, {theirs / ours:.1f} times as fast; the steps differ by "
        f"{100 * max(apart):.1f} % at most"
    )


if __name__ == "__main__":
    main()
