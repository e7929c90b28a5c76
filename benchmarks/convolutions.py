"""Convolutions of cubes that do not overlap: torch's own against the matrix products that the backbone uses.

Forward and backward pass of the patch embedding, and of the decoder's upscaling with the mask drawn from it (all four
masks, of which one is taken, as in the published code, against the one), both forms in turn in one run.

    python benchmarks/convolutions.py [--objects 4] [--rounds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from uscl.backbone import VARIANTS
from uscl.backbone.layers import PatchConv3d
from uscl.backbone.mask_decoder import Upscaling, cells_in_place


def main() -> None:
    """Prints seconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = Table(title=f"forward and backward, {torch.get_num_threads()} threads, median of {arguments.rounds}")
    for column in ("", "convolution, s", "matrix product, s", "times as fast"):
        table.add_column(column)
    for name in ("mini", "mini_fine", "vit_b_ori"):
        config = VARIANTS[name]
        embed = PatchConv3d(1, config.embed_dim, config.patch_size)
        plain = nn.Conv3d(1, config.embed_dim, config.patch_size, config.patch_size)
        image = torch.randn(2, 1, *(config.image_size,) * 3)
        table.add_row(f"{name}: patch embedding, 2 images", *compare(plain, embed, image, arguments.rounds))
        grid, upscaling = (config.grid_size,) * 3, Upscaling(config.prompt_dim)
        tokens = torch.randn(arguments.objects, config.grid_size**3, config.prompt_dim, requires_grad=True)

        kernels = torch.randn(arguments.objects, 4, config.prompt_dim // 8)

        def convolved(
            x: Tensor, layers: Upscaling = upscaling, grid: tuple[int, ...] = grid, kernels: Tensor = kernels
        ) -> Tensor:
            upscaled = nn.Sequential(*layers)(x.transpose(1, 2).unflatten(2, grid))
            return torch.einsum("bmc,bcxyz->bmxyz", kernels, upscaled)[:, :1]

        def multiplied(
            x: Tensor, layers: Upscaling = upscaling, grid: tuple[int, ...] = grid, kernels: Tensor = kernels
        ) -> Tensor:
            cells = layers(x).flatten(1, 2) @ kernels[:, :1].transpose(1, 2)
            return cells_in_place(cells.transpose(1, 2).unflatten(2, (-1, 64)), grid)

        label = f"{name}: upscaling and mask, {arguments.objects} objects"
        table.add_row(label, *compare(convolved, multiplied, tokens, arguments.rounds))
    Console(width=110).print(table)


def compare(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], given: Tensor, rounds: int
) -> tuple[str, str, str]:
    """Median seconds of both, and how many times as fast the other is."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for layers, times in zip((one, other), taken, strict=True):
            start = perf_counter()
            layers(given).square().mean().backward()
            if number:  # the first warms up
                times.append(perf_counter() - start)
    first, second = (median(times) for times in taken)
    return f"{first:.3f}", f"{second:.3f}", f"{first / second:.1f}"


if __name__ == "__main__":
    main()
