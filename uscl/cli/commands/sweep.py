"""``uscl sweep``: the cells of a W&B sweep file, run here and without a server."""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from uscl.cli.commands.slurm import Slurm, run_on_slurm
from uscl.cli.commands.sweep_file import SweepFile, cell_command, cell_name, command_mark, read_sweep_file
from uscl.cli.follow_up import parse_experiments
from uscl.cli.refusals import reason_in
from uscl.cli.run_folder import RECORD, differences
from uscl.errors import InputError

log = logging.getLogger(__name__)
FINISHED, FAILED, MISSING = "finished", "failed", "weights not found"


def sweep(
    file: str,
    out: str,
    jobs: int = 1,
    dry_run: bool = False,
    slurm: Slurm | None = None,
    skip_missing_weights: bool = False,
    report: bool = False,
    settings: Sequence[str] = (),
) -> None:
    """Runs every cell of a W&B sweep file (grid or random) and writes one table; finished cells are not run again.

    Args:
        file: the sweep file, as `wandb sweep` takes it.
        out: folder of the sweep: a run folder for every cell, logs, sweep.csv.
        jobs: cells that run at the same time.
        dry_run: only print the commands.
        slurm: run the cells as jobs of SLURM, e.g. `--slurm.minutes 240 --slurm.partition gpu`; null runs them here.
        skip_missing_weights: a cell whose weights are not on this machine is noted as such and is no failure.
        report: write tables of what the cells tested into OUT/report, as `uscl report OUT --out OUT/report` does.
        settings: further options of every cell: `--model...`, `--data...`, `--trainer...`, `--config FILE`,
            `--test_with ...` and `--seed_everything N` are passed on, e.g. `--data.root FOLDER`. What the file sweeps
            over stays as it says.

    Raises:
        InputError: the file cannot be used, or a cell failed; all others have been run then.
    """
    asked, folder = read_sweep_file(Path(file)), Path(out).expanduser()
    _check_passed(file, asked, settings)
    commands = {
        cell_name(cell): cell_command(asked.command, cell, folder / cell_name(cell), settings) for cell in asked.cells
    }
    if dry_run:
        for command in commands.values():
            log.info("%s", shlex.join(command))
        return
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, found {jobs}")
    if settings:
        _check_usable(commands)
    _claim(folder, command_mark(asked, settings))
    finished = {name for name in commands if _has_finished(folder / name)}
    for name in sorted(finished):
        _check_settings(folder / name, commands[name])
    waiting = {
        name: partial(run_cell, folder, name, command) for name, command in commands.items() if name not in finished
    }
    at_once = min(jobs, len(waiting)) or 1
    running = _run_here(waiting, at_once) if slurm is None else run_on_slurm(folder, waiting, slurm, at_once)
    for _ in track(running, f"Running {len(waiting)} of {len(commands)} cells", total=len(waiting)):
        pass
    rows = [_row(folder, asked, cell) for cell in asked.cells]
    _write(folder / "sweep.csv", rows)
    Console().print(_table(Path(file).stem, rows, asked))
    fine = {FINISHED, MISSING} if skip_missing_weights else {FINISHED}
    failed = [row for row in rows if row["status"] not in fine]
    if failed:
        first = failed[0]
        raise InputError(
            f"{len(failed)} of {len(rows)} cells failed, first {first['cell']}: {first['problem']} (see "
            f"{folder / 'logs'}); run again to repeat them alone"
        )
    if report:
        from uscl.cli.commands.report import report as write_report

        write_report([str(folder)], str(folder / "report"))


def _check_passed(file: str, asked: SweepFile, settings: Sequence[str]) -> None:
    """Refuses options that a sweep could not pass on: what it sweeps over, in whole or in part, and where it writes."""
    swept = {_plain_name(name): name for name in asked.cells[0] if name != "config"}
    for setting in settings:
        name = _plain_name(setting[2:].partition("=")[0])
        if found := next((given for plain, given in swept.items() if f"{name}.".startswith(f"{plain}.")), None):
            raise InputError(f"{setting.partition('=')[0]}: {file} sweeps over {found}; leave it out")
        if name == "trainer.default_root_dir":
            raise InputError("--trainer.default_root_dir: every cell has a folder of its own in --out; leave it out")


def _plain_name(name: str) -> str:
    """A setting's name, however it is written."""
    return name.replace(".init_args.", ".").removesuffix("+")


def _check_usable(commands: Mapping[str, list[str]]) -> None:
    """Refuses options that no cell can be run with: they must not leave a folder of cells that failed.

    Raises:
        InputError: with the reason of the first cell.
    """
    first: InputError | None = None
    for name, command in commands.items():
        try:
            parse_experiments(_settings_of(name, command).get("test_with", []))
        except InputError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _check_settings(run: Path, command: list[str]) -> None:
    """Refuses a finished cell that was run with other settings than it would be now.

    Raises:
        InputError: a setting differs, in whichever of its YAML files it is.
    """
    began = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    differing = sorted(differences(began, _settings_of(run.name, command)))
    if differing:
        raise InputError(
            f"{run}: finished with another {differing[0]} than the command asks for now; choose another --out"
        )


def _settings_of(name: str, command: list[str]) -> dict[str, Any]:
    """The resolved settings of a cell.

    Raises:
        InputError: it cannot be run with what is given.
    """
    from uscl.cli.lightning_cli import resolve

    try:
        return resolve(command[3:])
    except InputError as error:
        raise InputError(f"cell {name}: {error}") from error


def _run_here(cells: Mapping[str, Callable[..., bool]], jobs: int) -> Iterator[str]:
    """Runs cells on this machine, each with its share of the cores and of the GPUs, and yields each that has ended.

    Cells that another call runs are waited for last, when there is nothing else to do.
    """
    places: Queue[dict[str, str]] = Queue()
    devices, cores = _visible_devices() if jobs > 1 else [], (os.cpu_count() or 1) // jobs
    for place in range(jobs):
        # Jobs that all take every core, or the first GPU, only wait for each other.
        own = {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            own["OMP_NUM_THREADS"] = str(max(1, cores))
        places.put(own)

    def run(cell: Callable[..., bool], wait: bool) -> bool:
        place = places.get()
        try:
            return cell(place, wait)
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            elsewhere = list(cells)
            for wait in (False, True):
                names = {pool.submit(run, cells[name], wait): name for name in elsewhere}
                elsewhere = []
                for done in as_completed(names):
                    if done.result():
                        yield names[done]
                    else:
                        elsewhere.append(names[done])
        finally:
            # Interrupted, what has not begun must not begin: the pool would run all of it before it ends.
            pool.shutdown(wait=False, cancel_futures=True)


def _visible_devices() -> list[str]:
    """The GPUs that this program may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def run_cell(
    folder: Path, name: str, command: list[str], place: Mapping[str, str] | None = None, wait: bool = True
) -> bool:
    """Runs one cell as a program of its own, its output into ``logs/NAME.log``.

    The cell holds a lock on its log for as long as it lives. Several calls on one folder, on this machine or from the
    nodes of a cluster, thus share the cells out: who finds a cell running turns to another, or waits for it and does
    not run it again if it finished.

    Args:
        folder: of the sweep.
        name: of the cell.
        command: its program.
        place: variables of the environment that say where it computes.
        wait: for a cell that runs elsewhere.

    Returns:
        Whether the cell has ended; False if it runs elsewhere and is not to be waited for.
    """
    # What SLURM says of the job is not meant for the processes that a cell starts itself.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | dict(place or {})
    with (folder / "logs" / f"{name}.log").open("a", encoding="utf-8") as stream:
        # The program inherits the lock with the log: it outlives a call that is killed.
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        if not _has_finished(folder / name):
            stream.truncate(0)
            if not (folder / name / RECORD).exists():
                # Killed before it had a record; --overwrite would not take it for a run.
                shutil.rmtree(folder / name, ignore_errors=True)
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
    return True


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Takes an empty folder, or one that holds cells of the same command; refuses any other."""
    mark = folder / "sweep.json"
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if (held and mark.name not in held) or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: holds something else than a sweep; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with mark.open("a+", encoding="utf-8") as stream:
        # Two calls that begin at the same time: the second reads what the first wrote.
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        text = stream.read()
        if not text:
            stream.write(json.dumps(wanted, indent=2) + "\n")
    try:
        found = json.loads(text) if text else wanted
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{mark}: cannot be read; choose another --out")
    found.setdefault("settings", [])  # Sweeps of earlier versions took none.
    if differing := [key for key, value in wanted.items() if found.get(key) != value]:
        key = differing[0]
        raise InputError(
            f"{folder}: holds cells with the {key} {found.get(key)}, asked for are those with {wanted[key]}; choose "
            "another --out"
        )
    (folder / "logs").mkdir(exist_ok=True)


def _has_finished(run: Path) -> bool:
    """Whether a cell came to its end and says with which settings."""
    return _record(run).get("status") == FINISHED and (run / "config.yaml").is_file()


def _record(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _row(folder: Path, asked: SweepFile, cell: dict[str, Any]) -> dict[str, Any]:
    name = cell_name(cell)
    record = _record(folder / name)
    ended = str(record.get("status"))
    status = FINISHED if ended == FINISHED else MISSING if ended.startswith(MISSING) else FAILED
    row = {"cell": name, **cell, "status": status, "seconds": _seconds(record)}
    if asked.metric:
        row[asked.metric] = _last_value(folder / name / "metrics.csv", asked.metric)
    reason = {FINISHED: "", MISSING: ended}
    row["problem"] = reason[status] if status in reason else _reason(folder / "logs" / f"{name}.log")
    return row


def _seconds(record: dict[str, Any]) -> float:
    """From the start to the end of a run; NaN if it never began or never ended."""
    try:
        took = datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])
    except (KeyError, TypeError, ValueError):
        return math.nan
    return took.total_seconds()


def _last_value(file: Path, metric: str) -> float:
    """The last logged value of a metric; NaN where there is none."""
    if not file.is_file():
        return math.nan
    with file.open(encoding="utf-8", newline="") as stream:
        values = [row.get(metric) or row.get(f"{metric}_epoch") for row in csv.DictReader(stream)]
    return next((float(value) for value in reversed(values) if value), math.nan)


def _reason(file: Path) -> str:
    """What a log says of why a cell failed: the last error in it, or its last line."""
    if not file.is_file():
        slurm = file.parents[1] / "slurm"
        return f"it never began; what SLURM said lies in {slurm}" if slurm.is_dir() else "it never began"
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [number for number, line in enumerate(lines) if "error: " in line.lower()]
    return reason_in("\n".join(lines[said[-1] if said else -1 :])) if lines else "no output"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the table in one step: another call may write it at the same time."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def _table(title: str, rows: list[dict[str, Any]], asked: SweepFile) -> Table:
    """The cells, best first."""
    metric, sign = asked.metric, -1 if asked.maximise else 1
    if metric is not None:
        rows = sorted(rows, key=lambda row: math.inf if math.isnan(row[metric]) else sign * row[metric])
    table = Table(title=escape(title))
    columns = [*asked.cells[0], "status", *([metric] if metric else [])]
    for column in columns:
        table.add_column(escape(column.removeprefix("model.")))
    for row in rows:
        table.add_row(
            *(
                f"{row[column]:.4g}" if isinstance(row[column], float) else escape(str(row[column]))
                for column in columns
            )
        )
    return table
