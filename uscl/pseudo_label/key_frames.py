"""Key frames as people annotate them: masks as pictures, label volumes, LabelMe, COCO, 3D Slicer segmentations.

All become label ids [row, column] by number of the frame, counted from 0. A frame counts as annotated for every class:
a class that does not occur on a key frame is taken not to be there. A key frame on which nothing occurs at all is more
often a mistake than a finding, so it has to be allowed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from uscl.data.frames import PICTURES, natural_order, pictures_in, read_label_picture
from uscl.data.sweeps import VOLUMES
from uscl.data.volume import read_label
from uscl.errors import InputError

log = logging.getLogger(__name__)
Labels = NDArray[np.int32]
"""Label ids of one frame [row, column]."""
_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_SEGMENTATION = ".seg.nrrd"


def read_key_frames(
    path: str | os.PathLike[str], shape: tuple[int, int, int], names: Mapping[int, str], allow_empty: bool = False
) -> dict[int, Labels]:
    """Reads key frames of a sweep.

    Args:
        path: a folder of masks (PNG with label ids, the number of the frame last in the name), of such folders named by
            classes, or of LabelMe files; a COCO file; a 3D Slicer segmentation (``.seg.nrrd``); or a label volume with
            some frames filled.
        shape: of the sweep: frames, rows, columns.
        names: of the label ids that are expected.
        allow_empty: take key frames without any label to say that nothing is there.

    Returns:
        Label ids by number of the frame, in order.

    Raises:
        InputError: nothing is there, a file cannot be read, has another size than the frames or a number that the sweep
            has not, holds labels that are not expected, or is empty and must not be.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such key frames")
    found: dict[int, Labels] = {}
    for number, labels, source in _read(path, shape, names):
        if not 0 <= number < shape[0]:
            raise InputError(f"{source}: is for frame {number}, the sweep has frames 0 to {shape[0] - 1}; correct the "
                             "number in its name")  # fmt: skip
        if labels.shape != shape[1:]:
            raise InputError(f"{source}: has {labels.shape[1]} x {labels.shape[0]} pixels, frames of the sweep have "
                             f"{shape[2]} x {shape[1]}; annotate the frames as they are")  # fmt: skip
        if unknown := sorted({*np.unique(labels).tolist()} - {0, *names}):
            raise InputError(f"{source}: holds label {unknown[0]}; known are {_told(names)} (--labels)")
        if not labels.any() and not allow_empty:
            raise InputError(f"{source}: nothing is annotated on frame {number}; take it away, or say with "
                             "--allow-empty that nothing is there")  # fmt: skip
        if number in found:
            raise InputError(f"{source}: frame {number} has been annotated twice; keep one of both")
        found[number] = labels.astype(np.int32)
    if not found:
        raise InputError(f"{path}: holds no key frame; expected masks ({', '.join(PICTURES)}), LabelMe or COCO files, "
                         f"*{_SEGMENTATION} or a label volume")  # fmt: skip
    return dict(sorted(found.items()))


def _read(path: Path, shape: tuple[int, int, int], names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """Number of the frame, labels, and what to call them in messages."""
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        files = natural_order(p for p in inside if p.suffix.lower() == ".json")
        pictures = pictures_in(path)
        folders = [p for p in inside if p.is_dir()]
        if folders and not files and not pictures:
            yield from _by_class(folders, names)
        elif files:
            if pictures:
                log.info("%s: %d pictures beside files of LabelMe are taken for the frames, not for masks", path,
                         len(pictures))  # fmt: skip
            for file in files:
                yield from _label_me(file, names)
        else:
            for picture in pictures:
                yield frame_number(picture), _ids(read_label_picture(picture), names), str(picture)
    elif path.suffix.lower() == ".json":
        yield from _coco(path, names)
    elif path.name.lower().endswith(_SEGMENTATION):
        yield from _filled(_segmentation(path, shape, names), path)
    elif path.name.lower().endswith(VOLUMES):
        yield from _filled(read_label(path).array.transpose(2, 1, 0), path)
    else:
        raise InputError(f"{path}: no key frames; expected a folder, a COCO file, *{_SEGMENTATION} or a label volume")


def _by_class(folders: Sequence[Path], names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """A folder of masks for every class, each non-zero where the class is: all frames of all folders."""
    found: dict[int, Labels] = {}
    for folder in folders:
        number = _id(folder.name, names, folder)
        for picture in pictures_in(folder):
            mask = read_label_picture(picture) > 0
            labels = found.setdefault(frame_number(picture), np.zeros(mask.shape, np.int32))
            if labels.shape != mask.shape:
                raise InputError(f"{picture}: has another size than the masks of other classes")
            if (labels[mask] > 0).any():
                raise InputError(f"{picture}: overlaps the mask of another class; a pixel belongs to one")
            labels[mask] = number
    for number, labels in sorted(found.items()):
        yield number, labels, f"{folders[0].parent}, frame {number}"


def _ids(labels: Labels, names: Mapping[int, str]) -> Labels:
    """A mask in black and white stands for the only class that is expected."""
    if len(names) == 1 and 255 not in names and {*np.unique(labels).tolist()} <= {0, 255}:
        return np.where(labels > 0, next(iter(names)), 0).astype(np.int32)
    return labels


def frame_number(path: Path) -> int:
    """The last number in a file's name: ``sweep3_frame0012.png`` is frame 12.

    Raises:
        InputError: there is none.
    """
    match = _NUMBER.search(path.stem)
    if match is None:
        raise InputError(f"{path}: says in its name not which frame it is of; expected a number such as 0012.png")
    return int(match.group(1))


def _filled(labels: NDArray[Any], path: Path) -> Iterator[tuple[int, Labels, str]]:
    for number in np.flatnonzero(labels.any((1, 2))).tolist():
        yield number, labels[number], f"{path}, frame {number}"


def _label_me(file: Path, names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """One frame: shapes with points (https://github.com/wkentaro/labelme)."""
    content = _json(file)
    try:
        size = (int(content["imageWidth"]), int(content["imageHeight"]))
        shapes = [(shape["label"], shape.get("shape_type", "polygon"), shape["points"]) for shape in content["shapes"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: is no file of LabelMe ({error!r} missing or unexpected)") from error
    labels = np.zeros(size[::-1], np.int32)
    for name, kind, points in shapes:
        if kind != "polygon":
            raise InputError(f"{file}: holds a {kind} of {name}; draw polygons")
        labels[_polygon([c for point in points for c in point], size, file)] = _id(name, names, file)
    yield frame_number(file), labels, str(file)


def _coco(file: Path, names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """Frames of a COCO file: polygons, or uncompressed runs (https://cocodataset.org/#format-data)."""
    content = _json(file)
    try:
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        images = {entry["id"]: entry for entry in content["images"]}
        drawn = [(entry["image_id"], categories[entry["category_id"]], entry["segmentation"])
                 for entry in content["annotations"]]  # fmt: skip
        frames = {number: np.zeros((int(entry["height"]), int(entry["width"])), np.int32)
                  for number, entry in images.items()}  # fmt: skip
        for image, name, outline in drawn:
            labels = frames[image]
            size = (labels.shape[1], labels.shape[0])
            masks = ([_runs(outline, size, file)] if isinstance(outline, dict)
                     else [_polygon(part, size, file) for part in outline])  # fmt: skip
            for mask in masks:
                labels[mask] = _id(name, names, file)
        annotated = {image for image, *_ in drawn}
        told = {number: Path(str(entry["file_name"])) for number, entry in images.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: is no COCO file ({error!r} missing or unexpected)") from error
    for number in sorted(annotated, key=str):
        yield frame_number(told[number]), frames[number], f"{file}, {told[number]}"


def _segmentation(file: Path, shape: tuple[int, int, int], names: Mapping[int, str]) -> NDArray[np.int32]:
    """A 3D Slicer segmentation as label ids [frame, row, column]: cropped, in layers, and with values of its own.

    Source: https://apidocs.slicer.org/main/vtkMRMLSegmentationStorageNode_8h.html and files it wrote.
    """
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file}: not readable as NRRD; export the segmentation again") from error
    facts = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    array = sitk.GetArrayFromImage(image)
    layers = array[..., None] if array.ndim == 3 else array
    offset = [int(part) for part in facts.get("Segmentation_ReferenceImageExtentOffset", "0 0 0").split()]
    labels = np.zeros(shape, np.int32)
    if layers.ndim != 4 or len(offset) != 3:
        raise InputError(f"{file}: is no 3D segmentation of 3D Slicer")
    begin = offset[::-1]
    whole_sweep = f"{shape[2]} x {shape[1]} pixels and {shape[0]} frames"
    if any(b < 0 or b + n > whole for b, n, whole in zip(begin, layers.shape, shape, strict=False)):
        raise InputError(f"{file}: reaches beyond the sweep of {whole_sweep}; it was drawn on another image")
    inside = tuple(slice(b, b + n) for b, n in zip(begin, layers.shape, strict=False))
    number = 0
    while f"Segment{number}_Name" in facts:
        layer = int(facts.get(f"Segment{number}_Layer", "0"))
        value = int(facts.get(f"Segment{number}_LabelValue", number + 1))
        labels[inside][layers[..., layer] == value] = _id(facts[f"Segment{number}_Name"], names, file)
        number += 1
    if not number:
        raise InputError(f"{file}: names no segments; save it from 3D Slicer's module Segmentations")
    return labels


def _polygon(points: Sequence[float], size: tuple[int, int], file: Path) -> NDArray[np.bool_]:
    from PIL import Image, ImageDraw

    if len(points) < 6 or not np.isfinite(points).all():
        raise InputError(f"{file}: holds a polygon of fewer than three points; draw it again")
    canvas = Image.new("1", size)
    ImageDraw.Draw(canvas).polygon([float(c) for c in points], fill=1, outline=1)
    return np.asarray(canvas)


def _runs(outline: dict[str, Any], size: tuple[int, int], file: Path) -> NDArray[np.bool_]:
    counts = outline["counts"]
    if isinstance(counts, str):
        raise InputError(f"{file}: holds compressed runs; export polygons, or uncompressed runs")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if values.size != size[0] * size[1]:
        raise InputError(f"{file}: holds runs over {values.size} pixels in a frame of {size[0]} x {size[1]}")
    mask: NDArray[np.bool_] = values.reshape(size).T
    return mask


def _id(name: str, names: Mapping[int, str], file: Path) -> int:
    for number, known in names.items():
        if known.lower().replace("_", " ") == str(name).lower().replace("_", " ").strip():
            return number
    raise InputError(f"{file}: holds {name!r}; known are {_told(names)} (--labels)")


def _told(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
