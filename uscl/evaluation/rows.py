"""Result rows: one line per (case, class, number of clicks). Tables and figures are made from rows alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

COLUMNS = (
    "data set",
    "case",
    "class",
    "method",
    "clicks",
    "dice",
    "nsd",
    "hd95",
    "seconds",
    "patient",
    "weights",
    "points",
    "volume error",
    "inference",
    "protocol",
    "distances",
)
OWN_INFERENCE = "its own"
"""In rows of comparators, whose inference is not ours to choose."""
NOT_RECORDED = "not recorded"
"""In rows of versions that did not write a column of words."""


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
        nsd: normalised surface Dice at 1 mm, in [0, 1]; at 1 voxel where distances are not known but assumed.
        hd95: mm, or voxels where distances are assumed; inf where nothing was segmented.
        seconds: time for all clicks so far, encoding the image included.
        patient: whom the case was taken from.
        weights: what the trunk's weights were; ``random weights`` if they were.
        points: clicks in the whole volume so far. 2D methods take ``clicks`` on every slice that holds the object.
        volume_error: predicted over true volume, minus 1; NaN in rows of versions that did not measure it.
        inference: how masks were made beside decoding each click once, in words (see
            :class:`~uscl.prompting.Inference`).
        protocol: where patch and clicks lay, and which mask was scored, in words.
        distances: where the millimetres of the image come from: measured, given or assumed (see
            :class:`~uscl.data.volume.Volume`); ``not recorded`` in rows of versions that did not write it.
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
    inference: str = NOT_RECORDED
    protocol: str = NOT_RECORDED
    distances: str = NOT_RECORDED

    @property
    def unit(self) -> str:
        """Of ``hd95``."""
        return {"assumed": "voxels", NOT_RECORDED: "mm or voxels"}.get(self.distances, "mm")

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
    with path.open("a+b") as binary:
        end = binary.seek(0, 2)
        if end:
            binary.seek(end - 1)
        cut = bool(end) and binary.read(1) != b"\n"
    with path.open("a", encoding="utf-8", newline="") as stream:
        if cut:  # or the first line would be taken for the rest of what was being written
            stream.write("\n")
        csv.writer(stream).writerows(map(_line, rows))


def read_appended(path: Path) -> list[ResultRow]:
    """Reads what :func:`append_rows` wrote; a line that was being written when the test was killed is left out."""
    found = []
    # A last number that was cut is a number all the same: what has no end of line is not read.
    whole = path.read_bytes().rpartition(b"\n")[0].decode("utf-8", "replace").replace("\0", "")
    for line in csv.reader(io.StringIO(whole, newline="")):
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
        if found not in (COLUMNS, *(COLUMNS[:count] for count in _EARLIER)):
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(found)[:200]}")
        return [_row(_completed(line) if len(found) in _EARLIER else line) for line in reader]


_EARLIER = (11, 13, 15)
"""Numbers of columns of earlier versions."""


def _completed(line: list[str]) -> list[str]:
    """A line of an earlier version with what that did not record: points, volume error, and then words."""
    if len(line) == _EARLIER[0]:
        line = [*line, line[4], "nan"]
    return [*line, *[NOT_RECORDED] * (len(COLUMNS) - len(line))] if len(line) in _EARLIER else line


def _row(line: list[str]) -> ResultRow:
    if len(line) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} values, found {len(line)}")
    data_set, case, name, method, clicks, dice, nsd, hd95, seconds, patient, weights, points, volume, *words = line
    return ResultRow(
        data_set,
        case,
        name,
        method,
        int(clicks),
        float(dice),
        float(nsd),
        float(hd95),
        float(seconds),
        patient,
        weights,
        int(points),
        float(volume),
        *words,
    )
