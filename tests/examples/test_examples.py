"""The examples run: outside the clone, in an empty folder, on real or made data."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, shared_data


def example(name: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_backbone_in_another_project(tmp_path: Path) -> None:
    """C4, FPN, RetinaNet and Mask R-CNN on COCO's pictures, by detectron2's own loop and evaluator."""
    data = shared_data("coco_mini")
    sets = []
    for name, count in (("train2017", 12), ("val2017", 4)):  # a few pictures, so that it takes seconds
        document = json.loads((data / f"annotations/instances_{name}.json").read_text("utf-8"))
        document["images"] = document["images"][:count]
        kept = {image["id"] for image in document["images"]}
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
        (tmp_path / f"{name}.json").write_text(json.dumps(document), "utf-8")
        sets += [f"--{name.removesuffix('2017').replace('val', 'test')}", tmp_path / f"{name}.json", data / name]
    done = example("backbone_in_another_project.py", tmp_path, *sets)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["detector"] for result in results] == ["c4", "fpn", "retinanet", "mask"]
    for result in results:
        assert len(result["losses"]) == 2 and all(math.isfinite(loss) for loss in result["losses"])
        assert 0 <= result["bbox"]["AP"] <= 100  # NaN where nothing was detected
    assert 0 <= results[-1]["segm"]["AP"] <= 100
