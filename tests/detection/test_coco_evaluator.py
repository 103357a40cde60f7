"""The evaluator against detectron2's own for the same model outputs, and what users of that one run into."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from reported import Reports, block, reports_of_all

from resnext_det import UserError
from resnext_det.detection.coco_evaluator import DETECTIONS_FILE, FastCOCOEvaluator

CATEGORIES = [7, 2, 90]


@pytest.fixture
def dataset(tmp_path):
    """A registered set of 12 images and 3 categories with gaps between their ids; returns (name, json file)."""
    rng = np.random.default_rng(0)
    images = [{"id": int(i), "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in range(3, 39, 3)]
    annotations = [
        {
            "id": number,
            "image_id": images[number % 12]["id"],
            "category_id": int(rng.choice(CATEGORIES)),
            "bbox": [float(v) for v in rng.uniform(5, 150, 4)],
            "area": float(rng.uniform(100, 20000)),
            "iscrowd": int(number % 9 == 8),
        }
        for number in range(1, 80)
    ]
    content = {
        "images": images,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    name = f"evaluator {tmp_path}"
    register_coco_instances(name, {}, str(path), str(tmp_path))
    DatasetCatalog.get(name)
    yield name, path
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def outputs(path, masks: bool = False) -> tuple[list[dict], list[dict]]:
    """Inputs and outputs of a model that finds most objects roughly."""
    torch.manual_seed(0)
    content = json.loads(path.read_text())
    order = sorted(CATEGORIES)
    inputs, found = [], []
    for image in content["images"]:
        records = [r for r in content["annotations"] if r["image_id"] == image["id"]] * 2
        boxes = torch.tensor([r["bbox"] for r in records], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += torch.randn_like(boxes) * 6
        instances = Instances((300, 400))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.rand(len(records))
        instances.pred_classes = torch.tensor([order.index(r["category_id"]) for r in records], dtype=torch.int64)
        inputs.append({"image_id": image["id"]})
        found.append({"instances": instances})
    return inputs, found


def results_of(evaluator, inputs, found) -> dict:
    evaluator.reset()
    for i in range(0, len(inputs), 5):
        evaluator.process(inputs[i : i + 5], found[i : i + 5])
    return evaluator.evaluate()


def test_same_numbers_as_detectron2(dataset, tmp_path):
    name, path = dataset
    given = outputs(path)
    stock = results_of(COCOEvaluator(name, ("bbox",), False, str(tmp_path / "stock"), use_fast_impl=False), *given)
    evaluator = FastCOCOEvaluator(name, tmp_path / "ours")
    ours = results_of(evaluator, *given)
    assert stock["bbox"]["AP"] > 5
    np.testing.assert_array_equal([ours["bbox"][key] for key in stock["bbox"]], list(stock["bbox"].values()))
    written = [json.loads((tmp_path / folder / DETECTIONS_FILE).read_text()) for folder in ("stock", "ours")]
    assert written[0] == written[1]
    assert str(evaluator.evaluate()) == str(ours), "evaluating twice"
    alone = results_of(FastCOCOEvaluator(json_file=path), *given)
    assert str(alone) == str(ours), "without a registered set"


def test_same_proposal_recall_as_detectron2(dataset, tmp_path):
    name, path = dataset
    inputs, found = outputs(path)
    proposals = []
    for output in found:
        made = Instances((300, 400))
        made.proposal_boxes = output["instances"].pred_boxes
        made.objectness_logits = output["instances"].scores
        proposals.append({"proposals": made})
    stock = results_of(COCOEvaluator(name, None, False, str(tmp_path / "stock")), inputs, proposals)
    ours = results_of(FastCOCOEvaluator(name, tmp_path / "ours"), inputs, proposals)
    assert dict(ours) == dict(stock) and ours["box_proposals"]["AR@100"] > 10


def test_a_changed_file_is_read_again(dataset, tmp_path):
    name, path = dataset
    given = outputs(path)
    before = results_of(FastCOCOEvaluator(name, tmp_path), *given)["bbox"]["AP"]
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][::2]
    path.write_text(json.dumps(content))
    assert results_of(FastCOCOEvaluator(name, tmp_path), *given)["bbox"]["AP"] != before


def test_no_predictions_no_annotations_and_a_high_threshold(dataset, tmp_path, caplog):
    name, path = dataset
    inputs, found = outputs(path)
    nothing = [{"instances": output["instances"][:0]} for output in found]
    results = results_of(FastCOCOEvaluator(name, score_threshold=0.5), inputs, nothing)
    assert results["bbox"]["AP"] == 0 and "SCORE_THRESH_TEST is 0.5" in caplog.text
    assert "never shown" not in caplog.text
    assert FastCOCOEvaluator(name).evaluate()["bbox"]["AP"] == 0 and "12 images were never shown" in caplog.text
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    assert results_of(FastCOCOEvaluator(name, tmp_path), inputs, found) == {}
    assert json.loads((tmp_path / DETECTIONS_FILE).read_text()) and "no annotations" in caplog.text


def test_foreign_images_and_classes_are_named(dataset):
    name, path = dataset
    inputs, found = outputs(path)
    with pytest.raises(UserError, match="image_id 1000 not among"):
        results_of(FastCOCOEvaluator(name), [{"image_id": 1000}], found[:1])
    found[0]["instances"].pred_classes += 5
    with pytest.raises(UserError, match="NUM_CLASSES"):
        results_of(FastCOCOEvaluator(name), inputs, found)
    with pytest.raises(UserError, match="no such file"):
        FastCOCOEvaluator(json_file="missing.json")


def test_an_image_given_twice_counts_once(dataset):
    name, path = dataset
    inputs, found = outputs(path)
    once = results_of(FastCOCOEvaluator(name), inputs, found)
    assert str(results_of(FastCOCOEvaluator(name), inputs + inputs[:4], found + found[:4])) == str(once)


def _process(rank: int, address: str, path, folder) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    inputs, found = outputs(path)
    chosen = range(rank, 13, 2)  # 13 turns for 12 images: the first image goes to both
    evaluator = FastCOCOEvaluator(json_file=path)
    results = results_of(evaluator, [inputs[i % 12] for i in chosen], [found[i % 12] for i in chosen])
    again = results_of(evaluator, inputs, found)  # both processes have seen everything
    (folder / f"{rank}.json").write_text(json.dumps([results, again]))


def test_two_processes(dataset, tmp_path):
    name, path = dataset
    whole = results_of(FastCOCOEvaluator(name), *outputs(path))["bbox"]
    arguments = (f"file://{tmp_path}/meet", path, tmp_path)
    mp.start_processes(_process, arguments, nprocs=2, start_method="fork")
    assert json.loads((tmp_path / "1.json").read_text()) == [{}, {}]
    for results in json.loads((tmp_path / "0.json").read_text()):
        same = [v == results["bbox"][k] or math.isnan(v) for k, v in whole.items()]
        assert all(same)


def _process_with_mistakes(rank: int, address: str, path, folder) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    reported = Reports()
    reported("missing", lambda: FastCOCOEvaluator(json_file=folder / "missing.json"))
    inputs, found = outputs(path)
    evaluator = FastCOCOEvaluator(json_file=path)
    foreign = [{"image_id": 1000}] if rank == 1 else inputs[:1]
    reported("foreign", lambda: results_of(evaluator, foreign, found[:1]))
    unwritable = FastCOCOEvaluator(json_file=path, output_dir=block(folder, DETECTIONS_FILE))
    reported("unwritable", lambda: results_of(unwritable, inputs, found))
    found[rank]["instances"].pred_classes += 5 * rank
    reported("class", lambda: results_of(evaluator, inputs[rank : rank + 1], found[rank : rank + 1]))
    reported("sound", lambda: results_of(evaluator, *outputs(path)))
    reported.write(folder)


def test_a_mistake_in_one_of_two_processes_is_reported_to_both(dataset, tmp_path):
    arguments = (f"file://{tmp_path}/meet", dataset[1], tmp_path)
    mp.start_processes(_process_with_mistakes, arguments, nprocs=2, start_method="fork")
    said = reports_of_all(tmp_path)
    assert said.keys() == {"missing", "foreign", "unwritable", "class"}
    assert all(text.startswith("UserError: ") for text in said.values())
    assert "missing.json: no such file" in said["missing"] and "image_id 1000 not among" in said["foreign"]
    assert f"{DETECTIONS_FILE}: is a directory" in said["unwritable"] and "has 3 classes" in said["class"]


def test_masks_that_cannot_be_rated_leave_the_numbers_of_boxes(dataset, tmp_path, caplog):
    name, path = dataset
    inputs, found = outputs(path)
    for output in found:
        output["instances"].pred_masks = torch.ones(len(output["instances"]), 300, 400, dtype=torch.bool)
    whole = results_of(FastCOCOEvaluator(name, tmp_path), *outputs(path))
    results = results_of(FastCOCOEvaluator(name, tmp_path), inputs, found)  # the truth has no masks
    assert list(results) == ["bbox"] and results["bbox"] == whole["bbox"]
    assert (
        "no AP of segm: " in caplog.text and "has no segmentation; without it only bbox can be evaluated" in caplog.text
    )
    assert "segmentation" in json.loads((tmp_path / DETECTIONS_FILE).read_text())[0]


def test_the_key_for_detections_reaches_the_evaluation(dataset, tmp_path):
    from detectron2.config import get_cfg

    from resnext_det import add_resnext_config
    from resnext_det.detection.evaluate import _evaluator

    name, path = dataset
    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.REPORT = False
    inputs, found = outputs(path)
    for limit in (100, 2):
        cfg.TEST.MAX_DETECTIONS = limit
        ours = results_of(_evaluator(cfg, name, None), inputs, found)["bbox"]
        theirs = COCOEvaluator(
            name, output_dir=str(tmp_path / str(limit)), max_dets_per_image=limit, use_fast_impl=False
        )
        assert ours["AP"] == results_of(theirs, *outputs(path))["bbox"]["AP"] > 0 and f"AR{limit}" in ours
