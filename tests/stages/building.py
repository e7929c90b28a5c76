"""Small stages for these tests."""

from lightning.pytorch import LightningModule
from torch.optim import AdamW

from uscl.evaluation.promptable import Evaluation
from uscl.prompting import TrainingClicks
from uscl.stages import LoRASegModule, VCLPretrainModule
from uscl.tuning import LoRA


def optimizer(parameters):
    return AdamW(parameters, lr=1e-2)


def make_vcl(**options) -> VCLPretrainModule:
    options = {
        "backbone": "tiny",
        "lora": LoRA(rank=4, modules="encoder"),
        "head_hidden_dim": 32,
        "head_out_dim": 16,
        "head_norm": "layer",
        "optimizer": optimizer,
        "seed": 0,
        **options,
    }
    return VCLPretrainModule(**options)


def make_seg(**options) -> LoRASegModule:
    options = {
        "backbone": "tiny",
        "tuning": LoRA(rank=4),
        "clicks": TrainingClicks(count=3),
        "evaluation": Evaluation(clicks=(1, 3), val_clicks=(1, 2)),
        "optimizer": optimizer,
        "seed": 0,
        **options,
    }
    return LoRASegModule(**options)


def trained_state(module: LightningModule) -> dict:
    return {name: value.detach().clone() for name, value in module.state_dict().items() if not name.startswith("trunk")}
