"""Tests that follow a training: one command from settings to rows, as a cell of a sweep needs."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from uscl.cli.experiments import find_experiment
from uscl.cli.run_folder import SHARED, end_record
from uscl.errors import InputError
from uscl.evaluation.loggers import log_test

log = logging.getLogger(__name__)

# A test is a program of its own, not one more process or W&B run of the training that it follows.
_DISTRIBUTED = {
    SHARED,
    "PL_GLOBAL_SEED",
    "LOCAL_RANK",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
    "LOCAL_WORLD_SIZE",
    "WANDB_SWEEP_ID",
    "WANDB_RUN_ID",
    "WANDB_SWEEP_PARAM_PATH",
}


def parse_experiments(experiments: Sequence[str]) -> dict[str, list[str]]:
    """Arguments of each experiment, its file first, by the name that its results get.

    Raises:
        InputError: a file is not there, two have the same name, or quotation marks are left open.
    """
    try:
        split = [shlex.split(given) for given in experiments]
    except ValueError as error:
        raise InputError(f"--test_with: {', '.join(experiments)}: {str(error).lower()}") from error
    commands = {Path(parts[0]).stem: parts for parts in split if parts}
    for file, *_ in commands.values():
        if not Path(find_experiment(file)).expanduser().is_file():
            raise InputError(f"--test_with: {file}: no such file; give experiments, as to `uscl test --config`")
    if len(commands) < len(experiments):
        raise InputError(f"--test_with: every experiment needs a file name of its own, found {', '.join(experiments)}")
    return commands


def find_sides(
    experiments: Sequence[str], own: Mapping[str, Any], resolve: Callable[[list[str]], dict[str, Any]]
) -> dict[str, str]:
    """How tests of the very data that is trained on are to be divided, where they would be otherwise.

    Args:
        experiments: as :func:`run_tests` takes them.
        own: resolved settings of the data that is trained on.
        resolve: gives the settings of a command line.

    Returns:
        ``data.split`` by the name of the test.

    Raises:
        InputError: a test cannot be run.
    """
    found, same = {}, False
    for name, args in parse_experiments(experiments).items():
        try:
            data = resolve(["test", "--config", *args])["data"].get("init_args") or {}
        except InputError as error:
            raise InputError(f"--test_with: {args[0]}: {error}") from error
        if not own.get("split") or [_place(data, key) for key in _PLACE] != [_place(own, key) for key in _PLACE]:
            continue
        same = True
        if data.get("split") != own["split"]:
            found[name] = json.dumps(own["split"])
            log.info("%s: tested on the sides of the training, data.split %s", args[0], found[name])
    if (own.get("split") or {}).get("fold_test") and not same:
        log.warning("data.split.fold_test: no test of --test_with is of %s, so nobody of it is tested", own.get("root"))
    return found


_PLACE = ("root", "dataset", "modality")


def _place(data: Mapping[str, Any], key: str) -> Any:
    """A setting that says which data these are; folders may be written in several ways."""
    value = data.get(key)
    return Path(value).expanduser().resolve() if key == "root" and value else value


def run_tests(
    run: Path,
    experiments: Sequence[str],
    weights: str | None,
    accelerator: str,
    loggers: Sequence[Any] = (),
    tuning: str | None = None,
    sides: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Tests what a training left, with its adapter, on each of some experiments; rows go to ``RUN/tests/NAME``.

    Args:
        run: run folder of the training. Until all tests have been run its record says so.
        experiments: files of ``uscl test``, further options after them.
        weights: the trunk's, as the training was given them.
        accelerator: as the training was given it.
        loggers: of the training; W&B and TensorBoard get rows and pictures too.
        tuning: class path of the tuning method, where it is none of uscl's.
        sides: ``data.split`` for tests by name: those of the data that was trained on take the sides of the training.

    Raises:
        InputError: an experiment cannot be used, the training left no adapter, or a test failed.
    """
    commands = parse_experiments(experiments)
    adapter = run / "adapter.safetensors"
    if not adapter.is_file():
        raise InputError(
            f"--test_with: {run} holds no adapter; what pre-training leaves is tested with --model.weights"
        )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _DISTRIBUTED and not name.startswith(("SLURM_", "TORCHELASTIC_"))
    }
    end_record(run, "testing")
    for name, (file, *options) in commands.items():
        log.info("Testing with %s", file)
        command = [
            sys.executable,
            "-m",
            "uscl",
            "test",
            "--config",
            file,
            *options,
            f"--model.adapter={adapter}",
            f"--model.weights={'null' if weights is None else weights}",
            f"--trainer.accelerator={accelerator}",
            f"--trainer.default_root_dir={run / 'tests' / name}",
            "--overwrite",
            *([f"--model.tuning={tuning}"] if tuning else []),
            *([f"--data.split={sides[name]}"] if name in sides else []),
        ]
        if subprocess.run(command, env=environment, check=False).returncode:
            end_record(run, f"failed: the test with {file}")
            raise InputError(f"--test_with: the test with {file} failed; its reason is above")
        log_test(loggers, f"test/{name}", run / "tests" / name)
    end_record(run, "finished")
