"""What training does to images by our keys: crops around objects, jitter, pasted objects; class weights; the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import TinyRun

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from resnext_det import UserError, add_resnext_config
from resnext_det.commands.show import main
from resnext_det.config_files import config_path
from resnext_det.detection.c4_head import ResNeXtC4ROIHeads
from resnext_det.detection.config import setup
from resnext_det.detection.config_check import check_config
from resnext_det.detection.data.augmentation import CropWithObject, ResizeScale, augmentations_from_config, paste
from resnext_det.detection.data.checked_sets import check_sets_from_config
from resnext_det.detection.data.loaders import register_sets, train_loader_from_config


def test_a_crop_holds_a_whole_object() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    boxes = np.array([[0, 0, 5, 5], [80.5, 50.2, 90, 60], [10, 20, 80, 30]])
    augmentation, held = CropWithObject("relative", (0.3, 0.3)), np.zeros(3, int)
    for _ in range(300):
        crop = augmentation.get_transform(image, boxes)
        assert crop.x0 >= 0 and crop.y0 >= 0 and crop.x0 + crop.w <= 90 and crop.y0 + crop.h <= 60
        low, high = np.array([crop.x0, crop.y0]), np.array([crop.x0 + crop.w, crop.y0 + crop.h])
        inside = (boxes[:, :2] >= low).all(1) & (boxes[:, 2:] <= high).all(1)
        assert inside.any()
        assert (crop.w, crop.h) == (27, 18) or inside[2], "it grows for a large object only"
        held += inside
    assert (held > 50).all(), "each object has its turn"
    empty = augmentation.get_transform(image, np.zeros((0, 4)))
    assert (empty.w, empty.h) == (27, 18)


def test_jitter_keeps_a_pixel_of_narrow_images() -> None:
    transform = ResizeScale(0.1, 0.1, 64, 64).get_transform(np.zeros((1, 2000, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (1, 6)


def cfg_of(*pairs: object):
    return setup(config_path("detection/Base-RCNN-C4.yaml"), ["MODEL.DEVICE", "cpu", *map(str, pairs)])


def test_keys_are_augmentations_and_off_by_default() -> None:
    stock = [T.RandomCrop("relative_range", (0.9, 0.9)), T.ResizeShortestEdge(64, 96), T.RandomFlip()]
    assert augmentations_from_config(cfg_of(), stock) == stock
    keys = {"CROP.KEEP_OBJECT": True, "SCALE_JITTER.SIZE": 64, "COLOR.BRIGHTNESS": 0.2, "COLOR.SATURATION": 0.3}
    found = augmentations_from_config(cfg_of(*(x for k, v in keys.items() for x in (f"INPUT.{k}", v))), stock)
    kinds = [CropWithObject, ResizeScale, T.FixedSizeCrop, T.RandomFlip, T.RandomBrightness, T.RandomSaturation]
    assert [type(augmentation) for augmentation in found] == kinds
    assert (found[4].intensity_min, found[4].intensity_max) == (0.8, 1.2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("INPUT.SCALE_JITTER.MIN", 2.5), "two rising factors"),
        (("INPUT.SCALE_JITTER.SIZE", -1), "a side in pixels"),
        (("INPUT.COLOR.CONTRAST", 1.0), "INPUT.COLOR.CONTRAST 1"),
        (("INPUT.CROP.KEEP_OBJECT", True), "set INPUT.CROP.ENABLED True"),
        (("INPUT.COPY_PASTE", 1.5), "from 0 to 1"),
        (("INPUT.COPY_PASTE", 0.5, "MODEL.MASK_ON", True), "set INPUT.MASK_FORMAT bitmask"),
        (("INPUT.COPY_PASTE", 0.5, "DATASETS.CHECK", "off"), "set DATASETS.CHECK auto"),
        (("MODEL.ROI_HEADS.CLASS_WEIGHTS", [1.0, 2.0]), "give 80 numbers above 0"),
        (("MODEL.ROI_HEADS.CLASS_WEIGHTS", ["a"] * 80), "wrong type"),
        (("MODEL.ROI_HEADS.CLASS_WEIGHTS", [0.0] * 80), "give 80 numbers above 0"),
    ],
)
def test_nonsense_is_refused(pairs: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(cfg_of(*pairs), eval_only=False)


def objects(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Instances:
    """Rectangles ``x0, y0, x1, y1`` of the classes 0, 1, ... with their masks."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    found = Instances(size)
    found.gt_boxes, found.gt_classes = Boxes(torch.tensor(boxes).float()), torch.arange(len(boxes))
    found.gt_masks = BitMasks(masks)
    return found


def test_pasted_objects_hide_what_is_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "rand", lambda number: np.array([0.0, 0.9, 0.0]))  # the first and last are pasted
    image, other = torch.zeros(3, 20, 30), torch.ones(3, 16, 40)
    here = objects((20, 30), (0, 0, 10, 10), (2, 2, 4, 4), (20, 12, 30, 20))
    there = objects((16, 40), (0, 0, 5, 10), (0, 0, 16, 16), (25, 10, 40, 16))
    mixed, found = paste(image, here, other, there)
    assert image.sum() == 0, "the input stays as it is"
    expected = torch.zeros(20, 30)
    expected[:10, :5] = expected[10:16, 25:30] = 1
    assert torch.equal(mixed, expected.expand(3, -1, -1))
    boxes = [[5, 0, 10, 10], [20, 12, 30, 20], [0, 0, 5, 10], [25, 10, 30, 16]]
    assert found.gt_boxes.tensor.tolist() == boxes, "cut to what shows; what is hidden is gone"
    assert found.gt_classes.tolist() == [0, 2, 0, 2]
    assert found.gt_masks.tensor.flatten(1).sum(1).tolist() == [50, 80 - 20, 50, 30]
    monkeypatch.setattr(np.random, "rand", np.ones)
    same, unchanged = paste(image, here, other, there)
    assert same is image and unchanged is here


def loaded(tiny: TinyRun, *pairs: object) -> list[dict]:
    cfg = setup(str(tiny.file), tiny.options("run", *pairs))
    register_sets(cfg.DATASETS.REGISTER)
    loader = train_loader_from_config(cfg, 3, 0, sets=check_sets_from_config(cfg, training=True))
    return next(iter(loader)) + next(iter(loader))


def test_pasting_in_training_is_repeatable_and_needs_masks(tmp_path: Path) -> None:
    for name in ("masks", "none"):
        (tmp_path / name).mkdir()
    tiny = TinyRun(tmp_path / "masks", masks=True)
    first, again = (loaded(tiny, "INPUT.COPY_PASTE", 1.0) for _ in range(2))
    plain = loaded(tiny)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, two["instances"].gt_boxes.tensor)
        assert not one["instances"].has("gt_masks"), "the model has no masks"
    assert any(not torch.equal(one["image"], two["image"]) for one, two in zip(first, plain, strict=True))
    assert max(len(one["instances"]) for one in first) > 2
    with pytest.raises(UserError, match="without segmentation, and INPUT.COPY_PASTE is on"):
        loaded(TinyRun(tmp_path / "none"), "INPUT.COPY_PASTE", 1.0)


def test_class_weights_weigh_the_loss() -> None:
    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 2, 8
    shapes = {"res4": ShapeSpec(channels=32, stride=16)}
    proposals = objects((20, 30), (0, 0, 10, 10), (2, 2, 4, 4), (20, 12, 30, 20))
    proposals.proposal_boxes = proposals.gt_boxes
    scores, deltas = torch.randn(3, 3), torch.zeros(3, 8)
    losses = {}
    for weights in ([], [1.0, 1.0], [3.0, 0.5]):
        cfg.MODEL.ROI_HEADS.CLASS_WEIGHTS = weights
        head = ResNeXtC4ROIHeads(cfg, shapes)
        with EventStorage():
            losses[len(losses)] = head.box_predictor.losses((scores, deltas), [proposals])
    assert losses[0] == losses[1]
    assert losses[2]["loss_box_reg"] == losses[0]["loss_box_reg"]
    single = F.cross_entropy(scores, proposals.gt_classes, reduction="none")
    expected = (single * torch.tensor([3.0, 0.5, 1.0])).sum() / 4.5
    torch.testing.assert_close(losses[2]["loss_cls"], expected)


def test_show_draws_the_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny, out = TinyRun(tmp_path, masks=True), tmp_path / "seen.png"
    main(["--config-file", str(tiny.file), "--images", "5", "--out", str(out), *tiny.options("run")])
    with Image.open(out) as sheet:
        assert sheet.width > 4 * 320
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (pixels == (242, 36, 36)).all(1).any(), "boxes in the color of the first class"
    assert "5 images as training sees them" in capsys.readouterr().out
    with pytest.raises(UserError, match="--out seen.what"):
        main(["--config-file", str(tiny.file), "--out", "seen.what", *tiny.options("run")])
