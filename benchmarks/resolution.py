"""Where a backbone loses what lies within a token: in the encoder, or in the decoder's upscaling?

Linear probes, fitted on some held-out phantom patches and tested on others, read the mean intensity of every cell of a
low-resolution mask from the image embedding and from the decoder's upscaled features. R^2 is given for all cells and,
with the mean of every token taken away from both sides, within tokens. Below that: how much mask logits after one click
vary within tokens and altogether. A model whose masks are made of whole tokens shows it here.

    python benchmarks/resolution.py [--backbone mini] [--weights embedded] [--patches 16]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from uscl.backbone import SamMed3D, load_trunk
from uscl.backbone.mask_decoder import cells_in_place
from uscl.data.batches import RenderedPatch
from uscl.data.patches import Preprocessing
from uscl.phantom.pretraining import Curriculum, RenderedPatches, build_anatomies
from uscl.prompting import Click
from uscl.prompting.clicks import as_points
from uscl.prompting.segmenter import blank_mask_prompt

SEED = 20_261


def main() -> None:
    """Probes a backbone and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--weights", default="embedded", help="file, hf:// reference, embedded, or random")
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--root", type=Path, default=Path("data/phantom/anatomies"))
    arguments = parser.parse_args()
    trunk = load_trunk(arguments.backbone, None if arguments.weights == "random" else arguments.weights)
    torsos, heads = build_anatomies(arguments.root, 8, 4, SEED, 2)
    late = Curriculum(1, (0.0, 0.0), (5.0, 5.0))
    stream = RenderedPatches(tuple(torsos), tuple(heads), Preprocessing(), 1, late, SEED)
    found = [look_at(trunk.model, stream[number]) for number in range(1, 1 + arguments.patches)]
    cells, token, embedding, upscaled, logits = (torch.stack(list(parts)) for parts in zip(*found, strict=True))
    train = slice(0, 3 * arguments.patches // 4)
    test = slice(train.stop, None)
    table = Table(title=f"{trunk.weights}: {arguments.patches} patches, a quarter of them held out")
    for column in ("R^2 of cell intensities, read from", "all cells", "within tokens"):
        table.add_column(column)
    table.add_row("token means (what blocks could know)", *scores(token[test], cells[test]))
    inside = cells.shape[-1]
    read = probe(embedding[train], cells[train])
    table.add_row("image embedding", *scores(apply(read, embedding[test]), cells[test]))
    each = upscaled.reshape(*upscaled.shape[:2], inside, -1)
    read = probe(each[train].flatten(1, 2), cells[train].reshape(train.stop, -1, 1))
    values = apply(read, each[test].flatten(1, 2)).reshape(cells[test].shape)
    table.add_row("upscaled features", *scores(values, cells[test]))
    console = Console(width=110)
    console.print(table)
    within = (logits - logits.mean(-1, keepdim=True)).std()
    console.print(f"mask logits after one click: deviation {logits.std():.2f}, within tokens {within:.2f}")


@torch.no_grad()
def look_at(model: SamMed3D, patch: RenderedPatch) -> tuple[Tensor, ...]:
    """Cell intensities, their token means, embedding, upscaled features and logits of one patch.

    Returns:
        [tokens, cells of a token], the same, [tokens, E], [tokens, cells x channels], [tokens, cells].
    """
    image, target = patch.image[None], patch.target[0]
    features: list[Tensor] = []
    upscaling = model.mask_decoder.output_upscaling
    hook = upscaling.register_forward_hook(lambda *given: features.append(given[2]))
    embedding = model.encode_image(image)
    voxels = target.nonzero()
    x, y, z = voxels[len(voxels) // 2].tolist()
    low = model.decode(embedding, as_points([Click((x, y, z))]), blank_mask_prompt(model, 1, embedding))[0]
    hook.remove()
    edge = model.config.image_size // model.config.mask_size
    cells = by_token(F.avg_pool3d(image, edge)[0].clamp(-4, 4))[..., 0]
    token = cells.mean(1, keepdim=True).expand_as(cells)
    grid = embedding.shape[2:]
    upscaled = by_token(cells_in_place(features[0].permute(0, 3, 1, 2), grid)[0]).flatten(1)
    return cells, token, embedding[0].flatten(1).T, upscaled, by_token(low[0])[..., 0]


def by_token(values: Tensor) -> Tensor:
    """Sorts values [C, m, m, m] by the tokens that their cells lie in: [tokens, 64, C]."""
    channels, edge = values.shape[0], values.shape[1] // 4
    split = values.reshape(channels, edge, 4, edge, 4, edge, 4).permute(1, 3, 5, 2, 4, 6, 0)
    return split.reshape(edge**3, 64, channels)


def probe(features: Tensor, values: Tensor) -> Tensor:
    """Weights of a ridge regression with an offset, [F + 1, V], from [patches, n, F] to [patches, n, V]."""
    given = _with_one(features.flatten(0, 1)).double()
    normal = given.T @ given + 1e-4 * len(given) * torch.eye(given.shape[1], dtype=torch.float64)
    return torch.linalg.solve(normal, given.T @ values.flatten(0, 1).double()).float()


def apply(weights: Tensor, features: Tensor) -> Tensor:
    """What a probe reads."""
    return _with_one(features) @ weights


def scores(found: Tensor, wanted: Tensor) -> Sequence[str]:
    """R^2 of values [patches, tokens, cells], of all and within tokens."""
    parts = [(wanted - found, wanted - wanted.mean())]
    parts.append((parts[0][0] - parts[0][0].mean(-1, keepdim=True), wanted - wanted.mean(-1, keepdim=True)))
    return [f"{1 - float(rest.square().sum() / whole.square().sum()):.2f}" for rest, whole in parts]


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


if __name__ == "__main__":
    main()
