"""The data's classes are held against the key that the chosen architecture reads."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_coco_instances

from resnext_det.annotations.check.inspection import ClassCount
from resnext_det.detection.class_count import class_count_from_config
from resnext_det.detection.config import add_resnext_config
from resnext_det.detection.data.checked_sets import check_sets_from_config
from resnext_det.detection.data.loaders import train_dicts_from_config
from resnext_det.detection.prediction.detector import categories_of
from resnext_det.errors import UserError
from resnext_det.makers.synthetic import draw_detection_set


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("GeneralizedRCNN", ClassCount(3, "MODEL.ROI_HEADS.NUM_CLASSES")),
        ("PanopticFPN", ClassCount(3, "MODEL.ROI_HEADS.NUM_CLASSES")),
        ("RetinaNet", ClassCount(5, "MODEL.RETINANET.NUM_CLASSES")),
        ("FCOS", ClassCount(7, "MODEL.FCOS.NUM_CLASSES")),
        ("ProposalNetwork", None),
        ("SemanticSegmentor", None),
    ],
)
def test_the_key_is_that_of_the_architecture(architecture: str, expected: ClassCount | None) -> None:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES = 3, 5
    cfg.MODEL.FCOS = CfgNode({"NUM_CLASSES": 7})  # as projects outside detectron2 add theirs
    assert class_count_from_config(cfg) == expected


@pytest.fixture
def cfg(tmp_path) -> CfgNode:
    """A RetinaNet for drawn images of two classes; the other key keeps its default, 80."""
    cfg = get_cfg()
    add_resnext_config(cfg)
    json_file, image_root = draw_detection_set(tmp_path / "drawn", 3)
    register_coco_instances(f"drawn {tmp_path}", {}, str(json_file), str(image_root))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"drawn {tmp_path}",)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES = "RetinaNet", 2
    return cfg


def test_retinanet_needs_its_own_key_alone(cfg: CfgNode) -> None:
    check_sets_from_config(cfg, training=True)
    assert len(train_dicts_from_config(cfg)) == 3
    ids, names = categories_of(cfg)
    assert len(ids) == len(names) == 2 and not names[0].startswith("class ")


@pytest.mark.parametrize("check", ["full", "off"])  # either finds it: the check of the sets, or the loader after it
def test_the_error_names_the_key(cfg: CfgNode, check: str) -> None:
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATASETS.CHECK = 4, 2, check
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.NUM_CLASSES") as error:
        check_sets_from_config(cfg, training=True)
        train_dicts_from_config(cfg)
    assert "ROI_HEADS" not in str(error.value)


def test_proposals_alone_take_any_data(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    check_sets_from_config(cfg, training=True)
    assert len(train_dicts_from_config(cfg)) == 3
