"""The check in front of training and evaluation: it stops what is broken, and both see the records as fixed."""

from __future__ import annotations

import json
import logging
import os

import pytest
import torch
from common import shared_data
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image

from resnext_det.annotations.check import ClassCount, dataset_dicts
from resnext_det.commands.train import main
from resnext_det.detection.coco_evaluator import FastCOCOEvaluator
from resnext_det.detection.config import setup
from resnext_det.detection.data import checked_sets
from resnext_det.detection.data.checked_sets import CheckOptions, check_sets
from resnext_det.detection.data.loaders import load_dicts, register_sets, train_loader_from_config
from resnext_det.detection.data.loaders import test_loader_from_config as loader_from_config
from resnext_det.detection.evaluate import in_order_of_model
from resnext_det.engine.launch import launch
from resnext_det.errors import UserError
from resnext_det.makers.synthetic import detection_config, draw_detection_set


@pytest.fixture
def made(tmp_path):
    """A registered set of four images: (name, json file, image folder)."""
    json_file, image_root = draw_detection_set(tmp_path, 4)
    name = f"made {tmp_path}"
    register_coco_instances(name, {}, str(json_file), str(image_root))
    yield name, json_file, image_root
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def edit(json_file, change) -> None:
    document = json.loads(json_file.read_text())
    change(document)
    json_file.write_text(json.dumps(document))


def check(train=(), test=(), **options) -> dict:
    return check_sets(train, test, classes=ClassCount(2), options=CheckOptions(**options))


def perfect_evaluation(name, sets) -> dict:
    """AP of exactly the boxes that the data loader gives."""
    evaluator = FastCOCOEvaluator(name, distributed=False, truth=sets[name])
    evaluator.reset()
    for record in dataset_dicts(sets[name]):
        found = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_a_clean_set_passes_as_it_is(made):
    name, json_file, _ = made
    before = DatasetCatalog.get(name)
    sets = check(train=[name], test=[name])
    assert dataset_dicts(sets[name]) == before == DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["box", "disc"]


def test_of_a_large_set_only_the_headers_are_read(made, monkeypatch, caplog):
    name, _, image_root = made
    path = next(image_root.glob("*.png"))
    path.write_bytes(path.read_bytes()[:200])  # the header is whole
    with pytest.raises(UserError, match="cannot be decoded"):
        check(train=[name])
    monkeypatch.setattr(checked_sets, "DECODED_AT_MOST", 3)
    with caplog.at_level(logging.INFO):
        check(train=[name])
    assert "4 images, reading their headers" in caplog.text


def test_training_and_evaluation_see_the_fixed_records(made):
    name, json_file, _ = made

    def spoil(document):
        for number, annotation in enumerate(document["annotations"]):
            annotation["id"] = number
            del annotation["area"], annotation["iscrowd"]
        document["annotations"][0]["bbox"] = [40, 40, 60, 50]
        document["annotations"][1]["bbox"] = [5, 5, 0, 9]

    edit(json_file, spoil)
    sets = check(train=[name], test=[name])
    annotations = dataset_dicts(sets[name])[0]["annotations"]
    assert [a["bbox"] for a in annotations] == [[40, 40, 24, 24]]
    assert sets[name].boxes[0].tolist() == [40, 40, 24, 24] and len(sets[name]) == 7
    assert perfect_evaluation(name, sets)["AP"] == pytest.approx(100)


def test_the_evaluation_of_the_file_itself_would_differ(made):
    name, json_file, _ = made
    edit(json_file, lambda d: d["annotations"][0].update(bbox=[40, 40, 90, 90]))
    sets = check(test=[name])
    evaluator = FastCOCOEvaluator(json_file=json_file, distributed=False)
    assert evaluator._truth.boxes[0].tolist() == [40, 40, 90, 90]
    assert sets[name].boxes[0].tolist() == [40, 40, 24, 24]


def test_errors_stop_before_training(made):
    name, json_file, _ = made
    edit(json_file, lambda d: d["annotations"][2].update(category_id=9))
    with pytest.raises(UserError, match=r"annotations\[2\].category_id \(id 3\): 9 is not among the categories"):
        check(train=[name])


def test_a_missing_file_says_where_sets_go(tmp_path):
    register_coco_instances("gone", {}, str(tmp_path / "gone.json"), str(tmp_path))
    with pytest.raises(UserError, match="gone.json: no such file; wanted by the set gone; .*DETECTRON2_DATASETS"):
        check(train=["gone"])


def test_a_class_count_other_than_the_models_is_an_error(made):
    with pytest.raises(UserError, match="set MODEL.ROI_HEADS.NUM_CLASSES 2"):
        check_sets([made[0]], [], classes=ClassCount(80), options=CheckOptions())


def test_classes_are_matched_by_name_whatever_their_ids_and_order(made, tmp_path, caplog):
    json_file, image_root = draw_detection_set(tmp_path / "other", 2)
    original = json.loads(json_file.read_text())
    ids = {1: 20, 2: 10}

    def number(document):
        document["categories"] = [{**c, "id": ids[c["id"]]} for c in document["categories"]]
        for annotation in document["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]

    edit(json_file, number)
    name = f"numbered {tmp_path}"
    register_coco_instances(name, {}, str(json_file), str(image_root))
    sets = check(train=[made[0]], test=[name])
    assert sets[name].class_names == sets[made[0]].class_names == ["box", "disc"] and "in the order of" in caplog.text
    assert sets[name].category_ids.tolist() == [20, 10] and sets[made[0]].category_ids.tolist() == [1, 2]
    loaded = [a["category_id"] for record in dataset_dicts(sets[name]) for a in record["annotations"]]
    assert loaded == [a["category_id"] - 1 for a in original["annotations"]]
    assert perfect_evaluation(name, sets)["AP"] == pytest.approx(100)
    assert in_order_of_model(sets, ["disc", "box"])[made[0]].category_ids.tolist() == [2, 1]
    with pytest.raises(UserError, match="has 'box' and lacks 'ring'"):
        in_order_of_model(sets, ["disc", "ring"])


def test_test_categories_must_be_those_of_training(made, tmp_path):
    json_file, image_root = draw_detection_set(tmp_path / "other", 2)
    edit(json_file, lambda d: d["categories"][1].update(name="circle"))
    register_coco_instances(f"other {tmp_path}", {}, str(json_file), str(image_root))
    with pytest.raises(UserError, match="differs from the training set"):
        check(train=[made[0]], test=[f"other {tmp_path}"])
    check(test=[f"other {tmp_path}"])


def break_image(image_root):
    path = image_root / "0001.png"
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(("level", "stops"), [("full", True), ("auto", True), ("headers", False), ("json", False)])
def test_levels(made, level, stops):
    name, _, image_root = made
    break_image(image_root)
    if stops:
        with pytest.raises(UserError, match=r"0001.png"):
            check(train=[name], level=level)
    else:
        check(train=[name], level=level)


def test_headers_see_the_size_and_off_sees_nothing(made, caplog):
    name, _, image_root = made
    Image.new("RGB", (5, 5)).save(image_root / "0001.png")
    with pytest.raises(UserError, match="5x5"):
        check(train=[name], level="headers")
    check(train=[name], level="json")
    with caplog.at_level(logging.WARNING):
        check(train=[name], level="off")
    assert "not checked" in caplog.text


@pytest.mark.parametrize("how", ["path", "link", "folder"])
def test_an_image_outside_is_refused_where_nothing_is_checked(made, tmp_path, how):
    name, json_file, image_root = made
    outside = tmp_path / "elsewhere"
    if how == "folder":  # the root itself may be a link
        image_root.rename(outside)
        image_root.symlink_to(outside)
        assert load_dicts([name], classes=ClassCount(2), filter_empty=False)
        return
    outside.mkdir()
    (image_root / "0001.png").rename(outside / "0001.png")
    if how == "link":
        (image_root / "0001.png").symlink_to(outside / "0001.png")
    else:
        edit(json_file, lambda document: document["images"][1].update(file_name="../elsewhere/0001.png"))
    with pytest.raises(UserError, match="0001.png leads out of"):
        load_dicts([name], classes=ClassCount(2), filter_empty=False)
    if how == "link":
        assert load_dicts([name], classes=ClassCount(2), filter_empty=False, follow_links=True)


def test_a_mistyped_level_names_the_nearest():
    with pytest.raises(UserError, match="did you mean headers"):
        CheckOptions(level="header")


def test_skipping_is_for_training_only(made):
    name, _, image_root = made
    break_image(image_root)
    assert len(check(train=[name], policy="skip")[name].image_ids) == 3
    with pytest.raises(UserError, match="0001.png"):
        check(test=[name], policy="skip")


def test_masks_and_keypoints_come_as_detectron2_reads_them(made):
    from detectron2.data.datasets import load_coco_json

    name, json_file, image_root = made
    polygon, runs = [[1, 1, 20, 1, 20, 20]], {"size": [64, 64], "counts": [100, 50, 64 * 64 - 150]}

    def add(document):
        document["annotations"][0].update(segmentation=polygon, keypoints=[3, 4, 2])
        document["annotations"][1].update(segmentation=runs, keypoints=[5, 6, 1])

    edit(json_file, add)
    for key, value in (("segmentation", polygon), ("keypoints", [5, 6, 1])):
        with pytest.raises(UserError, match=rf"annotations\[2\].{key} \(id 3\): is missing, and the model learns"):
            check(train=[name], masks=True, keypoints=True)
        check(test=[name], masks=True, keypoints=True)  # AP of boxes is there to be had
        edit(json_file, lambda d, new={key: value}: [record.update(new) for record in d["annotations"][2:]])
    sets = check(train=[name], masks=True, keypoints=True)
    ours, theirs = dataset_dicts(sets[name], keypoints=True), load_coco_json(str(json_file), str(image_root), "theirs")
    encoded = theirs[0]["annotations"][1]["segmentation"]
    encoded["counts"] = encoded["counts"].decode()  # bytes there, text here
    assert ours == theirs


def of_real_data(tmp_path, json_file, image_root, classes) -> list[str]:
    config = detection_config(tmp_path, iterations=2, images=2)
    name = f"real {tmp_path}"
    register = f"[['{name}', '{json_file}', '{image_root}']]"
    keys = ["DATASETS.REGISTER", register, "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    return ["--config-file", str(config), *keys, "MODEL.ROI_HEADS.NUM_CLASSES", str(classes)]


def test_bccd_as_published_trains_and_is_evaluated(tmp_path):
    folder = shared_data("bccd")
    json_file = folder / "annotations" / "instances_val_with_zero_area_boxes.json"
    main(of_real_data(tmp_path, json_file, folder / "val", 3))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "87 images, decoding every one" in log and "the records are used as fixed" in log
    assert json.loads((tmp_path / "run" / "results.json").read_text())["bbox"]["AP"] is not None


def test_coco_trains_and_is_evaluated_as_it_is(tmp_path):
    folder = shared_data("coco_mini")
    json_file = folder / "annotations" / "instances_val2017.json"
    main(of_real_data(tmp_path, json_file, folder / "val2017", 80))
    assert "as fixed" not in (tmp_path / "run" / "log.txt").read_text()


def test_loaders_read_images_as_the_check_does(tmp_path):
    config = detection_config(tmp_path, iterations=2, images=4)
    json_file, image_root = tmp_path / "shapes" / "instances.json", tmp_path / "shapes" / "images"
    edit(json_file, lambda d: [image.pop("width") and image.pop("height") for image in d["images"]])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(image_root / "0004.png", exif=exif)
    cfg = setup(str(config))
    from resnext_det.detection.data.checked_sets import check_sets_from_config

    register_sets(cfg.DATASETS.REGISTER)
    sets = check_sets_from_config(cfg, training=True)
    name = cfg.DATASETS.TEST[0]
    assert (sets[name].widths[3], sets[name].heights[3]) == (48, 64)
    shapes = [tuple(batch[0]["image"].shape) for batch in loader_from_config(cfg, name, sets)]
    assert shapes[3][1] > shapes[3][2]
    assert len(next(iter(train_loader_from_config(cfg, 0, sets=sets)))) == 2


def test_a_second_run_maps_what_the_first_has_checked(made, tmp_path, caplog):
    name, json_file, image_root = made
    folder, options = tmp_path / "run", CheckOptions()
    caplog.set_level(logging.INFO)
    for file in (image_root, *image_root.iterdir()):
        os.utime(file, (1, 1))  # not just made, as far as anybody can see

    def run() -> str:
        caplog.clear()
        found = check_sets([name], [], classes=ClassCount(2), options=options, folder=folder)[name]
        assert dataset_dicts(found) == dataset_dicts(check([name])[name])
        assert not found.boxes.flags.writeable or not folder.exists()
        return "before" if "as checked before" in caplog.text else "again"

    edit(json_file, lambda d: d["annotations"][0].update(bbox=[-9, 2, 20, 20]))
    assert run() == "again" and not folder.exists(), "no folder, no cache"
    folder.mkdir()
    assert run() == "again" and run() == "before" and "it is clipped" in caplog.text
    with pytest.raises(UserError, match="NUM_CLASSES"):
        check_sets([name], [], classes=ClassCount(5), options=options, folder=folder)
    Image.new("RGB", (64, 64)).save(image_root / "0001.png")
    os.utime(image_root / "0001.png", (2, 2))
    assert run() == "again" and run() == "before"
    edit(json_file, lambda d: d["annotations"].pop())
    assert run() == "again" and run() == "before"
    (cache,) = (folder / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-100])
    assert run() == "again" and "it is made again" in caplog.text and run() == "before"
    cache.unlink()
    cache.mkdir()
    (cache / "in the way").touch()
    caplog.clear()
    found = check_sets([name], [], classes=ClassCount(2), options=options, folder=folder)[name]
    assert "not kept" in caplog.text and len(found) == len(check([name])[name])


def in_each_process(sets, folder):
    results = []
    for name, json_file, image_root in sets:
        register_coco_instances(name, {}, json_file, image_root)
        try:
            results.append(len(check(train=[name])[name].image_ids))
        except UserError as error:
            results.append(str(error))
    (folder / f"{comm.get_rank()}.json").write_text(json.dumps(results))


@pytest.mark.usefixtures("forked")
def test_with_two_processes_the_first_checks_and_both_stop(tmp_path):
    sets = [(name, *map(str, draw_detection_set(tmp_path / name, 4))) for name in ("good", "bad")]
    edit(tmp_path / "bad" / "instances.json", lambda d: d["annotations"][0].update(category_id=9))
    launch(in_each_process, (sets, tmp_path), processes=2)
    (good, bad), other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert other == [good, bad] and good == 4 and "category_id" in bad
