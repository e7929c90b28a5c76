"""Cross-validated tests: what the trainings of all folds found, as one result in which every patient stands once."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uscl.errors import InputError
from uscl.evaluation.rows import ResultRow

if TYPE_CHECKING:
    from uscl.evaluation.runs import Run

log = logging.getLogger(__name__)
_OF_A_FOLD = 1_000_000
"""Makes a seed of its own of what a fold was tested on besides its own patients."""


def fold_of(config: dict[str, Any]) -> tuple[int, int] | None:
    """Which part of how many a run tested, where it went by ``data.split.fold_test``.

    Args:
        config: resolved configuration of the run.
    """
    split = (config.get("data", {}).get("init_args") or {}).get("split") or {}
    if not split.get("fold_test") or split.get("fold") is None:
        return None
    part, parts = split["fold"]
    return int(part), int(parts)


def seen_in_training(training: Path, trained: dict[str, Any], tested: dict[str, Any], rows: Sequence[ResultRow]) -> int:
    """How many patients of a test the training had on its training side.

    Patients of another folder may have the same names, so that only a test of the folder that was trained on counts.

    Args:
        training: run folder, whose ``splits.csv`` says who was where.
        trained: resolved configuration of the training.
        tested: that of the test.
        rows: of the test.
    """
    file = training / "splits.csv"
    if not file.is_file() or not _same_data(trained, tested):
        return 0
    with file.open(encoding="utf-8", newline="") as stream:
        seen = {line["patient"] for line in csv.DictReader(stream) if line["split"] == "train"}
    return len(seen & {row.patient for row in rows})


def _same_data(one: dict[str, Any], other: dict[str, Any]) -> bool:
    places = [(config.get("data", {}).get("init_args") or {}).get("root") for config in (one, other)]
    return None not in places and Path(str(places[0])).resolve() == Path(str(places[1])).resolve()


def pooled(runs: Sequence[Run]) -> list[Run]:
    """Runs in which the folds of one setting and seed can stand side by side.

    On the data set that was divided, folds share no object, and their rows go together. What every fold was tested on
    besides (another data set) counts as the result of as many trainings.

    Raises:
        InputError: two runs tested the same fold, or the data set was divided into different numbers of folds.
    """
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.fold is not None:
            groups[run.setting, run.seed, run.training is None].append(run)
    for group in groups.values():
        _check_folds(group)
    divided = {name for group in groups.values() for name in _divided(group)}
    found: list[Run] = []
    for run in runs:
        own = {name: rows for name, rows in run.rows.items() if name in divided}
        if run.fold is None or len(own) == len(run.rows):
            found.append(run)
            continue
        rest = {name: rows for name, rows in run.rows.items() if name not in divided}
        seed = None if run.seed is None else run.seed + _OF_A_FOLD * (1 + run.fold[0])
        found += [replace(run, rows=own), replace(run, rows=rest, seed=seed, cost=None, fold=None)]
    return found


def fold_notes(runs: Sequence[Run]) -> Iterator[str]:
    """What a report has to say of cross-validated runs, a sentence for each setting and seed."""
    groups: dict[tuple[str, int | None], list[Run]] = defaultdict(list)
    for run in runs:
        if run.fold is not None and run.rows:
            named = run.setting.label or run.setting.family
            words = [named, run.setting.modules, f"rank {run.setting.rank}" if run.setting.rank else ""]
            groups[" ".join(filter(None, words)), run.seed].append(run)
    for (named, seed), group in sorted(groups.items(), key=str):
        parts = {run.fold[1] for run in group if run.fold}.pop()
        folds = {run.fold[0] for run in group if run.fold}
        of = f"{named}, seed {seed}" if seed is not None else named
        lacking = f" (MISSING: {', '.join(str(n) for n in range(parts) if n not in folds)})"
        yield (
            f"{of}: rows of {len(folds)} of {parts} folds{lacking if len(folds) < parts else ''} together, each "
            "patient tested once, by a training that did not see them."
        )


def _check_folds(group: Sequence[Run]) -> None:
    first: dict[tuple[int, str], Run] = {}
    for run in group:
        assert run.fold is not None
        if len({other.fold[1] for other in group if other.fold}) > 1:
            raise InputError(
                f"{group[0].folder} and {group[-1].folder}: the same training, but divided into different numbers of "
                "folds; report on them apart"
            )
        for name in run.rows:
            other = first.setdefault((run.fold[0], name), run)
            if other is not run:
                raise InputError(f"{run.folder}: tested fold {run.fold[0]} as {other.folder} did; give one of them")


def _divided(group: Sequence[Run]) -> set[str]:
    """The data sets whose objects the folds share out: no two of them have one in common."""
    names = {name for run in group for name in run.rows}
    found = set()
    for name in names:
        objects = [{(row.case, row.class_name) for row in run.rows[name]} for run in group if name in run.rows]
        if sum(map(len, objects)) == len(set().union(*objects)):
            found.add(name)
    return found
