"""``uscl pseudo-label``: masks for every frame of a sweep from a few annotated ones."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table

from uscl.cli.run_folder import begin_record, end_record
from uscl.data.datasets.folder import read_description
from uscl.data.datasets.ultrasound import CLASSES
from uscl.data.sweeps import SweepReading, frame_numbers, read_sweep
from uscl.data.volume import Volume, stem
from uscl.errors import InputError
from uscl.pseudo_label.engine import Engine
from uscl.pseudo_label.key_frames import read_key_frames
from uscl.pseudo_label.output import MANIFEST, add_to_manifest, check_manifest, quality_record, write_pairs
from uscl.pseudo_label.pages import page, save_contact_sheet
from uscl.pseudo_label.propagation import Propagation
from uscl.pseudo_label.quality import suggest_frames
from uscl.pseudo_label.registration import Registration
from uscl.pseudo_label.seggpt import SegGptEngine, SegGptSettings
from uscl.pseudo_label.sweep import CheckSettings, LabelledSweep, check_key_frames, frames_of, label_sweep

log = logging.getLogger(__name__)
_MARK = ".uscl-pseudo-label"
_WORK = "work"
_DONE = "quality.json"
_OURS = re.compile(
    r"((image|label)(_\d+)?|proposals)\.nii\.gz(\.distances\.json)?|quality\.json|contact_sheet\.png|report\.html"
)


def pseudo_label(
    sweep: str,
    key_frames: str,
    out: str,
    engine: Literal["propagation", "seggpt"] = "propagation",
    compare: bool = False,
    labels: str | None = None,
    reading: SweepReading = SweepReading(),
    check: CheckSettings = CheckSettings(),
    registration: Registration = Registration(),
    seggpt: SegGptSettings = SegGptSettings(),
    patient: str | None = None,
    manifest: str | None = None,
    suggest: int = 3,
    least_frames: int = 8,
    keep_flagged: bool = False,
    allow_empty: bool = False,
    overwrite: bool = False,
) -> None:
    """Labels every frame of a sweep from a few key frames, checks the result, and writes pairs to train on.

    Args:
        sweep: a video, a folder of frames, a DICOM file or series, or a volume whose frames lie along its third axis.
        key_frames: a folder of masks (0012.png with label ids), of such folders named by classes, or of LabelMe files;
            a COCO file; a 3D Slicer segmentation (.seg.nrrd); or a label volume with some frames filled. Frames count
            from 0; those of a folder are known by the numbers in their names, if all have one.
        out: folder to write to; run again with more key frames it finds the motion of the sweep there.
        engine: how masks are carried: propagation, by shape and motion, needs no weights; seggpt paints them after the
            example of the key frames. Neither ever stands in for the other.
        compare: carry them with the other engine, too, and report how far both agree; its masks are not used.
        labels: dataset.json that names the label ids; without it they are the paper's five classes.
        reading: what the frames of a sweep do not know, and what of them is blackened.
        check: when a frame is trusted.
        registration: how neighbouring frames are registered, for propagation.
        seggpt: weights and prompts of SegGPT (extra pseudo-label).
        patient: whom the sweep belongs to; the default is its file's name.
        manifest: sweeps.csv to add the pairs to, beside the one in the folder.
        suggest: how many frames to suggest for annotating next.
        least_frames: shortest stretch of trusted frames that becomes a pair.
        keep_flagged: train on flagged frames too; by default they are left out.
        allow_empty: take key frames without any label to say that nothing is there.
        overwrite: replace the results of an earlier run in the folder; what was corrected in it by hand is lost.

    Raises:
        InputError: the sweep or the key frames cannot be used, or the folder holds something else.
    """
    source, folder = Path(sweep).expanduser(), Path(out).expanduser()
    names = CLASSES if labels is None else read_description(Path(labels).expanduser()).label_names
    if not names:
        raise InputError(f'{labels}: names no labels; expected {{"labels": {{"background": 0, "liver": 1}}}}')
    volume = read_sweep(source, reading)
    frames = frames_of(volume)
    if least_frames < 2 or suggest < 0:
        raise InputError(
            f"least_frames is {least_frames} and suggest {suggest}; a sweep has at least two frames, and "
            "no fewer than 0 can be suggested"
        )
    annotated = read_key_frames(key_frames, frames.shape, names, allow_empty, volume)
    check_key_frames(annotated, frames.shape, names)
    numbers = frame_numbers(volume, len(frames))
    if numbers[0] != 0 or numbers[-1] != len(numbers) - 1:
        log.info(
            "%s: its frames are numbered %d to %d in their names, and so they are called here",
            source,
            numbers[0],
            numbers[-1],
        )
    name = stem(source.resolve())
    manifests = {folder / MANIFEST, *([Path(manifest).expanduser()] if manifest else [])}
    engines: dict[str, Callable[[], Engine]] = {
        "propagation": lambda: Propagation(registration, folder / _WORK),
        "seggpt": lambda: SegGptEngine(seggpt, folder / _WORK),
    }
    carrier = engines.pop(engine)()  # weights that are not there are reported before anything is written
    other = next(iter(engines.values()))() if compare else None
    for target in manifests:
        check_manifest(target, name, folder, names)
    _claim(folder, volume, overwrite)
    _begin(
        folder,
        {
            "sweep": str(source),
            "key_frames": str(key_frames),
            "engine": engine,
            "compare": compare,
            "labels": labels,
            "reading": vars(reading),
            "check": vars(check),
            "registration": vars(registration),
            "seggpt": vars(seggpt),
            "least_frames": least_frames,
            "keep_flagged": keep_flagged,
        },
    )
    # Outlines are as far apart as pixels say where nobody knows their millimetres.
    known = volume.distances != "assumed"
    pixel, unit = ((volume.spacing[1], volume.spacing[0]), "mm") if known else ((1.0, 1.0), "pixels")
    made = label_sweep(frames, annotated, names, carrier, pixel, check, other)
    suggested = suggest_frames(list(made.quality.values()), made.keys, suggest)
    _remove_results(folder)
    pairs = write_pairs(folder, volume, made, name, keep_flagged, least_frames)
    for target in manifests:
        add_to_manifest(target, pairs, name, patient or name, folder, names, volume.distances)
    title = f"Pseudo-labels of {name}, engine {carrier.name}"
    if not known:
        title += ", distances assumed"
    save_contact_sheet(folder / "contact_sheet.png", frames, made, names, title, numbers)
    (folder / "report.html").write_text(page(frames, made, names, title, suggested, numbers, unit), encoding="utf-8")
    record = quality_record(made, names, suggested, numbers, unit) | {
        "sweep": str(source),
        "distances": volume.distances,
        "engine": carrier.name,
        "made_by": carrier.identity,
    }
    (folder / _DONE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    end_record(folder, "finished")
    console = Console()
    console.print(_table(made, name, numbers, unit))
    log.info(
        "%d of %d frames are flagged; %d pair(s) to train on: --data VolumeDataModule --data.dataset ultrasound "
        "--data.root %s",
        len(made.flags),
        len(frames),
        len(pairs),
        folder / MANIFEST,
    )
    if suggested:
        listed = ", ".join(str(numbers[t]) for t in suggested)
        log.info("Annotate next: frame %s. Look at %s", listed, folder / "report.html")
    if not pairs:
        log.warning("No stretch of %d trusted frames: annotate more key frames, or see --check.threshold", least_frames)


def _claim(folder: Path, volume: Volume, overwrite: bool) -> None:
    """Makes the folder, or checks that it is one of the same sweep without results that must be kept."""
    content = hashlib.sha256(volume.array.tobytes() + repr((volume.shape, volume.spacing)).encode()).hexdigest()
    mark = folder / _MARK
    if mark.is_file():
        if mark.read_text(encoding="utf-8").strip() != content:
            raise InputError(f"{folder}: holds the labels of another sweep; choose another --out")
        if (folder / _DONE).is_file() and not overwrite:
            raise InputError(
                f"{folder}: has been labelled; --overwrite replaces the results, and with them whatever "
                "was corrected by hand"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is not empty and holds no pseudo-labels; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(content + "\n", encoding="utf-8")


def _remove_results(folder: Path) -> None:
    """Takes earlier results away, once those that replace them are there; files of other names stay."""
    for file in folder.iterdir():
        if _OURS.fullmatch(file.name):
            file.unlink()


def _begin(folder: Path, config: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(config, default=str))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    begin_record(folder, None)


def _table(made: LabelledSweep, name: str, numbers: Sequence[int], unit: str) -> Table:
    table = Table(
        title=f"{name}: {len(made.labels)} frames, {len(made.keys)} key frames",
        caption="a key frame left out is predicted across a gap twice as wide",
    )
    for column in ("class", "key frames left out", "their Dice", f"their HD95, {unit}", "lowest confidence"):
        table.add_column(column)
    for quality in made.quality.values():
        inner = quality.confidence[min(made.keys) : max(made.keys) + 1]
        table.add_row(
            quality.name,
            str(len(quality.left_out)),
            f"{quality.dice:.2f}",
            f"{quality.hd95:.1f}",
            f"{inner.min():.2f} (frame {numbers[int(inner.argmin()) + min(made.keys)]})",
        )
    return table
