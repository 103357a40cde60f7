"""Data sets in COCO's format, checked before anything is trained on them: findings, counts, and a fixed copy."""

from .findings import Finding, Findings
from .inspection import (
    CheckedDataset,
    check_coco,
    dataset_dicts,
    inspect_coco,
    inspect_document,
    open_set,
    read_document,
    refuse_classes,
    report,
    write_fixed,
)
from .options import ClassCount, Options

__all__ = [
    "CheckedDataset",
    "ClassCount",
    "Finding",
    "Findings",
    "Options",
    "check_coco",
    "inspect_coco",
    "inspect_document",
    "dataset_dicts",
    "open_set",
    "read_document",
    "refuse_classes",
    "report",
    "write_fixed",
]
