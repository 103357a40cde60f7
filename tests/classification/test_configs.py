"""Every pretraining configuration loads, builds the network it names and says what to expect; every key is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from resnext_det import UserError
from resnext_det.classification.config import check_config, get_config
from resnext_det.classification.train import Plan, build_classifier, build_scheduler
from resnext_det.engine.config import load_config
from resnext_det.variants import parse_name

ROOT = Path(__file__).resolve().parents[2]
PAPER = [path for name in ("imagenet", "imagenet5k", "cifar") for path in sorted((ROOT / "configs" / name).glob("*"))]
RUNS = [path for path in PAPER if not path.stem.startswith("Base")]
OTHERS = sorted((ROOT / "configs" / "tinyimagenet").glob("res*")) + [ROOT / "configs/quickstart/pretrain.yaml"]
OTHERS += sorted((ROOT / "configs/linear").glob("*_*"))
IMAGES = {"imagenet": 1_281_167, "imagenet5k": 6_800_000, "cifar": 50_000}


def load(path: Path) -> CfgNode:
    cfg = load_config(get_config(), str(path))
    check_config(cfg)
    return cfg


def identity(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", RUNS + OTHERS, ids=identity)
def test_builds(path: Path) -> None:
    """On the meta device: shapes without the memory of weights."""
    cfg = load(path)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_classifier(cfg, 10)
    blocks = [len(getattr(model, name)) for name in model.stage_names]
    blocks[-1] -= hasattr(getattr(model, model.stage_names[-1]), "end")
    assert tuple(blocks) == parse_name(cfg.MODEL.NAME).blocks
    plan = Plan.of(cfg, IMAGES.get(path.parent.name, 1000), processes=8)
    assert plan.lr == cfg.SOLVER.BASE_LR
    build_scheduler(cfg, torch.optim.SGD(model.parameters(), plan.lr), plan)


@pytest.mark.parametrize("path", RUNS, ids=identity)
def test_says_what_to_expect(path: Path) -> None:
    """The paper's figure and whether anybody ran it, in the first line; a folder of its own; its name."""
    first = path.read_text().splitlines()[0]
    assert re.match(r"# (Table \d|Sec\. 5\.1|Figure 7|A modern recipe)", first) and first.endswith("Here: not run.")
    assert re.search(r"\d\d?\.\d\d?(/\d\d?\.\d)?%", first) or "Figure 7" in first or "modern" in first
    cfg = load(path)
    assert cfg.OUTPUT_DIR == f"output/{path.parent.name}/{path.stem}"
    assert path.stem.startswith(cfg.MODEL.NAME.replace("resnetv2_", "resnet"))
    assert cfg.MODEL.RESIDUAL != ("no_residual" in path.stem)
    data = {"imagenet": "imagenet", "imagenet5k": "imagenet5k", "cifar": "cifar10"}[path.parent.name]
    assert cfg.DATASETS.TRAIN == f"datasets/{'cifar100' if path.stem.endswith('100') else data}/train"


def test_every_row_of_the_paper_has_its_file() -> None:
    names = {identity(path) for path in RUNS}
    table_3 = [f"{net}_{t}" for net in ("resnext50", "resnext101") for t in ("2x40d", "4x24d", "8x14d", "32x4d")]
    table_3 += ["resnet50", "resnet101"]
    table_4 = ["resnet200", "resnext101_1x100d", "resnext101_2x64d", "resnext101_64x4d"]
    section_5_1 = ["resnet50_no_residual", "resnext50_32x4d_no_residual"]
    table_6 = ["resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x4d"]
    table_7 = [f"resnext29_{t}_cifar{n}" for t in ("8x64d", "16x64d") for n in ("", "100")]
    assert {f"imagenet/{name}" for name in table_3 + table_4 + section_5_1} <= names
    assert {f"imagenet5k/{name}" for name in table_6} | {f"cifar/{name}" for name in table_7} <= names


def test_the_recipes_of_the_paper() -> None:
    """Sec. 4, 5.2, 5.3 and the appendix, written down once more."""
    solver = load(ROOT / "configs/imagenet/resnext50_32x4d.yaml").SOLVER
    assert (solver.EPOCHS, tuple(solver.STEPS), solver.GAMMA) == (100, (30, 60, 90), 0.1)
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.1, 256, 0.9, 1e-4)
    assert not (solver.LABEL_SMOOTHING or solver.EMA_DECAY or solver.WARMUP_EPOCHS)
    cifar = load(ROOT / "configs/cifar/resnext29_8x64d_cifar100.yaml").SOLVER
    assert (cifar.EPOCHS, tuple(cifar.STEPS), cifar.BASE_LR, cifar.IMS_PER_BATCH) == (300, (150, 225), 0.1, 128)
    assert cifar.WEIGHT_DECAY == 5e-4
    small = load(ROOT / "configs/cifar/resnext29_16x64d_cifar.yaml")  # of the authors' README: 64 and 32 images
    rates = [Plan.of(small, 50_000, processes=1).lr for small.SOLVER.IMS_PER_BATCH in (64, 32)]
    assert rates == [0.05, 0.025]
    large = load(ROOT / "configs/imagenet5k/resnext50_32x4d.yaml").SOLVER
    assert large.EPOCHS * IMAGES["imagenet5k"] == pytest.approx(100 * IMAGES["imagenet"], rel=0.1)


@pytest.mark.parametrize("folder", ["imagenet", "imagenet5k", "cifar"])
def test_the_paper_recipes_are_the_authors(folder: str) -> None:
    """What their code does and the paper does not say (facebookresearch/ResNeXt, fb.resnet.torch)."""
    for path in [path for path in RUNS if path.parent.name == folder and "modern" not in path.stem]:
        cfg = load(path)
        assert cfg.SOLVER.NESTEROV and cfg.SOLVER.OPTIMIZER == "sgd" and cfg.MODEL.FC_STD == 0
        assert cfg.MODEL.NORM_IMAGES == cfg.SOLVER.IMS_PER_BATCH / 8
        if folder == "cifar":
            assert cfg.INPUT.PADDING == "mean"
            theirs = ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))
            if "100" not in path.stem:
                theirs = ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
            ours = (cfg.INPUT.MEAN, cfg.INPUT.STD)
            assert [[round(255 * v, 1) for v in part] for part in ours] == [list(part) for part in theirs]
        else:
            assert (cfg.INPUT.ASPECT, cfg.INPUT.INTERPOLATION) == ("uniform", "bicubic")
            assert (cfg.INPUT.MIXUP, cfg.INPUT.CUTMIX, cfg.INPUT.POLICY) == (0, 0, "none")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SOLVER.SCHEDULE", "linear", "choose from step, cosine"),
        ("SOLVER.STEPS", (60, 30), "must rise"),
        ("SOLVER.EPOCHS", 0, "above 0"),
        ("SOLVER.EMA_DECAY", 1.0, "EMA_DECAY"),
        ("SOLVER.PRECISION", "fp8", "fp32, bf16, fp16"),
        ("INPUT.STD", (0.2, 0.0, 0.2), "STD above 0"),
        ("INPUT.COLOR_JITTER", 1.0, "COLOR_JITTER"),
        ("TEST.AMONG", "val", "train, test, both"),
        ("DATALOADER.NUM_WORKERS", -1, "NUM_WORKERS -1"),
        ("SOLVER.MOMENTUM", -1.0, "SOLVER.MOMENTUM"),
        ("INPUT.AREA", (0.9, 0.1), "INPUT.AREA"),
        ("INPUT.AREA", (), "INPUT.AREA"),
        ("INPUT.FLIP", -1.0, "INPUT.FLIP"),
        ("SOLVER.LABEL_SMOOTHING", 2.0, "LABEL_SMOOTHING"),
        ("TEST.DENSE_SIZES", (0,), "TEST.DENSE_SIZES"),
        ("TEST.CROP_SIZE", -3, "TEST.CROP_SIZE -3"),
        ("MODEL.STEM_OUT_CHANNELS", 0, "MODEL.STEM_OUT_CHANNELS 0"),
        ("TEST.BATCH_SIZE", 0, "TEST.BATCH_SIZE 0"),
        ("INPUT.POLICY", "augmix", "none, randaugment, trivialaugment, autoaugment"),
        ("INPUT.INTERPOLATION", "nearest", "bilinear, bicubic"),
        ("INPUT.ASPECT", "square", "log, uniform"),
        ("INPUT.PADDING", "reflect", "zero, mean"),
        ("INPUT.ERASING", 1.5, "INPUT.ERASING"),
        ("INPUT.MIXUP", -0.2, "INPUT.MIXUP"),
        ("SOLVER.OPTIMIZER", "lamb", "sgd, adamw"),
        ("SOLVER.CLIP_NORM", -1.0, "SOLVER.CLIP_NORM"),
        ("MODEL.NORM_IMAGES", -1, "MODEL.NORM_IMAGES"),
        ("TEST.PATIENCE", -1, "TEST.PATIENCE"),
    ],
)
def test_senseless_values_are_refused(key: str, value: object, words: str) -> None:
    cfg = get_config()
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=words):
        check_config(cfg)


def keys(node: CfgNode, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in node.items()
        for name in (keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key])
    ]


def test_every_key_is_read() -> None:
    """VERSION is load_config's own."""
    sources = [path for path in (ROOT / "resnext_det/classification").rglob("*.py") if path.name != "config.py"]
    code = "".join(path.read_text() for path in sources).replace("solver.", "cfg.SOLVER.")
    unread = [key for key in keys(get_config()) if not re.search(rf"cfg\.{re.escape(key)}\b", code)]
    assert unread == ["VERSION"]


def test_groups_of_images_divide_a_pass() -> None:
    cfg = get_config()
    cfg.merge_from_list(["MODEL.NORM_IMAGES", 32, "SOLVER.IMS_PER_BATCH", 192])
    assert Plan.of(cfg, 1000, processes=2).batch_size == 96 and Plan.of(cfg, 1000, processes=8).batch_size == 24
    with pytest.raises(UserError, match="MODEL.NORM_IMAGES 32: does not divide the 48 images of a pass"):
        Plan.of(cfg, 1000, processes=4)
