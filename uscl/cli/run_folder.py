"""The folder a run writes to: always its own, never one that holds something already unless --overwrite says so."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import uscl
from uscl.errors import InputError

RECORD = "run.json"
# What a run leaves behind; --overwrite removes these and nothing else.
_FILES = (
    RECORD,
    "config.yaml",
    "splits.csv",
    "adapter.safetensors",
    "weights.safetensors",
    "rows.csv",
    "table.md",
    "metrics.csv",
    "hparams.yaml",
    "cost.json",
)
_FOLDERS = ("checkpoints", "pictures", "masks", "tests", "wandb")
# Set for the processes that Lightning starts, so that all ranks write to one folder.
SHARED = "USCL_RUN_FOLDER"
# What torchrun and srun set for the processes that they start.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def claim_run_folder(wanted: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Decides where a run writes.

    An empty or missing folder is taken as it is. One that is in use is left alone and its name gets a number
    (``runs/vcl``, ``runs/vcl-2``, ...); with ``overwrite`` the outputs of the run in it are removed first. Of several
    runs that begin at once each gets its own.

    Raises:
        InputError: ``overwrite`` is given for a folder that holds something else than a run.
    """
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    first = folder = Path(wanted).expanduser()
    if overwrite and _in_use(folder):
        _remove_run(folder)
        _take(folder)
    else:
        number = 1
        while _in_use(folder) or not _take(folder):
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
    os.environ[SHARED] = str(folder)
    return folder


def reopen_run_folder(wanted: str | os.PathLike[str], config: dict[str, Any]) -> Path:
    """Takes the folder of a run that did not come to its end, to go on with it.

    Args:
        wanted: the folder.
        config: the resolved configuration; must be what the run began with.

    Raises:
        InputError: there is no such run, it came to its end, or it was another.
    """
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    folder = Path(wanted).expanduser()
    try:
        status = json.loads((folder / RECORD).read_text(encoding="utf-8"))["status"]
        began = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"--resume: {folder} holds no run to go on with; leave --resume out to begin one") from error
    if status == "finished":
        raise InputError(f"--resume: the run in {folder} has finished; its results are there")
    differing = sorted(differences(began, config))
    if differing:
        raise InputError(
            f"--resume: the run in {folder} began with another {differing[0]}; resume with the settings "
            "it began with, or begin anew with --overwrite"
        )
    os.environ[SHARED] = str(folder)
    return folder


def differences(began: Any, now: Any, name: str = "") -> Iterator[str]:
    """Names of the settings in which two resolved configurations differ, but for where and how often they run."""
    if isinstance(began, dict) and isinstance(now, dict):
        for key in began.keys() | now.keys():
            inner = f"{name}.{key}" if name else key
            if inner not in _OF_THE_CALL and not inner.endswith(".save_dir"):
                yield from differences(began.get(key), now.get(key), inner)
    elif isinstance(began, list) and isinstance(now, list) and len(began) == len(now):
        for number, (one, other) in enumerate(zip(began, now, strict=True)):
            yield from differences(one, other, f"{name}[{number}]")
    elif began != now:
        yield name


# And, with W&B, the folder that its logger writes to.
_OF_THE_CALL = ("resume", "overwrite", "verbose", "trainer.default_root_dir")


def release_run_folder(abandon: bool = False) -> None:
    """Ends what :func:`claim_run_folder` began, for programs that run several runs in one process.

    Args:
        abandon: the run could not begin; if it left nothing but its record and configuration, those and the folder are
            removed. A folder that was taken and got no configuration is removed in any case.
    """
    folder = os.environ.pop(SHARED, None)
    nothing = {RECORD, "config.yaml"} if abandon else {RECORD}
    if folder is not None and {path.name for path in Path(folder).glob("*")} <= nothing:
        shutil.rmtree(folder, ignore_errors=True)


def begin_record(folder: Path, seed: Any) -> None:
    """Notes what is being run, with which code and where: ``run.json``."""
    record = {
        "command": sys.argv,
        "seed": seed,
        "uscl": uscl.__version__,
        "code": _code_version(),
        "packages": {name: version(name) for name in ("torch", "lightning", "monai", "loralib", "SimpleITK", "numpy")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {_accelerator()}",
        "started": _now(),
        "status": "running",
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def note_in_record(folder: Path, **more: Any) -> None:
    """Adds to the record of a run, if it has one."""
    file = folder / RECORD
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8")) | more
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def end_record(folder: Path, status: str, **more: Any) -> None:
    """Notes when and how the run ended, and whatever else there is to note."""
    note_in_record(folder, ended=_now(), status=status, **more)


def _in_use(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _take(folder: Path) -> bool:
    """Marks a folder as in use; False if another run has just done so.

    Processes that a launcher started are one run and are to find the same folder, each by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(name in os.environ for name in _RANKS):
        return True
    try:
        with (folder / RECORD).open("x", encoding="utf-8") as file:
            file.write('{"status": "starting"}\n')
    except FileExistsError:
        return False
    return True


def check_replaceable(folder: Path) -> None:
    """Checks, before anything is removed, that a folder holds nothing or a run.

    Raises:
        InputError: it holds something else.
    """
    if _in_use(folder) and not (folder / RECORD).is_file():
        raise InputError(
            f"{folder}: --overwrite removes earlier runs, but this holds no {RECORD}; choose another folder"
        )


def _remove_run(folder: Path) -> None:
    check_replaceable(folder)
    for file in folder.glob("rows.partial-*.csv"):
        file.unlink()
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _code_version() -> str | None:
    """Commit of the checkout this package lies in, with ``+`` if files differ from it; None outside a checkout."""
    root = Path(uscl.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
