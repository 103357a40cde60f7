"""VOC's evaluation against detectron2's own, in every digit, on random odd sets and on real data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from common import shared_data
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from resnext_det.detection.data.loaders import register_sets
from resnext_det.detection.voc_evaluator import VOCEvaluator

ROUNDS = int(os.environ.get("RESNEXT_DET_VOC_ROUNDS", "25"))


@pytest.fixture(autouse=True)
def _numpy_names(monkeypatch: pytest.MonkeyPatch) -> None:
    if "bool" not in np.__dict__:  # detectron2 0.6 needs what numpy has removed
        monkeypatch.setattr(np, "bool", bool, raising=False)


def write_set(root: Path, generator: np.random.Generator) -> list[str]:
    """A VOCdevkit of random odd content; returns the class names."""
    names = ["ant", "bee", "cow", "dog"][: generator.integers(1, 5)]
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "labels.txt").write_text("\n".join(names))
    stems = [f"{i:04d}" for i in range(generator.integers(1, 7))]
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(stems))
    for stem in stems:
        Image.new("RGB", (100, 80)).save(root / "JPEGImages" / f"{stem}.jpg")
        objects = ""
        for _ in range(generator.integers(0, 6)):
            x, y = generator.integers(1, 60, 2)
            w, h = generator.integers(0, 20, 2)
            kind = names[min(generator.integers(0, len(names)), generator.integers(0, len(names)))]
            hard = int(generator.random() < 0.3)
            objects += (
                f"<object><name>{kind}</name><pose>Left</pose><truncated>0</truncated><difficult>{hard}</difficult>"
                f"<bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            )
        size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return names


def detections(truth: dict, generator: np.random.Generator, image_id: int, classes: int) -> Instances:
    """Boxes near the objects and elsewhere, with ties and doubles."""
    own = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image_id]
    boxes, kinds = [], []
    for x, y, w, h in own:
        for _ in range(generator.integers(0, 4)):
            move = generator.choice([0, 0.04, 2], p=[0.4, 0.3, 0.3]) * generator.normal(size=4)
            boxes.append(np.array([x, y, x + w, y + h]) + move)
            kinds.append(generator.integers(0, classes))
    for _ in range(generator.integers(0, 4)):
        x, y, w, h = generator.uniform(0, 40, 4)
        boxes.append(np.array([x, y, x + w, y + h]))
        kinds.append(generator.integers(0, classes))
    if boxes and generator.random() < 0.5:
        boxes.append(boxes[0])
        kinds.append(kinds[0])
    found = Instances((80, 100))
    found.pred_boxes = Boxes(torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32))
    steps = generator.choice([3, 20, 1000])
    found.scores = torch.tensor(generator.integers(0, steps, len(boxes)) / steps, dtype=torch.float32)
    found.pred_classes = torch.tensor(np.array(kinds, dtype=np.int64))
    return found


def both(root: Path, split: str, year: int, images: Path, make, processes: int = 1) -> tuple[dict, dict]:
    """(detectron2's numbers, ours) for the detections that ``make(document, image id)`` gives."""
    name = f"{root}_{split}_{year}"
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    register_sets([[name, str(file), str(images)]])
    from resnext_det.detection.data.checked_sets import source_of

    document = source_of(name).document
    names = [c["name"] for c in document["categories"]]
    ours = [VOCEvaluator(name, distributed=False, year=year) for _ in range(processes)]
    stock_name = f"{name}_stock"
    DatasetCatalog.register(stock_name, list)
    MetadataCatalog.get(stock_name).set(dirname=str(root), split=split, year=year, thing_classes=names)
    stock = PascalVOCDetectionEvaluator(stock_name)
    for evaluator in (stock, *ours):
        evaluator.reset()
    chunks = np.array_split(np.arange(len(document["images"])), processes)
    for part, chunk in enumerate(chunks):
        for record in (document["images"][i] for i in chunk):
            output = {"instances": make(document, record["id"])}
            stock.process([{"image_id": Path(record["file_name"]).stem}], [output])
            ours[part].process([{"image_id": record["id"]}], [output])
    with np.errstate(all="ignore"):
        wanted = stock.evaluate()["bbox"]
    from resnext_det.detection.coco_evaluator import _merged

    gathered = [(e._images, _merged(e._images, e._parts)[1], []) for e in ours]
    return wanted, ours[0]._rate(gathered, None)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_equal_to_detectron2_in_every_digit_on_odd_sets(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    classes = len(write_set(tmp_path, generator))
    year = int(generator.choice([2007, 2012]))
    wanted, found = both(
        tmp_path, "test", year, tmp_path / "JPEGImages",
        lambda document, image: detections(document, generator, image, classes),
        processes=int(generator.integers(1, 4)),
    )  # fmt: skip
    np.testing.assert_array_equal([found["bbox"][key] for key in wanted], list(wanted.values()))
    assert "APs" in found["coco"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("year", [2007, 2012])
def test_equal_to_detectron2_on_real_voc_data(year: int) -> None:
    generator = np.random.default_rng(year)
    root, images = shared_data("bccd_voc"), shared_data("bccd") / "test"
    wanted, found = both(root, "test", year, images, lambda d, image: detections(d, generator, image, 3), processes=2)
    assert 0 < wanted["AP"] < wanted["AP50"] < 100
    assert [found["bbox"][key] for key in wanted] == list(wanted.values())


def test_a_voc_set_trains_and_is_evaluated_by_voc(tmp_path: Path) -> None:
    """From an image set in DATASETS.REGISTER to results.json, and detectron2's own names through the same reader."""
    import json

    from tiny import BASE, CONFIG

    from resnext_det import cli

    assert str(BASE) in CONFIG
    write_set(tmp_path / "VOC2012", np.random.default_rng(5))
    root = tmp_path / "VOC2012"
    names = (root / "labels.txt").read_text().split()
    main = root / "ImageSets" / "Main"
    (main / "train.txt").write_text((main / "test.txt").read_text())
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    sets = [[f"{tmp_path}_{s}", str(main / f"{s}.txt"), str(root / "JPEGImages")] for s in ("train", "test")]
    options = ["DATASETS.REGISTER", sets, "DATASETS.TRAIN", (sets[0][0],), "DATASETS.TEST", (sets[1][0],),
               "MODEL.ROI_HEADS.NUM_CLASSES", len(names), "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path / "out",
               "DATASETS.FRACTION", 0.5]  # fmt: skip
    cli.call("train", ["--config-file", str(tmp_path / "tiny.yaml"), *map(str, options)])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"AP", "AP50", "AP75"} <= results["bbox"].keys() and "APs" in results["coco"]


def test_detectron2s_own_names_are_read_by_our_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resnext_det.annotations.formats.voc import CLASSES
    from resnext_det.detection.data.checked_sets import source_of

    register_sets([])
    metadata = MetadataCatalog.get("voc_2007_test")
    assert tuple(metadata.thing_classes) == CLASSES
    write_set(tmp_path / "VOC2007", np.random.default_rng(0))
    for file in (tmp_path / "VOC2007" / "Annotations").iterdir():
        text = file.read_text()
        for ours, theirs in zip(("ant", "bee", "cow", "dog"), ("cat", "bird", "cow", "dog"), strict=True):
            text = text.replace(f">{ours}<", f">{theirs}<")
        file.write_text(text)
    monkeypatch.setitem(metadata.__dict__, "json_file", str(tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt"))
    monkeypatch.setitem(metadata.__dict__, "image_root", str(tmp_path / "VOC2007" / "JPEGImages"))
    document = source_of("voc_2007_test").document
    assert [c["name"] for c in document["categories"]] == list(CLASSES) and document["annotations"]
    assert len(DatasetCatalog.get("voc_2007_test")) == len(document["images"])


def test_a_fraction_is_the_same_images_every_time_and_within_larger_ones() -> None:
    from resnext_det.detection.data.loaders import fraction_of
    from resnext_det.errors import UserError

    dicts = [{"image_id": i} for i in range(300)]
    parts = [[d["image_id"] for d in fraction_of(dicts, share)] for share in (0.01, 0.05, 0.1)]
    assert [len(part) for part in parts] == [3, 15, 30] and set(parts[0]) < set(parts[1]) < set(parts[2])
    assert fraction_of(dicts, 0.1) == fraction_of(dicts, 0.1) and fraction_of(dicts, 1.0) is dicts
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="FRACTION"):
            fraction_of(dicts, wrong)
