"""What a labelled sweep leaves in its folder."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uscl.data.datasets.ultrasound import CLASSES, COLUMNS, MANIFEST, read_rows
from uscl.data.tables import Row
from uscl.data.volume import Distances, Volume, write_volume
from uscl.errors import InputError
from uscl.pseudo_label.sweep import LabelledSweep, trusted_runs

DESCRIPTION = "dataset.json"


def write_pairs(
    folder: Path, volume: Volume, made: LabelledSweep, sweep: str, keep_flagged: bool, least_frames: int
) -> list[tuple[str, Path, Path]]:
    """Writes the sweep, the proposals for all frames, and the pairs to train on.

    ``image.nii.gz`` is the whole sweep and ``proposals.nii.gz`` what was labelled on every frame, for review. Where no
    frame is flagged, or flagged ones are to be kept, ``label.nii.gz`` makes a pair with the image. Otherwise each
    stretch of trusted frames becomes a pair of its own, ``image_K.nii.gz`` and ``label_K.nii.gz``: a label map has no
    value that says nothing, and a stretch of frames is a sweep.

    Returns:
        Name, image and label of every pair.
    """
    small = np.uint8 if int(made.labels.max()) <= np.iinfo(np.uint8).max else np.int32
    labels = volume.with_array(made.labels.transpose(2, 1, 0).astype(small))
    image = write_volume(folder / "image.nii.gz", volume, overwrite=True)
    write_volume(folder / "proposals.nii.gz", labels, overwrite=True)
    if keep_flagged or not made.flags:
        return [(sweep, image, write_volume(folder / "label.nii.gz", labels, overwrite=True))]
    pairs = []
    for number, (begin, end) in enumerate(trusted_runs(len(made.labels), made.flags, least_frames), start=1):
        parts = [
            write_volume(folder / f"{kind}_{number}.nii.gz", _cut(whole, begin, end), overwrite=True)
            for kind, whole in (("image", volume), ("label", labels))
        ]
        pairs.append((f"{sweep}_part{number}", parts[0], parts[1]))
    return pairs


def check_manifest(manifest: Path, sweep: str, folder: Path, names: Mapping[int, str]) -> tuple[list[str], list[Row]]:
    """Columns of a manifest, and the lines that stay when the pairs of a sweep come in; before work is done for them.

    Args:
        manifest: ``sweeps.csv``, or where it will be.
        sweep: its name.
        folder: where the pairs of the sweep lie; earlier ones are replaced.
        names: of the label ids.

    Raises:
        InputError: the manifest or the names beside it are of something else, or it has a sweep of that name from
            elsewhere.
    """
    base = manifest.resolve().parent
    description = base / DESCRIPTION
    if description.is_file():
        try:
            found = json.loads(description.read_text(encoding="utf-8")).get("labels")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{description}: not readable ({error!r})") from error
        if found != _labels(names):
            raise InputError(f"{description}: names other labels, {found}; this sweep has {_labels(names)}")
    columns, rows = read_rows(manifest) if manifest.is_file() else ([*COLUMNS], [])
    kept = [row for row in rows if not (base / row["image"]).resolve().is_relative_to(folder.resolve())]
    ours = re.compile(rf"{re.escape(sweep)}(_part\d+)?")
    if taken := [row for row in kept if ours.fullmatch(row["sweep"])]:
        raise InputError(
            f"{manifest}: has a sweep {taken[0]['sweep']} already, {taken[0]['image']}; names are unique, "
            "so take its line away or rename this sweep"
        )
    if kept and not description.is_file() and dict(names) != CLASSES:
        raise InputError(
            f"{manifest}: has no {DESCRIPTION} beside it, so its labels are {_labels(CLASSES)}; this "
            f"sweep has {_labels(names)}. Choose another manifest"
        )
    return columns, kept


def add_to_manifest(
    manifest: Path,
    pairs: Sequence[tuple[str, Path, Path]],
    sweep: str,
    patient: str,
    folder: Path,
    names: Mapping[int, str],
    distances: Distances = "measured",
) -> None:
    """Adds the pairs of a sweep to a manifest that ``VolumeDataModule`` reads, in place of earlier ones of the folder.

    Args:
        manifest: ``sweeps.csv``; made if it is not there, with the ``dataset.json`` that names the labels.
        pairs: of :func:`write_pairs`.
        sweep: its name.
        patient: whom the sweep belongs to.
        folder: where the pairs lie.
        names: of the label ids.
        distances: of the sweep; assumed ones stand in the columns spacing and step.

    Raises:
        InputError: see :func:`check_manifest`.
    """
    base = manifest.resolve().parent
    description = base / DESCRIPTION
    columns, rows = check_manifest(manifest, sweep, folder, names)
    only_ours = not rows
    for name, image, label in pairs:
        places = {"image": _relative(image, base), "label": _relative(label, base)}
        known = dict.fromkeys(("spacing", "step"), "assumed" if distances == "assumed" else "")
        rows.append({**dict.fromkeys(columns, ""), "patient": patient, "sweep": name, **places, **known})
    base.mkdir(parents=True, exist_ok=True)
    partial = manifest.with_name(f".{os.getpid()}-{manifest.name}")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(manifest)
    if only_ours and not description.is_file():
        text = json.dumps({"name": "pseudo-labels", "labels": _labels(names)}, indent=2)
        description.write_text(text + "\n", encoding="utf-8")


def quality_record(
    made: LabelledSweep, names: Mapping[int, str], suggested: Sequence[int], numbers: Sequence[int], unit: str = "mm"
) -> dict[str, Any]:
    """``quality.json``: everything that is known of a sweep's labels, with null for what is not.

    Frames are called by ``numbers``; lists with a value for every frame are in the order of the sweep. ``unit`` is that
    of the distances between outlines.
    """
    classes = {}
    for number, quality in made.quality.items():
        taken, added = made.cleaned.get(number, (0, 0))
        classes[names[number]] = {
            "carried_by": made.ways[number] or None,
            "left_out": [
                {"frame": numbers[one.frame], "dice": _known(one.dice), f"hd95_{unit}": _known(one.hd95)}
                for one in quality.left_out
            ],
            "left_out_dice": _known(quality.dice),
            f"left_out_hd95_{unit}": _known(quality.hd95),
            "neighbouring_frames_dice": _known(quality.consistency),
            "confidence": [round(value, 4) for value in quality.confidence.tolist()],
            "pixels": quality.area.tolist(),
            "clean_up": {"taken_away": taken, "added": added} if made.cleaned else None,
            "dice_against_the_other_engine": made.compared.get(number),
        }
    return {
        "frames": len(made.labels),
        "key_frames": [numbers[t] for t in made.keys],
        "flagged": {str(numbers[t]): reasons for t, reasons in sorted(made.flags.items())},
        "annotate_next": [numbers[t] for t in suggested],
        "classes": classes,
        "pseudo": True,
    }


def _labels(names: Mapping[int, str]) -> dict[str, int]:
    return {"background": 0} | {name: number for number, name in names.items()}


def _cut(volume: Volume, begin: int, end: int) -> Volume:
    """Some frames of a sweep, where they lie in space."""
    step = volume.direction[:, 2] * volume.spacing[2] * begin
    x, y, z = (float(o + s) for o, s in zip(volume.origin, step, strict=True))
    return replace(volume, array=volume.array[:, :, begin:end], origin=(x, y, z))


def _known(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _relative(path: Path, base: Path) -> str:
    whole = path.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else os.fspath(whole)


__all__ = ["DESCRIPTION", "MANIFEST", "add_to_manifest", "check_manifest", "quality_record", "write_pairs"]
