"""What the paper claims of its ablations, each as a paired difference between runs, with a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan
from statistics import median

from uscl.evaluation import paper
from uscl.evaluation.ablation import Ablation
from uscl.evaluation.cost import Cost
from uscl.evaluation.report import ReportCell, ReportTable
from uscl.evaluation.runs import BASELINE, Setting
from uscl.evaluation.statistics import LEAST_FOR_VERDICT, SIGNIFICANT, Estimate, ratio_interval, signed_rank

_LEAST_TRAININGS = 3
"""Trainings that a verdict takes."""
_ALIKE = 0.1
"""Share by which two costs must differ to count as different."""
_LEAST_STEPS = 10
"""Steps of a training whose cost counts: the first ones are no measure."""


@dataclass(frozen=True)
class _Claim:
    """That one setting scores higher than another.

    Attributes:
        text: in words.
        ours: the setting said to be better; None if nothing of the kind was run.
        theirs: the other.
        reported: the paper's difference in points.
        where: data sets; empty for the one that was tuned on.
    """

    text: str
    ours: Setting | None
    theirs: Setting | None
    reported: float | None
    where: tuple[str, ...] = ()


def verdict(difference: Estimate | None, p: float) -> str:
    """What a paired difference says of the claim that it is above 0.

    Seeds are counted, not seeds times folds: of the folds of one seed no patient is tested by two trainings, so that
    nothing says how trainings differ.

    Args:
        difference: None if a side was not run.
        p: of :func:`~uscl.evaluation.statistics.signed_rank`.
    """
    if difference is None or not difference.n:
        return "not run"
    if difference.patients < LEAST_FOR_VERDICT or isnan(difference.low):
        return f"no verdict from {_counted(difference.patients, 'patient')}"
    if difference.seeds < _LEAST_TRAININGS:
        return f"no verdict from {_counted(difference.seeds, 'training')}"
    if difference.low <= 0 <= difference.high:
        return "undecided: the interval includes 0"
    if not p < SIGNIFICANT:
        return f"undecided: p is not below {SIGNIFICANT}"
    return "holds here" if difference.low > 0 else "does not hold here"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def p_text(p: float) -> str:
    """A p for a table."""
    if isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def claims_table(ablation: Ablation) -> ReportTable:
    """The paper's claims, what became of them here, and a verdict on each."""
    lines: list[tuple[str | ReportCell, ...]] = []
    for claim in [*_on_modules(ablation), *_on_ranks(ablation), *_on_methods(ablation)]:
        found = ablation.gain(claim.ours, claim.theirs, claim.where)
        p = signed_rank(ablation.pairs(claim.ours, claim.theirs, claim.where))
        shown = ReportCell(found, claim.reported, difference=True)
        lines.append((claim.text, shown, p_text(p), verdict(found, p)))
    reported = {"time per step": paper.HOURS, "memory": paper.GIGABYTES}
    # Memory of a process on a CPU holds its libraries too, which would hide what differs.
    measures: dict[str, Callable[[Cost], float | None]] = {
        "time per step": lambda cost: cost.seconds_per_step,
        "memory": lambda cost: cost.peak_device_bytes,
    }
    lines += [_on_cost(ablation, what, measures[what], reported[what]) for what in reported]
    takes = (
        f"A verdict takes {LEAST_FOR_VERDICT} patients, {_LEAST_TRAININGS} trainings, an interval without 0 and p "
        f"below {SIGNIFICANT}; one on costs {_LEAST_TRAININGS} trainings of {_LEAST_STEPS} steps or more a side."
    )
    note = (
        f"Differences in points of Dice at {ablation.at}, paired by object and seed [95 % interval over patients and "
        "seeds], not corrected for the number of claims; p of Wilcoxon's signed-rank test over patients. "
        f"{takes} On CT and MR every class of every data set counts the same; the paper's differences are means over "
        "data sets."
    )
    return ReportTable("claims", "The paper's claims", ("claim", "difference", "p", "verdict"), tuple(lines), note)


def _on_modules(ablation: Ablation) -> list[_Claim]:
    reported, both = paper.MODULES, ablation.main
    first, plain = replace(both, vcl=True), replace(both, vcl=False)
    claims = [_Claim("VCL helps (with - without)", first, plain, reported["both", True] - reported["both", False])]
    for part in ("encoder", "decoder"):
        alone = replace(both, modules=part)
        difference = reported["both", True] - reported[part, True]
        claims.append(_Claim(f"tuning both beats the {part} alone", both, alone, difference))
    return claims


def _on_ranks(ablation: Ablation) -> list[_Claim]:
    claims, both = [], ablation.main
    for rank in sorted({rank for rank, _ in paper.RANKS} - {both.rank}):
        reported = paper.RANKS[both.rank, "both"] - paper.RANKS[rank, "both"] if both.rank == paper.RANK else None
        claims.append(_Claim(f"rank {both.rank} beats rank {rank}", both, replace(both, rank=rank), reported))
    return claims


def _on_methods(ablation: Ablation) -> list[_Claim]:
    both, full, adapter = ablation.main, ablation.whole("FullTuning"), ablation.whole("AdaptFormer")
    on_scans = [key for name in ablation.scans if (key := paper.scan_key(name))]

    def reported(ours: str, theirs: str, keys: list[str]) -> float:
        return sum(paper.METHODS[ours][key] - paper.METHODS[theirs][key] for key in keys) / len(keys)

    us = ["ultrasound"]
    claims = [
        _Claim("LoRA gains over the baseline", both, Setting(BASELINE), reported("LoRA", BASELINE, us)),
        _Claim("full tuning gains more than LoRA", full, both, reported("FullTuning", "LoRA", us)),
        _Claim("LoRA beats AdaptFormer", both, adapter, reported("LoRA", "AdaptFormer", us)),
    ]
    if on_scans:
        claims += [
            _Claim(
                "on CT and MR LoRA keeps what full tuning forgets",
                both,
                full,
                reported("LoRA", "FullTuning", on_scans),
                ablation.scans,
            ),
            _Claim(
                "on CT and MR LoRA keeps what AdaptFormer forgets",
                both,
                adapter,
                reported("LoRA", "AdaptFormer", on_scans),
                ablation.scans,
            ),
            _Claim(
                "on CT and MR LoRA loses to the baseline",
                Setting(BASELINE),
                both,
                reported(BASELINE, "LoRA", on_scans),
                ablation.scans,
            ),
        ]
    return claims


def _on_cost(
    ablation: Ablation, what: str, measure: Callable[[Cost], float | None], reported: dict[str, float]
) -> tuple[str, str, str, str]:
    claimed = reported["FullTuning"] / reported["LoRA"]
    text = f"full tuning takes {claimed:.1f} times LoRA's {what}"
    settings = (ablation.main, ablation.whole("FullTuning"))
    if not all(ablation.costs(setting) for setting in settings):
        return text, "not run", "", "not run"
    if any(cost.steps < _LEAST_STEPS for setting in settings for cost in ablation.costs(setting)):
        return text, "not measured", "", f"no verdict: trainings of fewer than {_LEAST_STEPS} steps"
    conditions = [{_conditions(cost) for cost in ablation.costs(s)} for s in settings]
    if not (alike := set.intersection(*conditions)):
        return text, "not measured", "", "no verdict: trained on other devices, or with another precision or batch"
    ours, theirs = (
        [m for cost in ablation.costs(s) if _conditions(cost) in alike and (m := measure(cost)) is not None]
        for s in settings
    )
    if not ours or not theirs:
        return text, "not measured", "", "no verdict: benchmarks/tuning.py measures it on any machine"
    ratio = median(theirs) / median(ours)
    if min(len(ours), len(theirs)) < _LEAST_TRAININGS:
        return text, f"{ratio:.2f} times", "", f"no verdict from {_counted(min(len(ours), len(theirs)), 'training')}"
    low, high = ratio_interval(theirs, ours)
    if low >= claimed:
        found = "holds here"
    elif high < claimed:
        found = "more than LoRA's, less than claimed" if low > 1 + _ALIKE else "does not hold here"
    else:
        found = "undecided: the interval includes what is claimed"
    return text, f"{ratio:.2f} times [{low:.2f}, {high:.2f}]", "", found


def _conditions(cost: Cost) -> tuple[str, str, int, int]:
    """What must be the same in costs that are compared."""
    return cost.device, cost.precision, cost.batch_size, cost.processes
