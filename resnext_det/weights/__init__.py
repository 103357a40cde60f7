"""Weights in, weights out: read any known file, load it with every key accounted for, write it with its metadata."""

from .checkpoint import Checkpoint, Reader, ReadOnce, read_checkpoint, save_checkpoint
from .loading import LoadReport, check_norm_statistics, load_strictly
from .metadata import Metadata, check_metadata, preset

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Metadata",
    "ReadOnce",
    "Reader",
    "check_metadata",
    "check_norm_statistics",
    "load_strictly",
    "preset",
    "read_checkpoint",
    "save_checkpoint",
]
