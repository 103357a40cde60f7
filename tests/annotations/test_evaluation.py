"""Average precision against pycocotools: every element of its precision and recall arrays, and COCO's own fixture."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from coco_sets import pycocotools, random_set
from common import ROOT, shared_data
from pycocotools import cocoeval
from pycocotools import mask as mask_tools
from pycocotools.cocoeval import COCOeval, Params

from resnext_det import UserError
from resnext_det.annotations import evaluation, reading, typed_json
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.evaluation import evaluate, evaluate_detections
from resnext_det.annotations.reading import stream_list

TWELVE = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()


def same(ours, theirs: COCOeval) -> None:
    np.testing.assert_array_equal(ours.precision, theirs.eval["precision"])
    np.testing.assert_array_equal(ours.recall, theirs.eval["recall"])
    results = ours.results()
    expected = [value * 100 if value > -1 else math.nan for value in theirs.stats]
    np.testing.assert_array_equal([results[name] for name in TWELVE], expected)


@pytest.mark.parametrize("seed", range(6))
def test_random_boxes_equal_pycocotools_in_every_digit(seed):
    truth, detections = random_set(seed, first_id=seed % 2)
    same(evaluate(read_ground_truth(truth), Detections.from_records(detections)), pycocotools(truth, detections))


def odd_set(seed: int) -> tuple[dict, list[dict], str, list[int]]:
    """A few small images on a coarse grid, so that IoUs and scores are often equal: (truth, detections, type, limits).

    Boxes without width, crowds, areas that are not the box's, images without objects, classes without either, 130
    detections in an image, limits other than COCO's.
    """
    rng = np.random.default_rng(seed)
    kind, step = str(rng.choice(["bbox", "segm", "keypoints"])), float(rng.choice([1, 4, 10]))
    image_ids = rng.choice(1000, rng.integers(1, 8), replace=False).tolist()
    classes = rng.choice(50, rng.integers(1, 5), replace=False).tolist()

    def box() -> list[float]:
        found = rng.integers(0, 8, 4) * step + (rng.random(4) * 3 if rng.random() < 0.3 else 0)
        return (found * [1, 1, rng.random() > 0.1, rng.random() > 0.03]).tolist()

    def shape(x: float, y: float, w: float, h: float, *, polygon: bool = False) -> dict:
        if kind == "segm" and polygon:
            return {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        if kind == "segm":
            mask = np.zeros((100, 100), np.uint8, order="F")
            mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
            encoded = mask_tools.encode(mask)
            return {"segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()}}
        if kind == "keypoints":
            seen = rng.integers(0, 3, 17) * (rng.random() > 0.15)
            points = np.stack([rng.uniform(x, x + w + 1, 17), rng.uniform(y, y + h + 1, 17), seen], axis=1)
            return {"keypoints": points.ravel().tolist(), "num_keypoints": int((seen > 0).sum())}
        return {"bbox": [x, y, w, h]}

    objects, found = [], []
    for image in image_ids:
        here = []
        for _ in range(rng.integers(0, 7)):
            real, crowd = box(), int(rng.random() < 0.2)
            ids = {"id": len(objects), "image_id": image, "category_id": int(rng.choice(classes)), "bbox": real}
            area = float(real[2] * real[3] * rng.choice([1, 1, 0.5, 100]))
            here.append(
                {**ids, "area": area, "iscrowd": crowd, **shape(*real, polygon=not crowd and rng.random() < 0.4)}
            )
            objects.append(here[-1])
        for _ in range(rng.choice([0, 3, 10, 30, 130])):
            near = here[rng.integers(len(here))] if here and rng.random() < 0.6 else None
            moved = rng.integers(-1, 2, 4) * step * 0.5 * (rng.random() < 0.6)
            place = box() if near is None else (near["bbox"] + moved).clip(0).tolist()
            made = {"image_id": image, "category_id": int(rng.choice(classes)) if near is None else near["category_id"]}
            made |= {**shape(*place), "score": round(float(rng.random()), 1)}
            if kind == "keypoints" and near is not None:
                made["keypoints"] = (near["keypoints"] + rng.normal(0, 2, 51) * ([1, 1, 0] * 17)).tolist()
            found.append(made)
    truth = {
        "images": [{"id": i, "width": 100, "height": 100} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
        "annotations": objects,
    }
    limits = [1, 10, 100] if seed % 2 else sorted(rng.choice([1, 2, 3, 5, 20, 300], 3, replace=False).tolist())
    return truth, [found[i] for i in rng.permutation(len(found))], kind, limits


def test_odd_sets_equal_pycocotools_in_every_digit():
    compared = set()
    for seed in range(90):
        truth, detections, kind, limits = odd_set(seed)
        if not detections:  # pycocotools refuses to load none
            continue
        theirs = pycocotools(truth, detections, kind, limits)
        ours = evaluate(
            read_ground_truth(truth, with_masks=kind == "segm"), Detections.from_records(detections), kind,
            max_detections=limits,
        )  # fmt: skip
        np.testing.assert_array_equal(ours.precision, theirs.eval["precision"], f"seed {seed}, {kind}")
        np.testing.assert_array_equal(ours.recall, theirs.eval["recall"], f"seed {seed}, {kind}")
        compared.add(kind)
    assert compared == {"bbox", "segm", "keypoints"}


def test_other_areas_equal_pycocotools_in_every_digit(monkeypatch):
    truth, detections = random_set(9)
    areas = {"tiny": (0.0, 300.0), "rest": (300.0, 1e10)}
    ours = evaluate(read_ground_truth(truth), Detections.from_records(detections), areas=areas)

    class Other(Params):
        def setDetParams(self) -> None:
            super().setDetParams()
            self.areaRng, self.areaRngLbl = [[0, 1e10], [0, 300], [300, 1e10]], ["all", "tiny", "rest"]

    monkeypatch.setattr(cocoeval, "Params", Other)
    theirs = pycocotools(truth, detections, limits=[1, 10, 100])
    np.testing.assert_array_equal(ours.precision, theirs.eval["precision"])
    assert {"APtiny", "APrest", "ARtiny"} <= ours.results().keys() and "APs" not in ours.results()


def test_masks_equal_pycocotools_in_every_digit():
    path = shared_data("coco_mini/annotations/instances_val2017.json")
    truth = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    rng = np.random.default_rng(0)
    detections = []
    for record in truth["annotations"]:
        if record["iscrowd"]:
            continue
        points = [(np.array(part) + rng.normal(0, 1.5, len(part))).tolist() for part in record["segmentation"]]
        mask = mask_tools.merge(mask_tools.frPyObjects(points, *sizes[record["image_id"]]))
        mask["counts"] = mask["counts"].decode()
        score = float(np.round(rng.random(), 1))
        ids = {"image_id": record["image_id"], "category_id": record["category_id"]}
        detections.append({**ids, "segmentation": mask, "score": score})
    ours = evaluate(read_ground_truth(path, with_masks=True), Detections.from_records(detections), "segm")
    same(ours, pycocotools(truth, detections, "segm"))
    assert 10 < ours.results()["AP"] < 95


def test_keypoints_equal_pycocotools_in_every_digit():
    truth, _ = random_set(3, first_id=1, images=20)
    rng = np.random.default_rng(0)
    truth["categories"] = truth["categories"][:1]
    detections = []
    for record in truth["annotations"]:
        x, y, width, height = record["bbox"]
        points = np.stack([rng.uniform(x, x + width, 17), rng.uniform(y, y + height, 17), rng.integers(0, 3, 17)], 1)
        points = points if rng.random() < 0.9 else np.zeros((17, 3))
        record.update(category_id=1, keypoints=points.ravel().tolist(), num_keypoints=int((points[:, 2] > 0).sum()))
        moved = points + rng.normal(0, 0.04, (17, 3)) * [width, height, 0]
        ids = {"image_id": record["image_id"], "category_id": 1, "bbox": record["bbox"]}
        detections.append({**ids, "keypoints": moved.ravel().tolist(), "score": float(np.round(rng.random(), 2))})
    theirs = pycocotools(truth, detections, "keypoints")
    ours = evaluate(read_ground_truth(truth), Detections.from_records(detections), "keypoints")
    np.testing.assert_array_equal(ours.precision, theirs.eval["precision"])
    np.testing.assert_array_equal(ours.recall, theirs.eval["recall"])
    assert ours.results()["AP"] == theirs.stats[0] * 100 > 10


def test_fixture_of_the_coco_api_twelve_numbers_and_classes(tmp_path):
    folder = shared_data("eval_cocoapi")
    case = json.loads((folder / "expected.json").read_text())["cocoapi_fakebbox100"]
    out = tmp_path / "results.json"
    files = ["--gt", folder / case["gt"], "--dt", folder / case["dt"], "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, ROOT / "tools" / "evaluate.py", *files], env=environment, check=True)
    results = json.loads(out.read_text())["bbox"]
    for name in TWELVE:
        assert results[name] == case["expected"][name] * 100
    for name, value in case["expected"]["per_category_AP"].items():
        assert results[f"AP-{name}"] == (None if value is None else pytest.approx(value * 100, abs=1e-12))


def test_annotation_id_zero_does_not_change_ap():
    truth, detections = random_set(0)
    renumbered = copy.deepcopy(truth)
    for record in renumbered["annotations"]:
        record["id"] += 1000
    assert truth["annotations"][0]["id"] == 0
    assert str(evaluate_detections(truth, detections)) == str(evaluate_detections(renumbered, detections))


def test_no_detections_is_zero_and_no_ground_truth_is_nan(caplog):
    truth, _ = random_set(1)
    results = evaluate_detections(truth, [])
    assert results["AP"] == results["AP50"] == results["AR100"] == 0
    assert results["AP-class 0"] == 0 and math.isnan(results["AP-class 24"])
    assert "No detections at all" in caplog.text and "class 24" in caplog.text
    for record in truth["annotations"]:
        record["area"] = 10
    results = evaluate_detections(truth, [])
    assert results["APs"] == 0 and math.isnan(results["APm"]) and "no medium object" in caplog.text


def test_missing_area_crowd_and_ids_of_digits_are_fixed():
    truth, detections = random_set(2)
    plain = [{**r, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for r in truth["annotations"]]
    bare = [{k: v for k, v in r.items() if k != "area"} | {"iscrowd": None} for r in plain]
    bare = [{**r, "image_id": str(r["image_id"])} for r in bare]
    whole = evaluate_detections({**truth, "annotations": plain}, detections)
    assert str(evaluate_detections({**truth, "annotations": bare}, detections)) == str(whole)


def change(table: str, **values) -> tuple[str, dict]:
    return table, values


@pytest.mark.parametrize(
    "where, values, message",
    [
        (*change("annotations", id=1), r"annotations\[\].id: used more than once: 1"),
        (*change("images", id=5), r"images\[\].id: used more than once: 5"),
        (
            *change("annotations", category_id=77),
            r"annotations\[1\].category_id \(id 2\): 77 is not among the categories",
        ),
        (*change("annotations", image_id=77), r"annotations\[1\].image_id \(id 2\): 77 is not among the images"),
        (*change("annotations", bbox=[0, 0, float("nan"), 1]), "not four finite numbers"),
        (*change("annotations", bbox=None), "bbox .*is missing"),
        (*change("detections", image_id=77), "image_id 77 not among the images"),
        (*change("detections", category_id=0), "category_id 0 not among the categories"),
        (*change("detections", score=float("nan")), "NaN"),
        (*change("detections", score="high"), "must be numbers"),
        (*change("detections", bbox=[1, 2, 3]), "bbox"),
    ],
)
def test_mistakes_are_named(where, values, message):
    truth = {
        "images": [{"id": 5}, {"id": 6}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": i, "image_id": 5, "category_id": 1, "bbox": [0, 0, 9, 9]} for i in (1, 2)],
    }
    detections = [{"image_id": 5, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]
    assert evaluate_detections(truth, detections)["AP"] > 0
    (detections if where == "detections" else truth[where])[-1].update(values)
    with pytest.raises(UserError, match=message) as error:
        evaluate_detections(truth, detections)
    assert "\n" not in str(error.value)


def test_json_file_and_records_and_arrays_are_the_same(tmp_path):
    truth, detections = random_set(4)
    arrays = Detections.from_records(detections)
    arrays.write_json(tmp_path / "detections.json")
    assert list(Detections.from_json(tmp_path / "detections.json").records()) == detections
    (tmp_path / "cut.json").write_text((tmp_path / "detections.json").read_text()[:500])
    with pytest.raises(UserError, match="the file ends in the middle"):
        Detections.from_json(tmp_path / "cut.json")
    assert str(evaluate_detections(truth, tmp_path / "detections.json")) == str(evaluate_detections(truth, detections))


def test_boxes_are_read_fast_as_they_are_read_slowly(tmp_path, monkeypatch):
    one = '{"image_id": 7, "category_id": 2, "bbox": [1, 2.5, 3e1, 4], "score": 0.1}'
    other = one.replace("7", "9007199254740993").replace("0.1", "0.30000000000000004")
    nested = one[:-1] + ', "parent": {"bbox": [9, 9, 9, 9], "parts": [{"score": 5}, {"score": 6}]}}'
    texts = one[:-1] + ', "note": "a },{ b", "segmentation": null}'
    good = ["[]", " [ ] ", *(f"[{sep.join(many)}]" for sep in (",", ", \n", " ,") for many in (
        [one], [one, other, one], [nested, one, nested], [texts, texts, one],
        [one.replace("7", '"7"'), one], [one.replace("7", "7.0"), other], [one.replace("0.1", "1"), one],
    ))]  # fmt: skip
    ends = (
        "[{}",
        "[{},]",
        "[{}, ]",
        "[{},",
        "[{}]]",
        "{{}},{}",
        "{}",
        "[{}, {{}}]",
        "[[{}],[{}]]",
        "[{}],[{}]",
        "[{}{}]",
    )
    bad = [end.replace("{}", one) for end in ends] + [
        f"[{one},,{one}]",
        f"[{one}, {{}}]",
        "[3]",
        f"[{texts[:-30]},{one}]",
    ]
    for twice in (
        '"score": 0.2',
        '"sc\\u006fre": 0.2',
        '"image_id": 7',
        '"note": 1, "note": 1',
        '"a": {"b": 1, "b": 1}',
    ):
        bad += [f"[{one[:-1]}, {twice}}},{one}]", f"[{one},{one[:-1]}, {twice}}}]"]
    wrong = {"7": ("null", "99999999999999999999"), "2.5": ("1e999", "null"), "0.1": ("NaNx", "true", "[1]")}
    bad += [f"[{one.replace(old, new)},{one}]" for old, values in wrong.items() for new in values]
    path = tmp_path / "found.json"

    def outcome(read) -> tuple:
        try:
            found = read()
        except UserError as error:
            return (str(error),)
        return found.image_ids.tolist(), found.category_ids.tolist(), found.boxes.tolist(), found.scores.tolist()

    for block in (16, 97, 1 << 18):
        monkeypatch.setattr(reading, "_BLOCK", block)
        monkeypatch.setattr(typed_json, "BLOCK", block)
        for text in good + bad:
            path.write_text(text)
            slow = outcome(lambda: Detections._of_chunks(stream_list(path), str(path)))
            assert outcome(lambda: Detections.from_json(path)) == slow, text
            assert len(slow) == (1 if text in bad else 4), text
    path.write_text(f"[{one},{other},{one}]")
    assert sum(len(found) for found in typed_json.stream_boxes(path)) == 3, "the fast way is taken"


def test_the_benchmark_compares_equal_numbers():
    from resnext_det.benchmarks.evaluate import coco_evaluation
    from resnext_det.benchmarks.measure import Setting

    assert coco_evaluation(Setting(quick=True))["agreement"] == {"all twelve numbers equal": 1.0}


def test_the_command_writes_numbers_and_a_page(tmp_path, capsys):
    from resnext_det.commands.evaluate import main

    truth = {
        "images": [{"id": 1, "width": 60, "height": 50, "file_name": "none.jpg"}],
        "categories": [{"id": 4, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [5, 5, 30, 40]}],
    }
    found = [{"image_id": 1, "category_id": 4, "bbox": [5, 5, 30, 38], "score": 0.9}]
    for name, content in (("gt", truth), ("dt", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = ["--gt", str(tmp_path / "gt.json"), "--dt", str(tmp_path / "dt.json"), "--report", str(tmp_path / "r.html")]
    main([*files, "--out", str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["bbox"]["AP50"] == pytest.approx(100) and written["bbox"]["threshold-cat"] == 0.9
    assert written["thresholds"]["confusion"]["counts"] == [[1, 0], [0, 0]]
    main([*files, "--areas", "tiny=0-99", "wide=99-1e9"])
    assert "APwide" in capsys.readouterr().out
    for wrong in ("tiny", "tiny=9-3", "=0-3", "tiny=a-b"):
        with pytest.raises(UserError, match="--areas .*NAME=LOW-HIGH"):
            main([*files, "--areas", wrong])
    main(files)
    assert "AP50" in capsys.readouterr().out and "cat" in (tmp_path / "r.html").read_text()
    with pytest.raises(UserError, match="--report"):
        main([*files, "--iou-type", "segm"])


def test_a_fork_of_a_process_that_has_evaluated_evaluates_too():
    truth = read_ground_truth(
        {
            "images": [{"id": 1, "file_name": "a", "width": 9, "height": 9}],
            "categories": [{"id": 1, "name": "x"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
        }
    )
    found = Detections.from_records([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}])
    here = evaluate(truth, found).results()
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: send.send(evaluate(truth, found).results()))
    child.start()
    assert receive.poll(60), "it waits for threads that a fork does not have"
    np.testing.assert_equal(receive.recv(), here)
    child.join()


# What pycocotools takes is taken, with its numbers


def masks_set(seed: int = 0) -> tuple[dict, list[dict]]:
    """Truth and detections with masks, boxes without any; every third of them polygons, the rest run lengths."""
    rng = np.random.default_rng(seed)

    def mask(i: int, x: int, y: int, w: int, h: int) -> dict | list:
        if i % 3 == 0:
            return [[x, y, x + w, y, x + w, y + h, x, y + h]]
        pixels = np.zeros((100, 120), np.uint8, order="F")
        pixels[y : y + h, x : x + w] = 1
        encoded = mask_tools.encode(pixels)
        return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode()}

    objects, found = [], []
    for i in range(24):
        box = [int(v) for v in (*rng.integers(0, 60, 2), *rng.integers(8, 40, 2))]
        ids = {"image_id": i % 4 + 1, "category_id": i % 2 + 1}
        objects.append({**ids, "id": i + 1, "segmentation": mask(i, *box), "area": box[2] * box[3], "iscrowd": 0})
        moved = [box[0] + int(rng.integers(0, 5)), *box[1:]]
        found.append({**ids, "segmentation": mask(i + 1, *moved), "score": round(float(rng.random()), 1)})
    images = [{"id": i, "width": 120, "height": 100} for i in (1, 2, 3, 4)]
    return {
        "images": images,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": objects,
    }, found


def test_masks_without_boxes_in_both_files():
    truth, found = masks_set()
    theirs = pycocotools(truth, [{**r, "segmentation": runs_of(r["segmentation"])} for r in found], "segm")
    same(evaluate(read_ground_truth(truth, with_masks=True), Detections.from_records(found), "segm"), theirs)
    assert 10 < theirs.stats[0] * 100 < 95
    with pytest.raises(UserError, match=r"annotations\[0\].bbox \(id 1\): is missing"):
        read_ground_truth(truth)


def runs_of(mask: dict | list) -> dict:
    if isinstance(mask, dict):
        return mask
    return {**mask_tools.merge(mask_tools.frPyObjects(mask, 100, 120))}


def test_results_with_masks_count_as_boxes_too():
    """Polygons beside boxes are passed over; of run lengths alone the boxes around them count."""
    truth, found = masks_set(1)
    for record in truth["annotations"]:
        x, y, w, h = mask_tools.toBbox(runs_of(record["segmentation"])).tolist()
        record["bbox"] = [x, y, w, h]
    boxes = [{**r, "bbox": mask_tools.toBbox(runs_of(r["segmentation"])).tolist()} for r in found]
    theirs = pycocotools(truth, boxes)
    for records in (boxes, [{**r, "segmentation": runs_of(r["segmentation"])} for r in found], found):
        same(evaluate(read_ground_truth(truth), Detections.from_records(records)), theirs)
    assert theirs.stats[0] > 0.1


def test_ids_of_64_bits_and_of_digits():
    truth, found = random_set(5, images=4)
    plain = str(evaluate_detections(truth, found))
    for number in (lambda i: i + 2**63, lambda i: str(i + 2**63), str):
        truth_2, found_2 = copy.deepcopy((truth, found))
        for record in truth_2["images"]:
            record["id"] = number(record["id"])
        for record in truth_2["annotations"] + found_2:
            record["image_id"] = number(record["image_id"])
        assert str(evaluate_detections(truth_2, found_2)) == plain
    for wrong in (2**64, "00012", "x", 1.5, True, None, [1]):
        with pytest.raises(UserError, match="image_id"):
            evaluate_detections(truth, [{**found[0], "image_id": wrong}])


@pytest.mark.parametrize("area", [2e18, 1e300, 2**70, 0, -5])
def test_areas_of_any_size_are_numbers(area):
    truth, found = random_set(6, images=6)
    for record in truth["annotations"][::2]:
        record["area"] = area
    same(evaluate(read_ground_truth(truth), Detections.from_records(found)), pycocotools(truth, found))


SQUARE = {"size": [100, 100], "counts": [0, 50, 9950]}
BAD_MASKS = [
    ([[[1, 1], [9, 1], [9, 9]]], "holds points as lists"), ([1, 1, 9, 1, 9, 9], "is not a list of polygons"),
    ([[1, 1, 9, 9]], "a polygon of 4 numbers"), ([[1, 1, 9, 1, 9, 9, 5]], "a polygon of 7 numbers"),
    ([["1", 1, 9, 1, 9, 9]], "something else than finite numbers"), ([[1, 1, 9, math.nan, 9, 9]], "finite numbers"),
    ([[1, 1, 9, 1e12, 9, 9]], "finite numbers"), ([[]], "a polygon of 0 numbers"), ("x", "is neither polygons nor"),
    (7, "is neither polygons nor"), ({"counts": [0, 50, 9950]}, "has no size"),
    ({**SQUARE, "size": [100]}, "has no size"),
    ({**SQUARE, "size": ["100", 100]}, "has no size"), ({**SQUARE, "size": [-100, -100]}, "has no size"),
    ({**SQUARE, "size": [10**6, 10**6]}, "which no image has"), ({"size": [100, 100]}, "has no counts"),
    ({**SQUARE, "counts": [0, 50]}, "do not add up"), ({**SQUARE, "counts": [-1, 10001]}, "not whole numbers from 0"),
    ({**SQUARE, "counts": "\x01"}, "no compressed run lengths"),
    ({**SQUARE, "counts": "hallo"}, "do not add up|no compr"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "said"), BAD_MASKS)
@pytest.mark.parametrize("where", ["truth", "detections"])
def test_bad_masks_are_named_in_both_files(where, mask, said):
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "segmentation": SQUARE}
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**box, "id": 5}],
    }
    found = [{**box, "score": 0.5}]
    assert evaluate_detections(truth, found, "segm")["AP"] == pytest.approx(100)
    (found if where == "detections" else truth["annotations"])[0]["segmentation"] = mask
    place = "detection 0 has segmentation" if where == "detections" else r"annotations\[0\].segmentation \(id 5\)"
    with pytest.raises(UserError, match=f"{place}.*({said})"):
        evaluate_detections(truth, found, "segm")
    if where == "truth":
        assert evaluate_detections(truth, [{**box, "score": 0.5}])["AP"] == pytest.approx(100), "boxes need no mask"


@pytest.mark.parametrize("size", [[50, 100], [100, 101], [200, 200]])
def test_masks_of_another_size_than_their_image_are_named(size):
    pixels = np.ones(size, np.uint8, order="F")
    encoded = mask_tools.encode(pixels)
    mask = {"size": size, "counts": encoded["counts"].decode()}
    truth = {
        "images": [{"id": 3, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 1, "bbox": [1, 1, 8, 8], "segmentation": SQUARE}],
    }
    found = [{"image_id": 3, "category_id": 1, "segmentation": mask, "score": 0.5}]
    with pytest.raises(UserError, match=f"is {size[1]}x{size[0]} for image 3 of 100x100"):
        evaluate_detections(truth, found, "segm")
    truth["annotations"][0]["segmentation"] = mask
    with pytest.raises(UserError, match=rf"annotations\[0\].segmentation .* is of {size[1]}x{size[0]} pixels"):
        evaluate_detections(truth, found, "segm")


# Numbers that would mislead are said


def grid(number: int, classes: int = 1) -> tuple[dict, list[dict]]:
    """One image of so many objects, each found."""
    boxes = [[20.0 * (i % 30), 20.0 * (i // 30), 15.0 + i % 3, 15.0] for i in range(number)]
    ids = [{"image_id": 1, "category_id": i % classes + 1, "bbox": box} for i, box in enumerate(boxes)]
    truth = {
        "images": [{"id": 1, "width": 640, "height": 640}],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
        "annotations": [{**r, "id": i, "area": r["bbox"][2] * 15, "iscrowd": 0} for i, r in enumerate(ids, 1)],
    }
    return truth, [{**r, "score": 0.9} for r in ids]


def test_more_objects_than_the_limit_are_said_and_the_limit_is_yours(tmp_path, caplog, capsys):
    from resnext_det.commands.evaluate import main

    truth, found = grid(300)
    for name, content in (("gt", truth), ("dt", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = ["--gt", str(tmp_path / "gt.json"), "--dt", str(tmp_path / "dt.json"), "--out", str(tmp_path / "r.json")]
    main(files)
    assert "more than 100 objects of one class stand in 1 image, 300 at most" in caplog.text
    assert "raise the limit: --max-detections" in caplog.text
    low = json.loads((tmp_path / "r.json").read_text())["bbox"]
    assert low["AP50"] == pycocotools(truth, found).stats[1] * 100 < 34
    caplog.clear()
    main([*files, "--max-detections", "300"])
    high = json.loads((tmp_path / "r.json").read_text())["bbox"]
    assert (
        high["AP50"] == pytest.approx(100) and "more than" not in caplog.text and {"AR1", "AR10", "AR300"} < high.keys()
    )
    theirs = pycocotools(truth, found, limits=[1, 10, 300])
    precision = theirs.eval["precision"]
    assert high["AP"] == np.mean(precision[:, :, :, 0, -1]) * 100
    caplog.clear()
    truth, found = grid(300, classes=3)
    evaluate(read_ground_truth(truth), Detections.from_records(found))
    assert "more than" not in caplog.text, "100 of each class"


@pytest.mark.parametrize("area", [1.0, 0, 10**7])
def test_one_area_for_every_box_is_said(area, caplog):
    truth, found = grid(12)
    for record in truth["annotations"]:
        record["area"] = area
        record["bbox"][2] *= 1 + record["id"]
    evaluate(read_ground_truth(truth), Detections.from_records(found))
    assert f"is {area:g} in every annotation, and the boxes differ" in caplog.text


def test_only_crowds_are_said(caplog):
    truth, found = grid(3)
    for record in truth["annotations"]:
        record["iscrowd"] = 1
    evaluation = evaluate(read_ground_truth(truth), Detections.from_records(found))
    assert "is 1 in every annotation: crowds are neither trained on nor counted; write 0" in caplog.text
    assert math.isnan(evaluation.results()["AP"]) and pycocotools(truth, found).stats[0] == -1
    assert any("no object that counts" in reason for reason in evaluation.reasons())


def test_fractions_are_said(caplog):
    truth, found = grid(4)
    for record in truth["annotations"]:
        record["bbox"] = [v / 640 for v in record["bbox"]]
    evaluate(read_ground_truth(truth), Detections.from_records(found))
    assert "lie between 0 and 1: they look like fractions; multiply with the image's width and height" in caplog.text


def test_two_classes_of_one_name_keep_their_own_numbers(caplog):
    truth, found = grid(8, classes=2)
    for category in truth["categories"]:
        category["name"] = "cat"
    results = evaluate_detections(truth, [r for r in found if r["category_id"] == 1])
    assert "categories[].name: used by several classes: 'cat'" in caplog.text
    assert results["AP-cat (id 1)"] == pytest.approx(100) and results["AP-cat (id 2)"] == 0


@pytest.mark.parametrize("where", ["truth", "detections"])
def test_polygons_need_the_size_of_their_image_and_run_lengths_do_not(where):
    truth = {
        "images": [{"id": 7, "width": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 50], "segmentation": SQUARE}],
    }
    found = [{**truth["annotations"][0], "score": 0.5}]
    assert evaluate_detections(truth, found, "segm")["AP"] == pytest.approx(100)
    (found if where == "detections" else truth["annotations"])[0]["segmentation"] = [[0, 0, 0, 50, 1, 50, 1, 0]]
    with pytest.raises(UserError, match="image 7 has no width or height, which its polygons"):
        evaluate_detections(truth, found, "segm")


def test_a_limit_of_any_size_is_none():
    truth, found = random_set(6, images=3)
    sets = read_ground_truth(truth), Detections.from_records(found)
    one, other = (evaluate(*sets, max_detections=[1, 10, number]) for number in (10**6, 10**40))
    assert one.results()["AP"] == other.results()["AP"]


def test_too_few_threads_are_found_before_hotcoco_needs_them(monkeypatch):
    def none(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(evaluation, "_pool_owner", None)
    monkeypatch.setattr("threading.Thread.start", none)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        evaluate_detections(*random_set(6, images=2))
