"""What a test leaves in the run folder, given to W&B and TensorBoard too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.tensorboard import TensorBoardLogger

from uscl.evaluation.rows import COLUMNS, ResultRow, read_rows
from uscl.evaluation.tables import dice_markdown

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def log_test(loggers: Iterable[Logger], name: str, folder: Path, step: int = 0) -> None:
    """Gives every logger that can show them the rows, the table of Dice and the pictures of a test.

    Args:
        loggers: of a trainer; those that show neither tables nor pictures are passed over.
        name: before the names of what is logged, e.g. ``test``.
        folder: of the test, with ``rows.csv`` and, where any were drawn, ``pictures``.
        step: of the training that was tested.
    """
    rows = read_rows(folder / "rows.csv")
    pictures = sorted((folder / "pictures").glob("*.png"))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, name, rows, pictures)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(logger, name, rows, pictures, step)


def _to_wandb(logger: WandbLogger, name: str, rows: Sequence[ResultRow], pictures: Sequence[Path]) -> None:
    logger.log_table(f"{name}/rows", columns=list(COLUMNS), data=[list(astuple(row)) for row in rows])
    for picture in pictures:
        logger.log_image(f"{name}/{picture.stem}", [str(picture)])


def _to_tensorboard(
    logger: TensorBoardLogger, name: str, rows: Sequence[ResultRow], pictures: Sequence[Path], step: int
) -> None:
    from matplotlib.image import imread

    writer: Any = logger.experiment
    writer.add_text(f"{name}/table", dice_markdown(rows), step)
    for picture in pictures:
        writer.add_image(f"{name}/{picture.stem}", imread(picture)[..., :3], step, dataformats="HWC")
