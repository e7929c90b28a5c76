"""A data module that makes its own data where there is none: every experiment runs offline on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from uscl.data.datamodule import VolumeDataModule
from uscl.phantom.layouts import LAYOUTS
from uscl.phantom.layouts.scans import ScanStudy
from uscl.phantom.layouts.ultrasound import LAYOUT, SweepStudy
from uscl.phantom.study import CONTACT_SHEET, simulate_study

log = logging.getLogger(__name__)


class PhantomDataModule(VolumeDataModule):
    """Simulated ultrasound sweeps. Where ``root`` is missing or incomplete they are simulated first.

    Figures on phantoms say nothing about patients. With data of your own use
    :class:`~uscl.data.datamodule.VolumeDataModule`, which takes the same settings.

    Args:
        root: folder of the study.
        study: what to simulate; must be what the folder holds, if it holds a study.
        simulation_workers: processes that simulate.
        options: those of :class:`~uscl.data.datamodule.VolumeDataModule`.
    """

    def __init__(
        self,
        root: str = "data/phantom/ultrasound",
        study: SweepStudy = SweepStudy(),
        simulation_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        self.study = study
        self.simulation_workers = simulation_workers
        if self.prompts is None:
            self.prompts = str(Path(root) / "prompts.csv")

    def prepare_data(self) -> None:
        """Simulates what is missing; Lightning calls this on one process per machine."""
        if not (Path(self.root) / CONTACT_SHEET).is_file():
            log.info("Simulating %d patients into %s", self.study.patients, self.root)
        simulate_study(LAYOUT, self.root, self.study, self.simulation_workers)


class PhantomScansDataModule(VolumeDataModule):
    """Simulated CT and MR in the layout of AMOS, TotalSegmentator or BraTS, read as the real data set is read.

    With the download itself use :class:`~uscl.data.datamodule.VolumeDataModule`, which takes the same settings.

    Args:
        root: folder of the study; simulated first where it is missing or incomplete.
        dataset: how it is read (see :class:`~uscl.data.datamodule.VolumeDataModule`).
        layout: what is simulated, of :data:`uscl.phantom.LAYOUTS` or the dotted path of a layout of your own; null for
            that of the name of ``dataset``.
        study: what to simulate; must be what the folder holds, if it holds a study.
        simulation_workers: processes that simulate.
        options: those of :class:`~uscl.data.datamodule.VolumeDataModule`.
    """

    def __init__(
        self,
        root: str,
        dataset: str,
        layout: str | None = None,
        study: ScanStudy = ScanStudy(),
        simulation_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(root=root, dataset=dataset, **options)
        self.layout = layout or dataset
        self.study = study
        self.simulation_workers = simulation_workers

    def prepare_data(self) -> None:
        """Simulates what is missing; Lightning calls this on one process per machine."""
        if not (Path(self.root) / CONTACT_SHEET).is_file():
            log.info("Simulating %d patients into %s", self.study.patients, self.root)
        simulate_study(LAYOUTS.find(self.layout), self.root, self.study, self.simulation_workers)
