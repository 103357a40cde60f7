"""detectron2 0.6 beside libraries that are newer than it: every module imports, removed names resolve."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnext_det  # noqa: F401

WALK = """
import importlib, pkgutil, sys
import resnext_det, detectron2
failed = []
for module in pkgutil.walk_packages(detectron2.__path__, "detectron2.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        failed.append(f"{module.name}: {error}")
# A requirement of that project alone, which its users install.
print([line for line in failed if "No module named 'panopticapi'" not in line])
assert "resnext_det.compat" not in {type(sys.modules.get(name)).__module__ for name in ("pkg_resources", "caffe2")}
"""


def test_every_module_of_detectron2_imports() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WALK], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def test_what_is_gone_names_itself_when_it_is_called() -> None:
    export = importlib.import_module("detectron2.export")
    if not hasattr(export, "export_caffe2_model"):
        pytest.skip("this detectron2 has no caffe2 export")
    shared = importlib.import_module("detectron2.export.shared")
    if importlib.util.find_spec("caffe2") is not None:
        pytest.skip("caffe2 is here")
    with pytest.raises(NotImplementedError, match="caffe2 is gone from PyTorch; export by torch.export or ONNX"):
        shared.workspace.FetchBlob("x")
    with pytest.raises(ImportError):
        importlib.import_module("caffe2")  # nobody else sees the stand-in


def test_model_zoo_says_what_it_has() -> None:
    zoo = importlib.import_module("detectron2.model_zoo")
    try:
        assert Path(zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")).is_file()
    except RuntimeError as error:  # the source release has no configs
        assert "not available in Model Zoo" in str(error)
    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        zoo.get_config_file("no/such.yaml")


VOC_FILE = """<annotation><filename>{name}.jpg</filename>
<size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>dog</name><pose>Left</pose><difficult>0</difficult><truncated>0</truncated>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def test_the_voc_loader_and_evaluator_work(tmp_path: Path) -> None:
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_pascal_voc
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("000001\n000002\n", "utf-8")
    for name in ("000001", "000002"):
        (tmp_path / f"Annotations/{name}.xml").write_text(VOC_FILE.format(name=name), "utf-8")
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / f"JPEGImages/{name}.jpg")
    register_pascal_voc("compat_voc", str(tmp_path), "test", 2007, ["dog"])
    try:
        records = DatasetCatalog.get("compat_voc")
        assert [r["image_id"] for r in records] == ["000001", "000002"]
        assert records[0]["annotations"] == [{"category_id": 0, "bbox": [4.0, 5.0, 40.0, 30.0], "bbox_mode": 0}]
        evaluator = PascalVOCDetectionEvaluator("compat_voc")
        evaluator.reset()
        for record in records:
            found = Instances((48, 64), pred_boxes=Boxes(torch.tensor([[4.0, 5, 40, 30]])))
            found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
            evaluator.process([record], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("compat_voc")
        MetadataCatalog.remove("compat_voc")


def test_the_cpp_extension_names_itself() -> None:
    import detectron2
    import torch
    from detectron2.layers import nms_rotated

    assert pkgutil.resolve_name("detectron2.layers:nms_rotated") is nms_rotated
    if type(getattr(detectron2, "_C", None)).__name__ != "_MissingExtension":
        pytest.skip("this detectron2 has its C++ extension")
    from detectron2.layers.roi_align_rotated import ROIAlignRotated

    with pytest.raises(NotImplementedError, match="detectron2._C.* is not built"):
        ROIAlignRotated((7, 7), 1.0, 0)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 6))
