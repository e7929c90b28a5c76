"""``uscl prepare``: a download checked case by case, and a compact store that patches are read from."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from uscl.data.checks import UNUSABLE, USABLE, CaseReport, check_and_prepare, write_report
from uscl.data.datasets import DataSet, write_manifest
from uscl.data.patches import Preprocessing
from uscl.data.registry import read_data_set
from uscl.data.store import require_blosc2, write_data_set
from uscl.errors import InputError

log = logging.getLogger(__name__)
REPORT = "prepare_report.csv"
_MARK = ".uscl-store"


def prepare(
    dataset: str,
    root: str,
    out: str | None = None,
    modality: str | None = None,
    classes: list[str] | None = None,
    preprocessing: Preprocessing = Preprocessing(),
    workers: int = 1,
    skip_bad: bool = False,
    new_manifest: str | None = None,
) -> None:
    """Checks every case of a data set and writes the usable ones into a store for `--data.dataset prepared`.

    Args:
        dataset: layout of the download: folder (also nnU-Net raw), amos, totalsegmentator, brats, ultrasound (sweeps of
            any kind, listed in sweeps.csv), or the dotted path of a reader of your own.
        root: the download, or a manifest of sweeps; nothing is written into it.
        out: folder of the store; an interrupted run is taken up again.
        modality: which image of a case, or which cases, as data.modality.
        classes: names of classes to use; the default is all.
        preprocessing: spacing and clamp of the store; training must ask for the same.
        workers: processes.
        skip_bad: leave unusable cases out instead of ending with an error.
        new_manifest: with ultrasound and instead of out: write a manifest of the sweeps found below root, to be
            corrected by you and given as root then.

    Raises:
        InputError: the download or the store cannot be used, or a case cannot and skip_bad is not given. The report
            is written all the same.
    """
    source = Path(root).expanduser()
    if new_manifest is not None:
        if dataset != "ultrasound" or out is not None:
            raise InputError("--new-manifest: goes with ultrasound alone, and without --out")
        count = write_manifest(source, Path(new_manifest).expanduser())
        log.info(
            "%s: %d sweeps. Look at patient (sweeps of one patient must share it), label, spacing and step, then "
            "run: uscl prepare ultrasound --root %s --out STORE",
            new_manifest,
            count,
            new_manifest,
        )
        return
    if out is None:
        raise InputError("--out: give the folder to prepare into")
    require_blosc2()
    folder = Path(out).expanduser()
    data_set = read_data_set(dataset, source, modality).only(classes)
    if data_set.store is not None:
        raise InputError(f"{source}: is prepared already; use it as --data.dataset prepared --data.root {source}")
    origin = {
        "dataset": dataset,
        "root": str(source.resolve()),
        "modality": modality,
        "classes": classes,
        "label_names": {str(i): name for i, name in data_set.label_names.items()},
    }
    _claim(folder, source, origin)
    reports = [CaseReport(name, UNUSABLE, problem) for name, problem in data_set.problems.items()]
    reports += _check_all(data_set, preprocessing, folder, workers)
    write_report(folder / REPORT, reports)
    bad = [report for report in reports if report.status == UNUSABLE]
    Console().print(_summary(reports, data_set))
    for report in bad[:10]:
        log.warning("%s: %s", report.case, report.problem)
    if odd := [report for report in reports if report.note]:
        more = f" (and {len(odd) - 1} more, see {folder / REPORT})" if len(odd) > 1 else ""
        log.warning("%s: %s%s", odd[0].case, odd[0].note, more)
    if bad and not skip_bad:
        raise InputError(
            f"{len(bad)} of {len(reports)} cases cannot be used (see {folder / REPORT}); mend them and "
            "run again, or leave them out with --skip-bad"
        )
    good = {report.case for report in reports if report.status == USABLE}
    if not good:
        raise InputError(f"{source}: no case can be used (see {folder / REPORT})")
    usable = replace(data_set, cases=tuple(case for case in data_set.cases if case.name in good), problems={})
    write_data_set(folder, usable, origin)
    log.info("%d cases: --data.dataset prepared --data.root %s", len(good), folder)


def _check_all(data_set: DataSet, preprocessing: Preprocessing, folder: Path, workers: int) -> Iterator[CaseReport]:
    check = partial(check_and_prepare, data_set=data_set, preprocessing=preprocessing, folder=folder)
    title = f"Checking and preparing {len(data_set.cases)} cases"
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                yield from track(pool.map(check, data_set.cases), title, total=len(data_set.cases))
            except BrokenProcessPool as error:
                raise InputError(
                    "a worker was killed, most likely for memory; run again with fewer --workers: what is "
                    "complete stays"
                ) from error
    else:
        yield from map(check, track(data_set.cases, title))


def _claim(folder: Path, source: Path, origin: dict[str, Any]) -> None:
    """Makes the folder, or checks that it is a store of the same cases and not something of the user's."""
    if folder.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{folder}: lies in the download; choose another --out")
    mark = folder / _MARK
    if mark.is_file():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found != origin:
            changed = ", ".join(key for key in origin if found.get(key) != origin[key])
            raise InputError(f"{folder}: was prepared from something else ({changed} differ); choose another --out")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no store of uscl prepare; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(origin) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error}); choose another --out") from error


def _summary(reports: list[CaseReport], data_set: DataSet) -> Table:
    usable = [report for report in reports if report.status == USABLE]
    assumed = sum(report.distances == "assumed" for report in usable)
    unit = "voxels" if usable and assumed == len(usable) else "ml"
    caption = f"{unit}: mean over cases that have it"
    if assumed:
        caption += "; all distances are assumed" if unit == "voxels" else f", but for {assumed} with assumed distances"
    table = Table(title=f"{data_set.name}: {len(reports)} cases", caption=caption)
    for column in ("class", "cases", unit):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name in data_set.classes:
        sizes = [
            part.rsplit(" ", 2)[1:]
            for report in reports
            for part in report.classes.split("; ")
            if part.rsplit(" ", 2)[0] == name
        ]
        known = [float(size) for size, of in sizes if of == unit]
        if sizes:
            table.add_row(name, str(len(sizes)), f"{sum(known) / len(known):.1f}" if known else "not known")
    bad = sum(report.status == UNUSABLE for report in reports)
    raw, stored = (sum(getattr(report, key) for report in reports) / 1e6 for key in ("bytes_raw", "bytes_stored"))
    table.add_section()
    table.add_row("usable / unusable cases", f"{len(reports) - bad} / {bad}", "")
    table.add_row("MB in the download / in the store", f"{raw:.1f} / {stored:.1f}", "")
    return table
