"""ResNeXt for detection: the paper's networks, their pretraining, and C4 Faster R-CNN as a detectron2 plug-in.

Nothing heavy is imported until it is used. The backbones and the C4 head are registered as soon as both this package
and ``detectron2.modeling`` are imported, in either order.
"""

from importlib import import_module

from . import compat
from .errors import UserError
from .variants import list_models

__version__ = "0.1.0"
__all__ = ["UserError", "config_path", "create_model", "list_models", "load_detector"]

_HOME = {
    "config_path": "resnext_det.config_files",
    "create_model": "resnext_det.resnext",
    "add_resnext_config": "resnext_det.detection",
    "load_detector": "resnext_det.prediction.loading",
}

if compat.register(lambda: import_module("resnext_det.detection")):
    __all__ += ["add_resnext_config"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    try:  # a room of the package, such as resnext_det.weights
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
