"""``uscl segment``: one object of one image, from clicks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from uscl.backbone import EMBEDDED, RANDOM_WEIGHTS
from uscl.data.patches import Preprocessing
from uscl.data.plausible import size_note
from uscl.data.prompts import parse_points
from uscl.data.sweeps import SweepReading, read_sweep
from uscl.data.volume import check_writable, write_volume
from uscl.errors import InputError
from uscl.evaluation.figures import DISCLAIMER, make_panel, save_panels
from uscl.prompting import Inference, Preset
from uscl.serving import Predictor

log = logging.getLogger(__name__)


def segment(
    image: str,
    points: str,
    out: str,
    space: Literal["voxel", "physical"] = "voxel",
    weights: str | None = EMBEDDED,
    adapter: str | None = None,
    backbone: str = "mini_fine",
    preprocessing: Preprocessing | None = None,
    reading: SweepReading = SweepReading(),
    device: str = "cpu",
    inference: Inference | Preset | None = None,
    tuning: str | None = None,
    picture: str | None = None,
    overwrite: bool = False,
) -> None:
    """Segments one object of a volume or sweep from clicks and writes its mask on the volume's own grid.

    Args:
        image: the volume: NIfTI, NRRD, MHA; or a sweep: a video, a DICOM file, a folder of frames or of a DICOM series.
        points: "i,j,k,label;..." in the order of clicking; voxel indices in the file's x, y, z order (of a sweep:
            lateral, depth, frame) counted from 0, label 1 foreground or 0 background.
        out: mask file to write: .nii.gz, .nii, .nrrd or .mha.
        space: "physical" reads the points as millimetres (LPS) instead.
        weights: checkpoint of the trunk, a file or hf://owner/repo/file; embedded: what comes with the package for
            mini and mini_fine; null: random.
        adapter: adapter file that `uscl fit` left; brings backbone and preprocessing of its training.
        backbone: variant to use without an adapter: vit_b_ori, mini or mini_fine.
        preprocessing: how the volume is prepared, where it is not the adapter's.
        reading: what the frames of a sweep do not know, and what of them is blackened.
        device: cpu, cuda, cuda:1, ...
        inference: how the mask is made from the clicks: published, as SAM-Med3D does; refined; or its settings, e.g.
            --inference.shifts 8, where those not named are as published. Null: refined for mini and mini_fine,
            published for others.
        tuning: class of the adapter's tuning method where it is none of uscl's, MODULE.NAME; it is imported.
        picture: also write a PNG of the mask on its largest slice.
        overwrite: replace files that exist.

    Raises:
        InputError: anything given that cannot be used; nothing is written then.
    """
    target = check_writable(out, overwrite)
    if picture is not None and Path(picture).exists() and not overwrite:
        raise InputError(f"{picture}: exists already; give another name, or --overwrite to replace it")
    volume = read_sweep(image, reading)
    if volume.distances != "assumed" and (note := size_note(volume.shape, volume.spacing)):
        log.warning("%s: %s", image, note)
    clicks = parse_points(points, volume, space)
    predictor = Predictor(backbone, weights, adapter, preprocessing, device, inference, tuning)
    log.info("Inference: %s", predictor.inference.in_words)
    if predictor.trunk.weights == RANDOM_WEIGHTS:
        log.warning("The trunk has RANDOM WEIGHTS (--weights null): the mask shows the plumbing, not the object")
    predictor.set_image(volume)
    prediction = predictor.segment(clicks)
    if not prediction.mask.array.any():
        remedy = ", or try --inference published" if predictor.inference.guided_filter else ""
        log.warning("The mask is EMPTY: add clicks%s", remedy)
    if prediction.cut_short:
        log.warning("The mask reaches the border of its patch; the object may go on beyond it")
    write_volume(target, prediction.mask, overwrite)
    size = f"{prediction.mask.array.sum()} voxels"
    millilitres = prediction.volume_ml
    if millilitres is not None:
        size = f"{millilitres:.1f} ml, {size}"
    log.info("%s: %s. %s", target, size, DISCLAIMER)
    if picture is not None:
        grid = predictor.preprocessing.grid(volume)
        mask = grid.orient(prediction.mask.array) > 0
        placed = [(_oriented(grid.axes, grid.flips, grid.oriented_shape, index), fg) for index, fg in clicks]
        panel = make_panel(
            Path(image).name,
            grid.orient(volume.array),
            None,
            {len(clicks): mask},
            placed,
            {},
            grid.source_spacing,
            volume.distances != "assumed",
        )
        save_panels(Path(picture), [panel], "uscl segment")
        log.info("%s", picture)


def _oriented(
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
    shape: tuple[int, int, int],
    index: tuple[int, int, int],
) -> tuple[int, int, int]:
    """Where a voxel of the volume lies once its axes are in RAS order."""
    x, y, z = (n - 1 - index[a] if flip else index[a] for a, flip, n in zip(axes, flips, shape, strict=True))
    return x, y, z
