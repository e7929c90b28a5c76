import os
from pathlib import Path

# No test may reach for a network or an account. Read when the libraries are imported.
os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that all take every core only wait for each other. Before torch is imported, and for programs too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import partial

import numpy as np
import pytest
import torch
from once import once
from parity.recipe import PARITY

SCANS = ("amos", "totalsegmentator", "brats")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that writes somewhere by accident writes into its own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes that may lie beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no real volumes: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def load_parity():
    """Loads a fixture file as tensors (arrays of strings stay as they are)."""

    def load(name: str) -> dict:
        with np.load(PARITY / name) as arrays:
            return {
                key: torch.from_numpy(np.array(arrays[key])) if arrays[key].dtype.kind != "U" else arrays[key]
                for key in arrays.files
            }

    return load


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom study: three patients with two sweeps each, 12 frames of 64 x 64 pixels."""
    from uscl.phantom import LAYOUTS, SweepStudy, simulate_study

    settings = SweepStudy(patients=3, sweeps_per_patient=2, frames=12, size=64)
    return once(tmp_path_factory, "ultrasound", lambda folder: simulate_study(LAYOUTS["ultrasound"], folder, settings))


def simulate_scans(folder: Path, coarsen: int) -> None:
    from uscl.phantom import LAYOUTS, simulate_study
    from uscl.phantom.layouts.scans import ScanStudy

    for name in SCANS:
        simulate_study(LAYOUTS[name], folder / name, ScanStudy(patients=4, coarsen=coarsen))


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Studies of four patients, the third in MR, in the layouts of AMOS, TotalSegmentator and BraTS; coarse voxels."""
    folder = once(tmp_path_factory, "scans", partial(simulate_scans, coarsen=3))
    return {name: folder / name for name in SCANS}


@pytest.fixture(scope="session")
def full_scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same at the data sets' own size, which takes a minute; for slow tests."""
    folder = once(tmp_path_factory, "full_scans", partial(simulate_scans, coarsen=1))
    return {name: folder / name for name in SCANS}


@pytest.fixture(params=[3, pytest.param(1, marks=pytest.mark.slow)])
def sized_scans(request: pytest.FixtureRequest) -> tuple[dict[str, Path], int]:
    """The studies and how many times coarser than the data sets' own their voxels are."""
    return request.getfixturevalue("scans" if request.param == 3 else "full_scans"), request.param


@pytest.fixture(scope="session")
def anatomies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One torso and one head to train on and as many to validate on, as experiments of stage 0 find them."""

    def make(folder: Path) -> None:
        from uscl.phantom.pretraining import PretrainDataModule

        PretrainDataModule(str(folder), torsos=1, heads=1, seed=0, workers=0).prepare_data()

    return once(tmp_path_factory, "anatomies", make)
