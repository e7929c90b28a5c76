"""W&B sweep files: which cells they ask for, and the command of each, without W&B's server."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uscl.errors import InputError
from uscl.seeds import derive_seed

_KNOWN = {"program", "command", "method", "metric", "parameters", "run_cap", "name", "description", "project", "entity"}
_PARAMETER = {"value", "values", "min", "max", "distribution", "probabilities"}
_MACROS = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": ["uscl"]}


@dataclass(frozen=True)
class SweepFile:
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


def read_sweep_file(path: Path) -> SweepFile:
    """Reads what can be run without a server: grid and random searches over flat parameters.

    Raises:
        InputError: the file is not there, no YAML, or asks for something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such sweep file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML in UTF-8 ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        raise InputError(f"{path}: expected the keys method, parameters, command and metric of a W&B sweep")
    if unknown := sorted(set(map(str, content)) - _KNOWN):
        raise InputError(f"{path}: {', '.join(unknown)} needs W&B's server; leave it out, or use `wandb sweep`")
    command, metric = content.get("command") or ["${env}", "${program}", "${args}"], content.get("metric") or {}
    if not isinstance(command, list) or not isinstance(metric, dict) or not isinstance(metric.get("name", ""), str):
        raise InputError(
            f"{path}: command must be a list, found {command!r}, and metric have name and goal, {metric!r}"
        )
    if (goal := metric.get("goal", "minimize")) not in ("minimize", "maximize"):
        raise InputError(f"{path}: the goal of the metric is minimize or maximize, found {goal!r}")
    if content.get("program", "uscl") != "uscl" and "${program}" in command:
        raise InputError(f"{path}: the program is {content['program']!r}; expected uscl")
    if "${args}" not in command:
        raise InputError(f"{path}: the command lacks ${{args}}, so that no cell would differ from another")
    parameters = {str(name): _parameter(path, name, given) for name, given in content["parameters"].items()}
    if content.get("method") == "grid":
        cells = _grid(path, parameters)[: _run_cap(path, content.get("run_cap"))]
    elif content.get("method") == "random":
        cells = _random(path, parameters, _run_cap(path, content.get("run_cap")))
    else:
        raise InputError(f"{path}: method is {content.get('method')!r}; without a server there are grid and random")
    unique = {json.dumps(cell, default=str): cell for cell in cells}
    names = [cell_name(cell) for cell in unique.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{path}: two cells would be called {twice[0]}; cells are called after their values, files without their "
            "folders: give those names of their own"
        )
    return SweepFile(
        tuple(str(part) for part in command), tuple(unique.values()), metric.get("name"), goal == "maximize"
    )


def _parameter(path: Path, name: Any, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{path}: parameter {name}: expected value, values, or min and max, found {given!r}")
    if "parameters" in given:
        raise InputError(f"{path}: parameter {name}: is nested; write it flat, as {name}.NAME")
    if "values" in given and (not isinstance(given["values"], list) or not given["values"]):
        raise InputError(
            f"{path}: parameter {name}: values must be a list with something in it, found {given['values']}"
        )
    if unknown := sorted(set(map(str, given)) - _PARAMETER):
        raise InputError(
            f"{path}: parameter {name}: {', '.join(unknown)} is not known here; known are "
            f"{', '.join(sorted(_PARAMETER))}"
        )
    if "probabilities" in given:
        shares, count = given["probabilities"], len(given.get("values", []))
        if not isinstance(shares, list) or len(shares) != count or not all(_is_share(share) for share in shares):
            raise InputError(
                f"{path}: parameter {name}: probabilities must be one number from 0 to 1 for each of its "
                f"values, found {shares!r}"
            )
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise InputError(f"{path}: parameter {name}: probabilities must add up to 1, found {shares!r}")
    return given


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _run_cap(path: Path, given: Any) -> int | None:
    """The most cells that a file asks for, None if it does not say."""
    if given is not None and (not isinstance(given, int) or given < 1):
        raise InputError(f"{path}: run_cap is the number of cells, at least 1; found {given!r}")
    return given


def _grid(path: Path, parameters: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    choices = []
    for name, given in parameters.items():
        if "values" not in given and "value" not in given:
            raise InputError(f"{path}: parameter {name}: a grid takes value or values, found {given}")
        choices.append(given.get("values", [given.get("value")]))
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices)]


def _random(path: Path, parameters: dict[str, dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    if count is None:
        raise InputError(f"{path}: a random search without a server needs run_cap, the number of cells")
    # Cell n is the same in every call, so that a sweep can be taken up and made longer.
    return [
        {
            name: _draw(path, name, given, random.Random(derive_seed("sweep", number, name)))
            for name, given in parameters.items()
        }
        for number in range(count)
    ]


def _draw(path: Path, name: str, given: dict[str, Any], source: random.Random) -> Any:
    if "value" in given:
        return given["value"]
    if "values" in given:
        if "probabilities" in given:
            return source.choices(given["values"], given["probabilities"])[0]
        return source.choice(given["values"])
    low, high = given.get("min"), given.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = given.get("distribution", "int_uniform" if whole else "uniform")
    if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
        if kind == "int_uniform" and whole:
            return source.randint(int(low), int(high))
        if kind == "uniform":
            return source.uniform(low, high)
        if kind == "log_uniform_values" and low > 0:
            return math.exp(source.uniform(math.log(low), math.log(high)))
    raise InputError(
        f"{path}: parameter {name}: cannot draw from {given}; known are value, values, and min and max "
        "with distribution uniform, int_uniform or log_uniform_values"
    )


def cell_name(cell: dict[str, Any]) -> str:
    """Folder of a cell: its values, with a hash where they make no name by themselves.

    ``{rank: 8, seed_everything: 0}`` is ``rank-8_seed_everything-0``, which other experiments can name, and
    ``{config: experiments/eval_amos.yaml}`` is ``config-eval_amos``.
    """
    short = "_".join(f"{name.rsplit('.', 1)[-1]}-{_short(value)}" for name, value in cell.items())
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in short)[:60]
    if clean == short:
        return clean
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{clean}_{digest}"


def _short(value: Any) -> Any:
    """The name of a YAML file without its folders, the numbers of a list; any other value as it is."""
    if isinstance(value, list) and all(type(part) in (int, float) for part in value):
        return "-".join(map(str, value))
    return Path(value).stem if isinstance(value, str) and value.endswith(".yaml") else value


def cell_command(
    command: tuple[str, ...], cell: dict[str, Any], folder: Path, settings: Sequence[str] = ()
) -> list[str]:
    """The command of a cell with its macros filled in, further settings, and the folder it is to write to.

    ``${args}`` becomes ``--name=value`` for every parameter, as W&B's agent has it; but null and what lists and
    mappings hold are written so that the parser reads them again as what they are. After further settings the
    parameters stand again: a file among the settings must not replace what is swept over.

    Raises:
        InputError: a macro is not known.
    """
    filled: list[str] = []
    arguments = [f"--{name}={_argument(value)}" for name, value in cell.items()]
    if settings:
        # Files are laid over files, and what a name with + adds to a list would be added twice.
        again = [name != "config" and not name.endswith("+") for name in cell]
        settings = [*settings, *itertools.compress(arguments, again)]
    for given in command:
        part = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda found: os.environ.get(found[1], found[1]), given)
        if part == "${args}":
            filled += arguments
        elif part in _MACROS:
            filled += _MACROS[part]
        elif "${" in part:
            raise InputError(f"sweep: the macro {part} is not known here; use ${{args}}")
        else:
            filled.append(part)
    if filled and filled[0] == "/usr/bin/env":
        filled = filled[1:]
    if filled[:1] == ["python"]:
        filled = filled[1:]
    if filled[:1] != ["uscl"]:
        raise InputError(f"sweep: the command runs {filled[0] if filled else 'nothing'!r}; expected uscl")
    if filled[1:2] not in (["fit"], ["validate"], ["test"], ["predict"]):
        raise InputError(f"sweep: the command runs uscl {filled[1:2]}; expected fit, validate, test or predict")
    return [sys.executable, "-m", *filled, *settings, f"--trainer.default_root_dir={folder}", "--overwrite"]


def _argument(value: Any) -> str:
    """A value as the command line takes it."""
    return json.dumps(value, default=str) if value is None or isinstance(value, list | dict) else str(value)


def command_mark(asked: SweepFile, settings: Sequence[str] = ()) -> dict[str, Any]:
    """What the cells of a folder have in common: the command, the names of its parameters, further settings."""
    return {"command": list(asked.command), "parameters": sorted(asked.cells[0]), "settings": list(settings)}
