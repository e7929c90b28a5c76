"""Simulated studies on disk, laid out like real data: the plain folder layout that ``VolumeDataModule`` reads.

::

    OUT/
      dataset.json   study.json (the settings)   patients.csv (case, patient, split)   prompts.csv (one click per test
      object) imagesTr/  labelsTr/   training and validation sweeps, NIfTI, [lateral, depth, frame], uint8
      imagesTs/  labelsTs/   test sweeps
      parameters/CASE.json   everything that was drawn for a sweep
      contact_sheet.png
"""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.progress import track
from scipy import ndimage

from uscl.data.volume import Array, Volume, read_image, read_label, write_volume
from uscl.errors import InputError
from uscl.phantom.anatomy import VOXEL, Side, build_torso, draw_pathology
from uscl.phantom.sweeps import View, draw_machine, draw_pose
from uscl.phantom.tissues import LABEL_NAMES
from uscl.phantom.ultrasound import simulate_sweep
from uscl.seeds import derive_seed

Split = Literal["train", "val", "test"]
NAME = "phantom-ultrasound"
CONTACT_SHEET = "contact_sheet.png"


class Patient(NamedTuple):
    """Who is simulated: the side of the split, a number within it, and what the sweeps look for."""

    split: Split
    number: int
    view: View


@dataclass(frozen=True)
class StudySettings:
    """What a study is made of; the same settings give the same files.

    Attributes:
        patients: over all splits: 20 % test, 10 % validation, at least one each.
        sweeps_per_patient: from alternating flanks.
        seed: of everything.
        frames: per sweep.
        size: pixels of a frame along lateral and depth.
    """

    patients: int = 12
    sweeps_per_patient: int = 2
    seed: int = 0
    frames: int = 64
    size: int = 128

    def __post_init__(self) -> None:
        if self.patients < 3 or self.sweeps_per_patient < 1 or self.frames < 2 or self.size < 32:
            raise InputError(f"a study needs at least 3 patients, 1 sweep each, 2 frames and 32 pixels; found {self}")

    def all_patients(self) -> list[Patient]:
        """Every patient. Seeds are keyed by split and number, so that nobody can turn up on two sides.

        Every third one is swept for ascites and abdominal organs, the others for pleural effusion, near the paper's
        14 and 25 of 39.
        """
        test, val = max(1, round(0.2 * self.patients)), max(1, round(0.1 * self.patients))
        counts: dict[Split, int] = {"train": self.patients - test - val, "val": val, "test": test}
        places = [(split, number) for split, count in counts.items() for number in range(count)]
        return [Patient(split, n, "abdominal" if i % 3 == 1 else "pleural") for i, (split, n) in enumerate(places)]


def simulate_study(out: str | Path, settings: StudySettings, workers: int = 1) -> Path:
    """Simulates a study, or what is still missing of it.

    Args:
        out: folder to write to.
        settings: what to simulate.
        workers: processes.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or a study with other settings.
    """
    folder = Path(out).expanduser()
    _claim(folder, settings)
    if (folder / CONTACT_SHEET).is_file():  # written last
        return folder
    patients = settings.all_patients()
    simulate = partial(_simulate_patient, folder, settings)
    done: Iterable[list[tuple[str, str, str]]]
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
            done = list(track(pool.map(simulate, patients), "Simulating patients", total=len(patients)))
    else:
        done = [simulate(patient) for patient in track(patients, "Simulating patients")]
    cases = [case for patient in done for case in patient]
    with (folder / "patients.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("case", "patient", "split"), *cases])
    _write_prompts(folder, [name for name, _, split in cases if split == "test"])
    _write_contact_sheet(folder, [(name, split) for name, _, split in cases])
    return folder


def _claim(folder: Path, settings: StudySettings) -> None:
    """Writes the settings, or checks that those that are there are the same."""
    note = folder / "study.json"
    if note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found != asdict(settings):
            raise InputError(f"{folder}: holds a study with other settings ({found}); choose another folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no study.json; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"background": 0} | {name: label_id for label_id, name in LABEL_NAMES.items()}
    description = {"name": NAME, "labels": labels, "channel_names": {"0": "ultrasound"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    note.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


def _simulate_patient(
    folder: Path, settings: StudySettings, who: Patient
) -> list[tuple[str, str, str]]:  # fmt: skip
    """Writes the sweeps of one patient that are not there yet; returns case, patient and split of all of them."""
    split, number, view = who
    patient = f"{split}{number:03d}"
    names = [f"{patient}_sweep{sweep:02d}" for sweep in range(settings.sweeps_per_patient)]
    missing = [sweep for sweep, name in enumerate(names) if not (folder / "parameters" / f"{name}.json").is_file()]
    if missing:
        random = np.random.default_rng(derive_seed("pathology", settings.seed, split, number))
        pathology = draw_pathology(random, view)
        anatomy = build_torso(derive_seed("anatomy", settings.seed, split, number), pathology)
        tissue, label = torch.from_numpy(anatomy.tissue), torch.from_numpy(anatomy.label)
        first: Side = next(iter(pathology.effusion_ml), "right")
        sides: tuple[Side, Side] = (first, "left" if first == "right" else "right")
    for sweep in missing:
        random = np.random.default_rng(derive_seed("sweep", settings.seed, split, number, sweep))
        machine = draw_machine(random)
        pose = draw_pose(random, anatomy, sides[sweep % 2], view, settings.frames)
        seed = derive_seed("speckle", settings.seed, split, number, sweep)
        made = simulate_sweep(tissue, label, anatomy.origin, VOXEL, pose, machine, (settings.size, settings.size), seed)
        side = "Ts" if split == "test" else "Tr"
        for kind, values in (("images", made.image), ("labels", made.label)):
            path = folder / f"{kind}{side}" / f"{names[sweep]}.nii.gz"
            write_volume(path, Volume(values.numpy(), made.spacing), overwrite=True)
        drawn: dict[str, Any] = {
            "patient": anatomy.parameters, "view": view, "side": sides[sweep % 2], "machine": asdict(machine),
            "spacing_mm": made.spacing, "speckle_seed": seed, "probe_origin_mm": pose.origin.tolist(),
            "beam_axis": pose.axis.tolist(), "lateral_axis": pose.lateral.tolist(),
        }  # fmt: skip
        note = folder / "parameters" / f"{names[sweep]}.json"
        note.parent.mkdir(exist_ok=True)
        partial_note = note.with_suffix(".partial")
        partial_note.write_text(json.dumps(drawn) + "\n", encoding="utf-8")
        partial_note.replace(note)  # last: its presence says that the sweep is complete
    return [(name, patient, split) for name in names]


def _write_prompts(folder: Path, names: list[str]) -> None:
    """One foreground click per object of the test sweeps: its innermost voxel."""
    with (folder / "prompts.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "i", "j", "k", "label", "object"))
        for name in names:
            label = read_label(folder / "labelsTs" / f"{name}.nii.gz")
            for label_id, i, j, k in _innermost(label):
                writer.writerow((f"imagesTs/{name}.nii.gz", i, j, k, 1, LABEL_NAMES[label_id]))


def _innermost(label: Volume) -> Iterator[tuple[int, int, int, int]]:
    for label_id in np.unique(label.array[label.array > 0]).tolist():
        depth = ndimage.distance_transform_edt(label.array == label_id, sampling=label.spacing)
        i, j, k = np.unravel_index(int(depth.argmax()), depth.shape)
        yield label_id, int(i), int(j), int(k)


def _write_contact_sheet(folder: Path, cases: list[tuple[str, str]], most: int = 12) -> None:
    """The middle frame of up to twelve sweeps with the outlines of their labels."""
    from matplotlib.figure import Figure

    chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(most, len(cases))).astype(int))]
    rows = -(-len(chosen) // 4)
    figure = Figure(figsize=(12, 3.1 * rows + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, 4)).ravel()
    colours = dict(zip(LABEL_NAMES, ("#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#F0E442"), strict=True))
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, split) in zip(axes, chosen, strict=False):
        side = "Ts" if split == "test" else "Tr"
        image = read_image(folder / f"images{side}" / f"{name}.nii.gz")
        label = read_label(folder / f"labels{side}" / f"{name}.nii.gz").array
        frame = image.shape[2] // 2
        aspect = image.spacing[1] / image.spacing[0]
        axis.imshow(image.array[:, :, frame].T, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        for label_id, colour in colours.items():
            mask: Array = np.equal(label[:, :, frame].T, label_id)
            if mask.any():
                axis.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
        axis.set_title(name, size=8)
    named = ", ".join(f"{colour} {LABEL_NAMES[label_id]}" for label_id, colour in colours.items())
    figure.suptitle(f"Simulated sweeps, middle frame. Outlines: {named}", size=8)
    figure.savefig(folder / CONTACT_SHEET, dpi=90)


def _one_thread() -> None:
    torch.set_num_threads(1)
