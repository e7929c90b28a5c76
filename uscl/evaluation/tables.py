"""Tables from result rows: mean Dice per class and number of clicks, with n and a confidence interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from rich.table import Table

from uscl.evaluation.rows import ResultRow
from uscl.evaluation.statistics import DICE, Sample, estimate

EVERY_CLASS = "mean over classes"


@dataclass(frozen=True)
class Cell:
    """One mean.

    Attributes:
        mean: over the cases, nan if there is none.
        low: lower end of the 95 % confidence interval, nan with fewer than two patients.
        high: upper end.
        n: number of cases.
        patients: number of patients.
        missed: cases where nothing was segmented; they stand in the mean with 0.
    """

    mean: float
    low: float
    high: float
    n: int
    patients: int
    missed: int

    def __str__(self) -> str:
        if isnan(self.mean):
            return "-"
        interval = "" if isnan(self.low) else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        missed = f", {self.missed} missed" if self.missed else ""
        return f"{100 * self.mean:.1f}{interval}{missed}"


def dice_cells(rows: Sequence[ResultRow]) -> dict[tuple[str, str, int], Cell]:
    """Mean Dice by (method, class, clicks), and over classes (the mean of the class means) under :data:`EVERY_CLASS`.

    The interval is over patients (:func:`~uscl.evaluation.statistics.estimate`): cases of one are not independent.
    """
    groups: dict[tuple[str, int], dict[str, list[ResultRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not isnan(row.dice):
            groups[row.method, row.clicks][row.class_name].append(row)
    cells = {}
    for (method, clicks), classes in groups.items():
        for name, members in classes.items():
            cells[method, name, clicks] = _cell(members)
        cells[method, EVERY_CLASS, clicks] = _cell([row for members in classes.values() for row in members])
    return cells


def dice_table(rows: Sequence[ResultRow], title: str) -> Table:
    """The table that a test prints: Dice in percent with its 95 % interval, one line per method and class."""
    table = Table(
        title=title,
        caption="Dice in %, [95 % interval over patients]; n cases (patients); missed: empty masks, with Dice 0",
    )
    table.add_column("method")
    table.add_column("class")
    table.add_column("n", justify="right")
    for clicks in _clicks(rows):
        table.add_column(f"{clicks} pt", justify="right")
    above = None
    for method, *line in _lines(rows):
        table.add_row("" if method == above else method, *line, end_section=line[0] == EVERY_CLASS)
        above = method
    return table


def dice_markdown(rows: Sequence[ResultRow]) -> str:
    """The same table in Markdown."""
    head = ["method", "class", "n", *(f"{clicks} pt" for clicks in _clicks(rows))]
    lines = [head, ["---"] * len(head), *_lines(rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _clicks(rows: Sequence[ResultRow]) -> list[int]:
    return sorted({row.clicks for row in rows})


def _lines(rows: Sequence[ResultRow]) -> list[list[str]]:
    cells = dice_cells(rows)
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        names = sorted({name for m, name, _ in cells if m == method and name != EVERY_CLASS})
        for name in [*names, EVERY_CLASS]:
            found = [cells.get((method, name, clicks)) for clicks in _clicks(rows)]
            n = next(f"{cell.n} ({cell.patients})" for cell in found if cell)
            lines.append([method, name, n, *(str(cell) if cell else "-" for cell in found)])
    return lines


def _cell(members: list[ResultRow]) -> Cell:
    """Mean over the class means, and its interval over patients."""
    found = estimate([Sample(row.class_name, row.patient, None, row.case, row.dice) for row in members], DICE)
    missed = sum(not isfinite(row.hd95) for row in members)
    return Cell(found.mean, found.low, found.high, len(members), found.patients, missed)
