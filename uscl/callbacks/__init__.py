"""What a run measures and leaves behind: adapters, weights, masks, rows, pictures and costs."""

from uscl.callbacks.cost_meter import CostMeter
from uscl.callbacks.export import AdapterExport, WeightsExport
from uscl.callbacks.mask_writer import MaskWriter
from uscl.callbacks.pace import Pace
from uscl.callbacks.scoring import Scoring

__all__ = ["AdapterExport", "CostMeter", "MaskWriter", "Pace", "Scoring", "WeightsExport"]
