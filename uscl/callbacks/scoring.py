"""The callback that turns what a test produces into rows, a table and pictures in the run folder."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console

from uscl.data.datamodule import VolumeDataModule
from uscl.errors import InputError
from uscl.evaluation.figures import Panel, make_panel, read_slices, save_panels, save_slices
from uscl.evaluation.loggers import log_test
from uscl.evaluation.metrics import Reference
from uscl.evaluation.rows import ResultRow, append_rows, read_appended, write_rows
from uscl.evaluation.tables import EVERY_CLASS, dice_cells, dice_markdown, dice_table
from uscl.prompting import RolloutStep
from uscl.seeds import derive_seed

log = logging.getLogger(__name__)
_PARTIAL = "rows.partial-{}.csv"
_PARTIAL_SLICES = "slices.partial-{}.npz"
_WORST = 10


class Scoring(Callback):
    """Scores every mask on the image's own grid; outside the patch counts as background.

    Leaves ``rows.csv``, ``table.md``, ``pictures/CLASS.png`` and, with the ten objects that came out worst,
    ``pictures/worst.png`` in the run folder and prints the table. Rows are sorted, so that neither the order of the
    cases nor the number of workers or processes shows in the file. Until the end they stand in
    ``rows.partial-RANK.csv``, and their slices beside the pictures: a test that goes on in the folder of one that was
    killed leaves their objects out.

    Args:
        pictures: objects per class to draw: the best, the worst and those evenly between; 0 for none.
    """

    def __init__(self, pictures: int = 3) -> None:
        self.pictures = pictures
        self._rows: list[ResultRow] = []
        self._earlier: list[ResultRow] = []
        self._panels: dict[str, list[Panel]] = {}
        self._earlier_panels: dict[str, list[Panel]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins anew, or where a killed test in the same folder ended."""
        self._rows, self._earlier, self._panels, self._earlier_panels = [], [], {}, {}
        if stage != "test" or getattr(trainer, "fast_dev_run", False):
            return
        wanted = set(getattr(pl_module, "test_clicks", ()))
        found: dict[tuple[str, str], list[ResultRow]] = {}
        for file in sorted(Path(trainer.default_root_dir).glob(_PARTIAL.format("*"))):
            for row in read_appended(file):
                found.setdefault((row.case, row.class_name), []).append(row)
        whole = {name: rows for name, rows in found.items() if {row.clicks for row in rows} == wanted}
        # Every process needs an object to test: Lightning ends a test without any before it reaches the table.
        for again in sorted(whole)[: trainer.world_size]:
            del whole[again]
        self._earlier = [row for rows in whole.values() for row in {row.clicks: row for row in rows}.values()]
        for case, name in whole:
            with suppress(InputError):  # a picture less
                kept = read_slices(_slices_file(trainer, case, name)).values()
                self._earlier_panels.setdefault(name, []).extend(kept)
        datamodule = getattr(trainer, "datamodule", None)
        if whole and isinstance(datamodule, VolumeDataModule):
            datamodule.leave_out = frozenset(whole)
            log.info("Going on with a test that was killed: %d objects have been tested", len(whole))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Scores the masks of one object."""
        rows: list[ResultRow] = []
        dice: dict[int, float] = {}
        predictions = {}
        reference = Reference(batch["reference"], batch["spacing"])
        for step in outputs["steps"]:
            logits = step.logits.float().cpu().numpy()
            mask = batch["grid"].restore(logits, batch["corner"]).astype(bool)
            scores = reference.score(mask)
            count = step.number
            dice[count], predictions[count] = scores.dice, logits > 0
            rows.append(
                ResultRow(
                    batch["data_set"],
                    batch["case"],
                    batch["class_name"],
                    outputs["method"],
                    count,
                    scores.dice,
                    scores.nsd,
                    scores.hd95,
                    step.seconds,
                    batch["patient"],
                    outputs["weights"],
                    len(step.clicks),
                    scores.volume_error,
                )
            )
        self._rows += rows
        if self.pictures:
            self._keep_slice(trainer, batch, outputs["steps"], predictions, dice)
        if not getattr(trainer, "fast_dev_run", False):
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            append_rows(folder / _PARTIAL.format(trainer.global_rank), rows)

    def _keep_slice(
        self,
        trainer: Trainer,
        batch: Any,
        steps: list[RolloutStep],
        predictions: dict[int, NDArray[np.bool_]],
        dice: dict[int, float],
    ) -> None:
        panel = make_panel(
            f"{batch['case']} {batch['class_name']}",
            batch["image"][0, 0].float().cpu().numpy(),
            batch["target"].cpu().numpy(),
            predictions,
            [(click.index, click.foreground) for click in steps[-1].clicks],
            dice,
            batch["grid"].spacing,
            batch["measured"],
        )
        self._panels.setdefault(batch["class_name"], []).append(panel)
        if not getattr(trainer, "fast_dev_run", False):
            save_slices(_slices_file(trainer, batch["case"], batch["class_name"]), [panel])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows of all processes and writes everything down."""
        of_rows, of_panels = [self._rows], [self._panels]
        if trainer.world_size > 1:
            of_rows, of_panels = (_gather(item, trainer.world_size) for item in (self._rows, self._panels))
        rows = [row for part in [self._earlier, *of_rows] for row in part]
        panels: dict[str, list[Panel]] = {}
        for part in [self._earlier_panels, *of_panels]:
            for name, found in part.items():
                panels.setdefault(name, []).extend(found)
        for (_, name, clicks), cell in dice_cells(rows).items():
            if name == EVERY_CLASS:
                pl_module.log(f"test/dice_{clicks}", cell.mean, rank_zero_only=True)
        if trainer.is_global_zero and rows:
            self._write(Path(trainer.default_root_dir), rows, panels)
            log_test(trainer.loggers, "test", Path(trainer.default_root_dir), trainer.global_step)

    def _write(self, folder: Path, rows: list[ResultRow], panels: dict[str, list[Panel]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(rows, key=lambda row: row.sort_key)
        write_rows(folder / "rows.csv", rows)
        (folder / "table.md").write_text(dice_markdown(rows), encoding="utf-8")
        heading = f"{rows[0].data_set}, {rows[0].method}, {rows[0].weights}"
        for name, found in sorted(panels.items()) if self.pictures else ():
            ranked = sorted(found, key=lambda panel: (-list(panel.dice.values())[-1], panel.title))
            chosen = np.unique(np.linspace(0, len(ranked) - 1, min(self.pictures, len(ranked))).astype(int))
            picture = folder / "pictures" / f"{name.replace(' ', '_')}.png"
            save_panels(picture, [ranked[i] for i in chosen], f"{heading}: best to worst of {len(ranked)} {name}")
        if self.pictures and panels:
            everything = [panel for found in panels.values() for panel in found]
            save_slices(folder / "pictures" / "slices.npz", everything)
            worst = sorted(everything, key=lambda panel: (list(panel.dice.values())[-1], panel.title))[:_WORST]
            save_panels(folder / "pictures" / "worst.png", worst, f"{heading}: the worst of {len(everything)} objects")
        console = Console()
        console.width = max(console.width, 120)  # a log file has no width of its own, and narrow tables cannot be read
        console.print(dice_table(rows, heading))
        # Last: a test that is killed while it draws is taken up from them.
        for file in [*folder.glob(_PARTIAL.format("*")), *(folder / "pictures").glob(_PARTIAL_SLICES.format("*"))]:
            file.unlink()
        log.info("Rows, table and pictures: %s", folder)


def _slices_file(trainer: Trainer, case: str, class_name: str) -> Path:
    """Where the slice of one object lies until the test has ended; names of cases need not be names of files."""
    name = _PARTIAL_SLICES.format(derive_seed("slices", case, class_name))
    return Path(trainer.default_root_dir) / "pictures" / name


def _gather(item: Any, world_size: int) -> list[Any]:
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, item)
    return gathered
