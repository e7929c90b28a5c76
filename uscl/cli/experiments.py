"""The experiments that come with the package, for folders that hold none of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import uscl

log = logging.getLogger(__name__)
_FOLDER = "experiments"


def packaged_experiments() -> Path:
    """The folder of the experiments: inside the package, or beside it in a checkout."""
    package = Path(uscl.__file__).resolve().parent
    inside = package / _FOLDER
    return inside if inside.is_dir() else package.parent / _FOLDER


def find_experiment(name: str) -> str:
    """A file of the user's, or, where ``experiments/...`` names none, the one that comes with the package."""
    path = Path(name)
    if path.parts[:1] != (_FOLDER,) or path.exists():
        return name
    packaged = packaged_experiments().joinpath(*path.parts[1:])
    if not packaged.is_file():
        return name
    _note(name, packaged)
    return str(packaged)


def find_experiments(args: Iterable[str]) -> list[str]:
    """Arguments in which every YAML file that only the package has is named by its place there."""
    found = []
    for arg in args:
        option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
        found.append(option + equals + (find_experiment(value) if value.endswith((".yaml", ".yml")) else value))
    return found


@cache
def _note(name: str, packaged: Path) -> None:
    """Says it once."""
    log.info("%s: not in this folder; taking %s, which comes with uscl", name, packaged)
