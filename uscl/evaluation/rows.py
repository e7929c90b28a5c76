"""Result rows: one line per (case, class, number of clicks). Tables and figures are made from rows alone."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

COLUMNS = (
    "data set", "case", "class", "method", "clicks", "dice", "nsd", "hd95", "seconds", "patient", "weights",
)  # fmt: skip


@dataclass(frozen=True)
class ResultRow:
    """One line; the attributes are the columns of :data:`COLUMNS` in their order.

    Attributes:
        data_set: name of the data set.
        case: name of the case.
        class_name: the structure.
        method: which model, in words.
        clicks: number of clicks so far.
        dice: in [0, 1], on the image's own grid; outside the patch counts as background.
        nsd: normalised surface Dice at 1 mm, in [0, 1].
        hd95: mm; inf where nothing was segmented.
        seconds: time for all clicks so far, encoding the image included.
        patient: whom the case was taken from.
        weights: what the trunk's weights were; ``random weights`` if they were.
    """

    data_set: str
    case: str
    class_name: str
    method: str
    clicks: int
    dice: float
    nsd: float
    hd95: float
    seconds: float
    patient: str
    weights: str

    @property
    def sort_key(self) -> tuple[str, str, str, str, int]:
        """Order of the rows in a file, whatever order they were made in."""
        return self.data_set, self.case, self.class_name, self.method, self.clicks


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Writes rows as CSV, sorted."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row in sorted(rows, key=lambda row: row.sort_key):
            writer.writerow(format(value, ".6g") if isinstance(value, float) else value for value in astuple(row))


def read_rows(path: Path) -> list[ResultRow]:
    """Reads what :func:`write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        next(reader)
        return [
            ResultRow(a, b, c, d, int(n), float(dice), float(nsd), float(hd95), float(seconds), patient, weights)
            for a, b, c, d, n, dice, nsd, hd95, seconds, patient, weights in reader
        ]
