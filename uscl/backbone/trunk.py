"""The frozen trunk that every stage adapts: where its weights came from, and a fingerprint to know it by."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from torch import nn

from uscl.backbone.checkpoints import load_checkpoint
from uscl.backbone.config import VARIANTS, SamMed3DConfig, resolve_config
from uscl.backbone.sam_med3d import SamMed3D, build_sam_med3d
from uscl.errors import InputError
from uscl.seeds import fixed_initial_values

log = logging.getLogger(__name__)
RANDOM_WEIGHTS = "random weights"
EMBEDDED = "embedded"
"""What stands for the weights that come with the package, as a checkpoint reference."""


@dataclass(frozen=True)
class Trunk:
    """A SAM-Med3D and what is known of its weights.

    Attributes:
        model: the model, on the CPU, in evaluation mode.
        weights: ``random weights``, or the file with the first digits of its SHA-256; it stands in every result row.
        fingerprint: hash of all weights, whatever file format they came in. An adapter remembers it and refuses any
            other trunk.
    """

    model: SamMed3D
    weights: str
    fingerprint: str


def load_trunk(backbone: SamMed3DConfig | str, weights: str | os.PathLike[str] | None) -> Trunk:
    """Builds a SAM-Med3D and fills in its weights.

    Args:
        backbone: configuration or variant name.
        weights: checkpoint file, ``hf://`` reference, or ``embedded`` for those that come with the package (for
            ``mini`` and ``mini_fine``; their cards lie beside them). None leaves random weights, which are always the
            same ones, so that an adapter trained on them still fits in the next process.

    Raises:
        InputError: the checkpoint cannot be used (see :func:`uscl.load_checkpoint`) or leaves part of the model
            random, or none is embedded for this backbone.
    """
    if weights == EMBEDDED:
        weights = embedded_weights(backbone)
    with fixed_initial_values():
        model = build_sam_med3d(resolve_config(backbone))
    source = RANDOM_WEIGHTS
    if weights is not None:
        report = load_checkpoint(model, weights).require_complete()
        source = f"{PurePath(report.source).name} sha256:{report.sha256[:12]}"
    return Trunk(model.eval(), source, fingerprint(model))


def embedded_weights(backbone: SamMed3DConfig | str) -> Path:
    """The file of the weights that come with the package.

    Raises:
        InputError: there are none for this backbone.
    """
    config = resolve_config(backbone)
    for name, variant in VARIANTS.items():
        file = Path(__file__).with_name("embedded") / f"{name}.safetensors"
        if config == variant and file.is_file():
            return file
    raise InputError(
        f"no weights are embedded for {f'the backbone {backbone}' if isinstance(backbone, str) else 'this backbone'}; "
        "give a checkpoint as weights (null for random ones), or take mini or mini_fine"
    )


def fingerprint(model: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 over all tensors of a model, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def announce_trunk(trunk: Trunk) -> None:
    """Says on screen what the trunk's weights are, loudly if they are random."""
    if trunk.weights == RANDOM_WEIGHTS:
        log.warning(
            "The trunk has RANDOM WEIGHTS (model.weights is null): this run shows that everything works, "
            "not how well it segments"
        )
    else:
        log.info("Trunk: %s", trunk.weights)
