"""Run folders as results: how a model was tuned, with which seed, what it scored on which data set, what it cost."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from uscl.errors import InputError
from uscl.evaluation.cost import Cost, read_cost
from uscl.evaluation.folds import fold_of, pooled, seen_in_training
from uscl.evaluation.paper import scan_key
from uscl.evaluation.rows import NOT_RECORDED, OWN_INFERENCE, ResultRow, read_rows
from uscl.evaluation.statistics import Sample, samples_of
from uscl.prompting import ClickProtocol, Inference

log = logging.getLogger(__name__)
BASELINE = "Baseline"
_NOT_FOUND = "weights not found"


class _TestedTwiceError(InputError):
    """Two tests of one run are of the same data set."""


@dataclass(frozen=True, order=True)
class Setting:
    """How a model was tuned, in the terms of the paper's tables; a test notes it in its ``run.json``.

    Attributes:
        family: class of the tuning method, :data:`BASELINE`, or the name of a comparator.
        modules: ``encoder``, ``decoder`` or ``both``; empty where nothing was tuned.
        rank: of methods that have one; else 0.
        vcl: whether the encoder's LoRA began with stage 1.
        label: name in tables, where that is not the usual one of the family.
    """

    family: str
    modules: str = ""
    rank: int = 0
    vcl: bool = False
    label: str = ""


@dataclass(frozen=True)
class Run:
    """One training with its tests, or tests of an untouched backbone.

    Attributes:
        folder: of the run.
        setting: how it was tuned.
        seed: of the training; None for the baseline.
        rows: by data set.
        weights: what the trunk's weights were.
        cost: what the training cost, where it was measured.
        training: folder of the training; None where nothing was trained.
        missing: where a comparator's weights were not found, which.
        tests: folder of the test on each data set.
        protocols: where the test on each data set placed patches and clicks and what it scored, in words.
        inferences: how the test on each data set made masks, in words.
        trained_on: name of the data set; empty where nothing was trained, or an earlier version did not note it.
        fold: part and number of parts, where the test is one of a cross-validation.
        others: settings besides those that tables distinguish, as text: of model, data and trainer, and of the method.
    """

    folder: Path
    setting: Setting
    seed: int | None
    rows: dict[str, list[ResultRow]]
    weights: str
    cost: Cost | None
    missing: str = ""
    tests: dict[str, Path] = field(default_factory=dict, repr=False)
    protocols: dict[str, str] = field(default_factory=dict, repr=False)
    inferences: dict[str, str] = field(default_factory=dict, repr=False)
    trained_on: str = ""
    fold: tuple[int, int] | None = None
    others: tuple[str, str] = field(repr=False, default=("", ""))
    training: Path | None = field(repr=False, default=None)


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """All finished runs below some folders that tuned a backbone for segmentation or tested an untouched one.

    A test of an adapter, run by itself, is found too, if the run that left the adapter is where it was. Runs that did
    not finish, or that left no rows, are reported and left out.

    Raises:
        InputError: a path is no folder, nothing usable lies below, two runs with the same settings and seed, or two
            tests of one run, have rows of the same data set, or tests on the same data set followed different
            protocols.
    """
    found: list[Run] = []
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give run folders, or folders with runs in them")
        for record in sorted(path.rglob("run.json")):
            if record.parent.parent.name == "tests" and (record.parents[2] / "run.json").is_file():
                continue  # read with the training that it follows
            run = _read_run(record.parent)
            if run is not None and run.folder not in {other.folder for other in found}:
                found.append(run)
    if not any(run.rows for run in found):
        raise InputError(
            f"{', '.join(map(str, paths))}: no finished run with rows; run `uscl test`, or `uscl fit` with --test_with"
        )
    found = pooled(found)
    _check(found)
    return found


def data_sets(runs: Sequence[Run]) -> list[str]:
    """The data sets that runs were tested on, CT and MR last."""
    names = dict.fromkeys(name for run in runs for name in run.rows)
    return sorted(names, key=lambda name: (is_scan(name), name))


def is_scan(data_set: str) -> bool:
    """Whether a data set is one of the paper's CT and MR sets."""
    return scan_key(data_set) is not None


def samples(runs: Iterable[Run], setting: Setting, data_set: str, clicks: int) -> list[Sample]:
    """The Dice of all objects of a data set, over all seeds of a setting."""
    return [
        sample
        for run in runs
        if run.setting == setting
        for sample in samples_of(run.rows.get(data_set, []), clicks, run.seed)
    ]


def rows_behind(
    runs: Iterable[Run], setting: Setting, data_set: str, clicks: int, class_name: str | None = None
) -> list[ResultRow]:
    """The rows that a figure is made from, over all seeds of a setting; class None takes all."""
    return [
        row
        for run in runs
        if run.setting == setting
        for row in run.rows.get(data_set, [])
        if row.clicks == clicks and class_name in (None, row.class_name)
    ]


def _read_run(folder: Path) -> Run | None:
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        model = config["model"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        log.warning("%s: holds no record that can be read; left out", folder)
        return None
    if "setting" not in record and not str(model["class_path"]).endswith(("LoRASegModule", "ComparatorModule")):
        return None  # of another stage, which has no results of its own
    if str(record.get("status")).startswith(_NOT_FOUND):
        options = model.get("init_args") or {}
        untouched = not options.get("adapter") and not options.get("tuning")
        if method := record.get("method") or (BASELINE if untouched else None):
            return Run(folder, Setting(method), None, {}, "", None, record["status"])
    if record.get("side") == "val":
        log.warning("%s: scored the validation side (uscl validate); left out, for reports are of tests", folder)
        return None
    if record.get("status") != "finished":
        log.warning("%s: is not finished (%s); left out", folder, record.get("status"))
        return None
    try:
        if (folder / "rows.csv").is_file():
            return _read_test(folder, config, record)
        files = sorted((folder / "tests").glob("*/rows.csv"))
        if files:
            return _run(folder, folder, config, files, record)
    except _TestedTwiceError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, yaml.YAMLError) as error:
        log.warning("%s: cannot be used (%s); left out", folder, " ".join(repr(error).split()))
        return None
    log.warning("%s: has not been tested (--test_with); left out", folder)
    return None


def _read_test(folder: Path, own: dict[str, Any], record: dict[str, Any]) -> Run | None:
    model = own["model"]
    adapter = model["init_args"].get("adapter")
    if not adapter:
        run = replace(_run(folder, None, {}, [folder / "rows.csv"], record), fold=fold_of(own))
        if "setting" in record:
            return run
        # Of an earlier version. Without a name of its own it is the untouched backbone.
        named = str(model["class_path"]).endswith("ComparatorModule") or model["init_args"].get("method")
        method = next((row.method for rows in run.rows.values() for row in rows), BASELINE)
        return replace(run, setting=Setting(method)) if named else run
    training = Path(adapter).expanduser().parent
    try:
        trained = json.loads((training / "run.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((training / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        log.warning("%s: tests %s, but the run that left it is not there; left out", folder, adapter)
        return None
    if trained.get("started", "") > record.get("started", ""):
        log.warning("%s: tests what %s held before it was overwritten; left out", folder, training)
        return None
    noted = trained | record | {"data_set": trained.get("data_set", "")}
    return _run(folder, training, config, [folder / "rows.csv"], noted)


def _run(
    folder: Path, training: Path | None, config: dict[str, Any], files: Sequence[Path], record: dict[str, Any]
) -> Run:
    rows: dict[str, list[ResultRow]] = {}
    tests: dict[str, Path] = {}
    protocols: dict[str, str] = {}
    inferences: dict[str, str] = {}
    for file in files:
        found_rows = read_rows(file)
        if any(NOT_RECORDED in (row.protocol, row.inference) for row in found_rows):
            words = _words_of_earlier(file.parent)
            found_rows = [_with_words(row, *words) for row in found_rows]
        if training is not None and (seen := seen_in_training(training, config, _config_of(file.parent), found_rows)):
            log.warning("%s: %d of the patients it tested were trained on; left out", file.parent, seen)
            continue
        for row in found_rows:
            if tests.get(row.data_set, file.parent) != file.parent:
                raise _TestedTwiceError(
                    f"{file.parent} and {tests[row.data_set]}: both tested on {row.data_set}; a "
                    "report shows one test of a data set, so take one away"
                )
            rows.setdefault(row.data_set, []).append(row)
            tests[row.data_set] = file.parent
            protocols[row.data_set], inferences[row.data_set] = row.protocol, row.inference
    weights = next((row.weights for some in rows.values() for row in some), "")
    noted = record.get("setting")
    found = Run(
        folder,
        Setting(**noted) if noted else Setting(BASELINE),
        None,
        rows,
        weights,
        None,
        tests=tests,
        protocols=protocols,
        inferences=inferences,
    )
    if training is None:
        return found
    return replace(
        found,
        setting=found.setting if noted else _setting(config["model"]["init_args"], training),
        seed=config["seed_everything"],
        cost=read_cost(training),
        trained_on=str(record.get("data_set", "")),
        fold=fold_of(config),
        others=_others(config),
        training=training,
    )


def _config_of(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _with_words(row: ResultRow, protocol: str, inference: str) -> ResultRow:
    """A row that says how it was made, as far as that is known."""
    return replace(
        row,
        protocol=protocol if row.protocol == NOT_RECORDED else row.protocol,
        inference=inference if row.inference == NOT_RECORDED else row.inference,
    )


def _words_of_earlier(test: Path) -> tuple[str, str]:
    """Protocol and inference of a test of an earlier version, which had them in its configuration alone."""
    config = _config_of(test)
    options, data = (config.get(part, {}).get("init_args") or {} for part in ("model", "data"))
    if "protocol" not in options:
        return NOT_RECORDED, NOT_RECORDED
    region = str(data.get("region", "label")).replace("_", " ")
    protocol = f"patches around the {region}, {ClickProtocol(**options['protocol']).in_words}"
    if "shifts" not in options and config["model"]["class_path"].endswith("ComparatorModule"):
        return protocol, OWN_INFERENCE
    twice = options.get("first_twice", False)
    inference = Inference(
        options.get("shifts", 1),
        bool(options.get("guided_filter")),
        options.get("backbone") == "mini_fine" if twice is None else twice,
    )
    return protocol, inference.in_words


def _setting(options: dict[str, Any], training: Path) -> Setting:
    """The setting of a training of an earlier version, which did not note it."""
    if options.get("adapter"):  # a training that went on: the method is that of the adapter
        with safe_open(training / "adapter.safetensors", framework="numpy") as stream:
            adapter = json.loads(stream.metadata()["adapter"])
        parts = adapter["tuning"]
        chosen = next(iter(parts.values()))
        modules = "both" if len(parts) > 1 else next(iter(parts))
        return Setting(chosen["method"], modules, chosen.get("rank", 0), adapter["method"] == "USCL-Med3D")
    tuning = options["tuning"]
    family, chosen = tuning["class_path"].rsplit(".", 1)[-1], tuning["init_args"]
    return Setting(family, chosen["modules"], chosen.get("rank", 0), bool(options.get("vcl_adapter")))


def _others(config: dict[str, Any]) -> tuple[str, str]:
    """What must be the same in runs that are averaged: all but what tables and seeds distinguish, and where it lies."""
    model, data = dict(config["model"]["init_args"]), dict(config["data"]["init_args"])
    chosen = model.pop("tuning") or {}
    tuning, kind = dict(chosen.get("init_args") or {}), str(chosen.get("class_path", "uscl."))
    for name in ("modules", "rank"):
        tuning.pop(name, None)
    if not kind.startswith("uscl."):  # classes of one name may be different methods
        tuning["class_path"] = kind
    model["adapter"] = bool(model.get("adapter"))  # a training that went on is not one that began
    of_tests = ("evaluation", "inference", "method", "shifts", "guided_filter", "first_twice", "test_clicks")
    for name in ("vcl_adapter", "seed", *of_tests):
        model.pop(name, None)
    data.pop("seed", None)
    if data.get("split"):
        # Earlier versions had no such setting; and folds are put together.
        gone = {"fold_test", "fold"} if fold_of(config) is not None else {"fold_test"}
        data["split"] = {name: value for name, value in data["split"].items() if name not in gone}
        data["split"] |= {"fold_test": True} if fold_of(config) is not None else {}
    kept = (
        "max_epochs",
        "max_steps",
        "limit_train_batches",
        "accumulate_grad_batches",
        "gradient_clip_val",
        "precision",
        "devices",
    )
    trainer = {name: config["trainer"].get(name) for name in kept}
    return json.dumps([model, data, trainer], sort_keys=True, default=str), json.dumps(tuning, sort_keys=True)


def _check(runs: Sequence[Run]) -> None:
    seen: dict[tuple[Setting, int | None, str, tuple[int, int] | None], Path] = {}
    for run in runs:
        for name in run.rows:
            key = (run.setting, run.seed, name, run.fold)
            if key in seen:
                raise InputError(
                    f"{run.folder}: has settings, seed and data set ({name}) of {seen[key]}; give one of them"
                )
            seen[key] = run.folder
    _check_alike(runs, "protocols", [run.protocols for run in runs])
    # That of a comparator is its own.
    ours = [{name: words for name, words in run.inferences.items() if words != OWN_INFERENCE} for run in runs]
    _check_alike(runs, "inferences", ours)
    for setting in {run.setting for run in runs}:
        own = [run for run in runs if run.setting == setting]
        if len({run.others for run in own}) > 1:
            raise InputError(
                f"{own[0].folder} and {own[-1].folder}: tune in the same way, but differ in data, clicks, "
                "optimiser or length; report on them apart"
            )
    if len({run.others[0] for run in runs if run.seed is not None}) > 1:
        log.warning("The trainings differ in data, clicks, optimiser or length besides what the tables separate")
    on_trunk = [run for run in runs if run.seed is not None or run.setting == Setting(BASELINE)]
    for text in sorted({run.weights for run in on_trunk})[1:]:
        log.warning("Some runs stand on other weights (%s): their differences are not of tuning alone", text)


def _check_alike(runs: Sequence[Run], what: str, words_of: Sequence[dict[str, str]]) -> None:
    """Refuses tests of one data set that differ in what makes their figures another thing."""
    first: dict[str, tuple[Run, str]] = {}
    for run, words in zip(runs, words_of, strict=True):
        for name, own in words.items():
            other, theirs = first.setdefault(name, (run, own))
            if own != theirs:
                raise InputError(
                    f"{run.tests[name]} and {other.tests[name]}: tested on {name} by {what} whose figures must not be "
                    f"compared ({own}; {theirs}); report on them apart"
                )
