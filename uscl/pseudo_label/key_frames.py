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
from scipy import ndimage

from uscl.data.frames import PICTURES, frame_number, natural_order, pictures_in, read_label_picture
from uscl.data.sweeps import VOLUMES, frame_numbers, grid_difference
from uscl.data.volume import Volume, read_label
from uscl.errors import InputError

log = logging.getLogger(__name__)
Labels = NDArray[np.int32]
"""Label ids of one frame [row, column]."""
_SEGMENTATION = ".seg.nrrd"
_SEGMENT = re.compile(r"Segment(\d+)_Name")
_REFERENCE = re.compile(r"Reference image geometry\|([^|&]*)")


def read_key_frames(
    path: str | os.PathLike[str],
    shape: tuple[int, int, int],
    names: Mapping[int, str],
    allow_empty: bool = False,
    sweep: Volume | None = None,
) -> dict[int, Labels]:
    """Reads key frames of a sweep.

    Args:
        path: a folder of masks (PNG with label ids, the number of the frame last in the name), of such folders named by
            classes, or of LabelMe files; a COCO file; a 3D Slicer segmentation (``.seg.nrrd``); or a label volume with
            some frames filled. Frames without an outline in a COCO file, or without a label in a volume, are none.
        shape: of the sweep: frames, rows, columns.
        names: of the label ids that are expected.
        allow_empty: take key frames without any label to say that nothing is there.
        sweep: whose frames they are. With it, masks named after the pictures of a folder find these by the numbers in
            their names (:func:`~uscl.data.sweeps.frame_numbers`), and volumes have to lie where the sweep lies.

    Returns:
        Label ids by place of the frame in the sweep, counted from 0, in order.

    Raises:
        InputError: nothing is there, a file cannot be read, has another size than the frames or a number that the sweep
            has not, holds labels that are not expected, or is empty and must not be.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such key frames")
    found: dict[int, Labels] = {}
    numbers = frame_numbers(sweep, shape[0])
    places = {number: place for place, number in enumerate(numbers)}
    for number, labels, source in _read(path, shape, names, numbers, sweep):
        if number not in places:
            raise InputError(
                f"{source}: is for frame {number}, the sweep has frames {numbers[0]} to {numbers[-1]}; "
                "correct the number in its name"
            )
        _check_size(labels.shape, shape, source)
        if unknown := sorted({*np.unique(labels).tolist()} - {0, *names}):
            raise InputError(f"{source}: holds label {unknown[0]}; known are {_listed(names)} (--labels)")
        if not labels.any() and not allow_empty:
            raise InputError(
                f"{source}: nothing is annotated on frame {number}; take it away, or say with "
                "--allow-empty that nothing is there"
            )
        if places[number] in found:
            raise InputError(f"{source}: frame {number} has been annotated twice; keep one of both")
        found[places[number]] = labels.astype(np.int32)
    if not found:
        raise InputError(
            f"{path}: holds no key frame; expected masks ({', '.join(PICTURES)}), LabelMe or COCO files, "
            f"*{_SEGMENTATION} or a label volume"
        )
    return dict(sorted(found.items()))


def _check_size(found: tuple[int, ...], shape: tuple[int, int, int], source: object) -> None:
    if found != shape[1:]:
        raise InputError(
            f"{source}: has {found[1]} x {found[0]} pixels, frames of the sweep have {shape[2]} x "
            f"{shape[1]}; annotate the frames as they are"
        )


def _read(
    path: Path, shape: tuple[int, int, int], names: Mapping[int, str], numbers: Sequence[int], sweep: Volume | None
) -> Iterator[tuple[int, Labels, str]]:
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
                log.info(
                    "%s: %d pictures beside files of LabelMe are taken for the frames, not for masks",
                    path,
                    len(pictures),
                )
            for file in files:
                yield from _label_me(file, shape, names)
        else:
            for picture in pictures:
                yield frame_number(picture), _ids(read_label_picture(picture), names), str(picture)
    elif path.suffix.lower() == ".json":
        yield from _coco(path, shape, names)
    elif path.name.lower().endswith(_SEGMENTATION):
        yield from _filled(_segmentation(path, shape, names, sweep), path, numbers)
    elif path.name.lower().endswith(VOLUMES):
        label = read_label(path)
        _check_grid(label, shape, sweep, path)
        yield from _filled(label.array.transpose(2, 1, 0), path, numbers)
    else:
        raise InputError(f"{path}: no key frames; expected a folder, a COCO file, *{_SEGMENTATION} or a label volume")


def _by_class(folders: Sequence[Path], names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """A folder of masks for every class, each non-zero where the class is: all frames of all folders."""
    found: dict[int, Labels] = {}
    seen: dict[int, list[str]] = {}
    for folder in folders:
        number = _id(folder.name, names, folder)
        for picture in pictures_in(folder):
            mask = read_label_picture(picture) > 0
            labels = found.setdefault(frame_number(picture), np.zeros(mask.shape, np.int32))
            if folder.name in seen.setdefault(frame_number(picture), []):
                raise InputError(f"{picture}: frame {frame_number(picture)} has been annotated twice; keep one of both")
            seen[frame_number(picture)].append(folder.name)
            if labels.shape != mask.shape:
                raise InputError(f"{picture}: has another size than the masks of other classes")
            if (labels[mask] > 0).any():
                raise InputError(f"{picture}: overlaps the mask of another class; a pixel belongs to one")
            labels[mask] = number
    for number, labels in sorted(found.items()):
        if lacking := sorted({folder.name for folder in folders} - {*seen[number]}):
            log.warning(
                "%s: frame %d has masks of %s and none of %s, which is taken not to be there",
                folders[0].parent,
                number,
                ", ".join(seen[number]),
                ", ".join(lacking),
            )
        yield number, labels, f"{folders[0].parent}, frame {number}"


def _ids(labels: Labels, names: Mapping[int, str]) -> Labels:
    """A mask in black and white stands for the only class that is expected."""
    if len(names) == 1 and 255 not in names and {*np.unique(labels).tolist()} <= {0, 255}:
        return np.where(labels > 0, next(iter(names)), 0).astype(np.int32)
    return labels


def _check_grid(label: Volume, shape: tuple[int, int, int], sweep: Volume | None, path: Path) -> None:
    if label.shape != shape[::-1]:
        raise InputError(
            f"{path}: has {label.shape} voxels, the sweep has {shape[::-1]}; it has the sweep's own "
            "frames, all of them, the others empty"
        )
    if sweep is not None and (difference := grid_difference(label, sweep)):
        raise InputError(f"{path}: does not lie on the grid of {sweep.name}: {difference}; annotate the sweep itself")


def _filled(labels: NDArray[Any], path: Path, numbers: Sequence[int]) -> Iterator[tuple[int, Labels, str]]:
    for place in np.flatnonzero(labels.any((1, 2))).tolist():
        yield numbers[place], labels[place], f"{path}, frame {numbers[place]}"


def _draw(labels: Labels, mask: NDArray[np.bool_], number: int, names: Mapping[int, str], file: Path) -> None:
    """What is drawn later lies on top, which is reported where more than a border is covered."""
    covered = mask & (labels > 0) & (labels != number)
    if ndimage.binary_erosion(covered).any():
        below = ", ".join(names[value] for value in np.unique(labels[covered]).tolist())
        log.warning(
            "%s: %d pixels of %s are drawn over %s; a pixel belongs to one class, the later one",
            file,
            int(covered.sum()),
            names[number],
            below,
        )
    labels[mask] = number


def _label_me(file: Path, shape: tuple[int, int, int], names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """One frame: shapes with points (https://github.com/wkentaro/labelme)."""
    content = _json(file)
    try:
        size = (int(content["imageWidth"]), int(content["imageHeight"]))
        shapes = [
            (drawn["label"], drawn.get("shape_type", "polygon"), [float(c) for x, y in drawn["points"] for c in (x, y)])
            for drawn in content["shapes"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{file}: is no file of LabelMe ({error!r} missing or unexpected)") from error
    _check_size(size[::-1], shape, file)
    labels = np.zeros(shape[1:], np.int32)
    for name, kind, points in shapes:
        if kind != "polygon":
            raise InputError(f"{file}: holds a {kind} of {name}; draw polygons")
        _draw(labels, _polygon(points, size, file), _id(name, names, file), names, file)
    yield frame_number(file), labels, str(file)


def _coco(file: Path, shape: tuple[int, int, int], names: Mapping[int, str]) -> Iterator[tuple[int, Labels, str]]:
    """Frames of a COCO file: polygons, or uncompressed runs (https://cocodataset.org/#format-data)."""
    content = _json(file)
    try:
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        images = {
            entry["id"]: (Path(str(entry["file_name"])), (int(entry["width"]), int(entry["height"])))
            for entry in content["images"]
        }
        frames: dict[Any, NDArray[np.int32]] = {}
        for entry in content["annotations"]:
            image, name, outline = entry["image_id"], categories[entry["category_id"]], entry["segmentation"]
            file_name, size = images[image]
            _check_size(size[::-1], shape, f"{file}, {file_name}")
            if not outline:
                raise InputError(f"{file}: holds {name} on {file_name} without an outline; draw a polygon")
            labels = frames.setdefault(image, np.zeros(shape[1:], np.int32))
            for mask in (
                [_runs(outline, size, file)]
                if isinstance(outline, dict)
                else [_polygon([float(c) for c in part], size, file) for part in outline]
            ):
                _draw(labels, mask, _id(name, names, file), names, file)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{file}: is no COCO file ({error!r} missing or unexpected)") from error
    if left := len(images) - len(frames):
        log.warning(
            "%s: %d images without annotations are no key frames; COCO does not mark those on which nothing "
            "was found from those nobody has looked at. Give empty masks for those",
            file,
            left,
        )
    for image in sorted(frames, key=str):
        yield frame_number(images[image][0]), frames[image], f"{file}, {images[image][0]}"


def _segmentation(
    file: Path, shape: tuple[int, int, int], names: Mapping[int, str], sweep: Volume | None
) -> NDArray[np.int32]:
    """A 3D Slicer segmentation as label ids [frame, row, column]: cropped, in layers, and with values of its own.

    Source: https://apidocs.slicer.org/main/vtkMRMLSegmentationStorageNode_8h.html and files it wrote.
    """
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file}: not readable as NRRD; export the segmentation again") from error
    facts = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    try:
        offset = [int(part) for part in facts.get("Segmentation_ReferenceImageExtentOffset", "0 0 0").split()]
        matches = [match for match in map(_SEGMENT.fullmatch, facts) if match is not None]
        segments = [
            (facts[f"Segment{n}_Name"], int(facts.get(f"Segment{n}_Layer", 0)), int(facts[f"Segment{n}_LabelValue"]))
            for n in sorted(int(match[1]) for match in matches)
        ]
        reference = _REFERENCE.search(facts.get("Segmentation_ConversionParameters", ""))
        geometry = [float(part) for part in (reference[1] if reference else "").split(";") if part.strip()]
    except (KeyError, ValueError) as error:
        raise InputError(f"{file}: its header does not say what 3D Slicer says ({error!r}); save it again") from error
    array = sitk.GetArrayFromImage(image)
    layers = array[..., None] if array.ndim == 3 else array
    if image.GetDimension() != 3 or len(offset) != 3:
        raise InputError(f"{file}: is no 3D segmentation of 3D Slicer")
    if not segments:
        raise InputError(f"{file}: names no segments; save it from 3D Slicer's module Segmentations")
    begin = offset[::-1]
    whole_sweep = f"{shape[2]} x {shape[1]} pixels and {shape[0]} frames"
    if any(b < 0 or b + n > whole for b, n, whole in zip(begin, layers.shape, shape, strict=False)):
        raise InputError(f"{file}: reaches beyond the sweep of {whole_sweep}; it was drawn on another image")
    # Sixteen numbers of a matrix, then the first and the last index along every axis.
    drawn_on = tuple(int(last - first) + 1 for first, last in zip(geometry[16::2], geometry[17::2], strict=False))
    if len(geometry) == 22 and drawn_on != shape[::-1]:
        raise InputError(f"{file}: was drawn on an image of {drawn_on} voxels, not on the sweep of {whole_sweep}")
    if "Segmentation_ReferenceImageExtentOffset" not in facts and layers.shape[:3] != shape:
        raise InputError(f"{file}: does not say which part of the sweep of {whole_sweep} it covers; save it again")
    inside = tuple(slice(b, b + n) for b, n in zip(begin, layers.shape, strict=False))
    labels = np.zeros(shape, np.int32)
    for name, layer, _ in segments:
        if not 0 <= layer < layers.shape[3]:
            raise InputError(f"{file}: holds {layers.shape[3]} layer(s), and {name} in layer {layer}; save it again")
    for layer in range(layers.shape[3]):
        known = {0, *(value for _, place, value in segments if place == layer)}
        if unknown := {*np.unique(layers[..., layer]).tolist()} - known:
            raise InputError(f"{file}: holds value {min(unknown)}, which no segment explains; save it again")
    for name, layer, value in segments:
        _draw(labels[inside], layers[..., layer] == value, _id(name, names, file), names, file)
    turn, spacing = np.array(image.GetDirection()).reshape(3, 3), image.GetSpacing()
    # The origin is that of the part which is covered; other programs leave the whole image's.
    origins = [np.array(image.GetOrigin()) - turn @ (np.array(part) * spacing) for part in (offset, (0, 0, 0))]
    places = [Volume(labels.transpose(2, 1, 0), spacing, (float(x), float(y), float(z)), turn) for x, y, z in origins]
    fitting = [place for place in places if sweep is None or grid_difference(place, sweep) is None]
    _check_grid((fitting or places)[0], shape, sweep, file)
    return labels


def _polygon(points: Sequence[float], size: tuple[int, int], file: Path) -> NDArray[np.bool_]:
    from PIL import Image, ImageDraw

    if len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise InputError(f"{file}: holds a polygon of fewer than three points; draw it again")
    canvas = Image.new("1", size)
    ImageDraw.Draw(canvas).polygon(list(points), fill=1, outline=1)
    mask = np.asarray(canvas)
    if not mask.any():
        raise InputError(f"{file}: holds a polygon outside the frame of {size[0]} x {size[1]} pixels; draw it again")
    return mask


def _runs(outline: dict[str, Any], size: tuple[int, int], file: Path) -> NDArray[np.bool_]:
    counts = outline["counts"]
    if isinstance(counts, str):
        raise InputError(f"{file}: holds compressed runs; export polygons, or uncompressed runs")
    if sum(counts) != size[0] * size[1] or outline.get("size", [*size[::-1]]) != [*size[::-1]]:
        raise InputError(
            f"{file}: holds runs over {sum(counts)} pixels ({outline.get('size')}) in a frame of {size[0]} x {size[1]}"
        )
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask: NDArray[np.bool_] = values.reshape(size).T
    return mask


def _id(name: str, names: Mapping[int, str], file: Path) -> int:
    for number, known in names.items():
        if known.lower().replace("_", " ") == str(name).lower().replace("_", " ").strip():
            return number
    raise InputError(f"{file}: holds {name!r}; known are {_listed(names)} (--labels)")


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
