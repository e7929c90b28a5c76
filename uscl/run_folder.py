"""The folder a run writes to: always its own, never one that holds something already unless told to."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uscl
from uscl.errors import InputError

RECORD = "run.json"
# What a run leaves behind; --overwrite removes these and nothing else.
_FILES = (
    RECORD, "config.yaml", "splits.csv", "adapter.safetensors", "weights.safetensors", "rows.csv", "table.md",
    "metrics.csv", "hparams.yaml",
)  # fmt: skip
_FOLDERS = ("checkpoints", "pictures", "masks")
# Set for the processes that Lightning starts, so that all ranks write to one folder.
_SHARED = "USCL_RUN_FOLDER"


def claim_run_folder(wanted: str | os.PathLike[str], overwrite: bool) -> Path:
    """Decides where a run writes.

    An empty or missing folder is taken as it is. One that is in use is left alone and its name gets a number
    (``runs/vcl``, ``runs/vcl-2``, ...); with ``overwrite`` the outputs of the run in it are removed first.

    Raises:
        InputError: ``overwrite`` is given for a folder that holds something else than a run.
    """
    if _SHARED in os.environ:
        return Path(os.environ[_SHARED])
    folder = Path(wanted).expanduser()
    if _in_use(folder):
        if overwrite:
            _remove_run(folder)
        else:
            number = 2
            while _in_use(folder.with_name(f"{folder.name}-{number}")):
                number += 1
            folder = folder.with_name(f"{folder.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_SHARED] = str(folder)
    return folder


def release_run_folder(abandon: bool = False) -> None:
    """Ends what :func:`claim_run_folder` began, for programs that run several runs in one process.

    Args:
        abandon: the run could not begin; if it left nothing but its record, that and the folder are removed.
    """
    folder = os.environ.pop(_SHARED, None)
    if abandon and folder is not None and {path.name for path in Path(folder).glob("*")} <= {RECORD, "config.yaml"}:
        shutil.rmtree(folder)


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


def end_record(folder: Path, status: str) -> None:
    """Notes when and how the run ended."""
    file = folder / RECORD
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8")) | {"ended": _now(), "status": status}
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _in_use(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _remove_run(folder: Path) -> None:
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{folder}: --overwrite removes earlier runs, but this holds no {RECORD}; choose another folder"
        )
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
    return datetime.now(UTC).isoformat(timespec="seconds")
