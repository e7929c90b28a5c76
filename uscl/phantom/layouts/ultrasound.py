"""Simulated sweeps in the ultrasound layout.

::

    OUT/
      sweeps.csv        patient, sweep, image, label, visible, site, machine, split
      dataset.json, patients.csv      the same for readers of the plain folder layout
      imagesTr/ labelsTr/ visibleTr/  training and validation sweeps: NIfTI, [lateral, depth, frame], uint8
      imagesTs/ labelsTs/ visibleTs/  test sweeps; visible is 1 where the target is not in full shadow
      prompts.csv       one click per object of the test sweeps
      videos/CASE.mp4 or frames/CASE/0000.png, and key_frames/CASE/0012.png (label ids)   with ``video``
      parameters/CASE.json, study.json, contact_sheet.png

Sweeps carry no patient orientation, as sweeps do not: the direction is the identity, the spacing along the frames the
mean step of the hand.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from uscl.data.volume import Array, Volume, read_image, read_label, write_volume
from uscl.errors import InputError
from uscl.phantom.label_maps import LABEL_MAPS, LabelMap, torso_from_labels
from uscl.phantom.machine import MACHINES, Machine, Pose, draw_machine, draw_pose
from uscl.phantom.medium import Medium
from uscl.phantom.structures import SWEEP_LABELS
from uscl.phantom.study import Layout, Patient, Preview, StudyCase
from uscl.phantom.torso import SIDES, Side, TorsoAnatomy, View, build_torso, draw_pathology
from uscl.phantom.ultrasound import Sweep, share_labelled, simulate_sweep
from uscl.seeds import derive_seed

NAME = "phantom-ultrasound"
_WINDOWS = 8
_SHARE_TO_SHOW = 0.08


@dataclass(frozen=True)
class SweepStudy:
    """What a study of sweeps is made of.

    Attributes:
        patients: over all splits.
        sweeps_per_patient: from alternating flanks.
        seed: of everything.
        frames: per sweep.
        size: pixels of a frame along lateral and depth.
        machine: kind of machine: any, handheld, cart or high-end.
        total_sweeps: shared out over the patients instead of ``sweeps_per_patient``; the paper's set has 500.
        labels: pattern of real label maps to take organs from; null for procedural patients.
        label_map: which ids those use: btcv, amos or totalsegmentator.
        video: also write videos (mp4, needs the extra ``video``) or frame folders, with key-frame masks.
        key_frames: annotated frames per video.
        device: where to compute; speckle differs between kinds of devices.
    """

    patients: int = 12
    sweeps_per_patient: int = 2
    seed: int = 0
    frames: int = 64
    size: int = 128
    machine: str = "any"
    total_sweeps: int | None = None
    labels: str | None = None
    label_map: LabelMap = "btcv"
    video: Literal["none", "mp4", "frames"] = "none"
    key_frames: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.sweeps_per_patient < 1 or self.frames < 2 or self.size < 32 or self.key_frames < 1:
            raise InputError(f"a study needs a sweep per patient, 2 frames, 32 pixels and a key frame; found {self}")
        if self.machine not in MACHINES:
            raise InputError(f"no machine {self.machine!r}; choose one of {', '.join(MACHINES)}")
        if self.label_map not in LABEL_MAPS:
            raise InputError(f"no label map {self.label_map!r}; choose one of {', '.join(LABEL_MAPS)}")

    def sweeps_of(self, patient: Patient) -> int:
        """Number of sweeps of one patient."""
        if self.total_sweeps is None:
            return self.sweeps_per_patient
        each, more = divmod(self.total_sweeps, self.patients)
        return each + (patient.position < more)


PAPER = SweepStudy(patients=39, total_sweeps=500)
"""The size of the paper's set (section 3.1): 39 patients, 25 with pleural effusion, 14 abdominal, 500 sweeps."""


def view_of(patient: Patient) -> View:
    """What a patient's sweeps look for: of 39 consecutive patients 14 are abdominal, evenly among the others."""
    return "abdominal" if (patient.position * 14 + 20) % 39 < 14 else "pleural"


def cases(settings: SweepStudy, patient: Patient) -> list[StudyCase]:
    """The sweeps of one patient."""
    facts = {"site": view_of(patient), "machine": settings.machine}
    sweeps = range(settings.sweeps_of(patient))
    return [StudyCase(f"{patient.name}_sweep{n:02d}", patient, {**facts, "sweep": n}) for n in sweeps]


def simulate(
    folder: Path, settings: SweepStudy, missing: Sequence[StudyCase]
) -> Iterator[tuple[StudyCase, dict[str, Any]]]:
    """Writes sweeps of one patient."""
    patient = missing[0].patient
    view, seed = view_of(patient), (settings.seed, patient.split, patient.number)
    pathology = draw_pathology(np.random.default_rng(derive_seed("pathology", *seed)), view)
    anatomy = _anatomy(settings, patient, pathology)
    medium = Medium.of(anatomy, settings.device)
    first: Side = next(iter(pathology.effusion_ml), "right")
    sides = (first, *(side for side in SIDES if side != first))
    for case in missing:
        sweep = case.facts["sweep"]
        random = np.random.default_rng(derive_seed("sweep", *seed, sweep))
        machine = draw_machine(random, settings.machine)
        pose = _find_window(random, anatomy, medium, machine, sides[sweep % 2], view, settings.frames)
        speckle = derive_seed("speckle", *seed, sweep)
        made = simulate_sweep(medium, pose, machine, (settings.size, settings.size), speckle)
        _write(folder, settings, case, made)
        drawn: dict[str, Any] = {
            "patient": anatomy.parameters,
            "view": view,
            "side": sides[sweep % 2],
            "machine": asdict(machine),
            "spacing_mm": made.spacing,
            "speckle_seed": speckle,
            "probe_origin_mm": pose.origin.tolist(),
            "beam_axis": pose.axis.tolist(),
            "lateral_axis": pose.lateral.tolist(),
        }
        yield case, drawn


def _find_window(
    random: np.random.Generator,
    anatomy: TorsoAnatomy,
    medium: Medium,
    machine: Machine,
    side: Side,
    view: View,
    frames: int,
) -> Pose:
    """The first pose that shows a target, as a sonographer moves the probe until there is something to see."""
    tried: list[tuple[float, Pose]] = []
    for attempt in range(_WINDOWS):
        pose = draw_pose(random, anatomy, side, view, frames, footwards=8.0 * attempt)
        tried.append((share_labelled(medium, pose, machine), pose))
        if tried[-1][0] >= _SHARE_TO_SHOW:
            return pose
    return max(tried, key=lambda pair: pair[0])[1]


def _anatomy(settings: SweepStudy, patient: Patient, pathology: Any) -> TorsoAnatomy:
    seed = derive_seed("anatomy", settings.seed, patient.split, patient.number)
    if settings.labels is None:
        return build_torso(seed, pathology)
    pattern = Path(settings.labels).expanduser()
    files = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    if len(files) < settings.patients:
        raise InputError(
            f"{settings.labels}: {len(files)} label maps for {settings.patients} patients; a map is one patient"
        )
    return torso_from_labels(files[patient.position], settings.label_map, seed, pathology)


def _write(folder: Path, settings: SweepStudy, case: StudyCase, made: Sweep) -> None:
    name, patient = case.name, case.patient
    for kind, values in (("images", made.image), ("labels", made.label), ("visible", made.visible)):
        path = folder / f"{kind}{_side(patient)}" / f"{name}.nii.gz"
        write_volume(path, Volume(values.numpy(), made.spacing, distances="measured"), overwrite=True)
    if settings.video != "none":
        from uscl.phantom.video import write_frames, write_video

        frames = made.image.numpy().transpose(2, 1, 0)
        if settings.video == "mp4":
            write_video(folder / "videos" / f"{name}.mp4", frames)
        else:
            write_frames(folder / "frames" / name, frames, range(len(frames)))
        keys = np.unique(np.linspace(0, len(frames) - 1, min(settings.key_frames, len(frames))).round().astype(int))
        write_frames(folder / "key_frames" / name, made.label.numpy().transpose(2, 1, 0), keys.tolist())


def finish(folder: Path, settings: SweepStudy, cases: Sequence[StudyCase]) -> None:
    """Writes the manifest, the description and the clicks."""
    labels = {"background": 0} | {name: label_id for label_id, name in SWEEP_LABELS.items()}
    description = {"name": NAME, "labels": labels, "channel_names": {"0": "ultrasound"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    manifest = [("patient", "sweep", "image", "label", "visible", "site", "machine", "split")]
    for case in cases:
        files = [f"{kind}{_side(case.patient)}/{case.name}.nii.gz" for kind in ("images", "labels", "visible")]
        facts = (case.facts["site"], case.facts["machine"], case.patient.split)
        manifest.append((case.patient.name, case.name, files[0], files[1], files[2], *facts))
    _write_csv(folder / "sweeps.csv", manifest)
    patients = [("case", "patient", "split"), *((c.name, c.patient.name, c.patient.split) for c in cases)]
    _write_csv(folder / "patients.csv", patients)
    clicks: list[Sequence[Any]] = [("image", "i", "j", "k", "label", "object")]
    for case in cases:
        if case.patient.split == "test":
            label = read_label(folder / "labelsTs" / f"{case.name}.nii.gz")
            for label_id, i, j, k in innermost(label):
                clicks.append((f"imagesTs/{case.name}.nii.gz", i, j, k, 1, SWEEP_LABELS[label_id]))
    _write_csv(folder / "prompts.csv", clicks)


def innermost(label: Volume) -> Iterator[tuple[int, int, int, int]]:
    """Label id and innermost voxel of every object of a map."""
    for label_id in np.unique(label.array[label.array > 0]).tolist():
        depth = ndimage.distance_transform_edt(label.array == label_id, sampling=label.spacing)
        i, j, k = np.unravel_index(int(depth.argmax()), depth.shape)
        yield label_id, int(i), int(j), int(k)


def preview(folder: Path, case: StudyCase) -> Preview:
    """The middle frame."""
    image = read_image(folder / f"images{_side(case.patient)}" / f"{case.name}.nii.gz")
    label: Array = read_label(folder / f"labels{_side(case.patient)}" / f"{case.name}.nii.gz").array
    frame = image.shape[2] // 2
    return Preview(image.array[:, :, frame].T, label[:, :, frame].T, image.spacing[1] / image.spacing[0])


def _side(patient: Patient) -> str:
    return "Ts" if patient.split == "test" else "Tr"


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


LAYOUT = Layout("ultrasound", cases, simulate, finish, preview, SWEEP_LABELS)
