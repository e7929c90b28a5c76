"""Pseudo-labels of the propagation engine against the truth that phantoms have.

Sweeps whose plane moves through the anatomy, key frames evenly over them, Dice over all other frames of a sweep as one
volume, for every (sweep, class) of which a key frame shows something; with 95 % intervals over patients. How
well the check foretells it is Spearman's rho of the left-out Dice, and of the mean confidence, with the true Dice.

    uscl simulate ultrasound --out data/phantom/held_out_sweeps --patients 16 --frames 128 --seed 7 --workers 2
    python benchmarks/pseudo_label.py data/phantom/held_out_sweeps [--keys 3 5 7 9] [--out runs/pseudo_label]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from uscl.data.datasets.ultrasound import read_ultrasound
from uscl.data.volume import read_image, read_label
from uscl.evaluation.statistics import Sample, estimate
from uscl.pseudo_label.engine import dice
from uscl.pseudo_label.propagation import Propagation
from uscl.pseudo_label.sweep import frames_of, label_sweep

HEAD = (
    "case",
    "patient",
    "class",
    "keys",
    "key_frames_with_it",
    "dice",
    "trusted_dice",
    "trusted",
    "left_out_dice",
    "confidence",
)


def main() -> None:
    """Labels every sweep with every number of key frames; writes rows, a table and curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--keys", type=int, nargs="+", default=[3, 5, 7, 9])
    parser.add_argument("--out", type=Path, default=Path("runs/pseudo_label"))
    arguments = parser.parse_args()
    data_set = read_ultrasound(arguments.root)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    begin, motion_seconds = perf_counter(), 0.0
    for case in track(data_set.cases, "Labelling sweeps"):
        assert case.label is not None
        volume, truth = read_image(case.image), read_label(case.label).array.transpose(2, 1, 0)
        frames, engine = frames_of(volume), Propagation()
        for count in arguments.keys:
            keys = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int)).tolist()
            annotated = {t: truth[t] for t in keys}
            if not any(labels.any() for labels in annotated.values()):
                continue
            made = label_sweep(frames, annotated, data_set.label_names, engine, volume.spacing[1::-1])
            wanted = np.array([t for t in range(len(frames)) if t not in keys])
            trusted = np.array([t for t in wanted if t not in made.flags], int)
            for number, quality in made.quality.items():
                ours, theirs = made.labels == number, truth == number
                inside = theirs[wanted].any((1, 2)) | ours[wanted].any((1, 2))
                shown = sum(bool((annotated[t] == number).any()) for t in keys)
                rows.append(
                    dict(
                        zip(
                            HEAD,
                            (
                                case.name,
                                case.patient,
                                quality.name,
                                count,
                                shown,
                                dice(ours[wanted], theirs[wanted]),
                                dice(ours[trusted], theirs[trusted]) if theirs[trusted].any() else float("nan"),
                                trusted.size / wanted.size,
                                quality.dice,
                                float(quality.confidence[wanted][inside].mean()) if inside.any() else float("nan"),
                            ),
                            strict=True,
                        )
                    )
                )
    motion_seconds = perf_counter() - begin
    with (arguments.out / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, HEAD)
        writer.writeheader()
        writer.writerows(rows)
    _print(rows, arguments.keys, len(data_set.cases), motion_seconds)
    _draw(rows, arguments.keys, data_set.label_names.values(), arguments.out / "curves.png")


def _mean(rows: list[dict[str, object]], column: str = "dice") -> tuple[float, float, float, int]:
    kept = [row for row in rows if row[column] == row[column]]
    found = estimate(
        [Sample(str(r["class"]), str(r["patient"]), None, str(r["case"]), float(str(r[column]))) for r in kept]
    )
    return found.mean, found.low, found.high, len(kept)


def _print(rows: list[dict[str, object]], counts: list[int], sweeps: int, seconds: float) -> None:
    console = Console(width=130)
    table = Table(title=f"{sweeps} sweeps, {seconds:.0f} s: Dice over frames that are no key frames [95 % interval], n")
    for column in ("class", *(f"{count} key frames" for count in counts)):
        table.add_column(column)
    for name in dict.fromkeys(str(row["class"]) for row in rows):
        cells = []
        for count in counts:
            mean, low, high, n = _mean([row for row in rows if row["class"] == name and row["keys"] == count])
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}], {n}")
        table.add_row(name, *cells)
    console.print(table)
    for count in counts:
        own = [row for row in rows if row["keys"] == count]
        seen = [row for row in own if int(str(row["key_frames_with_it"])) >= 3]
        trusted = _mean(own, "trusted_dice")
        console.print(
            f"{count} key frames: shown by three or more of them {_mean(seen)[0]:.3f} (n = {len(seen)}); "
            f"trusted frames alone {trusted[0]:.3f}, {np.mean([float(str(r['trusted'])) for r in own]):.0%} "
            "of the frames"
        )
        for column in ("left_out_dice", "confidence"):
            kept = [row for row in own if row[column] == row[column]]
            if len(kept) > 2:
                rho = spearmanr([row[column] for row in kept], [row["dice"] for row in kept]).statistic
                console.print(f"  Spearman's rho of {column} with the true Dice: {rho:.2f} (n = {len(kept)})")


def _draw(rows: list[dict[str, object]], counts: list[int], classes: object, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = (("#000000", "o"), ("#D55E00", "s"), ("#0072B2", "^"), ("#009E73", "D"), ("#CC79A7", "v"))
    for name, (colour, mark) in zip(dict.fromkeys(str(row["class"]) for row in rows), styles, strict=False):
        found = [_mean([r for r in rows if r["class"] == name and r["keys"] == count]) for count in counts]
        axes.plot(counts, [f[0] for f in found], color=colour, marker=mark, label=name)
        axes.fill_between(counts, [f[1] for f in found], [f[2] for f in found], color=colour, alpha=0.1, linewidth=0)
    axes.set(xlabel="key frames", ylabel="Dice over the other frames", ylim=(0, 1), xticks=counts)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
