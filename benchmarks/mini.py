"""What a backbone segments from clicks: held-out CT and MR phantoms, ultrasound phantoms, real scans.

Every object gets clicks as SAM-Med3D evaluates: the patch lies around the object, the first click is a random voxel of
it, later ones are random voxels of what is wrong. Clicks and cases are fixed by names and seeds, so two runs over two
backbones can be compared row by row.

    python benchmarks/mini.py --weights FILE [--patients 12] [--real FOLDER] [--out runs/mini]

``--real`` is a folder with TotalSegmentator's example scans and BraTS patients; without it they are left out.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uscl.backbone import load_trunk
from uscl.data.patches import Preprocessing, corner_around_label
from uscl.data.volume import read_image, read_label
from uscl.phantom import LAYOUTS, SweepStudy, simulate_study
from uscl.phantom.layouts.amos import LABEL_NAMES as AMOS
from uscl.phantom.layouts.scans import ScanStudy
from uscl.phantom.structures import SWEEP_LABELS
from uscl.prompting import Click, SamMed3DSegmenter, evaluation_rollout
from uscl.prompting.clicks import error_click
from uscl.seeds import seeded_draw

CLICKS = (1, 3, 5, 10)
SEED = 20_260
# Label ids of BraTS 2023 (1 necrosis, 2 oedema, 3 enhancing) and 2013 (3 non-enhancing, 4 enhancing), and the contrast.
REGIONS = {
    "whole tumour": ((1, 2, 3), (1, 2, 3, 4), "t2f"),
    "tumour core": ((1, 3), (1, 3, 4), "t1c"),
    "enhancing tumour": ((3,), (4,), "t1c"),
}
TOTALSEG_CT = {
    1: "spleen", 2: "kidney right", 3: "kidney left", 4: "gallbladder", 5: "liver", 6: "stomach", 7: "pancreas",
    10: "lung upper lobe left", 11: "lung lower lobe left", 12: "lung upper lobe right", 13: "lung middle lobe right",
    14: "lung lower lobe right", 18: "small bowel", 19: "duodenum", 20: "colon", 51: "heart", 52: "aorta",
    63: "inferior vena cava", 64: "portal and splenic vein",
}  # fmt: skip
TOTALSEG_MR = {
    1: "spleen", 2: "kidney right", 3: "kidney left", 4: "gallbladder", 5: "liver", 6: "stomach", 7: "pancreas",
    10: "lung left", 11: "lung right", 13: "small bowel", 14: "duodenum", 15: "colon", 22: "heart", 23: "aorta",
    24: "inferior vena cava", 25: "portal and splenic vein",
}  # fmt: skip
"""Organ classes of TotalSegmentator 2 (https://github.com/wasserth/TotalSegmentator), without bones and muscles."""


class Scan(NamedTuple):
    """An image and its objects: name and label ids."""

    group: str
    case: str
    image: Path
    label: Path
    objects: dict[str, tuple[int, ...]]
    ct: bool
    smallest_ml: float


def phantom_scans(folder: Path, patients: int) -> Iterator[Scan]:
    """Patients that no training has met: studies draw theirs under other names than pre-training does."""
    amos = simulate_study(LAYOUTS["amos"], folder / "amos", ScanStudy(patients, SEED), 2)
    for image in sorted(amos.glob("images*/*.nii.gz")):
        label = image.parent.parent / image.parent.name.replace("images", "labels") / image.name
        objects = {name: (i,) for i, name in AMOS.items()}
        ct = int(image.name[5:9]) < 507
        yield Scan("phantom CT" if ct else "phantom MR", image.name[:9], image, label, objects, ct, 3.375)
    brats = simulate_study(LAYOUTS["brats"], folder / "brats", ScanStudy(patients, SEED), 2)
    for case in sorted(brats.glob("BraTS*")):
        for region, (ids, _, suffix) in REGIONS.items():
            image, label = (case / f"{case.name}-{kind}.nii.gz" for kind in (suffix, "seg"))
            yield Scan("phantom tumours", case.name, image, label, {region: ids}, False, 3.375)


def sweeps(folder: Path, patients: int) -> Iterator[Scan]:
    """Ultrasound phantoms."""
    study = simulate_study(LAYOUTS["ultrasound"], folder / "ultrasound", SweepStudy(patients, 2, SEED), 2)
    for image in sorted(study.glob("images*/*.nii.gz")):
        label = image.parent.parent / image.parent.name.replace("images", "labels") / image.name
        yield Scan("ultrasound phantom", image.name[:-7], image, label, {n: (i,) for i, n in SWEEP_LABELS.items()},
                   False, 3.375)  # fmt: skip


def real_scans(folder: Path) -> Iterator[Scan]:
    """TotalSegmentator's example CT and MR, and BraTS 2013 patients; regions above 20 ml."""
    for kind, image, label, names in (
        ("CT", "example_ct_sm.nii.gz", "example_seg.nii.gz", TOTALSEG_CT),
        ("MR", "example_mr_sm.nii.gz", "example_seg_mr.nii.gz", TOTALSEG_MR),
    ):
        path = folder / "ct_mr_totalseg"
        objects = {name: (i,) for i, name in names.items()}
        yield Scan(f"real {kind}", f"TotalSegmentator {kind}", path / image, path / label, objects, kind == "CT", 20)
    for label in sorted((folder / "mr_brats2013").glob("*OTMultiClass.nii.gz")):
        for region, (_, ids, suffix) in REGIONS.items():
            name = "Flair" if suffix == "t2f" else "T1c"
            image = Path(str(label).replace("OTMultiClass", f"{name}_subtrMeanDivStd"))
            yield Scan("real tumours", label.name[:18], image, label, {region: ids}, False, 20)


def evaluate(scan: Scan, segmenter: SamMed3DSegmenter) -> Iterator[dict[str, object]]:
    """Rows: Dice on the whole volume at 1.5 mm after each number of clicks, and whether the mask follows a click."""
    preprocessing = Preprocessing(clamp=(-1000, 1000) if scan.ct else None)
    image, grid = preprocessing.prepare_image(read_image(scan.image))
    ids = preprocessing.prepare_label(read_label(scan.label))
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    masks = {name: np.isin(ids, values) for name, values in scan.objects.items()}
    masks = {name: mask for name, mask in masks.items() if mask.sum() * voxel_ml >= scan.smallest_ml}
    for name, mask in masks.items():
        corner = corner_around_label(mask, preprocessing.patch_size)
        target = torch.from_numpy(preprocessing.cut(mask, corner))
        patch = preprocessing.normalise(preprocessing.cut(image, corner), corner, image.shape)
        tensor = torch.from_numpy(patch)[None, None]
        row: dict[str, object] = {"group": scan.group, "case": scan.case, "class": name}
        row["ml"] = round(float(mask.sum() * voxel_ml), 1)
        key = (scan.group, scan.case, name)
        for step in evaluation_rollout(segmenter, tensor, target, max(CLICKS), partial(seeded_draw, "click", *key)):
            if len(step.clicks) in CLICKS:
                predicted = step.logits > 0
                dice = 2 * int((predicted & target).sum()) / (int(predicted.sum()) + int(mask.sum()))
                row[f"dice_{len(step.clicks)}"] = round(dice, 4)
        row["moved"] = _moved(segmenter, masks, name, preprocessing, corner, key)
        yield row


def _moved(
    segmenter: SamMed3DSegmenter, masks: dict[str, np.ndarray], name: str, preprocessing: Preprocessing,
    corner: tuple[int, int, int], key: tuple[str, str, str],
) -> str:  # fmt: skip
    """Moves the only click to another object of the same patch: does the mask then fit that one better? "" if none."""
    here = {other: torch.from_numpy(preprocessing.cut(mask, corner)) for other, mask in masks.items()}
    others = [other for other, mask in here.items() if other != name and int(mask.sum()) >= 1000]
    if not others:
        return ""
    draw = seeded_draw("move", *key)
    other = others[draw(len(others))]
    nothing = torch.zeros_like(here[other])
    click: Click = error_click(nothing, here[other], draw)
    mask = segmenter.segment([click]) > 0
    fit = [float(2 * (mask & here[n]).sum() / (mask.sum() + here[n].sum()).clamp_min(1)) for n in (other, name)]
    return str(int(fit[0] > fit[1]))


def summary(rows: list[dict[str, object]]) -> Table:
    """Mean over the cases of a class, then over classes; interval: 95 % bootstrap over cases (patients)."""
    table = Table(title="Dice in % [95 % bootstrap interval by case]; research software, not a medical device")
    for column in ("group", "class", "n (cases)", *(f"{n} clicks" for n in CLICKS), "click moved, mask followed"):
        table.add_column(column)
    for group in dict.fromkeys(str(row["group"]) for row in rows):
        mine = [row for row in rows if row["group"] == group]
        for name in [*dict.fromkeys(str(row["class"]) for row in mine), None]:
            some = [row for row in mine if name in (None, row["class"])]
            moved = [int(str(row["moved"])) for row in some if row["moved"] != ""]
            cells = [_interval(some, f"dice_{n}") for n in CLICKS]
            told = f"{100 * np.mean(moved):.0f} % of {len(moved)}" if moved else ""
            cases = len({row["case"] for row in some})
            table.add_row(group, name or "mean over classes", f"{len(some)} ({cases})", *cells, told,
                          end_section=name is None)  # fmt: skip
    return table


def _interval(rows: list[dict[str, object]], column: str) -> str:
    by_case = defaultdict(list)
    for row in rows:
        by_case[row["case"]].append((row["class"], float(str(row[column]))))
    cases = list(by_case.values())
    random = np.random.default_rng(0)
    drawn = [_class_mean([cases[i] for i in random.integers(len(cases), size=len(cases))]) for _ in range(1000)]
    middle = 100 * _class_mean(cases)
    if len(cases) < 3:
        return f"{middle:.1f}"
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{middle:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _class_mean(cases: list[list[tuple[object, float]]]) -> float:
    by_class = defaultdict(list)
    for case in cases:
        for name, dice in case:
            by_class[name].append(dice)
    return float(np.mean([np.mean(values) for values in by_class.values()]))


def main() -> None:
    """Evaluates, writes rows.csv and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--skip-phantoms", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("data/phantom/held_out"))
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    arguments = parser.parse_args()
    trunk = load_trunk("mini", arguments.weights)
    scans: list[Scan] = []
    if not arguments.skip_phantoms:
        scans += [*phantom_scans(arguments.data, arguments.patients), *sweeps(arguments.data, arguments.patients)]
    if arguments.real:
        scans += real_scans(arguments.real)
    segmenter = SamMed3DSegmenter(trunk.model)
    rows = [row for scan in track(scans, "Scans") for row in evaluate(scan, segmenter)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    Console(width=170).print(f"weights: {trunk.weights}", summary(rows))


if __name__ == "__main__":
    main()
