"""The LazyConfigs, as Python and as the YAML they are saved to: instantiated, equal to the YACS build, trained once."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from resnext_det import config_path
from resnext_det.config_files import list_configs
from resnext_det.detection import ResNeXtBackbone
from resnext_det.detection.config import setup

MODELS = ["lazy/faster_rcnn_c4.py", "lazy/retinanet_fpn.py"]


def load(name: str, form: str, folder: Path):
    """From the Python file, or from the YAML file that it is saved as."""
    config = LazyConfig.load(config_path(name))
    if form == "yaml":
        LazyConfig.save(config, str(folder / "saved.yaml"))
        config = LazyConfig.load(str(folder / "saved.yaml"))
    return config


def shrink(model) -> None:
    """To a size for tests; also shows that arguments can be overridden."""
    backbone = model.backbone.bottom_up if "bottom_up" in model.backbone else model.backbone
    stages = [backbone.stages, *([model.roi_heads.res5] if "roi_heads" in model else [])]
    backbone.stem.out_channels = backbone.stages.in_channels = 8
    for stage in stages:
        stage.update(cardinality=4, width=2, res2_out_channels=8)
    backbone.freeze_at = 0
    # Each mention of the norm is its own.
    for part in (backbone.stem, *stages):
        part.norm.name = "BN"
    if "roi_heads" in model:
        model.proposal_generator.head.in_channels = model.roi_heads.res5.in_channels = 32
        model.proposal_generator.update(pre_nms_topk=(100, 100), post_nms_topk=(40, 20))
        model.roi_heads.box_predictor.input_shape.channels = 64
    else:
        model.backbone.top_block.in_channels = 64
        model.backbone.out_channels = 16
        model.head.input_shape = [{**shape, "channels": 16} for shape in model.head.input_shape]
        model.head.conv_dims = [16]


def batch(size: int = 96) -> list[dict]:
    boxes = Instances((size, size), gt_boxes=Boxes([[8.0, 8, 70, 60]]), gt_classes=torch.tensor([3]))
    return [{"image": torch.rand(3, size, size) * 255, "instances": boxes}]


@pytest.mark.parametrize("form", ["python", "yaml"])
@pytest.mark.parametrize("name", MODELS)
def test_one_step(name: str, form: str, tmp_path: Path) -> None:
    config = load(name, form, tmp_path).model
    shrink(config)
    model = instantiate(config).train()
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    assert isinstance(trunk, ResNeXtBackbone) and trunk.res4[0].groups == 4
    weight = trunk.res4[0].conv2.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with EventStorage():
        loss = sum(model(batch()).values())
    loss.backward()
    optimizer.step()
    assert math.isfinite(loss.item()) and not torch.equal(weight, before)
    with torch.no_grad():
        assert "instances" in model.eval()(batch())[0]


def test_the_c4_model_is_that_of_the_yaml_config() -> None:
    """Same parameters, same settings: both formats describe one detector."""
    lazy = instantiate(LazyConfig.load(config_path("lazy/faster_rcnn_c4.py")).model).eval()
    yacs = build_model(setup("detection/coco/X_50_32x4d_C4_1x.yaml", ["MODEL.DEVICE", "cpu"])).eval()
    shapes = {name: tensor.shape for name, tensor in lazy.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in yacs.state_dict().items()}
    trainable = {name for name, parameter in lazy.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in yacs.named_parameters() if parameter.requires_grad}
    assert torch.equal(lazy.pixel_mean, yacs.pixel_mean) and lazy.input_format == yacs.input_format == "RGB"
    for part, names in (
        ("proposal_generator", ("pre_nms_topk", "post_nms_topk", "nms_thresh", "batch_size_per_image")),
        ("roi_heads", ("num_classes", "batch_size_per_image", "positive_fraction", "chunk_size", "fast")),
    ):
        for name in names:
            assert getattr(getattr(lazy, part), name) == getattr(getattr(yacs, part), name), (part, name)


def test_schedule_is_that_of_the_yaml_config() -> None:
    config = LazyConfig.load(config_path("lazy/coco_c4_1x.py"))
    cfg = setup("detection/coco/X_50_32x4d_C4_1x.yaml", ["MODEL.DEVICE", "cpu"])
    schedule = instantiate(config.lr_multiplier)
    assert config.train.max_iter == cfg.SOLVER.MAX_ITER
    assert config.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    for iteration, factor in ((1000, 1), (59999, 1), (60000, 0.1), (79999, 0.1), (80000, 0.01)):
        rate = config.optimizer.lr * schedule(iteration / config.train.max_iter)
        assert rate == pytest.approx(cfg.SOLVER.BASE_LR * factor)
    assert config.dataloader.train.dataset.names == cfg.DATASETS.TRAIN[0]
    assert list(config.dataloader.train.mapper.augmentations[0].short_edge_length) == list(cfg.INPUT.MIN_SIZE_TRAIN)


def test_distributed_settings_suit_this_torch(tmp_path: Path) -> None:
    """No name that it has deprecated, and running statistics are not sent around before every step."""
    settings = dict(LazyConfig.load(config_path("lazy/coco_c4_1x.py")).train.ddp)
    assert settings.pop("fp16_compression") is False  # detectron2's own
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.BatchNorm1d(2), **settings)
        assert not model.broadcast_buffers
    finally:
        torch.distributed.destroy_process_group()


def test_every_lazy_config_loads() -> None:
    for name in list_configs():
        if name.endswith(".py"):
            LazyConfig.load(config_path(name))
