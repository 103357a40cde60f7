"""ResNeXt for detection: the paper's networks, their pretraining, and C4 Faster R-CNN as a detectron2 plug-in."""

import warnings

from . import compat
from .config_files import config_path
from .errors import UserError
from .variants import list_models

__version__ = "0.1.0"
__all__ = ["UserError", "config_path", "create_model", "list_models"]

# Models and weights work without detectron2; with it, importing this package is all that registration takes.
# A library that is broken is named instead of raised, so that `python -m resnext_det` can tell what mends it.
try:
    from .resnext import create_model

    if compat.prepare():
        from .detection import add_resnext_config

        __all__ += ["add_resnext_config"]
except Exception as error:
    warnings.warn(
        f"resnext_det is incomplete ({type(error).__name__}: {error}): `python -m resnext_det` tells what mends it",
        stacklevel=2,
    )
