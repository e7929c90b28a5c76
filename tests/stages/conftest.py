from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer
from torch.optim import AdamW

from uscl.data import PatchSampling, Preprocessing, VolumeDataModule
from uscl.prompting import TrainingClicks
from uscl.stages import LoRASegModule, VCLPretrainModule
from uscl.tuning import LoRA


def optimizer(parameters):
    return AdamW(parameters, lr=1e-2)


def make_vcl(**options) -> VCLPretrainModule:
    options = {
        "backbone": "tiny", "lora": LoRA(rank=4, modules="encoder"), "head_hidden_dim": 32, "head_out_dim": 16,
        "head_norm": "layer", "optimizer": optimizer, **options,
    }  # fmt: skip
    return VCLPretrainModule(**options)


def make_seg(**options) -> LoRASegModule:
    options = {
        "backbone": "tiny", "lora": LoRA(rank=4), "clicks": TrainingClicks(count=3), "val_clicks": (1, 2),
        "test_clicks": (1, 3), "optimizer": optimizer, **options,
    }  # fmt: skip
    return LoRASegModule(**options)


@pytest.fixture
def make_data(study):
    def make(centre: str = "label_box", **options) -> VolumeDataModule:
        sampling = PatchSampling(centre=centre, minimum_foreground=1)
        preprocessing = Preprocessing(spacing=(3.0, 3.0, 3.0), patch_size=64)
        options = {"patches_per_epoch": 4, "classes": None if centre == "volume" else ["liver"], **options}
        return VolumeDataModule(str(study), preprocessing, sampling, **options)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path):
    def make(epochs: int, folder: str = "run", **options) -> Trainer:
        options = {"logger": False, "enable_checkpointing": False, **options}
        return Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=tmp_path / folder,
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip

    return make


def trained_state(module: LightningModule) -> dict:
    return {name: value.detach().clone() for name, value in module.state_dict().items() if not name.startswith("trunk")}
