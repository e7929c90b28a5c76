"""``uscl report``: tables of the paper's layout from run folders."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from uscl.errors import InputError
from uscl.evaluation.ablation import cost_table, described, look_at, table3, table4, table5
from uscl.evaluation.charts import draw_boxes, draw_curves
from uscl.evaluation.claims import claims_table
from uscl.evaluation.comparison import differences_table, failures_table, reach_table, table1, table2
from uscl.evaluation.folds import fold_notes
from uscl.evaluation.html import page
from uscl.evaluation.panels import draw_panels, draw_worst
from uscl.evaluation.report import ReportTable, write_report
from uscl.evaluation.runs import find_runs

_TABLES = {"1": table1, "2": table2, "3": table3, "4": table4, "5": table5}
_PICTURES = {
    "Dice against the number of clicks, with 95 % bands": "dice_by_clicks.png",
    "Dice by class; every dot is an object": "dice_by_class.png",
    "Figure 6: the same slice with every method": "panels.png",
    "The worst objects": "worst.png",
}
_NAMES = (*(f"table{number}" for number in _TABLES), "differences", "reach", "failures", "cost", "claims")
_OURS = {
    "report.md",
    "report.html",
    *_PICTURES.values(),
    *(f"{name}.{ending}" for name in _NAMES for ending in ("csv", "tex")),
}


def report(runs: list[str], out: str, tables: str = "1,2,3,4,5", clicks: int = 10, data_set: str | None = None) -> None:
    """Writes the paper's tables from finished runs: ours beside the paper's figures, HTML, Markdown, CSV and LaTeX.

    Args:
        runs: run folders, or folders that hold them, e.g. of a sweep.
        out: folder of the report; a report in it is replaced.
        tables: of 1 to 5. With 1 and 2 come paired differences, the clicks it takes to reach a Dice and the objects
            that came out worst; with 3, 4 and 5 what trainings cost and what becomes of the paper's claims.
        clicks: number of clicks at which all but Tables 1 and 2 show Dice.
        data_set: name of the data set that was tuned on, where that is not plain.

    Raises:
        InputError: there are no runs to report on, no such table, or the folder holds something else.
    """
    wanted = list(dict.fromkeys(part.strip() for part in tables.split(",")))
    if unknown := set(wanted) - set(_TABLES):
        raise InputError(f"--tables: there is no table {min(unknown)!r} here; choose of {', '.join(_TABLES)}")
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _OURS):
        raise InputError(f"{folder}: holds something else than a report; choose another --out")
    found = find_runs([Path(path).expanduser() for path in runs])
    ablation = look_at(found, clicks, data_set)
    made = [_TABLES[number](ablation) for number in wanted]
    if set(wanted) & {"3", "4", "5"}:
        made += [cost_table(ablation), claims_table(ablation)]
    if set(wanted) & {"1", "2"}:
        made += [differences_table(ablation), reach_table(ablation), failures_table(ablation)]
    console = Console()
    for table in made:
        console.print(_drawn(table))
    heading = f"Report on {len({run.folder for run in found})} runs"
    weights = sorted({run.weights for run in found if run.weights})
    origin = f"Weights: {', '.join(weights)}."
    if missing := sum(bool(run.missing) for run in found):
        origin += f" {missing} runs found no weights."
    origin = " ".join([origin, *fold_notes(found, described)])
    folder.mkdir(parents=True, exist_ok=True)
    for name in _OURS:  # of another report, whose tables and pictures may not be among these
        (folder / name).unlink(missing_ok=True)
    curves, boxes, panels, worst = (folder / name for name in _PICTURES.values())
    draw_curves(ablation, curves)
    draw_boxes(ablation, boxes)
    draw_panels(ablation, panels)
    draw_worst(ablation, worst)
    pictures = {title: name for title, name in _PICTURES.items() if (folder / name).is_file()}
    write_report(folder, made, heading, pictures, origin)
    inside = {title: (folder / name).read_bytes() for title, name in pictures.items()}
    (folder / "report.html").write_text(page(made, heading, inside, origin), encoding="utf-8")
    console.print(f"Report: {escape(str(folder / 'report.html'))}, and report.md beside it", soft_wrap=True)


def _drawn(table: ReportTable) -> Table:
    head, lines = table.text()
    drawn = Table(title=escape(table.title), caption=escape(table.note))
    for column in head:
        drawn.add_column(escape(column))
    for line in lines:
        drawn.add_row(*map(escape, line))
    return drawn
