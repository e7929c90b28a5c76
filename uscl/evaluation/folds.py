"""Cross-validated tests: what the trainings of all folds found, as one result in which every patient stands once."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from uscl.errors import InputError
from uscl.evaluation.rows import ResultRow

if TYPE_CHECKING:
    from uscl.evaluation.runs import Run, Setting

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
    """How many patients of a test the training, or the stage 1 that it began with, had on its training side.

    Patients of another folder may have the same names, so that only a test of the folder that was trained on counts; a
    prepared store is the download that it was made from.

    Args:
        training: run folder, whose ``splits.csv`` says who was where.
        trained: resolved configuration of the training.
        tested: that of the test.
        rows: of the test.
    """
    seen: set[str] = set()
    for folder, config in [(training, trained), *_before(trained)]:
        file = folder / "splits.csv"
        if file.is_file() and _place(config) is not None and _place(config) == _place(tested):
            with file.open(encoding="utf-8", newline="") as stream:
                seen |= {line["patient"] for line in csv.DictReader(stream) if line["split"] == "train"}
    return len(seen & {row.patient for row in rows})


def _before(trained: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run folders and configurations of the trainings that one began with, where they are there."""
    model = trained.get("model", {}).get("init_args") or {}
    tuning = (model.get("tuning") or {}).get("init_args") or {}
    for name in ("vcl_adapter", "adapter"):
        if given := model.get(name):
            filled = str(given).replace("{rank}", str(tuning.get("rank", "")))
            folder = Path(filled.replace("{seed}", str(trained.get("seed_everything", "")))).expanduser().parent
            file = folder / "config.yaml"
            if file.is_file():
                yield folder, yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def _place(config: dict[str, Any]) -> Path | None:
    """The folder whose patients a run had."""
    data = config.get("data", {}).get("init_args") or {}
    if not data.get("root"):
        return None
    root = Path(str(data["root"])).expanduser().resolve()
    store = root / "data_set.json"
    if data.get("dataset") == "prepared" and store.is_file():
        return Path(json.loads(store.read_text(encoding="utf-8"))["origin"]["root"])
    return root


def own_seed(seed: int) -> int:
    """The seed of a training, whatever fold it is of."""
    return seed % _OF_A_FOLD


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
            groups[run.setting, run.seed, run.trained_on].append(run)
    for group in groups.values():
        _check_folds(group)
    found: list[Run] = []
    for run in runs:
        divided = set(run.rows) if run.fold is None else _divided(groups[run.setting, run.seed, run.trained_on])
        own = {name: rows for name, rows in run.rows.items() if name in divided}
        if len(own) == len(run.rows):
            found.append(run)
            continue
        assert run.fold is not None
        rest = {name: rows for name, rows in run.rows.items() if name not in divided}
        seed = None if run.seed is None else run.seed + _OF_A_FOLD * (1 + run.fold[0])
        found += [replace(run, rows=own), replace(run, rows=rest, seed=seed, cost=None, fold=None)]
    return found


def fold_notes(runs: Sequence[Run], described: Callable[[Setting], str]) -> Iterator[str]:
    """What a report has to say of cross-validated runs, a sentence for each setting and seed.

    Args:
        runs: of :func:`pooled`.
        described: a setting in words.
    """
    groups: dict[tuple[Setting, int, int], set[int]] = defaultdict(set)
    for run in runs:
        if run.fold is not None and run.rows:
            groups[run.setting, -1 if run.seed is None else run.seed, run.fold[1]].add(run.fold[0])
    for (setting, seed, parts), folds in sorted(groups.items()):
        of = described(setting) if seed < 0 else f"{described(setting)}, seed {seed}"
        lacking = f" (MISSING: {', '.join(str(n) for n in range(parts) if n not in folds)})"
        yield (
            f"{of}: rows of {len(folds)} of {parts} folds{lacking if len(folds) < parts else ''} together, each "
            "patient tested once, by a training that did not see them."
        )
    if len({seed for _, seed, _ in groups if seed >= 0}) == 1:
        yield "Intervals from folds of a single seed leave out that trainings differ."


def _check_folds(group: Sequence[Run]) -> None:
    first: dict[tuple[int, str], Run] = {}
    divided: dict[str, Run] = {}
    for run in group:
        assert run.fold is not None
        for name in run.rows:
            other = divided.setdefault(name, run)
            if other.fold is not None and other.fold[1] != run.fold[1]:
                raise InputError(
                    f"{other.folder} and {run.folder}: the same method, but {name} is divided into different numbers "
                    "of folds; report on them apart"
                )
            other = first.setdefault((run.fold[0], name), run)
            if other is not run:
                raise InputError(f"{run.folder}: tested fold {run.fold[0]} as {other.folder} did; give one of them")


def _divided(group: Sequence[Run]) -> set[str]:
    """The data sets whose objects the folds share out: no two of them have one in common."""
    found = set()
    for name in {name for run in group for name in run.rows}:
        objects = [{(row.case, row.class_name) for row in run.rows[name]} for run in group if name in run.rows]
        alone = len(objects) == 1 and name not in ("", group[0].trained_on) and group[0].training is not None
        if sum(map(len, objects)) == len(set().union(*objects)) and not alone:
            found.add(name)
    return found
