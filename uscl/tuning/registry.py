"""The tuning methods that an adapter may ask for without the user naming them."""

from __future__ import annotations

from uscl.registry import Registry
from uscl.tuning.adaptformer import AdaptFormer
from uscl.tuning.full import FullTuning
from uscl.tuning.lora import LoRA
from uscl.tuning.method import TuningMethod

_OWN: tuple[type[TuningMethod], ...] = (LoRA, AdaptFormer, FullTuning)
TUNING_METHODS: Registry[type[TuningMethod]] = Registry(
    "tuning method",
    {kind.__name__: kind for kind in _OWN},
    lambda found: isinstance(found, type) and issubclass(found, TuningMethod),
    "a class on uscl.tuning.TuningMethod",
)


def is_own(kind: type[TuningMethod]) -> bool:
    """Whether a tuning method comes with ``uscl``."""
    return kind in _OWN
