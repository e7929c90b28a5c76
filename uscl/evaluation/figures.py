"""Pictures of masks. None of them is for diagnosis, and each says so."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uscl.errors import InputError

DISCLAIMER = "Research software, not a medical device."
# Okabe and Ito's colours, distinguishable by colour-blind readers.
REFERENCE_COLOUR, PREDICTION_COLOUR = "#E69F00", "#56B4E9"
FOREGROUND_COLOUR, BACKGROUND_COLOUR = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Panel:
    """One object on one slice, ready to be drawn: rows run downwards, columns to the right.

    Attributes:
        title: what it is.
        image: intensities [row, column].
        reference: mask, or None where there is none.
        predictions: mask after each number of clicks.
        clicks: (row, column, foreground) of the clicks that lie within two slices.
        dice: after each number of clicks, over the whole volume; empty where there is no reference.
        pixel_mm: width and height of a pixel.
        measured: whether these rest on more than an assumption.
    """

    title: str
    image: NDArray[Any]
    reference: NDArray[np.bool_] | None
    predictions: dict[int, NDArray[np.bool_]]
    clicks: tuple[tuple[int, int, bool], ...]
    dice: dict[int, float]
    pixel_mm: tuple[float, float]
    measured: bool = True


def radiological(plane: NDArray[Any]) -> NDArray[Any]:
    """An (x, y) plane of a RAS array as [row, column]: the patient's right on the left, anterior on top.

    A sweep without patient orientation shows as on the machine: lateral to the right, depth downwards.
    """
    return plane[::-1, ::-1].T.copy()  # a view would keep the whole volume for as long as the panel


def make_panel(
    title: str,
    image: NDArray[Any],
    reference: NDArray[np.bool_] | None,
    predictions: dict[int, NDArray[np.bool_]],
    clicks: Sequence[tuple[tuple[int, int, int], bool]],
    dice: dict[int, float],
    spacing: Sequence[float],
    measured: bool = True,
) -> Panel:
    """Cuts the z-slice with most of the object out of arrays indexed [x, y, z] in RAS.

    Args:
        title: what it is.
        image: intensities.
        reference: mask of the object, or None.
        predictions: mask after each number of clicks.
        clicks: voxel index and whether it is foreground.
        dice: after each number of clicks.
        spacing: mm.
        measured: whether it rests on more than an assumption.
    """
    object_mask = reference if reference is not None and reference.any() else list(predictions.values())[-1]
    k = int(object_mask.sum((0, 1)).argmax()) if object_mask.any() else clicks[0][0][2]
    nx, ny, _ = image.shape
    near = tuple((ny - 1 - y, nx - 1 - x, fg) for (x, y, z), fg in clicks if abs(z - k) <= 2)
    return Panel(
        title=title,
        image=radiological(image[:, :, k]),
        reference=None if reference is None else radiological(reference[:, :, k]),
        predictions={count: radiological(mask[:, :, k]) for count, mask in predictions.items()},
        clicks=near,
        dice=dict(dice),
        pixel_mm=(float(spacing[0]), float(spacing[1])),
        measured=measured,
    )


def save_panels(path: Path, panels: Sequence[Panel], heading: str) -> None:
    """One row per object: the image, the reference if there is any, and the mask after each number of clicks."""
    counts = sorted({count for panel in panels for count in panel.predictions})
    with_reference = any(panel.reference is not None for panel in panels)
    columns = 1 + with_reference + len(counts)
    figure = Figure(figsize=(2.1 * columns, 2.35 * len(panels) + 0.6), layout="constrained")
    axes = np.atleast_2d(np.asarray(figure.subplots(len(panels), columns)))
    for panel, row in zip(panels, axes, strict=True):
        show_slice(row[0], panel, f"{panel.title}")
        if with_reference:
            show_slice(row[1], panel, "reference")
            if panel.reference is not None:
                outline(row[1], panel.reference, REFERENCE_COLOUR)
        for axis, count in zip(row[1 + with_reference :], counts, strict=True):
            dice = f", Dice {panel.dice[count]:.2f}" if count in panel.dice else ""
            show_slice(axis, panel, f"{count} click{'s' * (count > 1)}{dice}")
            if panel.reference is not None:
                outline(axis, panel.reference, REFERENCE_COLOUR)
            outline(axis, panel.predictions[count], PREDICTION_COLOUR)
        for y, x, foreground in panel.clicks:
            colour = FOREGROUND_COLOUR if foreground else BACKGROUND_COLOUR
            row[-1].plot(x, y, marker="+" if foreground else "x", color=colour, markersize=6)
    legend = "orange: reference, " * with_reference + "blue: prediction, + foreground, x background."
    figure.suptitle(f"{heading}\n{legend}\n{DISCLAIMER}", size=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def save_slices(path: Path, panels: Sequence[Panel]) -> None:
    """Keeps panels as arrays, so that a report can lay the masks of several tests beside each other.

    Args:
        path: of the ``.npz``; images are kept as they are drawn, in 256 greys.
        panels: in any order.
    """
    arrays: dict[str, NDArray[Any]] = {}
    lines = []
    for number, panel in enumerate(sorted(panels, key=lambda panel: panel.title)):
        low, high = _window(panel.image)
        arrays[f"{number}/image"] = np.clip((panel.image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        if panel.reference is not None:
            arrays[f"{number}/reference"] = panel.reference
        arrays |= {f"{number}/{count}": mask for count, mask in panel.predictions.items()}
        lines.append(
            {
                "title": panel.title,
                "clicks": panel.clicks,
                "pixel_mm": panel.pixel_mm,
                "dice": list(panel.dice.items()),
                "counts": list(panel.predictions),
                "measured": panel.measured,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, panels=np.array(json.dumps(lines)), **arrays)


def read_slices(path: Path) -> dict[str, Panel]:
    """Panels that :func:`save_slices` kept, by title.

    Raises:
        InputError: the file is none of its.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {
                line["title"]: Panel(
                    line["title"],
                    arrays[f"{number}/image"],
                    arrays.get(f"{number}/reference"),
                    {count: arrays[f"{number}/{count}"] for count in line["counts"]},
                    tuple((y, x, foreground) for y, x, foreground in line["clicks"]),
                    dict(line["dice"]),
                    (line["pixel_mm"][0], line["pixel_mm"][1]),
                    line.get("measured", True),
                )
                for number, line in enumerate(json.loads(str(arrays["panels"])))
            }
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: holds no slices of a test ({error!r}); run the test again") from error


def show_slice(axis: Axes, panel: Panel, title: str) -> None:
    """Draws the image of a panel, without any mask."""
    width, height = panel.pixel_mm
    low, high = _window(panel.image)
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=high, aspect=height / width, interpolation="nearest")
    axis.set_title(title, size=7)
    axis.set_axis_off()


def _window(image: NDArray[Any]) -> tuple[float, float]:
    """Greys from black to white: a few bright voxels must not make the rest black."""
    low, high = np.percentile(image, (1, 99.5))
    return float(low), float(high)


def outline(axis: Axes, mask: NDArray[np.bool_], colour: str) -> None:
    """Draws the border of a mask."""
    if mask.any():
        axis.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.0)
