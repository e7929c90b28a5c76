"""What is trainable: LoRA around the frozen trunk, and the adapter files it is kept in."""

from uscl.tuning.adapter import Adapter, load_adapter, save_adapter
from uscl.tuning.lora import LoRA, lora_state_dict, merge_lora

__all__ = ["Adapter", "LoRA", "load_adapter", "lora_state_dict", "merge_lora", "save_adapter"]
