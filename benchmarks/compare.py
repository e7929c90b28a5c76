"""Several test runs side by side: mean Dice per class and the paired difference of each to the first.

    python benchmarks/compare.py "untouched=runs/a/rows.csv" "tuned=runs/b/rows.csv" [--clicks 10] [--out table.md]

Rows are paired by (case, class, clicks). Intervals are over patients (95 %, Student's t, from three on), of the
means as of their differences; Wilcoxon's signed-rank test goes over patients too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import isnan
from pathlib import Path

from rich.console import Console

from uscl.evaluation import read_rows
from uscl.evaluation.statistics import differences, estimate, samples_of, signed_rank
from uscl.evaluation.tables import dice_markdown, dice_table


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
            pair = (samples_of(runs[key], arguments.clicks) for key in (name, base))
            pairs = differences(*pair)
            found = estimate(pairs)
            if not found.n:
                raise SystemExit(f"no (case, class) at {arguments.clicks} clicks stands in both {name} and {base}")
            known = not isnan(found.low)
            interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]" if known else "(too few patients)"
            counts = f"n = {found.n} pairs of {found.patients} patients, Wilcoxon p = {signed_rank(pairs):.3f}"
            difference = f"{100 * found.mean:+.1f} points {interval}"
            lines.append(f"{name} - {base}, {arguments.clicks} clicks: {difference}, {counts}")
    console.print("\n".join(lines), highlight=False)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(dice_markdown(rows) + "\n" + "\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
