"""Tables as people read them, spreadsheets take them and papers print them: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from uscl.evaluation.statistics import Estimate


@dataclass(frozen=True)
class ReportCell:
    """One cell: what was measured beside what the paper reports.

    Attributes:
        here: Dice in [0, 1], or a difference; None where nothing was run.
        paper: in %, or None where the paper reports nothing.
        difference: written with its sign.
        points: mean number of clicks in the whole volume, where it is not that of the line.
        absent: why nothing was run.
        missed: number of masks that were empty, where they were counted; they stand in the mean with Dice 0.
    """

    here: Estimate | None
    paper: float | None = None
    difference: bool = False
    points: float | None = None
    absent: str = "not run"
    missed: int | None = None

    def __str__(self) -> str:
        if self.here is None or not self.here.n:
            return self.absent
        sign = "+" if self.difference else ""
        mean, low, high = (f"{100 * value:{sign}.1f}" for value in (self.here.mean, self.here.low, self.here.high))
        text = mean if isnan(self.here.low) else f"{mean} [{low}, {high}]"
        text += "" if self.points is None else f", {self.points:.0f} points"
        return f"{text}, {self.missed} missed" if self.missed else text

    @property
    def reported(self) -> str:
        """The paper's figure."""
        return "-" if self.paper is None else f"{round(self.paper, 2):{'+' if self.difference else ''}g}"


@dataclass(frozen=True)
class ReportTable:
    """A table of a report.

    Attributes:
        name: of its files, e.g. ``table3``.
        title: above it.
        head: names of the columns.
        lines: cells; a :class:`ReportCell` takes two columns, ``here`` and ``paper``.
        note: below it.
    """

    name: str
    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str | ReportCell, ...], ...]
    note: str = ""

    def text(self) -> tuple[list[str], list[list[str]]]:
        """Head and lines as text, every figure in its two columns."""
        doubled = [any(isinstance(line[i], ReportCell) for line in self.lines) for i in range(len(self.head))]
        head: list[str] = []
        for name, two in zip(self.head, doubled, strict=True):
            head += [f"{name}: here", "paper"] if two else [name]
        lines = []
        for line in self.lines:
            cells: list[str] = []
            for cell, two in zip(line, doubled, strict=True):
                cells += [str(cell), cell.reported] if isinstance(cell, ReportCell) else [cell, *[""] * two]
            lines.append(cells)
        return head, lines


def markdown(tables: Sequence[ReportTable], heading: str, pictures: Mapping[str, str], origin: str = "") -> str:
    """All tables as one Markdown document, the first picture above them and the others below."""
    first, *others = [f"![{title}]({name})\n" for title, name in pictures.items()] or [""]
    parts = [
        f"# {heading}\n",
        "Research software, not a medical device.\n",
        *([f"{origin}\n"] if origin else []),
        first,
    ]
    for table in tables:
        head, lines = table.text()
        drawn = [head, ["---"] * len(head), *lines]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in drawn)
        parts.append(f"## {table.title}\n\n{body}\n" + (f"\n{table.note}\n" if table.note else ""))
    return "\n".join([*parts, *others])


def spreadsheet(table: ReportTable) -> str:
    """One table as CSV with a line per figure: mean and interval in %, counts, the paper's figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "column", "here", "low", "high", "objects", "patients", "seeds", "missed", "paper", "text"])
    for line in table.lines:
        row = " / ".join(cell for cell in line if isinstance(cell, str))
        for name, cell in zip(table.head, line, strict=True):
            if isinstance(cell, ReportCell):
                found = cell.here if cell.here is not None and cell.here.n else None
                own = [f"{100 * value:.4f}" for value in (found.mean, found.low, found.high)] if found else [""] * 3
                counts = [found.n, found.patients, found.seeds, cell.missed] if found else [""] * 4
                writer.writerow([row, name, *own, *counts, "" if cell.paper is None else cell.paper, ""])
            elif name != table.head[0]:
                writer.writerow([line[0], name, *[""] * 8, cell])
    return stream.getvalue()


def latex(table: ReportTable) -> str:
    r"""One table as LaTeX, for ``\input``; needs the package booktabs."""
    head, lines = table.text()
    rows = [" & ".join(map(_escaped, line)) + r" \\" for line in [head, *lines]]
    caption = _escaped(f"{table.title}. {table.note}".strip())
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \begin{{tabular}}{{{'l' * len(head)}}}",
            r"    \toprule",
            f"    {rows[0]}",
            r"    \midrule",
            *(f"    {row}" for row in rows[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


# Brackets after a line break would be taken for its optional argument.
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",
    "]": "{]}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


def write_report(
    folder: Path, tables: Sequence[ReportTable], heading: str, pictures: Mapping[str, str], origin: str = ""
) -> None:
    """Writes ``report.md``, and for every table ``NAME.csv`` and ``NAME.tex``.

    Args:
        folder: of the report.
        tables: in their order.
        heading: above them.
        pictures: files in the folder, by what they show.
        origin: what the results come from, below the heading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {"report.md": markdown(tables, heading, pictures, origin)}
    for table in tables:
        files |= {f"{table.name}.csv": spreadsheet(table), f"{table.name}.tex": latex(table)}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
