"""What the light commands may import: nothing that takes seconds to start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from common import ROOT
from PIL import Image

HEAVY = {"torch", "torchvision", "detectron2", "fvcore", "matplotlib", "scipy", "cv2"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    Image.new("RGB", (60, 50)).save(folder / "1.png")
    box = {"image_id": 1, "category_id": 4, "bbox": [5, 5, 30, 40]}
    truth = {
        "images": [{"id": 1, "width": 60, "height": 50, "file_name": "1.png"}],
        "categories": [{"id": 4, "name": "cat"}],
        "annotations": [{"id": 1, "iscrowd": 0, "area": 1200, **box}],
    }
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "dt.json").write_text(json.dumps([{**box, "score": 0.9}]))
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "check --json gt.json --images .",
        "evaluate --gt gt.json --dt dt.json",
    ],
)
def test_neither_torch_nor_detectron2_nor_matplotlib(files, arguments):
    code = (
        "import sys\n"
        "from resnext_det.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    out = subprocess.run(command, cwd=files, env=environment, check=True, capture_output=True, text=True).stdout
    imported = set(out.splitlines()[-1].split())
    assert "resnext_det" in imported and not imported & HEAVY
