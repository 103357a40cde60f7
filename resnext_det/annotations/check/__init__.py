"""Data sets in COCO's format, checked before anything is trained on them: findings, counts, and a fixed copy."""

from .findings import Finding, Findings
from .inspection import (
    CheckedDataset,
    check_coco,
    inspect_coco,
    inspect_document,
    load_checked,
    read_json,
    report,
    write_fixed,
)

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
    "write_fixed",
]
