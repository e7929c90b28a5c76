"""Tables that people keep: CSV with a header line, as spreadsheets write it."""

from __future__ import annotations

import csv
from pathlib import Path

from uscl.errors import InputError

Row = dict[str, str]
"""Value by column."""


def read_table(path: Path, delimiter: str = ",") -> tuple[list[str], list[Row]]:
    """Reads the columns and the rows of a CSV file; values that are not there are empty.

    Raises:
        InputError: it is not UTF-8 text, or a row has more values than there are columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, restval="")
            found = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not readable as CSV in UTF-8 ({error}); save it as `CSV UTF-8`") from error
    for number, row in enumerate(found, start=2):
        # Spreadsheets leave empty columns behind; what has a value has lost its column.
        if any(row.pop(None, [])):
            raise InputError(f"{path}, line {number}: has more values than there are columns; quote values with commas")
    return list(reader.fieldnames or ()), found
