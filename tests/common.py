"""What tests import from each other's side: the root of the repository, and real data outside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_data(name: str) -> Path:
    """The file or folder ``name`` of the real data sets that tests use where they are present; else the test skips.

    They are looked for in ``$RESNEXT_DET_TEST_DATA``, then in ``shared/data`` beside the repository.
    """
    folder = Path(os.environ.get("RESNEXT_DET_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).exists():
        pytest.skip(f"no test data {name}: RESNEXT_DET_TEST_DATA may name the folder that holds it")
    return folder / name


def few(source: Path, target: Path, images: int) -> Path:
    """A copy of a COCO file with its first images that hold something, so that a run takes seconds."""
    content = json.loads(source.read_text("utf-8"))
    kept = {annotation["image_id"] for annotation in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in kept][:images]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    target.write_text(json.dumps(content), "utf-8")
    return target
