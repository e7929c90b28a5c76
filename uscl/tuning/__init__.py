"""What is trainable: tuning methods around the trunk, and the adapter files that they are kept in."""

from uscl.tuning.adapter import Adapter, load_adapter, save_adapter
from uscl.tuning.adaptformer import AdaptFormer
from uscl.tuning.full import FullTuning
from uscl.tuning.lora import LoRA, lora_state_dict, merge_lora
from uscl.tuning.method import TuningMethod, train_only, trainable_parameters
from uscl.tuning.registry import TUNING_METHODS, is_own
from uscl.tuning.settings import check_method

__all__ = [
    "TUNING_METHODS",
    "AdaptFormer",
    "Adapter",
    "FullTuning",
    "LoRA",
    "TuningMethod",
    "check_method",
    "is_own",
    "load_adapter",
    "lora_state_dict",
    "merge_lora",
    "save_adapter",
    "train_only",
    "trainable_parameters",
]
