"""The paper's Tables 3, 4 and 5 and its paragraph on cost, from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from uscl.errors import InputError
from uscl.evaluation import paper
from uscl.evaluation.cost import Cost
from uscl.evaluation.folds import own_seed
from uscl.evaluation.report import ReportCell, ReportTable
from uscl.evaluation.runs import BASELINE, Run, Setting, data_sets, is_scan, samples
from uscl.evaluation.statistics import DICE, Estimate, Sample, differences, estimate

_PARTS = {"encoder": "image encoder", "decoder": "mask decoder", "both": "encoder and decoder"}
_METHODS = {BASELINE: "baseline, untouched", "LoRA": "LoRA", "FullTuning": "full tuning", "AdaptFormer": "AdaptFormer"}


@dataclass(frozen=True)
class Ablation:
    """Runs, looked at as the paper's ablations.

    Attributes:
        runs: what was run.
        clicks: number of clicks at which Dice is reported.
        tuned_on: the data set that was tuned on.
        others: data sets that were not.
        main: LoRA of encoder and decoder at the rank that the paper settles on, after VCL; where that was not run, at
            the rank with most runs, and without VCL.
    """

    runs: tuple[Run, ...]
    clicks: int
    tuned_on: str
    others: tuple[str, ...]
    main: Setting

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The data set that was tuned on, then the others."""
        return self.tuned_on, *self.others

    @property
    def scans(self) -> tuple[str, ...]:
        """The paper's CT and MR sets among the others."""
        return tuple(name for name in self.others if is_scan(name))

    def dice(self, setting: Setting | None, data_set: str | None = None) -> Estimate | None:
        """Mean Dice of a setting, None if it was not run."""
        found = samples(self.runs, setting, data_set or self.tuned_on, self.clicks) if setting else []
        return estimate(found, DICE) if found else None

    def gain(self, ours: Setting | None, theirs: Setting | None, where: Sequence[str] = ()) -> Estimate | None:
        """Paired difference of two settings over some data sets; None if they share no object and seed."""
        pairs = self.pairs(ours, theirs, where)
        return estimate(pairs) if pairs else None

    def pairs(self, ours: Setting | None, theirs: Setting | None, where: Sequence[str] = ()) -> list[Sample]:
        """Ours minus theirs for every object and seed over some data sets, by default the one that was tuned on."""
        pairs = []
        for name in where or (self.tuned_on,) if ours and theirs else ():
            found = differences(*(samples(self.runs, s, name, self.clicks) for s in (ours, theirs) if s))
            pairs += [
                replace(s, class_name=f"{name} {s.class_name}", patient=f"{name} {s.patient}", case=f"{name} {s.case}")
                for s in found
            ]
        return pairs

    def whole(self, family: str) -> Setting | None:
        """The setting of a family that tunes encoder and decoder, if it was run."""
        settings = {run.setting for run in self.runs if run.setting.family == family and not run.setting.label}
        modules = "" if family == BASELINE else "both"
        return next((s for s in sorted(settings) if s.modules == modules), None)

    @property
    def own(self) -> list[Setting]:
        """Settings that the paper does not have: other tuning methods, and those that their user gave a name."""
        found = {run.setting for run in self.runs if run.setting.modules}
        return sorted(s for s in found if s.family not in paper.METHODS or s.label)

    @property
    def ours(self) -> Setting:
        """The main setting; where that was not run the user's own with most runs, else the untouched backbone."""
        ran = [run.setting for run in self.runs]
        return self.main if self.main in ran else max(self.own, key=ran.count, default=Setting(BASELINE))

    def costs(self, setting: Setting | None) -> list[Cost]:
        """What the trainings of a setting cost, where it was measured; each once, however many tests it had."""
        own = [run for run in self.runs if run.setting == setting]
        return [*{run.training or run.folder: run.cost for run in own if run.cost}.values()]

    @property
    def at(self) -> str:
        """The number of clicks in words."""
        return f"{self.clicks} click" + "s" * (self.clicks > 1)


def look_at(runs: Sequence[Run], clicks: int = 10, data_set: str | None = None) -> Ablation:
    """Finds out what runs were tuned on and which setting is the main one.

    Args:
        runs: of :func:`~uscl.evaluation.runs.find_runs`.
        clicks: number of clicks at which Dice is reported.
        data_set: the one that was tuned on; None takes the only one that is not a CT or MR set of the paper.

    Raises:
        InputError: the data set is not there, several could be meant, or nothing was scored at that number of clicks.
    """
    names = data_sets(runs)
    trained_on = {run.trained_on for run in runs if run.trained_on} & set(names)
    own = sorted(trained_on) or [name for name in names if not is_scan(name)]
    if data_set is None and len(own) != 1:
        raise InputError(f"report: which data set was tuned on? Give --data-set, one of {', '.join(names)}")
    if data_set is not None and data_set not in names:
        raise InputError(f"report: no run was tested on {data_set!r}; there are {', '.join(names)}")
    scored = {row.clicks for run in runs for rows in run.rows.values() for row in rows}
    if clicks not in scored:
        raise InputError(f"report: nothing was scored at {clicks} clicks; there are {sorted(scored)}")
    tuned_on = data_set or own[0]
    lora = _loras(runs)
    ranks = [setting.rank for setting in lora]
    rank = paper.RANK if paper.RANK in ranks or not ranks else max(sorted(set(ranks)), key=ranks.count)
    at_rank = [setting for setting in lora if setting.rank == rank]
    whole = [setting for setting in at_rank if setting.modules == "both"] or at_rank
    main = Setting("LoRA", "both", rank, vcl=not whole or any(setting.vcl for setting in whole))
    return Ablation(tuple(runs), clicks, tuned_on, tuple(name for name in names if name != tuned_on), main)


def _loras(runs: Sequence[Run]) -> list[Setting]:
    """The settings of every run of LoRA, but for methods of the user's of that name, and runs with a name."""
    found = [run.setting for run in runs if run.setting.family == "LoRA"]
    return [setting for setting in found if setting.modules and not setting.label]


def table3(ablation: Ablation) -> ReportTable:
    """Which part is tuned, with VCL first and without; then the parts of methods that the paper does not have."""
    lines: list[tuple[str | ReportCell, ...]] = []
    for modules, title in _PARTS.items():
        paper_first, paper_plain = (paper.MODULES[modules, vcl] for vcl in (True, False))
        first, plain = (replace(ablation.main, modules=modules, vcl=vcl) for vcl in (True, False))
        lines.append(
            (
                title,
                ReportCell(ablation.dice(first), paper_first),
                ReportCell(ablation.dice(plain), paper_plain),
                ReportCell(ablation.gain(first, plain), paper_first - paper_plain, difference=True),
            )
        )
    for setting in sorted({replace(setting, vcl=False) for setting in ablation.own}):
        first = replace(setting, vcl=True)
        cells = [ReportCell(ablation.dice(s)) for s in (first, setting)]
        lines.append((described(setting), *cells, ReportCell(ablation.gain(first, setting), difference=True)))
    title, head = f"Table 3: tuned module and VCL, LoRA of rank {ablation.main.rank}", ("with VCL", "without VCL")
    return ReportTable("table3", title, ("tuned module", *head, "difference"), tuple(lines), _note(ablation))


def table4(ablation: Ablation) -> ReportTable:
    """Tuning methods, on what was tuned on and on what was not."""
    columns = ablation.data_sets
    lines: list[tuple[str | ReportCell, ...]] = []
    for name in paper.METHODS:
        setting = ablation.main if name == "LoRA" else ablation.whole(name)
        figures = [paper.METHODS[name].get(_paper_column(ablation, column)) for column in columns]
        cells = [ReportCell(ablation.dice(setting, c), f) for c, f in zip(columns, figures, strict=True)]
        lines.append((described(setting) if setting else _METHODS[name], *cells))
    for setting in ablation.own:
        lines.append((described(setting), *(ReportCell(ablation.dice(setting, column)) for column in columns)))
    title = f"Table 4: tuning methods, tuned on {ablation.tuned_on}"
    return ReportTable("table4", title, ("method", *columns), tuple(lines), _note(ablation))


def _paper_column(ablation: Ablation, data_set: str) -> str:
    """The column of the paper's Table 4 that a data set stands for: what is tuned on is its ultrasound."""
    return paper.scan_key(data_set) or ("ultrasound" if data_set == ablation.tuned_on else "")


def table5(ablation: Ablation) -> ReportTable:
    """Rank and tuned module; then the ranks of methods that the paper does not have."""
    ran = {setting.rank for setting in _loras(ablation.runs)}
    lines: list[tuple[str | ReportCell, ...]] = []
    for rank in sorted(ran | {rank for rank, _ in paper.RANKS}):
        settings = [replace(ablation.main, modules=modules, rank=rank) for modules in _PARTS]
        cells = (ReportCell(ablation.dice(s), paper.RANKS.get((rank, s.modules))) for s in settings)
        lines.append((str(rank), *cells))
    for setting in sorted({replace(s, modules="") for s in ablation.own if s.rank}):
        cells = (ReportCell(ablation.dice(replace(setting, modules=modules))) for modules in _PARTS)
        after = " after VCL" if setting.vcl else ""
        lines.append((f"{setting.rank}, {_named(setting)}{after}", *cells))
    how = "after VCL" if ablation.main.vcl else "without VCL"
    return ReportTable(
        "table5",
        f"Table 5: rank of LoRA and tuned module, {how}",
        ("rank", *_PARTS.values()),
        tuple(lines),
        _note(ablation),
    )


def cost_table(ablation: Ablation) -> ReportTable:
    """What each setting cost, medians over its runs."""
    lines: list[tuple[str | ReportCell, ...]] = []
    for setting in sorted({run.setting for run in ablation.runs if run.cost}):
        costs = ablation.costs(setting)
        figures = (
            _middle([cost.seconds_per_step for cost in costs]),
            _middle([cost.samples_per_second for cost in costs]),
            f"{median(_peak_bytes(cost) for cost in costs) / 2**30:.2f}",
            f"{(costs[0].artefact_bytes or 0) / 1e6:.2f}",
            f"{(costs[0].checkpoint_bytes or 0) / 1e6:.2f}",
            _middle([cost.joules / cost.steps for cost in costs if cost.joules is not None]),
        )
        trained = f"{sum(costs[0].trainable.values()):,} of {costs[0].parameters:,}"
        lines.append((described(setting), str(len(costs)), trained, *figures))
    where = {f"{c.device}, {c.precision}, batch {c.batch_size}" for run in ablation.runs if (c := run.cost)}
    head = (
        "tuning",
        "runs",
        "trainable parameters",
        "s per step",
        "patches per s",
        "peak GiB",
        "adapter MB",
        "checkpoint MB",
        "J per step",
    )
    note = (
        f"Medians over runs on: {'; '.join(sorted(where))}. Memory is the device's; on a CPU the whole process's, "
        "libraries included. The paper reports 9.6 GB and 2.7 hours for LoRA, 68.1 GB and 38.2 hours for full tuning."
    )
    return ReportTable("cost", "Cost of training", head, tuple(lines), note if lines else "No run measured its cost.")


def _middle(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.3g}" if known else "not measured"


def described(setting: Setting) -> str:
    """A setting in words."""
    if not setting.modules:
        return _named(setting)
    words = [_PARTS.get(setting.modules, setting.modules)]
    words += [f"rank {setting.rank}"] * bool(setting.rank)
    if setting.family == "LoRA" or setting.vcl:
        words.append("with VCL" if setting.vcl else "without VCL")
    return f"{_named(setting)} ({', '.join(words)})"


def _named(setting: Setting) -> str:
    return setting.label or _METHODS.get(setting.family, setting.family)


def _note(ablation: Ablation) -> str:
    sizes = []
    for name in ablation.data_sets:
        found = [e for setting in {run.setting for run in ablation.runs} if (e := ablation.dice(setting, name))]
        if found:
            largest = max(found, key=lambda e: e.n)
            sizes.append(f"{name}: {largest.n} objects of {largest.patients} patients")
    seeds = sorted({own_seed(run.seed) for run in ablation.runs if run.seed is not None})
    return (
        f"Dice in % at {ablation.at}, mean over classes [95 % interval over patients and seeds]. Seeds "
        f"{', '.join(map(str, seeds)) or 'none'}; {'; '.join(sizes)}. The paper's figures are of other data, at 10 "
        "clicks."
    )


def _peak_bytes(cost: Cost) -> int:
    """Peak memory of the device, or of the process where there is none besides."""
    return cost.peak_host_bytes or 0 if cost.peak_device_bytes is None else cost.peak_device_bytes
