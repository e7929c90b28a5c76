"""The LightningModules, one per stage, and what writes the files they leave behind."""

from uscl.stages.distill import DistillModule
from uscl.stages.export import AdapterExport, WeightsExport
from uscl.stages.lora_seg import LoRASegModule
from uscl.stages.pretrain import PretrainModule
from uscl.stages.vcl_pretrain import VCLPretrainModule

__all__ = ["AdapterExport", "DistillModule", "LoRASegModule", "PretrainModule", "VCLPretrainModule", "WeightsExport"]
