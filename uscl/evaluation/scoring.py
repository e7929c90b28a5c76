"""The callback that turns what a test produces into rows, a table and pictures in the run folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from uscl.evaluation.figures import Panel, make_panel, save_panels
from uscl.evaluation.metrics import score
from uscl.evaluation.rows import ResultRow, write_rows
from uscl.evaluation.tables import EVERY_CLASS, dice_cells, dice_markdown, dice_table

log = logging.getLogger(__name__)


class Scoring(Callback):
    """Scores every mask on the image's own grid; outside the patch counts as background.

    Leaves ``rows.csv``, ``table.md`` and ``pictures/CLASS.png`` in the run folder and prints the table. Rows are
    sorted, so that neither the order of the cases nor the number of workers or processes shows in the file.

    Args:
        pictures: objects per class to draw: the best, the worst and those evenly between.
    """

    def __init__(self, pictures: int = 3) -> None:
        self.pictures = pictures
        self._rows: list[ResultRow] = []
        self._panels: dict[str, list[Panel]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self._rows, self._panels = [], {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Scores the masks of one object."""
        dice: dict[int, float] = {}
        predictions = {}
        for step in outputs["steps"]:
            logits = step.logits.float().cpu().numpy()
            mask = batch["grid"].restore(logits, batch["corner"]).astype(bool)
            scores = score(mask, batch["reference"], batch["spacing"])
            count = len(step.clicks)
            dice[count], predictions[count] = scores.dice, logits > 0
            self._rows.append(
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
                )
            )
        panel = make_panel(
            f"{batch['case']} {batch['class_name']}",
            batch["image"][0, 0].float().cpu().numpy(),
            batch["target"].cpu().numpy(),
            predictions,
            [(click.index, click.foreground) for click in outputs["steps"][-1].clicks],
            dice,
            batch["grid"].spacing,
        )
        self._panels.setdefault(batch["class_name"], []).append(panel)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows of all processes and writes everything down."""
        rows, panels = self._rows, self._panels
        if trainer.world_size > 1:
            rows = [row for part in _gather(rows, trainer.world_size) for row in part]
            merged: dict[str, list[Panel]] = {}
            for part in _gather(panels, trainer.world_size):
                for name, found in part.items():
                    merged.setdefault(name, []).extend(found)
            panels = merged
        for (_, name, clicks), cell in dice_cells(rows).items():
            if name == EVERY_CLASS:
                pl_module.log(f"test/dice_{clicks}", cell.mean, rank_zero_only=True)
        if trainer.is_global_zero and rows:
            self._write(Path(trainer.default_root_dir), rows, panels)

    def _write(self, folder: Path, rows: list[ResultRow], panels: dict[str, list[Panel]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(rows, key=lambda row: row.sort_key)
        write_rows(folder / "rows.csv", rows)
        (folder / "table.md").write_text(dice_markdown(rows), encoding="utf-8")
        heading = f"{rows[0].data_set}, {rows[0].method}, {rows[0].weights}"
        for name, found in sorted(panels.items()):
            ranked = sorted(found, key=lambda panel: (-list(panel.dice.values())[-1], panel.title))
            chosen = np.unique(np.linspace(0, len(ranked) - 1, min(self.pictures, len(ranked))).astype(int))
            picture = folder / "pictures" / f"{name.replace(' ', '_')}.png"
            save_panels(picture, [ranked[i] for i in chosen], f"{heading}: best to worst of {len(ranked)} {name}")
        console = Console()
        console.width = max(console.width, 120)  # a log file has no width of its own, and narrow tables cannot be read
        console.print(dice_table(rows, heading))
        log.info("Rows, table and pictures: %s", folder)


def _gather(item: Any, world_size: int) -> list[Any]:
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, item)
    return gathered
