"""What a backbone segments from clicks: held-out CT and MR phantoms, ultrasound phantoms, data sets of your own.

Every object gets clicks as SAM-Med3D evaluates: the patch lies around the object, the first click is a random voxel of
it, later ones are random voxels of what is wrong. Clicks and cases are fixed by names and seeds, so that runs over two
backbones can be compared row by row. Then one click is moved to another object of the patch: does the mask follow?

    python benchmarks/mini.py [--weights embedded] [--patients 8] [--card uscl/backbone/embedded/mini.json]
    python benchmarks/mini.py --backbone mini_fine --inference refined --out runs/fine \
      --against runs/mini/rows.csv
    python benchmarks/mini.py --skip-phantoms --set "real CT" folder scans/ct CT --set "BraTS" brats scans/brats t2f

What it finds stands in a folder of its own (``--out runs/mini``, then ``runs/mini-2``), ``rows.csv`` and ``run.json``.
``--set NAME LAYOUT ROOT MODALITY`` reads any layout that ``data.dataset`` knows; the modality ``-`` takes the default,
and ``ct`` clamps to [-1000, 1000] HU. Classes under 20 ml are left out of such sets (3.4 ml of phantoms).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uscl.backbone import load_trunk
from uscl.backbone.initial_weights import start_at_clicks
from uscl.cli.run_folder import begin_record, claim_run_folder, end_record, release_run_folder
from uscl.data.cache import CaseCache
from uscl.data.datasets import Case, DataSet, read_amos, read_brats, read_folder
from uscl.data.patches import Preprocessing, corner_around_label
from uscl.data.registry import read_data_set
from uscl.errors import InputError
from uscl.phantom import LAYOUTS, SweepStudy, simulate_study
from uscl.phantom.layouts.scans import ScanStudy
from uscl.prompting import Preset, SamMed3DSegmenter, evaluation_rollout, resolve_inference
from uscl.prompting.clicks import error_click
from uscl.seeds import seeded_draw

CLICKS = (1, 3, 5, 10)
MEAN = "mean over classes"
SEED = 20_261
"""Of the held-out studies; training draws its anatomies under other names."""
SCANS, TOGETHER = ("phantom CT", "phantom MR", "phantom tumours"), "phantom CT, MR and tumours"
"""Groups that are also reported together."""
CLICKABLE = 1000
"""Voxels that an object needs for the click to be moved to it."""


class Group(NamedTuple):
    """Cases that are reported together."""

    name: str
    data_set: DataSet
    ct: bool
    smallest_ml: float


def phantoms(folder: Path, patients: int) -> Iterator[Group]:
    """Patients that no training has met: as many CTs, heads and (two sweeps each) sweeps, and half as many MRs."""
    torsos = patients + (patients - 1) // 2  # two CTs, then an MR
    amos = simulate_study(LAYOUTS["amos"], folder / "amos", ScanStudy(torsos, SEED), 2)
    brats = simulate_study(LAYOUTS["brats"], folder / "brats", ScanStudy(patients, SEED), 2)
    sweeps = simulate_study(LAYOUTS["ultrasound"], folder / "ultrasound", SweepStudy(patients, 2, SEED), 2)
    yield Group("phantom CT", read_amos(amos, "ct"), True, 3.375)
    yield Group("phantom MR", read_amos(amos, "mr"), False, 3.375)
    yield Group("phantom tumours", read_brats(brats, "t2f").only(["whole tumour"]), False, 3.375)
    yield Group("phantom tumours", read_brats(brats, "t1c").only(["tumour core", "enhancing tumour"]), False, 3.375)
    yield Group("phantom ultrasound", read_folder(sweeps), False, 3.375)


def own(name: str, layout: str, root: str, modality: str) -> Group:
    """A data set named on the command line."""
    data_set = read_data_set(layout, Path(root), None if modality == "-" else modality).require_sound()
    return Group(name, data_set, modality.lower() == "ct", 20)


def evaluate(group: Group, case: Case, segmenter: SamMed3DSegmenter) -> Iterator[dict[str, object]]:
    """Rows: Dice on the whole volume at 1.5 mm after each number of clicks, and whether the mask follows a click."""
    preprocessing = Preprocessing(clamp=(-1000, 1000) if group.ct else None)
    prepared, ids = CaseCache(preprocessing, group.data_set, 1).labelled(case)
    voxel_ml = float(np.prod(prepared.grid.spacing)) / 1000
    masks = {name: group.data_set.mask(ids, name) for name in group.data_set.classes}
    masks = {name: mask for name, mask in masks.items() if mask.sum() * voxel_ml >= group.smallest_ml}
    for name, mask in masks.items():
        corner = corner_around_label(mask, preprocessing.patch_size)
        here = {other: torch.from_numpy(preprocessing.cut(m, corner)) for other, m in masks.items()}
        image = preprocessing.cut(prepared.image, corner)
        image = preprocessing.normalise(image, corner, prepared.image.shape)
        key = (group.name, case.name, name)
        row: dict[str, object] = {"group": group.name, "case": case.name, "class": name}
        row["inference"] = segmenter.inference.in_words
        row["ml"] = round(float(mask.sum() * voxel_ml), 1)
        steps = evaluation_rollout(
            segmenter, torch.from_numpy(image)[None, None], here[name], max(CLICKS), partial(seeded_draw, "click", *key)
        )
        for step in steps:
            if step.number in CLICKS:
                predicted = step.logits > 0
                dice = 2 * int((predicted & here[name]).sum()) / (int(predicted.sum()) + int(mask.sum()))
                row[f"dice_{step.number}"] = round(dice, 4)
        row["moved"] = _follows(segmenter, here, name, key)
        yield row


def _follows(segmenter: SamMed3DSegmenter, here: dict[str, torch.Tensor], name: str, key: tuple[str, str, str]) -> str:
    """Puts the only click on another object: does the mask fit that one better ("1")? "" where there is no other.

    Objects that share voxels with the clicked one (regions of a tumour) do not count as others.
    """
    others = [o for o, mask in here.items() if int(mask.sum()) >= CLICKABLE and not bool((mask & here[name]).any())]
    if not others:
        return ""
    draw = seeded_draw("move", *key)
    other = others[draw(len(others))]
    mask = segmenter.segment([error_click(torch.zeros_like(here[other]), here[other], draw)]) > 0
    fit = [float(2 * (mask & here[n]).sum() / (mask.sum() + here[n].sum()).clamp_min(1)) for n in (other, name)]
    return str(int(fit[0] > fit[1]))


def figures(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """A line per class, and per group: mean over the cases of a class, then over classes, with intervals.

    Where there are CT, MR and head phantoms a last line takes all of them together, organs and regions of tumours.
    """
    lines: list[dict[str, object]] = []
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        for name in [*dict.fromkeys(row["class"] for row in mine), None]:
            some = [row for row in mine if name in (None, row["class"])]
            lines.append({"group": group, "class": name or MEAN, **_figures(some)})
    scans = [row | {"case": f"{row['group']}, {row['case']}"} for row in rows if row["group"] in SCANS]
    if {row["group"] for row in scans} == set(SCANS):
        lines.append({"group": TOGETHER, "class": MEAN, **_figures(scans)})
    return [{**line, "inference": rows[0]["inference"]} for line in lines]


def _figures(rows: list[dict[str, object]]) -> dict[str, object]:
    moved = [int(str(row["moved"])) for row in rows if row["moved"] != ""]
    dice = {f"dice_{n}": _interval(rows, f"dice_{n}") for n in CLICKS}
    cases = len({row["case"] for row in rows})
    return {"n": len(rows), "cases": cases, **dice, "followed": sum(moved), "moved": len(moved)}


def _interval(rows: list[dict[str, object]], column: str) -> list[float]:
    """Mean and, from three cases on, the 95 % bootstrap interval over cases."""
    by_case = defaultdict(list)
    for row in rows:
        by_case[row["case"]].append((row["class"], float(str(row[column]))))
    cases = list(by_case.values())
    mean = _class_mean(cases)
    if len(cases) < 3:
        return [round(mean, 4)]
    random = np.random.default_rng(0)
    drawn = [_class_mean([cases[i] for i in random.integers(len(cases), size=len(cases))]) for _ in range(1000)]
    return [round(float(value), 4) for value in (mean, *np.percentile(drawn, [2.5, 97.5]))]


def _class_mean(cases: list[list[tuple[object, float]]]) -> float:
    by_class = defaultdict(list)
    for case in cases:
        for name, dice in case:
            by_class[name].append(dice)
    return float(np.mean([np.mean(values) for values in by_class.values()]))


def against(rows: list[dict[str, object]], file: Path) -> list[dict[str, object]]:
    """Rows less those of an earlier run on the same cases, object by object, whatever inference either took."""
    with file.open(newline="") as stream:
        earlier = {_object(row): row for row in csv.DictReader(stream)}
    lacking = [_object(row) for row in rows if _object(row) not in earlier]
    if lacking:
        raise SystemExit(f"{file}: has no row of {lacking[0]}; give the rows.csv of a run on the same sets")
    gained = []
    for row in rows:
        before = earlier[_object(row)]
        dice = {f"dice_{n}": float(str(row[f"dice_{n}"])) - float(before[f"dice_{n}"]) for n in CLICKS}
        gained.append(row | dice | {"moved": ""})
    return gained


def _object(row: Mapping[str, object]) -> tuple[str, str, str]:
    return str(row["group"]), str(row["case"]), str(row["class"])


def table(lines: list[dict[str, object]], what: str = "Dice") -> Table:
    """The figures to look at, in %."""
    shown = Table(title=f"{what} in % [95 % bootstrap interval by case]; research software, not a medical device")
    for column in (
        "group",
        "inference",
        "class",
        "n (cases)",
        *(f"{n} clicks" for n in CLICKS),
        "click moved, mask followed",
    ):
        shown.add_column(column)
    for line in lines:
        shown.add_row(
            str(line["group"]),
            str(line["inference"]),
            str(line["class"]),
            *_cells(line),
            end_section=line["class"] == MEAN,
        )
    return shown


def _cells(line: dict[str, Any]) -> list[str]:
    """N (cases), Dice in % with its interval for every number of clicks, and how often the mask followed the click."""
    values = [line[f"dice_{n}"] for n in CLICKS]
    dice = [
        " ".join([f"{100 * v[0]:.1f}", *([f"[{100 * v[1]:.0f}, {100 * v[2]:.0f}]"] if v[1:] else [])]) for v in values
    ]
    return [f"{line['n']} ({line['cases']})", *dice, f"{line['followed']} of {line['moved']}" if line["moved"] else ""]


def update_card(file: Path, lines: list[dict[str, object]]) -> None:
    """Puts the figures into the card (JSON), and tables of means and classes into the page of its name beside it."""
    card = json.loads(file.read_text(encoding="utf-8"))
    replaced = {(line["group"], line["inference"]) for line in lines}
    kept = [line for line in card.get("figures", []) if (line["group"], line["inference"]) not in replaced]
    card["figures"] = kept + lines
    facts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in card.items() if key != "figures"]
    figures_text = ",\n  ".join(json.dumps(line) for line in card["figures"])
    text = ",\n".join([*facts, f' "figures": [\n  {figures_text}\n ]'])
    file.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    page = file.with_suffix(".md")
    before, mark, _ = page.read_text(encoding="utf-8").partition("## Figures\n")
    head = ["group", "inference", "n (cases)", *(f"{n} clicks" for n in CLICKS), "click moved, mask followed"]
    means = [line for line in card["figures"] if line["class"] == MEAN]
    tables = [_markdown(head, [[line["group"], line["inference"], *_cells(line)] for line in means])]
    own = [line for line in card["figures"] if line["class"] != MEAN]
    for group, inference in dict.fromkeys((line["group"], line["inference"]) for line in own):
        of_class = [line for line in own if (line["group"], line["inference"]) == (group, inference)]
        tables.append(
            f"### {group}, {inference}\n\n"
            + _markdown(["class", *head[2:]], [[f"{line['class']}", *_cells(line)] for line in of_class])
        )
    page.write_text(before + mark + "\n" + "\n".join(tables), encoding="utf-8")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Evaluates, writes rows.csv, prints the table and, if asked, writes the figures into a model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument(
        "--weights", default="embedded", help="file, hf:// reference, embedded, start (untrained), random"
    )
    parser.add_argument("--inference", default="published", choices=get_args(Preset), help="as in uscl segment")
    parser.add_argument("--patients", type=int, default=8, help="CTs, heads, patients with sweeps; half as many MRs")
    parser.add_argument("--skip-phantoms", action="store_true")
    parser.add_argument("--set", nargs=4, action="append", default=[], metavar=("NAME", "LAYOUT", "ROOT", "MODALITY"))
    parser.add_argument("--data", type=Path, default=Path("data/phantom/held_out"))
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    parser.add_argument("--card", type=Path, help="model card (JSON) to write the figures into")
    parser.add_argument("--against", type=Path, help="rows.csv of an earlier run: also shows paired differences")
    arguments = parser.parse_args()
    if arguments.against and not arguments.against.is_file():
        parser.error(f"--against {arguments.against}: no such file; give the rows.csv of an earlier run")
    if arguments.card and not arguments.card.is_file():
        parser.error(f"--card {arguments.card}: no such file; give a model card that is there")
    arguments.out = claim_run_folder(arguments.out, overwrite=False)
    begin_record(arguments.out, SEED)
    try:
        measure(arguments)
    except InputError as error:
        release_run_folder(abandon=True)
        parser.error(str(error))
    end_record(arguments.out, "finished")
    release_run_folder()
    print(f"Rows: {arguments.out / 'rows.csv'}")


def measure(arguments: argparse.Namespace) -> None:
    """Scores what ``arguments`` name; rows go to ``arguments.out``, the table to the screen, figures into the card.

    Raises:
        InputError: weights or data cannot be used, or hold nothing to score.
    """
    untrained = arguments.weights in ("random", "start")
    trunk = load_trunk(arguments.backbone, None if untrained else arguments.weights)
    if arguments.weights == "start":
        torch.manual_seed(0)
        start_at_clicks(trunk.model)
    groups = [own(*given) for given in arguments.set]
    groups += [] if arguments.skip_phantoms else phantoms(arguments.data, arguments.patients)
    segmenter = SamMed3DSegmenter(trunk.model, resolve_inference(arguments.inference, trunk.model.config))
    cases = [(group, case) for group in groups for case in group.data_set.cases if case.label]
    rows = [row for group, case in track(cases, "Scans") for row in evaluate(group, case, segmenter)]
    if not rows:
        raise InputError("nothing to score: no case has a label with an object that is large enough")
    with (arguments.out / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = figures(rows)
    weights = "untrained, starting at clicks" if arguments.weights == "start" else trunk.weights
    Console(width=170).print(f"weights: {weights}", table(lines))
    if arguments.against:
        Console(width=170).print(table(figures(against(rows, arguments.against)), f"Dice less {arguments.against}"))
    if arguments.card:
        update_card(arguments.card, lines)


if __name__ == "__main__":
    main()
