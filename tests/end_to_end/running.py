"""Experiments made small enough for tests, by settings that a user would change too."""

import json
import os
import shlex
import subprocess
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

from uscl.cli import main

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
VERBS = {"vcl": "fit", "lora": "fit", "eval_us": "test", "predict_us": "predict"}
STUDY = {"patients": 3, "sweeps_per_patient": 2, "frames": 12, "size": 64}
TINY = """
    --model.backbone tiny --model.weights null --data.preprocessing.patch_size 64
    --data.preprocessing.spacing "[3, 3, 3]" --data.num_workers 0 --trainer.accelerator cpu
    --trainer.precision 32-true --trainer.enable_progress_bar false --trainer.enable_model_summary false
"""
SMALL_HEAD = "--model.head_hidden_dim 16 --model.head_out_dim 16"
SMALL_VALIDATION = "--trainer.limit_val_batches 1 --trainer.check_val_every_n_epoch 1"
SMALL_STEPS = f"""
    --data.sampling.size 32 --data.sampling.objects 2 --data.batch_size 2 --model.evaluation.val_clicks "[1, 2]"
    {SMALL_VALIDATION}
"""
_RUN = subprocess.run
ONE_OBJECT = '--model.evaluation.clicks "[1]" --data.classes "[liver]"'


def uscl(line: str, *more: object) -> int:
    """Runs a command line."""
    return main([*shlex.split(line), *map(str, more)])


def small(config: Path, study: Path, folder: Path) -> str:
    """The command line of an experiment on the small study with the tiny backbone; runs in FOLDER/NAME."""
    name = config.stem
    line = f"{VERBS[name]} --config {config} {TINY} --data.root {study} --trainer.default_root_dir {folder / name}"
    if "paper" not in config.parts:
        line += f" --data.study '{json.dumps(STUDY)}'"
    if VERBS[name] == "fit":
        rank = "--model.lora.rank" if name == "vcl" else "--model.tuning.rank"
        line += f" --trainer.max_epochs 1 --data.patches_per_epoch 4 {rank} 4 --data.sampling.minimum_foreground 20"
    return line


def trained(study: Path, folder: Path) -> str:
    """The command line of a short stage 2, on small patches."""
    return f"{small(EXPERIMENTS / 'lora.yaml', study, folder)} {SMALL_STEPS}"


def scored(study: Path, folder: Path, *overlays: Path) -> str:
    """The command line of the evaluation on sweeps, with files laid over it."""
    line = small(EXPERIMENTS / "eval_us.yaml", study, folder)
    laid = "".join(f" --config {overlay}" for overlay in overlays)
    base = f"--config {EXPERIMENTS / 'eval_us.yaml'}"
    return line.replace(base, base + laid)


def in_process(command: list[str], env=None, stdout=None, **options) -> SimpleNamespace:
    """Stands in for ``subprocess.run`` of ``python -m uscl ...``: what a program would do, without its start."""
    if command[1:3] != ["-m", "uscl"]:
        return _RUN(command, env=env, stdout=stdout, **options)
    before = dict(os.environ)
    with ExitStack() as stack:
        if stdout is not None:
            stack.enter_context(redirect_stdout(stdout))
            stack.enter_context(redirect_stderr(stdout))
        try:
            os.environ.clear()
            os.environ.update(before if env is None else env)
            code = main(command[3:])
        except SystemExit as left:
            code = left.code
        finally:
            os.environ.clear()
            os.environ.update(before)
    return SimpleNamespace(returncode=code)
