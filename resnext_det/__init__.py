"""ResNeXt for detection: the paper's networks, their pretraining, and C4 Faster R-CNN as a detectron2 plug-in."""

from .errors import UserError
from .resnext import create_model
from .variants import list_models

__version__ = "0.1.0"
__all__ = ["UserError", "create_model", "list_models"]
