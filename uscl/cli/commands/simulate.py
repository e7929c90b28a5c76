"""``uscl simulate``: phantom studies on disk."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from typing import Any, Literal

from uscl.errors import InputError
from uscl.phantom import LAYOUTS, SweepStudy, simulate_study
from uscl.phantom.label_maps import LabelMap
from uscl.phantom.layouts.scans import ScanStudy
from uscl.phantom.layouts.ultrasound import PAPER

log = logging.getLogger(__name__)


def simulate(
    kind: str,
    out: str,
    patients: int | None = None,
    sweeps_per_patient: int = 2,
    seed: int = 0,
    workers: int = 1,
    preset: Literal["paper"] | None = None,
    machine: str = "any",
    frames: int = 64,
    size: int = 128,
    labels: str | None = None,
    label_map: LabelMap = "btcv",
    video: Literal["none", "mp4", "frames"] = "none",
    key_frames: int = 5,
    device: str = "cpu",
    coarsen: int = 1,
) -> None:
    """Simulates patients and writes their scans with exact labels in a data set's own layout.

    Args:
        kind: whose layout: ultrasound, amos, totalsegmentator, brats, or the dotted path of a layout of your own.
        out: folder to write to; a study that is already there in part is completed.
        patients: over all splits: 20 % test, 10 % validation, at least one each; default 12 for ultrasound, 8 else.
        sweeps_per_patient: ultrasound: from alternating flanks.
        seed: of everything.
        workers: processes.
        preset: ultrasound: "paper" is the size of the paper's set, 39 patients and 500 sweeps.
        machine: ultrasound: any, handheld, cart or high-end.
        frames: ultrasound: per sweep.
        size: ultrasound: pixels of a frame along both sides.
        labels: ultrasound: pattern of real label maps to take the organs from, one per patient.
        label_map: ultrasound: ids of those maps: btcv, amos or totalsegmentator.
        video: ultrasound: also write videos (mp4) or frame folders, with key-frame masks.
        key_frames: ultrasound: annotated frames per video.
        device: ultrasound: where to compute: cpu, cuda, cuda:1, ...
        coarsen: CT and MR: voxels are so many times as long along every axis, for a study that takes seconds.
    """
    layout = LAYOUTS.find(kind)
    settings: Any
    if kind == "ultrasound":
        if preset == "paper" and patients is not None:
            raise InputError("--preset paper sets the number of patients; leave out --patients")
        if coarsen != 1:
            raise InputError("--coarsen: for CT and MR alone; leave out with ultrasound")
        settings = SweepStudy(
            patients=SweepStudy().patients if patients is None else patients,
            sweeps_per_patient=sweeps_per_patient,
            seed=seed,
            machine=machine,
            frames=frames,
            size=size,
            labels=labels,
            label_map=label_map,
            video=video,
            key_frames=key_frames,
            device=device,
        )
        if preset == "paper":
            settings = replace(settings, patients=PAPER.patients, total_sweeps=PAPER.total_sweeps)
    else:
        given = {
            "sweeps_per_patient": sweeps_per_patient,
            "preset": preset,
            "machine": machine,
            "frames": frames,
            "size": size,
            "labels": labels,
            "label_map": label_map,
            "video": video,
            "key_frames": key_frames,
            "device": device,
        }
        usual = inspect.signature(simulate).parameters
        foreign = [f"--{name}" for name, value in given.items() if value != usual[name].default]
        if foreign:
            raise InputError(f"{', '.join(foreign)}: for ultrasound alone; leave out with {kind}")
        settings = ScanStudy(ScanStudy().patients if patients is None else patients, seed, coarsen)
    folder = simulate_study(layout, out, settings, workers)
    log.info("%s study: %s (contact_sheet.png shows it)", kind, folder)
