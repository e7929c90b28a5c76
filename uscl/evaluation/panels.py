"""The paper's Figure 6: one slice of an object, its reference, and the masks of every method that was tested on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from uscl.evaluation.ablation import Ablation, described
from uscl.evaluation.comparison import by_dice, methods_of
from uscl.evaluation.figures import (
    DISCLAIMER,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Panel,
    outline,
    read_slices,
    save_panels,
    show_slice,
)
from uscl.evaluation.runs import Setting, is_scan

log = logging.getLogger(__name__)
_SLICES = Path("pictures") / "slices.npz"
# White is unreadable on bright bone and fat without it.
_HALO = [Stroke(linewidth=1.5, foreground="black"), Normal()]
_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)


def draw_panels(ablation: Ablation, file: Path) -> bool:
    """Lays the masks of all methods on the same slice beside each other, as a PNG.

    A row is the object that came out in the middle, with ours, of each class that was tuned on, then of each CT or MR
    set: neither the best nor the worst, and nobody's choice. The slice is the one with most of the reference.

    Returns:
        Whether there was anything to draw: ours, scored at this number of clicks, and tests that kept their slices.
    """
    methods = {name: setting for name, setting in methods_of(ablation).items() if setting}
    found = {name: _slices(ablation, setting) for name, setting in methods.items()}
    found = {name: panels for name, panels in found.items() if panels}
    ours = next((name for name, setting in methods.items() if setting == ablation.ours and setting.modules), None)
    if ours not in found:
        return False
    chosen = _in_the_middle(ablation, set(found[ours]))
    if not chosen:
        return False
    figure = Figure(figsize=(2.1 * (2 + len(found)), 2.2 * len(chosen) + 0.7), layout="constrained")
    grid = np.atleast_2d(np.asarray(figure.subplots(len(chosen), 2 + len(found))))
    for row, (data_set, title) in zip(grid, chosen, strict=True):
        shown = found[ours][data_set, title]
        show_slice(row[0], shown, f"{data_set}\n{title}")
        _orient(row[0], is_scan(data_set))
        if shown.measured:
            _scale(row[0], shown)
        show_slice(row[1], shown, "reference")
        _cover(row[1], shown.reference, REFERENCE_COLOUR)
        for axis, (name, panels) in zip(row[2:], found.items(), strict=True):
            panel = panels.get((data_set, title))
            if panel is None or ablation.clicks not in panel.predictions:
                axis.set_title(f"{name}\nnot tested", size=7)
                axis.set_axis_off()
                continue
            show_slice(axis, panel, f"{name}\nDice {panel.dice[ablation.clicks]:.2f}")
            _cover(axis, panel.predictions[ablation.clicks], PREDICTION_COLOUR)
            if panel.reference is not None:
                outline(axis, panel.reference, REFERENCE_COLOUR)
    legend = f"Masks at {ablation.at}. Orange: reference, blue: mask; Dice over the whole volume."
    choice = f"Each object is the median of its class or data set with {ours}. Letters as in the files."
    figure.suptitle(f"{legend}\n{choice}\n{DISCLAIMER}", size=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return True


def draw_worst(ablation: Ablation, file: Path, count: int = 10) -> bool:
    """Draws the objects of the failure list, in its order, as a PNG; of several seeds the first that kept them.

    Returns:
        Whether a test kept the slices of any of them.
    """
    setting, ranked = ablation.ours, by_dice(ablation)
    kept = _slices(ablation, setting)
    shown = []
    for (data_set, case, class_name), _ in ranked[:count]:
        panel = kept.get((data_set, f"{case} {class_name}"))
        if panel is not None and ablation.clicks in panel.predictions:
            only = {ablation.clicks: panel.predictions[ablation.clicks]}
            shown.append(replace(panel, title=f"{data_set}\n{panel.title}", predictions=only))
    if shown:
        save_panels(file, shown, f"{described(setting)}: the worst of {len(ranked)} objects")
    return bool(shown)


def _slices(ablation: Ablation, setting: Setting) -> dict[tuple[str, str], Panel]:
    """The panels of a setting by data set and title, of the first seed that kept them."""
    found: dict[tuple[str, str], Panel] = {}
    for run in sorted((run for run in ablation.runs if run.setting == setting), key=lambda run: run.seed or 0):
        for data_set, folder in run.tests.items():
            if (file := folder / _SLICES).is_file():
                found = {(data_set, title): panel for title, panel in read_slices(file).items()} | found
    return found


def _in_the_middle(ablation: Ablation, kept: set[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Data set and title of the objects to draw."""
    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for run in ablation.runs:
        for data_set in ablation.data_sets if run.setting == ablation.ours else ():
            for row in run.rows.get(data_set, []):
                title = f"{row.case} {row.class_name}"
                if row.clicks == ablation.clicks and (data_set, title) in kept and row.dice == row.dice:
                    name = row.class_name if data_set == ablation.tuned_on else ""
                    groups.setdefault((data_set, name), []).append((row.dice, title))
    order = sorted(groups, key=lambda key: (key[0] != ablation.tuned_on, key))
    return [(key[0], median_low(groups[key])[1]) for key in order]


def _cover(axis: Axes, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None, colour: str) -> None:
    if mask is not None:
        axis.imshow(mask[..., None] * np.array(to_rgba(colour, 0.3)), interpolation="nearest", aspect=axis.get_aspect())
        outline(axis, mask, colour)


def _orient(axis: Axes, patient: bool) -> None:
    """Says where the patient's sides are, or in a sweep, where depth runs."""
    places = (
        ((0.02, 0.5, "R"), (0.94, 0.5, "L"), (0.48, 0.93, "A"), (0.35, 0.02, "P"))
        if patient
        else ((0.30, 0.92, "lateral \N{RIGHTWARDS ARROW}"), (0.02, 0.45, "\N{DOWNWARDS ARROW}\ndepth"))
    )
    for x, y, text in places:
        axis.text(x, y, text, transform=axis.transAxes, color="white", size=6, path_effects=_HALO)


def _scale(axis: Axes, panel: Panel) -> None:
    """A bar of a round length, at most a third of the width."""
    width = panel.image.shape[1]
    length = max((mm for mm in _BARS_MM if mm / panel.pixel_mm[0] <= width / 3), default=_BARS_MM[0])
    end, y = 0.95 * width, 0.95 * panel.image.shape[0]
    axis.plot(
        (end - length / panel.pixel_mm[0], end),
        (y, y),
        color="white",
        linewidth=2,
        solid_capstyle="butt",
        path_effects=[Stroke(linewidth=3.5, foreground="black"), Normal()],
    )
    axis.text(
        end, y - 0.02 * panel.image.shape[0], f"{length} mm", color="white", size=6, ha="right", path_effects=_HALO
    )
