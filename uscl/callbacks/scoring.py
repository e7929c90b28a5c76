"""The callback that writes what a test finds out: rows, a table and pictures in the run folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from uscl.data.batches import CaseObject
from uscl.errors import InputError
from uscl.evaluation.figures import Panel, make_panel, read_slices, save_panels, save_slices
from uscl.evaluation.loggers import log_test
from uscl.evaluation.promptable import PromptableModule, ScoredObject
from uscl.evaluation.rows import ResultRow, append_rows, read_appended, write_rows
from uscl.evaluation.tables import dice_markdown, dice_table
from uscl.seeds import derive_seed

log = logging.getLogger(__name__)
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_PARTIAL = "rows.partial-{}.csv"
_PARTIAL_SLICES = "slices.partial-{}.npz"
_WORST = 10


class Scoring(Callback):
    """Writes ``rows.csv``, ``table.md``, ``pictures/CLASS.png`` and ``pictures/worst.png``, and prints the table.

    Of tests, and of validations that are no part of a training.

    Rows are sorted, so that neither the order of the cases nor the number of workers or processes shows in the file.
    Until the end they stand in ``rows.partial-RANK.csv``, and their slices beside the pictures: a test that goes on in
    the folder of one that was killed (:func:`earlier_test`) leaves their objects out.

    Args:
        pictures: objects per class to draw: the best, the worst and those evenly between; 0 for none.
    """

    def __init__(self, pictures: int = 3) -> None:
        self.pictures = pictures
        self._panels: dict[str, list[Panel]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins with the pictures of what a killed test in the same folder had scored."""
        self._panels = {}
        for row in getattr(pl_module, "earlier_rows", []) if trainer.is_global_zero else []:
            with suppress(InputError):  # a picture less
                for title, panel in read_slices(_slices_file(trainer, row.case, row.class_name)).items():
                    kept = self._panels.setdefault(row.class_name, [])
                    if title not in {other.title for other in kept}:
                        kept.append(panel)

    on_validation_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the rows and the slice of one object."""
        scored = outputs.get("scored") if isinstance(outputs, dict) else None
        if not isinstance(scored, ScoredObject):
            return
        if self.pictures:
            panel = _panel(batch, scored)
            self._panels.setdefault(batch.class_name, []).append(panel)
            if not _is_dry(trainer):
                save_slices(_slices_file(trainer, batch.case.name, batch.class_name), [panel])
        if not _is_dry(trainer):
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            append_rows(folder / _PARTIAL.format(trainer.global_rank), scored.rows)

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the slices of all processes and writes everything down."""
        if not isinstance(pl_module, PromptableModule) or not pl_module.rows:
            return
        found = [self._panels]
        if trainer.world_size > 1:
            found = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(found, self._panels)
        panels: dict[str, list[Panel]] = {}
        for part in found:
            for name, some in part.items():
                panels.setdefault(name, []).extend(some)
        if trainer.is_global_zero and not _is_dry(trainer):
            self._write(Path(trainer.default_root_dir), pl_module.rows, panels)
            verb = "val" if trainer.state.fn == TrainerFn.VALIDATING else "test"
            log_test(trainer.loggers, verb, Path(trainer.default_root_dir), trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what a validation by itself scored."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_end(trainer, pl_module)

    def _write(self, folder: Path, rows: list[ResultRow], panels: dict[str, list[Panel]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "rows.csv", rows)
        (folder / "table.md").write_text(dice_markdown(rows), encoding="utf-8")
        first = rows[0]
        heading = f"{first.data_set}, {first.method}, {first.weights}, inference {first.inference}"
        for name, found in sorted(panels.items()) if self.pictures else ():
            ranked = sorted(found, key=lambda panel: (-list(panel.dice.values())[-1], panel.title))
            chosen = np.unique(np.linspace(0, len(ranked) - 1, min(self.pictures, len(ranked))).astype(int))
            picture = folder / "pictures" / f"{_NOT_IN_NAMES.sub('_', name)}.png"
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


class EarlierTest(NamedTuple):
    """What a killed test has scored.

    Attributes:
        rows: of the objects that were scored at every number of clicks.
        objects: these, as (case, class).
    """

    rows: list[ResultRow]
    objects: set[tuple[str, str]]


def earlier_test(folder: Path, clicks: Iterable[int], processes: int) -> EarlierTest:
    """Reads what a killed test has scored in its folder.

    Args:
        folder: of the run.
        clicks: numbers of clicks that the test scores at.
        processes: that go on with it. So many objects are to be scored again: Lightning ends a test without any object
            before it reaches the table.
    """
    wanted = set(clicks)
    found: dict[tuple[str, str], dict[int, ResultRow]] = {}
    for file in sorted(folder.glob(_PARTIAL.format("*"))):
        for row in read_appended(file):
            found.setdefault((row.case, row.class_name), {})[row.clicks] = row
    whole = sorted(name for name, rows in found.items() if rows.keys() == wanted)[processes:]
    return EarlierTest([row for name in whole for row in found[name].values()], set(whole))


def _panel(batch: CaseObject, scored: ScoredObject) -> Panel:
    assert batch.truth is not None
    return make_panel(
        f"{batch.case.name} {batch.class_name}",
        batch.image[0, 0].float().cpu().numpy(),
        batch.target.cpu().numpy(),
        scored.predictions,
        [(click.index, click.foreground) for click in scored.clicks],
        {row.clicks: row.dice for row in scored.rows},
        batch.grid.spacing,
        batch.truth.distances != "assumed",
    )


def _slices_file(trainer: Trainer, case: str, class_name: str) -> Path:
    """Where the slice of one object lies until the test has ended; names of cases need not be names of files."""
    name = _PARTIAL_SLICES.format(derive_seed("slices", case, class_name))
    return Path(trainer.default_root_dir) / "pictures" / name


def _is_dry(trainer: Trainer) -> bool:
    """Whether the trainer only tries itself out, and nothing is to be left behind."""
    return bool(getattr(trainer, "fast_dev_run", False))
