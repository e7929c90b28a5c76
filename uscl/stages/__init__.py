"""The LightningModules, one per stage."""

from uscl.stages.distill import DistillModule
from uscl.stages.lora_seg import LoRASegModule
from uscl.stages.pretrain import PretrainModule
from uscl.stages.vcl_pretrain import VCLPretrainModule

__all__ = ["DistillModule", "LoRASegModule", "PretrainModule", "VCLPretrainModule"]
