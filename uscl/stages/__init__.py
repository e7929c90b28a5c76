"""The LightningModules, one per stage, and what writes their adapters."""

from uscl.stages.adapter_export import AdapterExport
from uscl.stages.lora_seg import LoRASegModule
from uscl.stages.vcl_pretrain import VCLPretrainModule

__all__ = ["AdapterExport", "LoRASegModule", "VCLPretrainModule"]
