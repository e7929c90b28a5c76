"""The paper's Tables 1 and 2: methods at several numbers of clicks, by class and by data set; the same as curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf, isnan
from statistics import fmean

from uscl.errors import InputError
from uscl.evaluation import paper
from uscl.evaluation.ablation import Ablation, described
from uscl.evaluation.claims import p_text
from uscl.evaluation.report import ReportCell, ReportTable
from uscl.evaluation.rows import OWN_INFERENCE, ResultRow
from uscl.evaluation.runs import BASELINE, Setting, rows_behind, samples
from uscl.evaluation.statistics import DICE, Sample, estimate, signed_rank

_EVERY_CLASS = "mean over classes"
_NOTE = (
    "Dice in % [95 % interval over patients and seeds]; missed: empty masks, which count as 0. SAM-Med3D is "
    "the untouched backbone. SAM, MobileSAM, TinySAM and SAM-Med2D take their clicks on EVERY slice that holds the "
    "object, and thereby know which these are: the mean number of points in the volume is beside their figures. The "
    "paper's figures are of other data."
)
_SCANS = {"amos": "AMOS", "totalsegmentator": "TotalSegmentator", "brats": "BraTS"}


def methods_of(ablation: Ablation) -> dict[str, Setting | None]:
    """The paper's names first, those that were not run as None, then all other methods that were run.

    USCL-Med3D is LoRA after VCL; LoRA alone has a line of its own. Of the settings of an ablation only that of encoder
    and decoder has a line; Tables 3 to 5 have all.
    """
    names: dict[str, Setting | None] = dict.fromkeys(dict.fromkeys([*paper.BY_DATA_SET, *paper.BY_CLASS]))
    ran = {run.setting for run in ablation.runs}

    def take(name: str, setting: Setting) -> None:
        other = names.get(name)
        if other not in (None, setting) and {other, setting} <= ran:
            folders = [str(next(run.folder for run in ablation.runs if run.setting == s)) for s in (other, setting)]
            raise InputError(
                f"{' and '.join(folders)}: two methods are shown as {name!r}; test one of them again with another "
                "--model.evaluation.method, or report on them apart"
            )
        if other is None or setting in ran:
            names[name] = setting

    take("SAM-Med3D", Setting(BASELINE))
    take("USCL-Med3D" if ablation.main.vcl else described(ablation.main), ablation.main)
    for method in ("FullTuning", "AdaptFormer"):
        if setting := ablation.whole(method):
            take(described(setting), setting)
    for setting in (*ablation.own, *sorted(s for s in ran if not s.modules)):
        take(described(setting) if setting != Setting(BASELINE) else "SAM-Med3D", setting)
    return names


def table1(ablation: Ablation) -> ReportTable:
    """Every class of what was tuned on, by method and number of clicks."""
    rows = [row for run in ablation.runs for row in run.rows.get(ablation.tuned_on, [])]
    others = sorted({row.class_name for row in rows} - {*paper.CLASSES})
    columns = (*paper.CLASSES, *others, _EVERY_CLASS)

    def own(method: str, column: str, place: int) -> float | None:
        reported = paper.BY_CLASS.get(method, {})
        if column == _EVERY_CLASS and reported:
            return sum(figures[place] for figures in reported.values()) / len(reported)
        return reported[column][place] if column in reported else None

    def chosen(setting: Setting, column: str, clicks: int) -> list[Sample]:
        found = samples(ablation.runs, setting, ablation.tuned_on, clicks)
        return [sample for sample in found if column in (_EVERY_CLASS, sample.class_name)]

    def behind(setting: Setting, column: str, clicks: int) -> list[ResultRow]:
        name = None if column == _EVERY_CLASS else column
        return rows_behind(ablation.runs, setting, ablation.tuned_on, clicks, name)

    shown = {name: setting for name, setting in methods_of(ablation).items() if setting or name in paper.BY_CLASS}
    title = f"Table 1: classes of {ablation.tuned_on} by method and number of clicks"
    lines = _lines(ablation, shown, columns, chosen, own, behind)
    note = _note(ablation, columns, lines, (ablation.tuned_on,))
    return ReportTable("table1", title, ("method", "clicks", *columns), lines, note)


def table2(ablation: Ablation) -> ReportTable:
    """Data sets that were not tuned on, by method and number of clicks, means over classes; in the paper CT and MR."""
    there = {paper.scan_key(name) for name in ablation.data_sets}
    columns = (*ablation.others, *(title for key, title in _SCANS.items() if key not in there))

    def own(method: str, column: str, place: int) -> float | None:
        reported = paper.BY_DATA_SET.get(method, {}).get(paper.scan_key(column) or "")
        return reported[place] if reported else None

    def chosen(setting: Setting, column: str, clicks: int) -> list[Sample]:
        return samples(ablation.runs, setting, column, clicks)

    def behind(setting: Setting, column: str, clicks: int) -> list[ResultRow]:
        return rows_behind(ablation.runs, setting, column, clicks)

    shown = {name: setting for name, setting in methods_of(ablation).items() if setting or name in paper.BY_DATA_SET}
    what = "CT and MR" if ablation.others == ablation.scans else "other data sets"
    title = f"Table 2: {what} by method and number of clicks"
    lines = _lines(ablation, shown, columns, chosen, own, behind)
    note = _note(ablation, columns, lines, ablation.others)
    return ReportTable("table2", title, ("method", "clicks", *columns), lines, note)


def _lines(
    ablation: Ablation,
    methods: dict[str, Setting | None],
    columns: Sequence[str],
    chosen: Callable[[Setting, str, int], list[Sample]],
    reported: Callable[[str, str, int], float | None],
    behind: Callable[[Setting, str, int], list[ResultRow]],
) -> tuple[tuple[str | ReportCell, ...], ...]:
    scored = {row.clicks for run in ablation.runs for rows in run.rows.values() for row in rows}
    missing = {run.setting: run.missing for run in ablation.runs if run.missing}
    lines: list[tuple[str | ReportCell, ...]] = []
    for name, setting in methods.items():
        absent = missing.get(setting, "not run") if setting else "not run"
        for clicks in sorted(scored | {*paper.POINTS}):
            figures = []
            for place, column in enumerate(columns):
                own = reported(name, column, paper.POINTS.index(clicks)) if clicks in paper.POINTS else None
                found = chosen(setting, column, clicks) if setting else []
                rows = behind(setting, column, clicks) if setting and found else []
                taken = fmean(row.points for row in rows) if rows else clicks
                # The whole reason, which may be a long address, once a line.
                reason = absent if place == 0 else absent.partition(":")[0]
                figures.append(
                    ReportCell(
                        estimate(found, DICE) if found else None,
                        own,
                        absent=reason,
                        points=None if taken == clicks else taken,
                        missed=sum(isinf(row.hd95) for row in rows),
                    )
                )
            unfound = setting in missing and clicks in paper.POINTS
            if unfound or any(figure.here or figure.paper is not None for figure in figures):
                lines.append((name, str(clicks), *figures))
    return tuple(lines)


def _note(
    ablation: Ablation, columns: Sequence[str], lines: Sequence[Sequence[str | ReportCell]], data_sets: Sequence[str]
) -> str:
    """What the figures are of, by which protocol, and of how many objects."""
    protocols: dict[str, str] = {}
    # Ours last: the inference of comparators is their own.
    for run in sorted(ablation.runs, key=lambda run: OWN_INFERENCE not in run.inferences.values()):
        for name in set(data_sets) & run.protocols.keys():
            protocols[name] = f"{run.protocols[name]}, inference {run.inferences[name]}"
    followed = [
        f"{words[0].upper()}{words[1:]} ({', '.join(name for name in data_sets if protocols.get(name) == words)})."
        for words in dict.fromkeys(protocols.values())
    ]
    sizes = []
    for column, *figures in zip(columns, *(line[2:] for line in lines), strict=True):
        found = [figure.here for figure in figures if isinstance(figure, ReportCell) and figure.here]
        if found:
            largest = max(found, key=lambda one: one.n)
            sizes.append(f"{column} {largest.n} ({largest.patients})")
    return " ".join([_NOTE, *followed, *([f"Objects (patients), at most: {', '.join(sizes)}."] if sizes else [])])


def differences_table(ablation: Ablation) -> ReportTable:
    """Ours minus every other method that was run, on the same objects with the same first click."""
    lines: list[tuple[str | ReportCell, ...]] = []
    for name, setting in methods_of(ablation).items():
        for data_set in ablation.data_sets if setting and setting != ablation.ours else ():
            pairs = ablation.pairs(ablation.ours, setting, (data_set,))
            if pairs:
                found = estimate(pairs)
                shown = ReportCell(found, difference=True)
                lines.append(
                    (
                        name,
                        data_set,
                        str(shown),
                        p_text(signed_rank(pairs)),
                        str(found.n),
                        str(found.patients),
                        str(max(found.seeds, 1)),
                    )
                )
    title = f"{described(ablation.ours)} minus the others at {ablation.at}"
    note = (
        "Points of Dice, paired by object and seed, mean over classes [95 % interval over patients and seeds]; "
        "p of Wilcoxon's signed-rank test over patients. Not corrected for their number."
    )
    head = ("minus", "data set", "difference", "p", "objects", "patients", "trainings")
    return ReportTable("differences", title, head, tuple(lines), note)


def reach_table(ablation: Ablation, goals: Sequence[float] = (0.8, 0.9)) -> ReportTable:
    """How many clicks it takes to reach a Dice (NoC); an object that never gets there counts with the most scored."""
    lines: list[tuple[str | ReportCell, ...]] = []
    scored = {data_set: _scored_by_all(ablation, data_set) for data_set in ablation.data_sets}
    for name, setting in methods_of(ablation).items():
        for data_set, counts in scored.items():
            tries = _by_object(ablation, setting, data_set, counts) if setting else []
            cells = []
            for goal in goals:
                firsts = [next((n for n, dice in some if dice >= goal), None) for some in tries]
                most = max((some[-1][0] for some in tries), default=0)
                never = sum(first is None for first in firsts)
                mean = f"{fmean(most if first is None else first for first in firsts):.1f}" if firsts else ""
                cells += ["not reached" if firsts and never == len(firsts) else mean, f"{never} of {len(firsts)}"]
            if tries:
                lines.append((name, data_set, *cells))
    scored_at = "; ".join(f"{', '.join(map(str, sorted(counts)))} clicks ({name})" for name, counts in scored.items())
    head = [text for goal in goals for text in (f"clicks to Dice {goal:g}", "never")]
    note = (
        f"Every method was scored at {scored_at}, of which the first that reaches the goal counts: set "
        "model.evaluation.clicks to every number for exact counts. Objects that never reach it count with the last."
    )
    title = "Clicks to reach a Dice"
    return ReportTable("reach", title, ("method", "data set", *head), tuple(lines), note)


def _scored_by_all(ablation: Ablation, data_set: str) -> set[int]:
    """The numbers of clicks at which every run on a data set was scored: others would favour those who were."""
    found = [{row.clicks for row in run.rows[data_set]} for run in ablation.runs if data_set in run.rows]
    return set.intersection(*found) if found else set()


def _by_object(ablation: Ablation, setting: Setting, data_set: str, counts: set[int]) -> list[list[tuple[int, float]]]:
    """Dice by number of clicks, of those in ``counts`` and in their order, for every object and seed."""
    found: dict[tuple[int | None, str, str], list[tuple[int, float]]] = {}
    for run in ablation.runs:
        for row in run.rows.get(data_set, []) if run.setting == setting else ():
            if row.clicks in counts and not isnan(row.dice):
                found.setdefault((run.seed, row.case, row.class_name), []).append((row.clicks, row.dice))
    return [sorted(some) for some in found.values()]


def failures_table(ablation: Ablation, count: int = 10) -> ReportTable:
    """The objects that came out worst with ours, means over seeds."""
    setting, found = ablation.ours, by_dice(ablation)
    lines: list[tuple[str | ReportCell, ...]] = []
    for (data_set, case, class_name), rows in found[:count]:
        hd95, volume = fmean(row.hd95 for row in rows), fmean(row.volume_error for row in rows)
        lines.append(
            (
                case,
                class_name,
                data_set,
                f"{100 * fmean(row.dice for row in rows):.1f}",
                "missed" if isinf(hd95) else f"{hd95:.1f} {rows[0].unit}",
                "not measured" if isnan(volume) else f"{100 * volume:+.0f} %",
            )
        )
    title = f"The {len(lines)} worst of {len(found)} objects at {ablation.at}, {described(setting)}"
    head = ("case", "class", "data set", "Dice", "HD95", "volume error")
    note = (
        "Means over seeds. HD95 is in voxels where distances are assumed. Pictures, where tests kept their slices, are "
        "in worst.png."
    )
    return ReportTable("failures", title, head, tuple(lines), note)


def by_dice(ablation: Ablation) -> list[tuple[tuple[str, str, str], list[ResultRow]]]:
    """The rows of ours of every seed by (data set, case, class), the worst object first."""
    setting = ablation.ours
    found: dict[tuple[str, str, str], list[ResultRow]] = {}
    for run in ablation.runs:
        for data_set in ablation.data_sets if run.setting == setting else ():
            for row in run.rows.get(data_set, []):
                if row.clicks == ablation.clicks and not isnan(row.dice):
                    found.setdefault((data_set, row.case, row.class_name), []).append(row)
    return sorted(found.items(), key=lambda item: (fmean(row.dice for row in item[1]), item[0]))
