"""The page stands alone, shows the evaluation's numbers, and copes with missing images and empty results."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from common import ROOT
from PIL import Image

from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.evaluation import evaluate
from resnext_det.reporting.report import write_report


@pytest.fixture
def truth(tmp_path):
    for number in (1, 2, 3):
        Image.new("RGB", (200, 120), (200, 210, 220)).save(tmp_path / f"{number}.png")
    return read_ground_truth(
        {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 120} for i in (1, 2, 3, 4)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "<dog>"}, {"id": 3, "name": "absent"}],
            "annotations": [
                {"id": i, "image_id": i % 4 + 1, "category_id": i % 2 + 1, "bbox": [10 * i, 10, 40, 60]}
                for i in range(1, 9)
            ],
        }
    )


def page_of(truth, detections, path, **choices) -> str:
    return write_report(path, truth, detections, evaluate(truth, detections), **choices).read_text()


def test_the_page_stands_alone_and_shows_the_numbers(truth, tmp_path):
    records = [
        {"image_id": r["image_id"], "category_id": r["category_id"], "bbox": r["bbox"], "score": 0.9}
        for r in truth.records()[:5]
    ]
    detections = Detections.from_records(records)
    page = page_of(truth, detections, tmp_path / "report.html", image_root=tmp_path, title="A & B", shown_images=2)
    assert "A &amp; B" in page and "&lt;dog&gt;" in page and "<dog>" not in page
    for name, value in evaluate(truth, detections).results().items():
        if name in ("AP", "AP50"):
            assert f"{name}<b>{value:.1f}</b>" in page
    assert "left out of the means: absent" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3 + 2 * 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()
    left = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[3].split(",")[1]))).convert("RGB"))
    assert left.shape == (336, 560, 3) and len(np.unique(left.reshape(-1, 3), axis=0)) > 1, "boxes are drawn"


def test_without_images_and_without_detections(truth, tmp_path):
    page = page_of(truth, Detections.empty(), tmp_path / "report.html")
    assert "AP<b>0.0</b>" in page and "nothing detected" in page


def test_reporting_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import resnext_det.reporting.report\n"
        "assert not [name for name in sys.modules if name.startswith('detectron2.')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
