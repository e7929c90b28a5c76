"""``uscl segment``: one object of one image, from clicks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from uscl.backbone import EMBEDDED, RANDOM_WEIGHTS
from uscl.data.patches import Preprocessing
from uscl.data.prompts import parse_points
from uscl.data.sweeps import SweepReading, is_assumed, read_sweep
from uscl.data.volume import check_writable, write_volume
from uscl.errors import InputError
from uscl.evaluation.figures import DISCLAIMER, make_panel, save_panels
from uscl.prompting import Shifts
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
    shifts: Shifts = 4,
    guided_filter: bool = True,
    first_twice: bool | None = None,
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
        shifts: positions of the token grid that the mask is averaged over: 1 (SAM-Med3D's published inference), 2, 4 or
            8; more follow borders better and take about as many times as long.
        guided_filter: let the mask follow the edges of the image; false is SAM-Med3D's published inference.
        first_twice: decode the first click twice, the second time with its own mask as the mask prompt; null: with
            mini_fine alone; false is SAM-Med3D's published inference.
        picture: also write a PNG of the mask on its largest slice.
        overwrite: replace files that exist.

    Raises:
        InputError: anything given that cannot be used; nothing is written then.
    """
    target = check_writable(out, overwrite)
    if picture is not None and Path(picture).exists() and not overwrite:
        raise InputError(f"{picture}: exists already; give another name, or --overwrite to replace it")
    volume = read_sweep(image, reading)
    clicks = parse_points(points, volume, space)
    predictor = Predictor(backbone, weights, adapter, preprocessing, device, shifts, guided_filter, first_twice)
    if predictor.trunk.weights == RANDOM_WEIGHTS:
        log.warning("The trunk has RANDOM WEIGHTS (--weights null): the mask shows the plumbing, not the object")
    predictor.set_image(volume)
    prediction = predictor.segment(clicks)
    if not prediction.mask.array.any():
        log.warning("The mask is EMPTY: add clicks%s", ", or try --guided_filter false" if guided_filter else "")
    if prediction.cut_short:
        log.warning("The mask reaches the border of its patch; the object may go on beyond it")
    write_volume(target, prediction.mask, overwrite)
    size = f"{prediction.mask.array.sum()} voxels"
    millilitres = prediction.volume_ml
    if millilitres is not None and not is_assumed(Path(image).expanduser(), reading):  # else they are of nothing
        size = f"{millilitres:.1f} ml, {size}"
    log.info("%s: %s. %s", target, size, DISCLAIMER)
    if picture is not None:
        grid = predictor.preprocessing.grid(volume)
        mask = grid.orient(prediction.mask.array) > 0
        placed = [(_oriented(grid.axes, grid.flips, grid.oriented_shape, index), fg) for index, fg in clicks]
        panel = make_panel(
            Path(image).name, grid.orient(volume.array), None, {len(clicks): mask}, placed, {}, grid.source_spacing
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
