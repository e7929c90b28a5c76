"""What a reader sees of a labelled sweep: a contact sheet, and a page that opens without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uscl.pseudo_label.engine import GreyFrames
from uscl.pseudo_label.sweep import LabelledSweep

# Okabe and Ito's colours, distinguishable by colour-blind readers.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
_DISCLAIMER = "Research software, not a medical device. Pseudo-labels are proposals: look at them before you train."
_SHEET = 30
_PAGE = 400
_THUMB = 200
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid #8884; padding: .3rem .6rem; text-align: left; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem; }
figure { margin: 0; border: 3px solid #8884; padding: .2rem; } figure.key { border-color: #009E73; }
figure.flag { border-color: #D55E00; border-style: dashed; } img { width: 100%; display: block; }
figcaption { font-size: .75rem; line-height: 1.3; } .swatch { display: inline-block; width: .8em; height: .8em; }
"""


def save_contact_sheet(
    path: Path, frames: GreyFrames, made: LabelledSweep, names: Mapping[int, str], title: str, numbers: Sequence[int]
) -> None:
    """Frames evenly over the sweep, every key frame among them, with the outlines of their labels, as a PNG.

    Args:
        path: of the picture.
        frames: the sweep.
        made: its labels.
        names: of the classes.
        title: stands above.
        numbers: what the frames are called.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = _colours(made)
    even = np.linspace(0, len(frames) - 1, min(_SHEET, len(frames))).round().astype(int).tolist()
    shown = sorted({*even, *made.keys})
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows + 0.9), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(rows, columns))).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, t in zip(axes, shown, strict=False):
        axis.imshow(frames[t], cmap="gray", vmin=0, vmax=255)
        for number, colour in colours.items():
            mask = made.labels[t] == number
            if mask.any() and not mask.all():
                axis.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.0)
        mark = "key frame" if t in made.keys else "flagged" if t in made.flags else f"{_confidence(made, t):.2f}"
        axis.set_title(f"{numbers[t]}: {mark}", size=8, color="#B33C00" if t in made.flags else "black")
    handles = [Line2D([], [], color=colour, label=names[n]) for n, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=8)
    figure.suptitle(f"{title}: number of the frame and its confidence\n{_DISCLAIMER}", size=9)
    figure.savefig(path, dpi=110)


def page(
    frames: GreyFrames,
    made: LabelledSweep,
    names: Mapping[int, str],
    title: str,
    suggested: Sequence[int],
    numbers: Sequence[int],
    unit: str = "mm",
) -> str:
    """Every frame with its labels, confidence and flags, and what the left-out key frames say, as HTML.

    Args:
        frames: the sweep.
        made: its labels.
        names: of the classes.
        title: stands above.
        suggested: frames to annotate next.
        numbers: what the frames are called.
        unit: of the distances between outlines.
    """
    colours = _colours(made)
    more = "<th>carried by</th>" if any(made.ways.values()) else ""
    more += "<th>Dice against the other engine</th>" if made.compared else ""
    more += "<th>pixels cleaned away, added</th>" if made.cleaned else ""
    lines = []
    for number, quality in made.quality.items():
        inner = [t for t in range(len(frames)) if t not in made.keys and quality.confidence[t] > 0]
        confidence = f"{np.mean([quality.confidence[t] for t in inner]):.2f}" if inner else "-"
        cells = [
            f"{len(quality.left_out)}",
            _shown(quality.dice),
            _shown(quality.hd95, f" {unit}"),
            confidence,
            _shown(quality.consistency),
        ]
        cells += [escape(made.ways[number])] if any(made.ways.values()) else []
        cells += [_shown(made.compared[number])] if made.compared else []
        cells += ["{}, {}".format(*made.cleaned[number])] if made.cleaned else []
        swatch = f'<span class="swatch" style="background:{colours[number]}"></span> '
        lines.append(f"<tr><th>{swatch}{escape(names[number])}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    step = -(-len(frames) // _PAGE)
    shown = sorted({*range(0, len(frames), step), *made.keys, *made.flags})
    drawn = "\n".join(_figure(frames[t], made, t, colours, numbers[t]) for t in shown)
    counts = f"{len(frames)} frames, {len(made.keys)} key frames, {len(made.flags)} flagged"
    next_ones = f"<p>Annotate next: {', '.join(str(numbers[t]) for t in suggested)}.</p>" if suggested else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1><p>{escape(_DISCLAIMER)}</p><p>{counts}.</p>{next_ones}
<h2>Classes</h2>
<div class="wide"><table><thead><tr><th>class</th><th>key frames left out</th><th>their Dice</th><th>their HD95</th>
<th>mean confidence</th><th>Dice of neighbouring frames</th>{more}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
<p>A key frame that is left out is predicted across a gap twice as wide as those that were bridged.</p>
<h2>Frames</h2><div class="frames">{drawn}</div>
</body></html>
"""


def _figure(frame: NDArray[np.uint8], made: LabelledSweep, t: int, colours: Mapping[int, str], number: int) -> str:
    kind = "key" if t in made.keys else "flag" if t in made.flags else ""
    caption = "key frame" if kind == "key" else f"confidence {_confidence(made, t):.2f}"
    reasons = "".join(f"<br>{escape(reason)}" for reason in made.flags.get(t, []))
    picture = base64.b64encode(_thumbnail(frame, made.labels[t], colours)).decode("ascii")
    return (
        f'<figure class="{kind}"><img alt="frame {number}" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{number}: {caption}{reasons}</figcaption></figure>"
    )


def _thumbnail(frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: Mapping[int, str]) -> bytes:
    from PIL import Image, ImageColor

    shown = np.repeat(frame[..., None].astype(np.float32), 3, axis=2)
    for number, colour in colours.items():
        mask = labels == number
        shown[mask] = 0.65 * shown[mask] + 0.35 * np.array(ImageColor.getrgb(colour), np.float32)
    picture = Image.fromarray(shown.astype(np.uint8))
    picture.thumbnail((_THUMB, _THUMB))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _colours(made: LabelledSweep) -> dict[int, str]:
    """By class id; beyond the seventh class they come again."""
    return dict(zip(made.quality, cycle(_COLOURS), strict=False))


def _confidence(made: LabelledSweep, t: int) -> float:
    return float(min(quality.confidence[t] for quality in made.quality.values()))


def _shown(value: float, unit: str = "") -> str:
    return f"{value:.2f}{unit}" if value == value else "not known"
