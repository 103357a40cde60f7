"""The page stands alone, and in a browser its numbers at any threshold are Python's."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from browser import Browser
from coco_sets import random_set
from common import ROOT
from PIL import Image

from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.evaluation import evaluate
from resnext_det.annotations.thresholds import match
from resnext_det.files import shown
from resnext_det.reporting.report import STEPS, Model, write_report


@pytest.fixture
def truth(tmp_path):
    for number in (1, 2, 3):
        Image.new("RGB", (200, 120), (200, 210, 220)).save(tmp_path / f"{number}.png")
    return read_ground_truth(
        {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 120} for i in (1, 2, 3, 4)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "</script><dog>"}, {"id": 3, "name": "absent"}],
            "annotations": [
                {"id": i, "image_id": i % 4 + 1, "category_id": i % 2 + 1, "bbox": [10 * i, 10, 40, 60]}
                for i in range(1, 9)
            ],
        }
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


def part(page: str, name: str) -> dict:
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])


def found_in(truth) -> Detections:
    records = [{**{k: r[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for r in truth.records()[:5]]
    return Detections.from_records(records)


def test_the_page_stands_alone(truth, tmp_path):
    found = found_in(truth)
    evaluation = evaluate(truth, found)
    page = write_report(
        tmp_path / "a" / "r.html", truth, found, evaluation, image_root=tmp_path, title="A <b>", images=3
    )
    page = page.read_text()
    facts, inside = part(page, "meta"), part(page, "images")
    assert facts["title"] == "A <b>" and facts["classes"][1] == "</script><dog>" and page.count("</script>") == 4
    assert facts["models"][0]["results"]["AP50"] == pytest.approx(evaluation.results()["AP50"], abs=1e-4)
    assert facts["root"] == "../" and facts["reasons"] and "absent" in facts["reasons"][-1]
    # The worst three; the file of the last image is absent.
    assert sorted(inside) == ["0", "2"] and all(
        value.startswith("data:image/jpeg;base64,") for value in inside.values()
    )
    assert not re.findall(r"(?:src|href)=", page) and not re.findall(r"https?://(?!www.w3.org/2000/svg)", page)


def test_numbers_at_100_thresholds_are_those_of_python(browser, tmp_path):
    document, detections = random_set(11)
    truth, first = read_ground_truth(document), Detections.from_records(detections)
    rng = np.random.default_rng(0)
    second = first.take(rng.random(len(first)) < 0.7)
    second.scores = np.round(second.scores * 3, 4)  # not from 0 to 1
    sides = [first, second]
    evaluations = [evaluate(truth, side) for side in sides]
    path = write_report(tmp_path / "r.html", truth, first, evaluations[0], others=[Model("b", second, evaluations[1])])
    browser.open(path)
    matches = [match(truth, side) for side in sides]
    scales = browser.run("M.models.map(m => m.scale)")
    assert scales == [1, matches[1].score.max()]
    for at in [0, STEPS, *rng.integers(0, STEPS, 96).tolist(), *(np.array([0.37, 0.5]) * STEPS).astype(int).tolist()]:
        side, category = int(rng.integers(0, 2)), int(rng.integers(-1, 9))
        threshold = at / STEPS * scales[side]
        curve = matches[side].curve(None if category < 0 else category, np.array([threshold]))
        theirs = browser.run(f"numbers({side}, {at}, {category})")
        ours = {"right": curve.right[0], "wrong": curve.wrong[0], "objects": curve.objects}
        assert {key: theirs[key] for key in ours} == ours
        for name in ("precision", "recall", "f1"):
            value = getattr(curve, name)[0]
            assert theirs[name] == pytest.approx(value, abs=1e-12) if value == value else theirs[name] is None
        table = np.array(browser.run(f"Array.from(confusion({side}, {at}))")).reshape(10, 10)
        assert np.array_equal(table, matches[side].confusion(threshold))
    best = matches[0].results()
    row = browser.run("[...document.querySelectorAll('#numbers tbody tr:first-child td')].map(n => n.textContent)")
    assert row[:4] == [f"{best['threshold']:.3f}", *(f"{best[name]:.1f}" for name in ("precision", "recall", "F1"))]
    gap = re.findall(r"(?:detections|b) ([\d.]+)", browser.run("document.getElementById('reliable').textContent"))
    assert float(gap[0]) == pytest.approx(best["ECE"], abs=0.15)
    assert not browser.messages


def test_slider_filters_and_images_by_keyboard(browser, truth, tmp_path):
    found = found_in(truth)
    browser.open(write_report(tmp_path / "r.html", truth, found, evaluate(truth, found), image_root=tmp_path))
    browser.run("document.getElementById('at0').focus()")
    browser.press("End", 35)
    shown_now = "() => done(document.querySelector('#numbers tbody').textContent)"
    text = f"new Promise(done => {{ const look = () => waiting ? setTimeout(look, 5) : ({shown_now})(); look(); }})"
    assert "1.000" in browser.run(text)
    assert browser.run("document.getElementById('at0').getAttribute('aria-valuetext')") == "1.000"
    browser.press("Home", 36)
    assert "0.000" in browser.run(text)
    choose = "(() => {{ const s = document.getElementById('{}'); s.value = {}; s.onchange(); finish(); return {}; }})()"
    missed = browser.run(choose.format("kind", 7, "state.list.length"))
    assert missed == len({int(i) for i in truth.image[5:]})
    assert browser.run(choose.format("class", 2, "state.list.length")) == 0
    browser.run(choose.format("class", -1, "0"))
    browser.run("document.querySelector('#cards button').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run("document.getElementById('view').open")
    labels = browser.run("[...document.querySelectorAll('#view svg.picture')].map(n => n.getAttribute('aria-label'))")
    assert len(labels) == 2 and "missed" in labels[0]
    browser.press("ArrowRight", 39)
    assert browser.run("document.getElementById('view-facts').textContent").startswith("2 of")
    assert browser.run("M.classes[1] === '</scr' + 'ipt><dog>'")
    browser.press("Escape", 27)
    assert not browser.run("document.getElementById('view').open") and not browser.messages


def test_all_that_one_can_use_or_look_at_has_a_name_for_assistive_software(browser, truth, tmp_path):
    found = found_in(truth)
    browser.open(write_report(tmp_path / "r.html", truth, found, evaluate(truth, found), image_root=tmp_path))
    browser.run("finish(), open(0)")
    nodes = [n for n in browser("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
    browser.run("document.getElementById('close').click()")
    nodes += [n for n in browser("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
    names: dict[str, set[str]] = {}
    for node in nodes:
        names.setdefault(node["role"]["value"], set()).add(node.get("name", {}).get("value", ""))
    for role in ("slider", "spinbutton", "combobox", "button", "table", "image", "region", "dialog", "heading"):
        assert names[role] and "" not in names[role], role


def test_without_images_and_without_detections(browser, truth, tmp_path):
    browser.open(write_report(tmp_path / "r.html", truth, Detections.empty(), evaluate(truth, Detections.empty())))
    assert browser.run("numbers(0, 0)")["missed"] == 8 and browser.run("finish(), state.list.length") == 4
    assert not browser.messages


def test_reporting_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import resnext_det.reporting.report\n"
        "assert not [name for name in sys.modules if name.startswith('detectron2.') or name == 'matplotlib']"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "name", ["$1_$", "$\\frac{", "a_{", "你好", "क", "\x1b[31mx", "x\ny", "<script>", "%s", "a" * 200]
)
def test_names_of_classes_and_files_are_plain_text(tmp_path, name):
    truth = read_ground_truth(
        {
            "images": [{"id": 1, "file_name": f"{name}.png", "width": 60, "height": 50}],
            "categories": [{"id": 1, "name": name}, {"id": 2, "name": "other"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 30]}],
        }
    )
    found = Detections.from_records([{"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 28], "score": 0.9}])
    page = write_report(tmp_path / "report.html", truth, found, evaluate(truth, found), title=name).read_text()
    assert page.count("<script") == page.count("</script>") == 4 and "\x1b" not in page
    facts = part(page, "meta")
    assert facts["classes"] == [shown(name), "other"] and facts["title"] == shown(name)


def pixels_of_one(tmp_path, root=None, width=60, height=50, **more) -> np.ndarray | None:
    """The image inside the page of a set of one, if there is one."""
    truth = read_ground_truth(
        {
            "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
        }
    )
    nothing = Detections.empty()
    path = write_report(tmp_path / "r.html", truth, nothing, evaluate(truth, nothing), image_root=root, **more)
    inside = part(path.read_text(), "images")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(inside["0"].split(",")[1])))) if inside else None


def test_an_image_of_16_bits_is_shown_as_it_is_trained_on(tmp_path):
    Image.fromarray(np.full((50, 60), 0x4000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (pixels_of_one(tmp_path, tmp_path) == 0x40).all()


def test_a_huge_entry_takes_no_memory_for_its_canvas(tmp_path):
    tracemalloc.start()
    assert pixels_of_one(tmp_path, tmp_path, width=10**6, height=10**6) is None
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100 << 20


def test_an_image_that_cannot_be_decoded_is_left_out(tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    assert pixels_of_one(tmp_path, tmp_path) is None


def test_the_limit_on_pixels_and_the_folder_hold_for_the_page(tmp_path):
    Image.new("RGB", (60, 50), (250, 0, 0)).save(tmp_path / "a.png")
    assert abs(pixels_of_one(tmp_path, tmp_path).astype(int) - (250, 0, 0)).max() < 5
    assert pixels_of_one(tmp_path, tmp_path, max_megapixels=0.001) is None
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "a.png")
    assert pixels_of_one(tmp_path, tmp_path / "in") is None
