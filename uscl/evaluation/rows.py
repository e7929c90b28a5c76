"""Result rows: one line per (case, class, number of clicks). Tables and figures are made from rows alone."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

COLUMNS = (
    "data set", "case", "class", "method", "clicks", "dice", "nsd", "hd95", "seconds", "patient", "weights",
    "points", "volume error",
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
        points: clicks in the whole volume so far. 2D methods take ``clicks`` on every slice that holds the object.
        volume_error: predicted over true volume, minus 1; NaN in rows of versions that did not measure it.
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
    points: int
    volume_error: float

    @property
    def sort_key(self) -> tuple[str, str, str, str, int]:
        """Order of the rows in a file, whatever order they were made in."""
        return self.data_set, self.case, self.class_name, self.method, self.clicks


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Writes rows as CSV, sorted."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(map(_line, sorted(rows, key=lambda row: row.sort_key)))


def append_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Adds rows to a file without a head, so that a test that is killed loses nothing but what it was at."""
    with path.open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(map(_line, rows))


def read_appended(path: Path) -> list[ResultRow]:
    """Reads what :func:`append_rows` wrote; a line that was being written when the test was killed is left out."""
    found = []
    with path.open(encoding="utf-8", newline="") as stream:
        for line in csv.reader(stream):
            with suppress(ValueError):
                found.append(_row(line))
    return found


def _line(row: ResultRow) -> list[str]:
    return [format(value, ".6g") if isinstance(value, float) else str(value) for value in astuple(row)]


def read_rows(path: Path) -> list[ResultRow]:
    """Reads what :func:`write_rows` wrote, or an earlier version of it without the last columns.

    Raises:
        ValueError: it did not write this.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        found = tuple(next(reader, ()))
        if found not in (COLUMNS, COLUMNS[:-2]):
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(found)[:200]}")
        return [_row(line if found == COLUMNS else [*line, line[4], "nan"]) for line in reader]


def _row(line: list[str]) -> ResultRow:
    data_set, case, name, method, clicks, dice, nsd, hd95, seconds, patient, weights, points, volume_error = line
    return ResultRow(data_set, case, name, method, int(clicks), float(dice), float(nsd), float(hd95), float(seconds),
                     patient, weights, int(points), float(volume_error))  # fmt: skip
