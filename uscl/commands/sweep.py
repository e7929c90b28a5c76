"""``uscl sweep``: the cells of a W&B sweep file, run here and without a server."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import math
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uscl.errors import InputError
from uscl.run_folder import RECORD
from uscl.seeds import derive_seed

log = logging.getLogger(__name__)
FINISHED, FAILED = "finished", "failed"
_KNOWN = {"program", "command", "method", "metric", "parameters", "run_cap", "name", "description", "project", "entity"}
_MACROS = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": ["uscl"]}


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Attributes:
        command: with macros.
        cells: value of every parameter, cell by cell.
        metric: name of the logged metric that cells are compared by, or None.
        maximise: whether more of it is better.
    """

    command: tuple[str, ...]
    cells: tuple[dict[str, Any], ...]
    metric: str | None
    maximise: bool


def sweep(file: str, out: str, jobs: int = 1, dry_run: bool = False) -> None:
    """Runs every cell of a W&B sweep file (grid or random) and writes one table; finished cells are not run again.

    Args:
        file: the sweep file, as `wandb sweep` takes it.
        out: folder of the sweep: a run folder for every cell, logs, sweep.csv.
        jobs: cells that run at the same time.
        dry_run: only print the commands.

    Raises:
        InputError: the file cannot be used, or a cell failed; all others have been run then.
    """
    asked, folder = read_sweep_file(Path(file)), Path(out).expanduser()
    commands = [cell_command(asked.command, cell, folder / cell_name(cell)) for cell in asked.cells]
    if dry_run:
        for command in commands:
            log.info("%s", " ".join(command))
        return
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, found {jobs}")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    _claim(folder, asked)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_run_cell, folder, cell_name(cell), command): cell_name(cell)
                   for cell, command in zip(asked.cells, commands, strict=True)}  # fmt: skip
        told = f"Running {len(waiting)} cells"
        seconds = {waiting[done]: done.result() for done in track(as_completed(waiting), told, total=len(waiting))}
    rows = [_row(folder, asked, cell, seconds[cell_name(cell)]) for cell in asked.cells]
    _write(folder / "sweep.csv", rows)
    Console().print(_table(Path(file).stem, rows, asked))
    failed = [row for row in rows if row["status"] != FINISHED]
    if failed:
        first = failed[0]
        raise InputError(f"{len(failed)} of {len(rows)} cells failed, first {first['cell']}: {first['problem']} (see "
                         f"{folder / 'logs'}); run again to repeat them alone")  # fmt: skip


def read_sweep_file(path: Path) -> Sweep:
    """Reads what can be run without a server: grid and random searches over flat parameters.

    Raises:
        InputError: the file is not there, no YAML, or asks for something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such sweep file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        raise InputError(f"{path}: expected the keys method, parameters, command and metric of a W&B sweep")
    if unknown := sorted(set(content) - _KNOWN):
        raise InputError(f"{path}: {', '.join(unknown)} needs W&B's server; leave it out, or use `wandb sweep`")
    command = content.get("command") or ["${env}", "${program}", "${args}"]
    if "${args}" not in command:
        raise InputError(f"{path}: the command lacks ${{args}}, so that no cell would differ from another")
    if content.get("method") == "grid":
        cells = _grid(path, content["parameters"])
    elif content.get("method") == "random":
        cells = _random(path, content["parameters"], content.get("run_cap"))
    else:
        raise InputError(f"{path}: method is {content.get('method')!r}; without a server there are grid and random")
    metric = content.get("metric") or {}
    return Sweep(tuple(str(part) for part in command), tuple(cells), metric.get("name"),
                 metric.get("goal", "minimize") == "maximize")  # fmt: skip


def _grid(path: Path, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    choices = []
    for name, told in parameters.items():
        if "values" not in told and "value" not in told:
            raise InputError(f"{path}: parameter {name}: a grid takes value or values, found {told}")
        choices.append(list(told.get("values", [told.get("value")])))
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices)]


def _random(path: Path, parameters: dict[str, Any], count: Any) -> list[dict[str, Any]]:
    if not isinstance(count, int) or count < 1:
        raise InputError(f"{path}: a random search without a server needs run_cap, the number of cells")
    # Cell n is the same in every call, so that a sweep can be taken up and made longer.
    return [{name: _draw(path, name, told, random.Random(derive_seed("sweep", number, name)))
             for name, told in parameters.items()} for number in range(count)]  # fmt: skip


def _draw(path: Path, name: str, told: dict[str, Any], source: random.Random) -> Any:
    if "value" in told:
        return told["value"]
    if "values" in told:
        return source.choice(told["values"])
    low, high = told.get("min"), told.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = told.get("distribution", "int_uniform" if whole else "uniform")
    if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
        if kind == "int_uniform":
            return source.randint(int(low), int(high))
        if kind == "uniform":
            return source.uniform(low, high)
        if kind == "log_uniform_values" and low > 0:
            return math.exp(source.uniform(math.log(low), math.log(high)))
    raise InputError(f"{path}: parameter {name}: cannot draw from {told}; known are value, values, and min and max "
                     "with distribution uniform, int_uniform or log_uniform_values")  # fmt: skip


def cell_name(cell: dict[str, Any]) -> str:
    """Folder of a cell: its values, short enough to read, and a hash that tells all of them apart."""
    short = "_".join(f"{name.rsplit('.', 1)[-1]}-{value}" for name, value in cell.items())
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in short)[:60]
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{clean}_{digest}"


def cell_command(command: tuple[str, ...], cell: dict[str, Any], folder: Path) -> list[str]:
    """The command of a cell with its macros filled in, and the folder it is to write to.

    ``${args}`` becomes ``--name=value`` for every parameter, as W&B's agent has it.

    Raises:
        InputError: a macro is not known.
    """
    filled: list[str] = []
    for part in command:
        if part == "${args}":
            filled += [f"--{name}={value}" for name, value in cell.items()]
        elif part in _MACROS:
            filled += _MACROS[part]
        elif part.startswith("${"):
            raise InputError(f"sweep: the macro {part} is not known here; use ${{args}}")
        else:
            filled.append(part)
    if filled and filled[0] == "/usr/bin/env":
        filled = filled[1:]
    if filled[:1] == ["python"]:
        filled = filled[1:]
    if filled[:1] != ["uscl"]:
        raise InputError(f"sweep: the command runs {filled[0] if filled else 'nothing'!r}; expected uscl")
    return [sys.executable, "-m", *filled, f"--trainer.default_root_dir={folder}", "--overwrite"]


def _claim(folder: Path, asked: Sweep) -> None:
    """Refuses a folder that holds the cells of another command."""
    mark, told = folder / "sweep.json", {"command": list(asked.command)}
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) != told:
        raise InputError(f"{folder}: holds the cells of another command; choose another --out")
    mark.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _run_cell(folder: Path, name: str, command: list[str]) -> float:
    """Runs a cell unless it is finished; seconds it took now."""
    if _status(folder / name) == FINISHED:
        return 0.0
    begin = perf_counter()
    with (folder / "logs" / f"{name}.log").open("w", encoding="utf-8") as stream:
        subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    return perf_counter() - begin


def _status(run: Path) -> str:
    try:
        return str(json.loads((run / RECORD).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError):
        return "missing"


def _row(folder: Path, asked: Sweep, cell: dict[str, Any], seconds: float) -> dict[str, Any]:
    name = cell_name(cell)
    status = FINISHED if _status(folder / name) == FINISHED else FAILED
    row = {"cell": name, **cell, "status": status, "seconds": round(seconds, 1)}
    if asked.metric:
        row[asked.metric] = _last_value(folder / name / "metrics.csv", asked.metric)
    row["problem"] = "" if status == FINISHED else _reason(folder / "logs" / f"{name}.log")
    return row


def _last_value(file: Path, metric: str) -> float:
    """The last logged value of a metric; NaN where there is none."""
    if not file.is_file():
        return math.nan
    with file.open(encoding="utf-8", newline="") as stream:
        values = [row.get(metric) or row.get(f"{metric}_epoch") for row in csv.DictReader(stream)]
    return next((float(value) for value in reversed(values) if value), math.nan)


def _reason(file: Path) -> str:
    """The line of a log that says why a cell failed: the innermost reason of the parser, or the last word of Python."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    parser = [line[2:] for line in lines if line.startswith("- ") and not line.startswith(("- Expected", "- Does not"))]
    if "Errors:" in lines and parser:
        return parser[0]
    said = [line for line in lines if "error: " in line.lower()]
    return [*lines[-1:], *said[-1:]][-1] if lines else "no output"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _table(title: str, rows: list[dict[str, Any]], asked: Sweep) -> Table:
    """The cells, best first."""
    metric, sign = asked.metric, -1 if asked.maximise else 1
    if metric is not None:
        rows = sorted(rows, key=lambda row: math.inf if math.isnan(row[metric]) else sign * row[metric])
    table = Table(title=title)
    columns = [*asked.cells[0], "status", *([metric] if metric else [])]
    for column in columns:
        table.add_column(column.removeprefix("model."))
    for row in rows:
        table.add_row(
            *(f"{row[column]:.4f}" if isinstance(row[column], float) else str(row[column]) for column in columns)
        )
    return table
