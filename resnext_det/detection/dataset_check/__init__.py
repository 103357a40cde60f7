"""Data sets in COCO's format, checked before anything is trained on them: findings, counts, and a mended copy."""

from .check import (
    CheckedDataset,
    check_coco,
    inspect_coco,
    inspect_document,
    load_checked,
    read_json,
    report,
    write_mended,
)
from .findings import Finding, Findings

__all__ = [
    "CheckedDataset",
    "Finding",
    "Findings",
    "check_coco",
    "inspect_coco",
    "inspect_document",
    "load_checked",
    "read_json",
    "report",
    "write_mended",
]
