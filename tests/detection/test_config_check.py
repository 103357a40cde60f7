"""Configurations that could only fail, or mislead, after hours."""

from __future__ import annotations

import pytest

from resnext_det.commands.train import main
from resnext_det.config_files import config_path
from resnext_det.detection import config_check
from resnext_det.detection.config import setup
from resnext_det.detection.config_check import check_config
from resnext_det.detection.train import run
from resnext_det.engine.exits import run as command
from resnext_det.errors import UserError

C4 = config_path("detection/Base-RCNN-C4.yaml")


def check(*pairs: object, eval_only: bool = False, resume: bool = False) -> list[str]:
    cfg = setup(C4, ["MODEL.DEVICE", "cpu", *map(str, pairs)])
    return check_config(cfg, eval_only=eval_only, resume=resume)


def test_a_sound_config_passes_without_a_word():
    assert not check()


@pytest.mark.parametrize("steps", ["(90000,)", "(60000, 120000)"])
def test_case_41_milestones_past_the_end(steps):
    with pytest.raises(UserError, match=r"SOLVER.STEPS .* SOLVER.MAX_ITER 90000"):
        check("SOLVER.STEPS", steps)


@pytest.mark.parametrize("key", ["SIZES", "ASPECT_RATIOS"])
def test_case_43_anchors_of_a_pyramid(key):
    with pytest.raises(UserError, match=rf"MODEL.ANCHOR_GENERATOR.{key} .*5 levels, as a feature pyramid \(FPN\) has"):
        check(f"MODEL.ANCHOR_GENERATOR.{key}", [[32], [64], [128], [256], [512]])


def test_one_flat_level_of_anchors_is_fine():
    check("MODEL.ANCHOR_GENERATOR.SIZES", [32, 64, 128, 256, 512])


def test_case_44_sync_bn_in_one_process_is_warned_about():
    assert "SyncBN: one process, so it is plain batch norm" in check("MODEL.RESNETS.NORM", "SyncBN")[-1]


def test_sync_bn_in_several_processes_on_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(config_check.comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="naiveSyncBN"):
        check("MODEL.RESNETS.NORM", "SyncBN")


def test_case_49_evaluation_needs_weights(tmp_path):
    with pytest.raises(UserError, match="--eval-only needs weights"):
        check(eval_only=True)
    check(eval_only=True, resume=True)
    check("MODEL.WEIGHTS", "w.pth", eval_only=True)
    with pytest.raises(UserError, match="--eval-only needs weights"):
        main(["--config-file", C4, "--eval-only", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])


def test_case_50_a_high_score_threshold_is_warned_about():
    assert "SCORE_THRESH_TEST is 0.5" in check("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5)[0]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("MODEL.RESNETS.OUT_FEATURES", ["res3"]), "lacks res4"),
        (("MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"]), "res5 belongs to the C4 head"),
        (("MODEL.BACKBONE.NAME", "build_resnext_fpn_backbone", "MODEL.FPN.IN_FEATURES", ["res4"]), "not a pyramid"),
        (("SOLVER.IMS_PER_BATCH", 5, "SOLVER.ACCUMULATE", 2), "SOLVER.IMS_PER_BATCH 5"),
        (("SOLVER.CHECKPOINT_PERIOD", 0), "SOLVER.CHECKPOINT_PERIOD"),
        (("SOLVER.STEPS", "('a', 3)"), "wrong type"),
        (("INPUT.MIN_SIZE_TEST", -5), "INPUT.MIN_SIZE_TEST -5"),
        (("INPUT.MAX_SIZE_TEST", 0), "INPUT.MAX_SIZE_TEST 0"),
        (("INPUT.MIN_SIZE_TRAIN", "()"), "INPUT.MIN_SIZE_TRAIN"),
        (("DATALOADER.NUM_WORKERS", -1), "DATALOADER.NUM_WORKERS -1"),
        (("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0), "POOLER_RESOLUTION 0"),
        (("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0), "BATCH_SIZE_PER_IMAGE 0"),
        (("MODEL.PIXEL_MEAN", [1.0]), "MODEL.PIXEL_MEAN"),
        (("MODEL.PIXEL_STD", [0.0, 0.0, 0.0]), "STD above 0"),
        (("MODEL.PIXEL_STD", ["a", "b", "c"]), "wrong type"),
        (("MODEL.RESNETS.NORM", "XX"), "MODEL.RESNETS.NORM 'XX'"),
        (("MODEL.RESNETS.STEM_OUT_CHANNELS", -3), "STEM_OUT_CHANNELS -3"),
        (("MODEL.RPN.PRE_NMS_TOPK_TRAIN", -1), "PRE_NMS_TOPK_TRAIN -1"),
        (("INPUT.RANDOM_FLIP", "diagonal"), "none, horizontal, vertical"),
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "xx"), "choice, range"),
        (("SOLVER.BASE_LR", -0.1), "SOLVER.BASE_LR -0.1: must be at least 0"),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"), "takes two whole numbers of pixels"),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [300, 300]), "takes two shares"),
        (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "round"), "relative_range, absolute"),
        (("SOLVER.REFERENCE_WORLD_SIZE", 8), "REFERENCE_WORLD_SIZE 8: has no effect here; set SOLVER.REFERENCE_BATCH"),
        (("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2]]), "TEST.EXPECTED_RESULTS .*: has no effect here"),
        (("TEST.PRECISE_BN.ENABLED", True, "SOLVER.EMA_DECAY", 0.9), "choose one of them"),
        (("DATALOADER.SAMPLER_TRAIN", "X"), "choose from TrainingSampler, RepeatFactorTrainingSampler"),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), "REPEAT_THRESHOLD 0: .* such as 0.001"),
        (("MODEL.META_ARCHITECTURE", "PanopticFPN"), "PanopticFPN: learns from maps of stuff"),
        (("MODEL.KEYPOINT_ON", True), "ResNeXtC4ROIHeads has no keypoints"),
        (("MODEL.ANCHOR_GENERATOR.SIZES", [[]]), "above 0"),
        (("MODEL.ANCHOR_GENERATOR.SIZES", []), "above 0"),
        (("MODEL.ANCHOR_GENERATOR.SIZES", [[0]]), "above 0"),
    ],
)
def test_other_contradictions(pairs, words):
    with pytest.raises(UserError, match=words):
        check(*pairs)


def test_crops_of_masks_need_shapely(monkeypatch):
    monkeypatch.setattr(config_check, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="cuts polygons with shapely; pip install it"):
        check("INPUT.CROP.ENABLED", True, "MODEL.MASK_ON", True)
    check("INPUT.CROP.ENABLED", True)


def test_a_warm_up_longer_than_the_run_is_warned_about():
    assert "the learning rate never reaches BASE_LR" in check("SOLVER.MAX_ITER", 300, "SOLVER.STEPS", "()")[0]


def test_a_random_seed_cannot_be_deterministic(tmp_path):
    with pytest.raises(UserError, match="SEED is -1"):
        main(["--config-file", C4, "MODEL.DEVICE", "cpu", "DETERMINISTIC", "True", "OUTPUT_DIR", str(tmp_path)])


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("MODEL.BACKBONE.NAME", "nothing"), "'nothing' found in 'BACKBONE' registry"),
        (("MODEL.META_ARCHITECTURE", "nothing"), "'nothing' found in 'META_ARCH' registry"),
        (("SOLVER.LR_SCHEDULER_NAME", "nothing"), "SOLVER: Unknown LR scheduler: nothing"),
        (("SOLVER.MOMENTUM", -1), "SOLVER.MOMENTUM -1.0: must be at least 0"),
    ],
)
def test_what_only_building_finds_is_one_line_too(tiny_run, pairs, words, capsys):
    with pytest.raises(SystemExit) as left:
        command(lambda: run(tiny_run.config("refused", *pairs)))
    assert left.value.code == 2 and words in capsys.readouterr().err
