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


@pytest.mark.parametrize(
    "name", ["$1_$", "$\\frac{", "a_{", "你好", "क", "\x1b[31mx", "x\ny", "<script>", "%s", "a" * 200]
)
@pytest.mark.filterwarnings("error:Glyph")
def test_names_of_classes_and_files_are_plain_text(tmp_path, name):
    truth = read_ground_truth(
        {
            "images": [{"id": 1, "file_name": f"{name}.png", "width": 60, "height": 50}],
            "categories": [{"id": 1, "name": name}, {"id": 2, "name": "other"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 30]}],
        }
    )
    found = Detections.from_records([{"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 28], "score": 0.9}])
    page = page_of(truth, found, tmp_path / "report.html", title=name)
    assert "<script>" not in page and "\x1b" not in page and page.count("data:image/png") >= 3


def colors(page: str) -> list[np.ndarray]:
    """The images at the page's end: ground truth and detections."""
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', page)[-2:]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB")) for source in sources]


def one_image(tmp_path, width=60, height=50, **more) -> tuple:
    truth = read_ground_truth(
        {
            "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
        }
    )
    return truth, Detections.empty(), tmp_path / "report.html"


def test_an_image_of_16_bits_is_shown_as_it_is_trained_on(tmp_path):
    Image.fromarray(np.full((50, 60), 0x4000, dtype=np.uint16)).save(tmp_path / "a.png")
    left, _ = colors(page_of(*one_image(tmp_path), image_root=tmp_path))
    assert (left[-20:, -20:] == 0x40).all()


def test_a_huge_entry_takes_no_memory_for_its_canvas(tmp_path):
    import tracemalloc

    given = one_image(tmp_path, width=10**6, height=10**6)
    tracemalloc.start()
    left, _ = colors(page_of(*given))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert left.shape == (560, 560, 3) and most < 100 << 20


def test_the_limit_on_pixels_and_the_folder_hold_for_the_page(tmp_path):
    Image.new("RGB", (60, 50), (250, 0, 0)).save(tmp_path / "a.png")
    shown, _ = colors(page_of(*one_image(tmp_path), image_root=tmp_path))
    assert (shown[-20:, -20:] == (250, 0, 0)).all()
    gray, _ = colors(page_of(*one_image(tmp_path), image_root=tmp_path, max_megapixels=0.001))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "a.png")
    outside, _ = colors(page_of(*one_image(tmp_path), image_root=tmp_path / "in"))
    for pixels in (gray, outside):
        assert (pixels[-20:, -20:] == pixels[-1, -1]).all() and pixels[-1, -1].min() > 200
