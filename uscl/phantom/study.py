"""Simulated studies on disk: who is simulated, by how many processes, resumed where it stopped.

What is written for a patient is a matter of the data set whose layout is followed: :mod:`uscl.phantom.layouts`.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.progress import track

from uscl.data.volume import Array
from uscl.errors import InputError

Split = Literal["train", "val", "test"]
CONTACT_SHEET = "contact_sheet.png"
COLOURS = ("#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#999999")


class Patient(NamedTuple):
    """Who is simulated: the side of the split, a number within it, and a number within the study.

    Seeds are keyed by split and number, so that nobody can turn up on two sides.
    """

    split: Split
    number: int
    position: int

    @property
    def name(self) -> str:
        """E.g. ``train004``."""
        return f"{self.split}{self.number:03d}"


class StudyCase(NamedTuple):
    """One case of a study: its name, whose it is, and what the layout wants to remember of it."""

    name: str
    patient: Patient
    facts: dict[str, Any]


class Preview(NamedTuple):
    """One slice for the contact sheet: rows downwards; label ids; height of a pixel over its width."""

    image: Array
    label: Array
    aspect: float


@dataclass(frozen=True)
class Layout:
    """How one data set is laid out.

    Attributes:
        name: as the command line calls it.
        cases: a patient's cases.
        simulate: writes some cases of one patient below a folder; yields each with what was drawn for it, once all of
            it is on disk.
        finish: writes what lists all cases.
        preview: reads one case back.
        label_names: of the ids that previews show.
    """

    name: str
    cases: Callable[[Any, Patient], list[StudyCase]]
    simulate: Callable[[Path, Any, Sequence[StudyCase]], Iterator[tuple[StudyCase, dict[str, Any]]]]
    finish: Callable[[Path, Any, Sequence[StudyCase]], None]
    preview: Callable[[Path, StudyCase], Preview]
    label_names: dict[int, str]


def simulate_study(layout: Layout, out: str | Path, settings: Any, workers: int = 1) -> Path:
    """Simulates a study, or what is still missing of it.

    Args:
        layout: of the data set.
        out: folder to write to.
        settings: a dataclass with ``patients`` and ``seed``; the same settings give the same files.
        workers: processes.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or a study with other settings.
    """
    folder = Path(out).expanduser()
    _claim(folder, layout, settings)
    if (folder / CONTACT_SHEET).is_file():  # written last
        return folder
    patients = all_patients(settings.patients)
    simulate = partial(simulate_patient, layout, folder, settings)
    title = f"Simulating {len(patients)} patients"
    done: Iterable[list[StudyCase]]
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
            done = list(track(pool.map(simulate, patients), title, total=len(patients)))
    else:
        done = [simulate(patient) for patient in track(patients, title)]
    cases = [case for of_patient in done for case in of_patient]
    layout.finish(folder, settings, cases)
    _write_contact_sheet(folder, layout, cases)
    return folder


def simulate_patient(layout: Layout, folder: Path, settings: Any, patient: Patient) -> list[StudyCase]:
    """Writes what is still missing of a patient; returns all of the patient's cases."""
    cases = layout.cases(settings, patient)
    missing = [case for case in cases if not _note_of(folder, case).is_file()]
    if missing:
        for case, drawn in layout.simulate(folder, settings, missing):
            _write_note(folder, case, drawn)
    return cases


def all_patients(count: int) -> list[Patient]:
    """Every patient of a study: 20 % test, 10 % validation, at least one each.

    Raises:
        InputError: fewer than three patients.
    """
    if count < 3:
        raise InputError(f"a study needs at least 3 patients, one for each side of the split; found {count}")
    test, val = max(1, round(0.2 * count)), max(1, round(0.1 * count))
    counts: dict[Split, int] = {"train": count - test - val, "val": val, "test": test}
    places = [(split, number) for split, n in counts.items() for number in range(n)]
    return [Patient(split, number, position) for position, (split, number) in enumerate(places)]


def _note_of(folder: Path, case: StudyCase) -> Path:
    """Where a case's parameters are noted; the file's presence says that the case is complete."""
    return folder / "parameters" / f"{case.name}.json"


def _write_note(folder: Path, case: StudyCase, drawn: dict[str, Any]) -> None:
    note = _note_of(folder, case)
    note.parent.mkdir(parents=True, exist_ok=True)
    partial_note = note.with_suffix(".partial")
    partial_note.write_text(json.dumps(drawn) + "\n", encoding="utf-8")
    partial_note.replace(note)


def _claim(folder: Path, layout: Layout, settings: Any) -> None:
    """Writes the settings, or checks that those that are there are the same."""
    note = folder / "study.json"
    wanted = json.loads(json.dumps({"layout": layout.name, **asdict(settings)}))
    if note.is_file():
        # What a study of an earlier version does not mention was as it is by default.
        usual = {entry.name: entry.default for entry in fields(settings) if entry.default is not MISSING}
        found = json.loads(json.dumps(usual)) | json.loads(note.read_text(encoding="utf-8"))
        if found != wanted:
            changed = {key: found.get(key) for key in wanted if found.get(key) != wanted[key]}
            raise InputError(f"{folder}: holds a study with other settings ({changed}); choose another folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no study.json; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _write_contact_sheet(folder: Path, layout: Layout, cases: Sequence[StudyCase], most: int = 12) -> None:
    """One slice of up to twelve cases with the outlines of their labels."""
    from matplotlib.figure import Figure

    chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(most, len(cases))).astype(int))]
    rows = -(-len(chosen) // 4)
    figure = Figure(figsize=(12, 3.1 * rows + 0.5), layout="constrained")
    axes = np.asarray(figure.subplots(rows, 4)).ravel()
    named: dict[int, str] = {}
    for axis in axes:
        axis.set_axis_off()
    for axis, case in zip(axes, chosen, strict=False):
        shown = layout.preview(folder, case)
        low, high = np.percentile(shown.image, (0.5, 99.5))
        axis.imshow(shown.image, cmap="gray", vmin=low, vmax=max(high, low + 1), aspect=shown.aspect)
        for label_id in sorted(set(layout.label_names) & set(np.unique(shown.label).tolist())):
            colour = named.setdefault(label_id, COLOURS[len(named) % len(COLOURS)])
            mask = np.equal(shown.label, label_id).astype(float)
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.9)
        axis.set_title(case.name, size=8)
    handles = [_swatch(colour, layout.label_names[label_id]) for label_id, colour in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=7, frameon=False)
    figure.suptitle("Simulated, not patients", size=9)
    figure.savefig(folder / CONTACT_SHEET, dpi=90)


def _swatch(colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label)


def _one_thread() -> None:
    torch.set_num_threads(1)
