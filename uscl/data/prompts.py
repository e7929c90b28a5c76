"""Clicks that somebody has written down, in a table or on the command line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uscl.data.sweeps import SweepReading, parse_reading
from uscl.data.tables import read_table
from uscl.data.volume import Index, Volume, stem
from uscl.errors import InputError

Point = tuple[Index, bool]
"""Voxel index (x, y, z) in the volume, and whether it is foreground."""


@dataclass(frozen=True)
class Prompt:
    """Clicks on one object of one image.

    Attributes:
        image: image file.
        object_name: names the mask file; may be empty.
        points: in the order in which they were set.
        reading: how the image is read, if it is a sweep of frames.
    """

    image: Path
    object_name: str
    points: tuple[Point, ...]
    reading: SweepReading = SweepReading()


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads a table of clicks.

    The file is CSV with the columns ``image`` (path, relative to the table's folder), ``i``, ``j``, ``k`` (voxel
    indices in the file's x, y, z order, counted from 0), ``label`` (1 foreground, 0 background) and optionally
    ``object``. Rows of the same image and object are clicks on one object, in order. An image may be a sweep of any
    kind (lateral, depth, frame); ``spacing``, ``step`` and ``mask`` of its first row then say what its files do not
    (see :func:`uscl.data.sweeps.parse_reading`).

    Raises:
        InputError: the table is missing, empty, or a line is not as expected.
    """
    table = Path(path).expanduser()
    if not table.is_file():
        raise InputError(f"{table}: no such table of prompts")
    rows = read_table(table)[1]
    found: dict[tuple[Path, str], list[Point]] = {}
    readings: dict[tuple[Path, str], SweepReading] = {}
    for number, row in enumerate(rows, start=2):
        try:
            index = (int(row["i"]), int(row["j"]), int(row["k"]))
            image = table.parent / row["image"]
            foreground = {"0": False, "1": True}[row["label"].strip()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{table}, line {number}: expected image,i,j,k,label[,object] with whole numbers and label 0 or 1"
            ) from error
        key = (image, row.get("object") or "")
        found.setdefault(key, []).append((index, foreground))
        if key not in readings:
            texts = ((row.get(column) or "").strip() for column in ("spacing", "step", "mask"))
            try:
                readings[key] = parse_reading(*texts)
            except InputError as error:
                raise InputError(f"{table}, line {number}: {error}") from error
    if not found:
        raise InputError(f"{table}: holds no prompt; expected columns image,i,j,k,label[,object]")
    return [Prompt(*key, tuple(points), readings[key]) for key, points in found.items()]


def mask_names(prompts: Sequence[Prompt]) -> list[str]:
    """A file name, without ending, for the mask of every prompt; no two are the same.

    It is IMAGE__OBJECT, or IMAGE for an object without a name. Images of the same name get so many of their folders in
    front as distinguish them.
    """
    alike: dict[str, set[Path]] = defaultdict(set)
    for prompt in prompts:
        alike[stem(prompt.image)].add(prompt.image.absolute())
    shortest = {image: name for images in alike.values() for image, name in _apart(sorted(images)).items()}
    names: list[str] = []
    for prompt in prompts:
        name = shortest[prompt.image.absolute()]
        if prompt.object_name:
            name += "__" + _NO_FILE_NAME.sub("_", prompt.object_name)
        while name in names:  # objects that differ in what no file name can hold
            name += "_2"
        names.append(name)
    return names


_NO_FILE_NAME = re.compile(r'[\s/\\:*?"<>|]')


def _apart(images: Sequence[Path]) -> dict[Path, str]:
    """Names of images that share theirs: folders in front, and endings where these do not distinguish them."""
    folders = range(max(len(image.parts) for image in images))
    for ending in (False, True):
        for count in folders:
            names = [
                "_".join(
                    (*image.parts[max(1, len(image.parts) - 1 - count) : -1], image.name if ending else stem(image))
                )
                for image in images
            ]
            if len(set(names)) == len(images):
                return dict(zip(images, names, strict=True))
    return {image: "_".join(image.parts[1:]) for image in images}


def parse_points(text: str, volume: Volume, space: Literal["voxel", "physical"] = "voxel") -> list[Point]:
    """Reads points as the command line gives them.

    Args:
        text: ``"i,j,k,label;i,j,k,label;..."``, label 1 foreground or 0 background; the label may be left out and is
            then 1.
        volume: where they lie.
        space: ``voxel``: indices in the file's own x, y, z order, counted from 0, as ITK-SNAP's cursor minus one and 3D
            Slicer's IJK show them. ``physical``: millimetres, LPS as in ITK; the nearest voxel is taken.

    Raises:
        InputError: a point is not three numbers and a label.
    """
    points: list[Point] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        fields = [field.strip() for field in part.split(",")]
        try:
            if len(fields) not in (3, 4) or (len(fields) == 4 and fields[3] not in ("0", "1")):
                raise ValueError
            x, y, z = (float(field) for field in fields[:3])
            if space == "voxel" and not all(value.is_integer() for value in (x, y, z)):
                raise ValueError
        except ValueError:
            raise InputError(
                f"point {part!r}: expected i,j,k,label with "
                + ("whole voxel indices" if space == "voxel" else "millimetres")
                + " and label 1 (foreground) or 0 (background)"
            ) from None
        index = volume.to_index((x, y, z)) if space == "physical" else (int(x), int(y), int(z))
        points.append((index, fields[3:] != ["0"]))
    if not points:
        raise InputError('no points given; expected e.g. --points "64,70,32,1"')
    return points
