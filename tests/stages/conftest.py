from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from uscl.data import PatchSampling, Preprocessing, VolumeDataModule


@pytest.fixture
def make_data(study):
    def make(centre: str = "label_box", **options) -> VolumeDataModule:
        sampling = PatchSampling(centre=centre, minimum_foreground=1)
        preprocessing = Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64)
        options = {"patches_per_epoch": 4, "seed": 0, "classes": None if centre == "volume" else ["liver"], **options}
        return VolumeDataModule(str(study), preprocessing, sampling, **options)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path):
    def make(epochs: int, folder: str = "run", **options) -> Trainer:
        options = {"logger": False, "enable_checkpointing": False, **options}
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            default_root_dir=tmp_path / folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    return make
