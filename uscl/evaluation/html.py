"""A report as one HTML page that opens without a network, on a phone and in print: tables, and the pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from uscl.evaluation.report import ReportCell, ReportTable

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
.wide { overflow-x: auto; } img { max-width: max(100%, 44rem); height: auto; background: #fff; }
figure { margin: 1.5rem 0; } figcaption { font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid; white-space: nowrap; } tbody th { font-weight: 600; min-width: 7rem; }
thead th:first-child, tbody th { position: sticky; left: 0; background: Canvas; }
td { white-space: nowrap; } .paper { color: GrayText; }
.none { color: GrayText; font-style: italic; white-space: normal; min-width: 9rem; }
.interval { display: block; font-size: .8em; } tbody tr:nth-child(even) { background: var(--soft); }
p.note { font-size: .85rem; max-width: 48rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; } h2 { break-after: avoid; } table { break-inside: avoid; } }
"""


def page(tables: Sequence[ReportTable], heading: str, pictures: Mapping[str, bytes], origin: str = "") -> str:
    """The whole report.

    Args:
        tables: in their order.
        heading: above them.
        pictures: PNGs by what they show; they become part of the page, the first above the tables.
        origin: what the results come from, below the heading.
    """
    drawn = "\n".join(map(_section, tables))
    first, *others = [_picture(title, picture) for title, picture in pictures.items()] or [""]
    below = f'<p class="note">{escape(origin)}</p>' if origin else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(heading)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(heading)}</h1>
<p>Research software, not a medical device. The paper is USCL-Med3D (Zhang &amp; Li 2025).</p>
{below}
{first}
{drawn}
{"".join(others)}
</body>
</html>
"""


def _picture(title: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode("ascii")
    shown = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="wide">{shown}</div><figcaption>{escape(title)}</figcaption></figure>'


def _section(table: ReportTable) -> str:
    doubled = [any(isinstance(line[i], ReportCell) for line in table.lines) for i in range(len(table.head))]
    head = "".join(
        f'<th colspan="2">{escape(name)}</th>' if two else f"<th>{escape(name)}</th>"
        for name, two in zip(table.head, doubled, strict=True)
    )
    below = "".join('<th>here</th><th class="paper">paper</th>' if two else "<th></th>" for two in doubled)
    under = f"<tr>{below}</tr>" if any(doubled) else ""
    rows = []
    for line in table.lines:
        cells = [_cell(cell, two) for cell, two in zip(line[1:], doubled[1:], strict=True)]
        rows.append(f'<tr><th scope="row">{escape(str(line[0]))}</th>{"".join(cells)}</tr>')
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = "\n".join(rows)
    return f"""<h2 id="{table.name}">{escape(table.title)}</h2>
<div class="wide"><table>
<thead><tr>{head}</tr>{under}</thead>
<tbody>
{body}
</tbody>
</table></div>
{note}"""


def _cell(cell: str | ReportCell, doubled: bool) -> str:
    if isinstance(cell, str):
        return f"<td{' colspan=2' * doubled}>{escape(cell)}</td>"
    mean, bracket, interval = str(cell).partition(" [")
    if cell.here is None or not cell.here.n:
        here = f'<td class="none">{escape(str(cell))}</td>'
    else:
        here = f'<td>{mean}<span class="interval">{escape(bracket.strip() + interval)}</span></td>'
    return f'{here}<td class="paper">{escape(cell.reported)}</td>'
