"""Stage 1, volumetric contrastive learning: sub-volumes, position labels, head, losses and the EMA teacher."""

from uscl.vcl.head import EmaTeacher, VCLHead, VCLStudent
from uscl.vcl.losses import vcl_losses
from uscl.vcl.subvolumes import SubVolumes, cut, position_labels

__all__ = ["EmaTeacher", "SubVolumes", "VCLHead", "VCLStudent", "cut", "position_labels", "vcl_losses"]
