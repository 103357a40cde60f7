"""ResNeXt for detection: the paper's networks, their pretraining, and C4 Faster R-CNN as a detectron2 plug-in."""

from . import compat
from .errors import UserError
from .resnext import create_model
from .variants import list_models

__version__ = "0.1.0"
__all__ = ["UserError", "create_model", "list_models"]

# Models and weights work without detectron2; with it, importing this package is all that registration takes.
if compat.prepare():
    from .detection import add_resnext_config

    __all__ += ["add_resnext_config"]
