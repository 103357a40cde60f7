"""``resnext-det make-minival``: COCO's minival and valminusminival from val2014, and proof that minival is val2017."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..makers.minival import MINIVAL, REST, make_minival


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files, and say what is in them."""
    parser = argparse.ArgumentParser(
        description="Write COCO's minival and valminusminival, and prove that minival is val2017."
    )
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco", "annotations")
    parser.add_argument("--annotations", type=Path, default=folder, help="COCO's annotations (%(default)s)")
    folder = parser.parse_args(argv).annotations
    counts = make_minival(folder)
    print(f"{folder / MINIVAL}: {counts.minival_images:,} images, {counts.minival_annotations:,} annotations")
    print(f"{folder / REST}: {counts.rest_images:,} images, {counts.rest_annotations:,} annotations")
    print("minival equals val2017: image ids and sizes; annotation ids, images, categories, crowds and boxes")
