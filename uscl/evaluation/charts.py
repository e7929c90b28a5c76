"""The pictures of a report: Dice against the number of clicks, and the spread over objects."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from uscl.evaluation.ablation import Ablation
from uscl.evaluation.comparison import methods_of
from uscl.evaluation.runs import Setting, samples
from uscl.evaluation.statistics import DICE, Estimate, estimate

# Okabe and Ito's colours, distinguishable by most colour-blind readers; dashes and marks serve in print.
_STYLES = (
    ("#000000", "o", "-"),
    ("#D55E00", "s", "-"),
    ("#0072B2", "^", "--"),
    ("#009E73", "D", "-."),
    ("#CC79A7", "v", ":"),
    ("#56B4E9", "P", "--"),
    ("#E69F00", "X", "-."),
    ("#808000", "<", ":"),
    ("#666666", ">", "-"),
)


def _drawn(ablation: Ablation) -> dict[str, Setting]:
    """The methods that were run, by name."""
    ran = {run.setting for run in ablation.runs if run.rows}
    return {name: setting for name, setting in methods_of(ablation).items() if setting in ran}


def draw_curves(ablation: Ablation, file: Path) -> None:
    """Dice against the number of clicks as a PNG, one panel per data set, with 95 % bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ablation.data_sets
    methods = _drawn(ablation)
    canvas = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(canvas)
    for axes, data_set in zip(canvas.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
        for (name, setting), (colour, mark, dash) in zip(methods.items(), cycle(_STYLES), strict=False):
            points = _curve(ablation, setting, data_set)
            if points:
                clicks, found = list(points), list(points.values())
                axes.plot(clicks, [100 * e.mean for e in found], color=colour, marker=mark, linestyle=dash, label=name)
                axes.fill_between(
                    clicks,
                    [100 * e.low for e in found],
                    [100 * e.high for e in found],
                    color=colour,
                    alpha=0.12,
                    linewidth=0,
                )
        axes.set(title=data_set, xlabel="clicks", ylim=(0, 100))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    canvas.axes[0].set_ylabel("Dice in %, mean over classes")
    # Some methods were tested on the other data sets alone.
    lines = {line.get_label(): line for axes in canvas.axes for line in axes.get_lines()}
    named = [name for name in methods if name in lines]
    canvas.axes[0].legend([lines[name] for name in named], named, frameon=False, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, dpi=120)


def _curve(ablation: Ablation, setting: Setting, data_set: str) -> dict[int, Estimate]:
    scored = sorted({row.clicks for run in ablation.runs for row in run.rows.get(data_set, [])})
    found = {clicks: samples(ablation.runs, setting, data_set, clicks) for clicks in scored}
    return {clicks: estimate(some, DICE) for clicks, some in found.items() if some}


def draw_boxes(ablation: Ablation, file: Path) -> None:
    """Dice by class and method on what was tuned on, as a PNG, if there is any: box plots with every object a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = _drawn(ablation)
    found = {
        name: samples(ablation.runs, setting, ablation.tuned_on, ablation.clicks) for name, setting in methods.items()
    }
    found = {name: some for name, some in found.items() if some}
    if not found:
        return
    classes = sorted({sample.class_name for some in found.values() for sample in some})
    canvas = Figure(figsize=(max(6.0, 0.35 * len(classes) * (len(found) + 1.5)), 4.0), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    step = len(found) + 1
    for number, ((name, some), (colour, mark, _)) in enumerate(zip(found.items(), cycle(_STYLES), strict=False)):
        for place, class_name in enumerate(classes):
            values = [100 * sample.value for sample in some if sample.class_name == class_name]
            if values:
                x = place * step + number
                axes.boxplot(
                    values,
                    positions=[x],
                    widths=0.7,
                    showfliers=False,
                    manage_ticks=False,
                    boxprops={"color": colour},
                    whiskerprops={"color": colour},
                    capprops={"color": colour},
                    medianprops={"color": colour, "linewidth": 2},
                )
                axes.plot([x] * len(values), values, linestyle="", marker=mark, markersize=3, color=colour, alpha=0.5)
        axes.plot([], [], marker=mark, color=colour, label=name)
    axes.set_xticks([place * step + (len(found) - 1) / 2 for place in range(len(classes))], classes)
    axes.set(title=f"{ablation.tuned_on} at {ablation.at}", ylabel="Dice in %", ylim=(-2, 102))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, dpi=120)
