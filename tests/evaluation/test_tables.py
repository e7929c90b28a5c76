import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from uscl.evaluation import ResultRow, read_rows, write_rows
from uscl.evaluation.rows import COLUMNS, append_rows, read_appended
from uscl.evaluation.tables import EVERY_CLASS, dice_cells, dice_markdown, dice_table


def row(case="a", name="liver", clicks=1, dice=0.5, patient="p", hd95=3.0, method="ours") -> ResultRow:
    return ResultRow("set", case, name, method, clicks, dice, 0.4, hd95, 0.1, patient, "random weights", clicks, 0.2)


def test_columns_are_the_contract():
    assert COLUMNS[:9] == ("data set", "case", "class", "method", "clicks", "dice", "nsd", "hd95", "seconds")


def test_rows_are_written_sorted_and_read_back(tmp_path):
    rows = [row("b", clicks=3), row("a", clicks=10), row("a", clicks=2, dice=math.nan, hd95=math.inf)]
    write_rows(tmp_path / "rows.csv", rows)
    again = read_rows(tmp_path / "rows.csv")
    assert [(r.case, r.clicks) for r in again] == [("a", 2), ("a", 10), ("b", 3)]
    assert math.isnan(again[0].dice)
    assert math.isinf(again[0].hd95)
    assert again[2] == rows[0]


def test_means_are_over_cases_then_over_classes():
    rows = [row("a", "liver", dice=0.2), row("b", "liver", dice=0.4, patient="q"), row("c", "spleen", dice=0.9)]
    cells = dice_cells(rows)
    assert cells["ours", "liver", 1].mean == pytest.approx(0.3)
    assert cells["ours", "spleen", 1].mean == pytest.approx(0.9)
    assert cells["ours", EVERY_CLASS, 1].mean == pytest.approx(0.6)
    assert (cells["ours", "liver", 1].n, cells["ours", "liver", 1].patients) == (2, 2)


def test_the_interval_is_by_patient():
    """Ten cases of one patient are no ten patients."""
    one = [row(str(i), dice=i / 10) for i in range(10)]
    assert math.isnan(dice_cells(one)["ours", "liver", 1].low)
    values = np.random.default_rng(0).uniform(0.3, 0.9, 40)
    many = [row(str(i), dice=float(d), patient=str(i)) for i, d in enumerate(values)]
    cell = dice_cells(many)["ours", "liver", 1]
    half_width = 1.96 * values.std() / np.sqrt(40)
    assert cell.low == pytest.approx(values.mean() - half_width, abs=0.01)
    assert cell.high == pytest.approx(values.mean() + half_width, abs=0.01)
    paired = [row(f"{i}{k}", dice=float(d), patient=str(i)) for i, d in enumerate(values) for k in "ab"]
    assert dice_cells(paired)["ours", "liver", 1].low == pytest.approx(cell.low), "two sweeps each add no patients"


def test_nothing_to_find_and_nothing_found_is_not_averaged():
    cells = dice_cells([row("a", dice=math.nan, hd95=math.nan), row("b", dice=0.5)])
    assert cells["ours", "liver", 1].mean == 0.5
    assert cells["ours", "liver", 1].n == 1


def test_printed_and_markdown_tables_show_every_class_and_count():
    rows = [row("a", name, clicks, 0.1 * clicks) for name in ("liver", "kidney") for clicks in (1, 5)]
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    console.print(dice_table(rows, "a title"))
    for text in (console.export_text(), dice_markdown(rows)):
        for word in ("liver", "kidney", EVERY_CLASS, "1 pt", "5 pt", "10.0", "50.0", "1 (1)"):
            assert word in text


def test_empty_masks_count_as_zero_and_are_reported():
    rows = [row("a", dice=0.0, hd95=math.inf), row("b", dice=0.5, patient="q")]
    assert dice_cells(rows)["ours", "liver", 1].missed == 1
    assert "25.0, 1 missed" in dice_markdown(rows)
    assert "missed" not in dice_markdown(rows[1:])


def test_a_last_number_that_was_cut_is_not_read(tmp_path):
    """Cut off, 0.25 is 0.2: a number all the same, and of as many columns."""
    file = tmp_path / "rows.partial-0.csv"
    append_rows(file, [row("a"), replace(row("b"), volume_error=0.25)])
    file.write_bytes(file.read_bytes()[:-3])
    assert [found.case for found in read_appended(file)] == ["a"]
    append_rows(file, [row("c")])
    assert "c" in {found.case for found in read_appended(file)}, "what is added begins a line of its own"
    file.write_bytes(file.read_bytes() + bytes(40))  # what a file system may leave after a power cut
    assert read_appended(file)[-1] == row("c")
