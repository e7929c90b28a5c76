"""Several test runs side by side: mean Dice per class and the paired difference of each to the first.

    python benchmarks/compare.py "untouched=runs/a/rows.csv" "tuned=runs/b/rows.csv" [--clicks 10] [--out table.md]

Rows are paired by (case, class, clicks). Intervals are 95 % bootstraps over patients (2000 draws, seed 0), of the
means as of their differences.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from uscl.evaluation import ResultRow, read_rows
from uscl.evaluation.tables import dice_markdown, dice_table


def paired_difference(ours: list[ResultRow], theirs: list[ResultRow], clicks: int) -> tuple[float, float, float, int]:
    """Mean over classes of (ours - theirs) in Dice, its interval, and the number of pairs."""
    other = {(row.case, row.class_name): row.dice for row in theirs if row.clicks == clicks}
    pairs = [(row.patient, row.class_name, row.dice - other[row.case, row.class_name]) for row in ours
             if row.clicks == clicks and (row.case, row.class_name) in other]  # fmt: skip
    if not pairs:
        raise SystemExit(f"no (case, class) at {clicks} clicks stands in both runs")
    patients, random = sorted({patient for patient, _, _ in pairs}), np.random.default_rng(0)
    of_patient = {patient: [pair for pair in pairs if pair[0] == patient] for patient in patients}
    drawn = [_class_mean([pair for i in random.integers(len(patients), size=len(patients))
                          for pair in of_patient[patients[i]]]) for _ in range(2000)]  # fmt: skip
    low, high = np.percentile(drawn, (2.5, 97.5))
    return _class_mean(pairs), float(low), float(high), len(pairs)


def _class_mean(pairs: list[tuple[str, str, float]]) -> float:
    classes = {name for _, name, _ in pairs}
    return float(np.mean([np.mean([d for _, name, d in pairs if name == wanted]) for wanted in classes]))


def main() -> None:
    """Prints both tables, and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=rows.csv")
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = {}
    for given in arguments.runs:
        name, _, path = given.partition("=")
        runs[name] = [replace(row, method=name) for row in read_rows(Path(path))]
    rows = [row for some in runs.values() for row in some]
    console = Console(width=120)
    console.print(dice_table(rows, "Dice by method"))
    names, lines = list(runs), []
    for name in names[1:]:
        for base in names[: names.index(name)]:
            mean, low, high, n = paired_difference(runs[name], runs[base], arguments.clicks)
            lines.append(f"{name} - {base}, {arguments.clicks} clicks: {100 * mean:+.1f} points "
                         f"[{100 * low:+.1f}, {100 * high:+.1f}], n = {n} pairs")  # fmt: skip
    console.print("\n".join(lines), highlight=False)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(dice_markdown(rows) + "\n" + "\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
