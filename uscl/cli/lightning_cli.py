"""``uscl fit``, ``validate``, ``test`` and ``predict``: LightningCLI with a run folder and our callbacks."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentError
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

import uscl
from uscl.callbacks import AdapterExport, CostMeter, MaskWriter, Pace, Scoring, WeightsExport
from uscl.callbacks.scoring import earlier_test
from uscl.cli.experiments import find_experiments
from uscl.cli.follow_up import find_sides, run_tests
from uscl.cli.refusals import check_configs, reason_in
from uscl.cli.run_folder import (
    begin_record,
    check_replaceable,
    claim_run_folder,
    end_record,
    note_in_record,
    release_run_folder,
    reopen_run_folder,
)

# Imported so that their short names work in YAML and on the command line.
from uscl.comparators.module import ComparatorModule
from uscl.data import VolumeDataModule
from uscl.data.datasets import write_splits
from uscl.errors import InputError, WeightsNotFoundError
from uscl.evaluation.promptable import PromptableModule
from uscl.phantom import PhantomDataModule, PhantomScansDataModule
from uscl.phantom.pretraining import PretrainDataModule
from uscl.stages import DistillModule, LoRASegModule, PretrainModule, VCLPretrainModule
from uscl.stages.checkpoints import check_readable

__all__ = [
    "ComparatorModule",
    "DistillModule",
    "LoRASegModule",
    "PhantomDataModule",
    "PhantomScansDataModule",
    "PretrainDataModule",
    "PretrainModule",
    "UsclCLI",
    "VCLPretrainModule",
    "VolumeDataModule",
    "resolve",
    "run",
]

log = logging.getLogger(__name__)


def _quieten() -> None:
    """Silences what libraries say to their own developers, and advertising."""
    # Lightning 2.6 asks torch 2.13 in a way that torch deprecates.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    # A resumed run writes to a folder of its own.
    warnings.filterwarnings("ignore", message="The dirpath has changed from.*")
    # A data set without a validation side.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
    # The run folder is the run's own, but W&B has begun in it before metrics.csv.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty.*")
    # main(args) is called from Python on purpose.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.trainer"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())


class RunRecord(SaveConfigCallback):
    """Writes the resolved configuration, the split and the run's record into the run folder.

    W&B, where it logs, gets the configuration too.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, on the first process."""
        folder = Path(trainer.default_root_dir)
        # In one file: settings that a config takes from another would be saved as the name of that.
        self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)
        begin_record(folder, self.config.get("seed_everything"))
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, VolumeDataModule) and stage != "predict":
            write_splits(data.data_set, folder / "splits.csv")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what is trained or tested, and on what, for reports."""
        if trainer.is_global_zero:
            noted: dict[str, Any] = {}
            if isinstance(pl_module, PromptableModule) and (setting := pl_module.described()):
                noted["setting"] = setting
            data = getattr(trainer, "datamodule", None)
            if isinstance(data, VolumeDataModule):
                noted["data_set"] = data.data_set.name
            note_in_record(Path(trainer.default_root_dir), **noted)

    on_test_start = on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the same of a validation by itself, whose rows a report leaves out."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_fit_start(trainer, pl_module)
            if trainer.is_global_zero:
                note_in_record(Path(trainer.default_root_dir), side="val")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes that the run came to its end."""
        if trainer.is_global_zero and not trainer.interrupted:
            # Killed before its tests have been run, it must not count as finished.
            end_record(Path(trainer.default_root_dir), "testing" if self.config.get("test_with") else "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Notes what ended the run."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            if isinstance(exception, WeightsNotFoundError):  # a report says so in the method's line
                status, method = f"weights not found: {exception.reference}", str(getattr(pl_module, "method", ""))
                end_record(folder, status, method=method)
            else:
                end_record(folder, f"failed: {type(exception).__name__}")


class UsclCLI(LightningCLI):
    """LightningCLI that gives every run a folder of its own: ``trainer.default_root_dir``.

    Args:
        args: the command line, beginning with the verb.
        options: of LightningCLI.
    """

    def __init__(self, args: list[str], **options: Any) -> None:
        # The parser of each verb takes a while to build, and one is asked for.
        verb, verbs = args[0], LightningCLI.subcommands()
        self.subcommands = lambda: {verb: verbs[verb]}  # type: ignore[method-assign]
        self._replaced: Path | None = None
        self._sides: dict[str, str] = {}
        super().__init__(args=args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--overwrite``, ``--resume`` and ``--test_with``."""
        parser.add_argument(
            "--overwrite",
            action=ActionYesNo,
            default=False,
            help="Replace the run in trainer.default_root_dir. Without it a folder in use gets a number: runs/vcl-2.",
        )
        parser.add_argument(
            "--resume",
            action=ActionYesNo,
            default=False,
            help="Go on with the killed `uscl test` in trainer.default_root_dir: what it scored is not scored again. A "
            "training is resumed with --ckpt_path.",
        )
        parser.add_argument(
            "--test_with",
            type=list[str],
            default=[],
            help="Experiments to test what `uscl fit` leaves on, each into RUN/tests/NAME: files, with further options "
            "of `uscl test` after them where needed.",
        )

    def before_instantiate_classes(self) -> None:
        """Claims the run folder, once the checkpoint to go on from can be read."""
        config = self.config[self.subcommand]
        if config.test_with and self.subcommand != "fit":
            raise InputError("--test_with: only `uscl fit` leaves something to test; use `uscl test --config ...`")
        if config.test_with:  # before hours of training
            own = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))["data"]
            self._sides = find_sides(config.test_with, own.get("init_args") or {}, resolve)
        if config.get("ckpt_path"):
            if self.subcommand in ("test", "predict"):
                raise InputError(
                    "--ckpt_path: resumes a training; what it left is given as --model.adapter "
                    "RUN/adapter.safetensors, or --model.weights RUN/weights.safetensors"
                )
            check_readable(config.ckpt_path)
        wanted = config.trainer.default_root_dir or f"runs/{self.subcommand}"
        if _of_agent():
            # Agents that begin at the same time would take the same folder.
            wanted = f"{wanted}-{os.environ['WANDB_RUN_ID']}"
        if config.trainer.fast_dev_run:
            return
        if self.subcommand == "predict":
            config.return_predictions = False  # MaskWriter has written them
        if config.resume:
            self._resume(config, wanted)
            return
        if config.overwrite:
            # What lies there goes once model and data could be built.
            self._replaced = folder = Path(wanted).expanduser()
            check_replaceable(folder)
        else:
            folder = claim_run_folder(wanted)
        if folder != Path(wanted).expanduser():
            rank_zero_info(f"{wanted} holds an earlier run; this one goes to {folder} (--overwrite would replace it)")
        self._write_to(folder)

    def _write_to(self, folder: Path) -> None:
        config = self.config[self.subcommand]
        config.trainer.default_root_dir = str(folder)
        for logger in _as_list(config.trainer.logger):
            if _class_of(logger) == "WandbLogger" and logger.init_args.get("save_dir") in (None, "."):
                logger.init_args.save_dir = str(folder)
        if self.subcommand in ("test", "validate"):
            config.verbose = False  # Scoring prints the table

    def _resume(self, config: Any, wanted: str) -> None:
        if self.subcommand != "test" or config.overwrite:
            raise InputError(
                "--resume: goes with `uscl test` alone, and not with --overwrite; a training is resumed "
                "with --ckpt_path"
            )
        now = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
        folder = reopen_run_folder(wanted, now)
        self._write_to(folder)

    def before_test(self) -> None:
        """Leaves out what a killed test in the same folder has scored."""
        config = self.config[self.subcommand]
        if config.resume and not config.trainer.fast_dev_run and isinstance(self.model, PromptableModule):
            folder, clicks = Path(config.trainer.default_root_dir), self.model.evaluation.clicks
            earlier = earlier_test(folder, clicks, self.trainer.world_size)
            self.model.earlier_rows = earlier.rows
            if earlier.objects and isinstance(self.datamodule, VolumeDataModule):
                self.datamodule.leave_out(earlier.objects)
                log.info("Going on with a test that was killed: %d objects have been tested", len(earlier.objects))

    def after_fit(self) -> None:
        """Runs the tests of ``--test_with``; the run is finished when they are."""
        config = self.config[self.subcommand]
        if config.test_with and self.trainer.is_global_zero and not config.trainer.fast_dev_run:
            run_tests(
                Path(config.trainer.default_root_dir),
                config.test_with,
                config.model.init_args.weights,
                config.trainer.accelerator,
                self.trainer.loggers,
                _tuning_outside(config.model.init_args.get("tuning")),
                self._sides,
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks that make a run leave something behind, and a CSV logger beside those that are chosen."""
        config = self.config[self.subcommand].trainer
        folder = config.default_root_dir
        if self._replaced is not None:
            claim_run_folder(self._replaced, overwrite=True)
        # CostMeter comes after what it weighs.
        callbacks: list[Callback] = [AdapterExport(), WeightsExport(), CostMeter(), MaskWriter(), Pace()]
        if not any(_class_of(given) == "Scoring" for given in _as_list(config.callbacks)):
            callbacks.append(Scoring())
        if not config.fast_dev_run:
            if config.enable_checkpointing is not False:
                # Every epoch: by default epochs without validation are not saved.
                latest = ModelCheckpoint(
                    f"{folder}/checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False
                )
                callbacks.append(latest)
            if config.logger is not False:
                chosen = _as_list(self.config_init[self.subcommand].trainer.logger)
                if not chosen and _of_agent():
                    chosen = [WandbLogger(save_dir=folder)]
                if not any(isinstance(logger, CSVLogger) for logger in chosen):
                    # Beside any other: a sweep reads its metric there.
                    chosen = [*chosen, CSVLogger(folder, name="", version="")]
                kwargs["logger"] = chosen
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)


def _tuning_outside(tuning: Any) -> str | None:
    """Class path of a tuning method that is none of uscl's: only who names it may have it loaded."""
    path = None if tuning is None else str(tuning.class_path)
    return None if path is None or path.startswith("uscl.") else path


def _of_agent() -> bool:
    """Whether this is a cell that ``wandb agent`` has begun: W&B waits for its metric then."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def _as_list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given in (None, True, False) else [given]


def _class_of(given: Any) -> str:
    return str(given.get("class_path", "")).rsplit(".", 1)[-1]


class _Parsed(Exception):
    """The settings of a command are known."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config


class _ParseOnly(UsclCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        verb = self.config["subcommand"]
        raise _Parsed(yaml.safe_load(self._parser(verb).dump(self.config[verb], skip_none=False)))


_OPTIONS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "save_config_callback": RunRecord,
    "save_config_kwargs": {"save_to_log_dir": False},
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "parser_kwargs": {"prog": "uscl", "version": uscl.__version__, "exit_on_error": False},
}
# What every experiment shares: one device unless asked for more, and clipped gradients.
_TRAINER = {"accelerator": "auto", "devices": 1, "gradient_clip_val": 1.0}


def resolve(args: list[str]) -> dict[str, Any]:
    """The settings that a command line runs with, everything filled in; nothing is run.

    Args:
        args: the command line, beginning with the verb.

    Raises:
        InputError: the parser refuses it.
    """
    _quieten()
    args = find_experiments(args)
    check_configs(args)
    try:
        _ParseOnly(**_OPTIONS, trainer_defaults=dict(_TRAINER), args=args)
    except _Parsed as parsed:
        return parsed.config
    except ArgumentError as error:
        raise InputError(reason_in(str(error))) from error
    raise AssertionError("parsing ends with the settings")


def run(args: list[str]) -> None:
    """Runs one of Lightning's verbs.

    Args:
        args: the command line, beginning with the verb.

    Raises:
        InputError: the parser refuses it, or what it asks for cannot be used.
    """
    _quieten()
    check_configs(args)
    try:
        UsclCLI(**_OPTIONS, trainer_defaults=dict(_TRAINER), args=args)
    except ArgumentError as error:
        raise InputError(f"{reason_in(str(error))} (`uscl {args[0]} --help` lists the options)") from error
    except ValueError as error:
        # What a module or data module says while it is built comes wrapped in jsonargparse's words.
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, InputError):
            reason = reason.__cause__
        if reason is None:
            raise
        release_run_folder(abandon=True)
        raise reason from None
    finally:
        release_run_folder()
