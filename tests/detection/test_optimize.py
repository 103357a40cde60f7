"""The optimized copy against the model it was made from."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agreement import assert_same_detections
from common import ROOT
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from tiny import FPN

from resnext_det import UserError, add_resnext_config, create_model
from resnext_det.detection.c4_head import ResNeXtC4ROIHeads
from resnext_det.detection.optimize import FusedSplit, OpenVINOSplit, for_inference, optimize_for_inference
from resnext_det.inference import fused, precision


def random_statistics(model):
    for m in model.modules():
        if isinstance(m, (FrozenBatchNorm2d, torch.nn.BatchNorm2d)):
            m.weight.data.uniform_(0.3, 0.6)
            m.running_var.uniform_(0.5, 1.5)
            m.bias.data.uniform_(-0.2, 0.2)
            m.running_mean.uniform_(-0.2, 0.2)
    return model.eval()


def detector(mask=False, norm="FrozenBN"):
    cfg = small_config()
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = (
        norm,
        4 if norm == "GN" else 2,
    )  # GN: 32 channels or more
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return random_statistics(build_model(cfg))


def small_config():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnext_backbone", "ResNeXtC4ROIHeads"
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8, 2
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = False, 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 80, 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 14, 3
    return cfg


IMAGES = [{"image": torch.arange(3 * 96 * 128).view(3, 96, 128) * 37 % 255.0} for _ in range(2)]


@pytest.mark.parametrize("backend", ["auto", "openvino"])
@pytest.mark.parametrize("mask", [False, True])
@torch.no_grad()
def test_fp32_detections_do_not_move(mask, backend):
    model = detector(mask)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(IMAGES)
    optimized = optimize_for_inference(model, "fp32", backend=backend)
    for _ in range(2):  # nothing that the first call leaves behind changes the second
        for result, reference in zip(optimized(IMAGES), expected, strict=True):
            result, reference = result["instances"], reference["instances"]
            torch.testing.assert_close(result.pred_boxes.tensor, reference.pred_boxes.tensor, rtol=0, atol=1e-3)
            torch.testing.assert_close(result.scores, reference.scores, rtol=0, atol=1e-5)
            assert not mask or (result.pred_masks == reference.pred_masks).float().mean() > 0.999
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mask", [False, True])
@torch.no_grad()
def test_bf16_features_move_by_its_precision(mask):
    model = detector(mask)
    optimized = optimize_for_inference(model, "bf16")
    x = torch.randn(1, 3, 96, 128)
    expected, result = model.backbone(x)["res4"], optimized.backbone(x)["res4"]
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).norm() / expected.norm() < 0.03
    assert len(optimized(IMAGES)[0]["instances"]) > 0


@pytest.mark.parametrize("mask", [False, True])
@torch.no_grad()
def test_int8_moves_by_its_precision(mask):
    model = detector(mask)
    optimized = optimize_for_inference(model, "int8", calibration=[IMAGES[:1], IMAGES[1:]])
    image = model.preprocess_image(IMAGES)
    maps, own = model.backbone(image.tensor), optimized.backbone(image.tensor)
    assert 1e-4 < (own["res4"] - maps["res4"]).norm() / maps["res4"].norm() < 0.05  # 0 would be another precision
    logits, own_logits = (m.proposal_generator.rpn_head([maps["res4"]])[0][0] for m in (model, optimized))
    assert 1e-5 < (own_logits - logits).norm() / logits.norm() < 0.05
    boxes = [proposals.proposal_boxes[:70] for proposals in model.proposal_generator(image, maps)[0]]
    expected, regions = (m.roi_heads.region_vectors([maps["res4"]], boxes) for m in (model, optimized))
    assert regions.shape == expected.shape and len(regions) == 140  # three chunks, the last not full
    assert 1e-4 < (regions - expected).norm() / expected.norm() < 0.05
    assert len(optimized(IMAGES)[0]["instances"]) > 0


@pytest.mark.parametrize(
    "dtype, backend, tolerance",
    [
        ("fp32", "auto", 1e-5),
        ("bf16", "auto", 0.05),
        ("fp32", "openvino", 1e-5),
        ("bf16", "openvino", 0.05),
        ("int8", "auto", 0.1),
    ],
)
@torch.no_grad()
def test_classifier(dtype, backend, tolerance):
    model = random_statistics(create_model("resnext26_32x4d", num_classes=10))
    x = torch.randn(2, 3, 64, 64)
    expected, optimized = model(x), optimize_for_inference(model, dtype, backend=backend, calibration=[x])
    for size in (2, 1, 2):
        result = optimized(x[:size])
        assert (result - expected[:size]).norm() <= tolerance * expected[:size].norm()


@pytest.mark.parametrize("native", [True, False])
@torch.no_grad()
def test_auto_is_bf16_where_the_hardware_multiplies_it(native, monkeypatch, caplog):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: native)
    caplog.set_level("INFO")
    result = optimize_for_inference(detector()).backbone(torch.randn(1, 3, 64, 64))["res4"]
    assert result.dtype == (torch.bfloat16 if native else torch.float32)
    assert len(caplog.records) == 1 and ("Inference in bf16" in caplog.text) == native


def test_bf16_warns_where_the_hardware_does_not_multiply_it(monkeypatch, caplog):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: False)
    optimize_for_inference(torch.nn.Linear(1, 1), "bf16")
    assert "fp32 is faster" in caplog.text and caplog.records[0].levelname == "WARNING"


@torch.no_grad()
def test_quickstarts_detector_gives_stock_detectron2s_boxes():
    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/detection/quickstart.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.MODEL.RESNETS.DEPTH = "cpu", 0.0, 50  # stock has no 14
    ours = random_statistics(build_model(cfg))
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnet_backbone", "Res5ROIHeads"
    stock = build_model(cfg).eval()
    stock.load_state_dict(ours.state_dict())
    images = [{"image": torch.rand(3, 160, side) * 255} for side in (200, 160)]
    for result, expected in zip(optimize_for_inference(ours, "fp32")(images), stock(images), strict=True):
        result, expected = result["instances"], expected["instances"]
        assert len(expected) > 20
        assert_same_detections(result, expected)


@pytest.mark.parametrize(
    "dtype, backend, tolerance", [("fp32", "auto", 1e-5), ("bf16", "auto", 0.1), ("fp32", "openvino", 1e-5)]
)
@torch.no_grad()
def test_a_trunk_under_others_parts_hands_them_float32(dtype, backend, tolerance):
    cfg = small_config()
    cfg.merge_from_other_cfg(cfg.load_cfg(FPN))
    model = random_statistics(build_model(cfg))
    optimized = optimize_for_inference(model, dtype, backend=backend)
    x = torch.randn(1, 3, 96, 128)
    expected = model.backbone(x)
    for name, value in optimized.backbone(x).items():
        assert value.dtype == torch.float32
        assert (value - expected[name]).norm() <= tolerance * expected[name].norm(), name
    assert len(optimized(IMAGES)) == 2


@torch.no_grad()
def test_norms_that_are_not_constant_stay_and_half_precision_says_so(caplog):
    model = detector(norm="GN")
    optimized = optimize_for_inference(model, "fp32")
    expected = model(IMAGES)[0]["instances"].scores
    torch.testing.assert_close(optimized(IMAGES)[0]["instances"].scores, expected, rtol=0, atol=1e-5)
    assert not any(isinstance(m, fused.FusedConv) for m in optimized.backbone.modules())
    assert not caplog.records
    optimize_for_inference(model, "bf16")
    assert "a trunk stays in float32" in caplog.text


def test_the_key_chooses_and_the_model_stays_as_it_is():
    model = detector().train()
    assert for_inference(model, "off") is model
    copy = for_inference(model, "fp32")
    assert copy is not model and isinstance(copy.roi_heads.res5[0], FusedSplit) and not copy.training
    assert model.training
    assert all(p.requires_grad for p in model.roi_heads.parameters())
    assert isinstance(model.roi_heads, ResNeXtC4ROIHeads) and type(model.roi_heads.res5[0]).__name__ == "Bottleneck"
    asked = []
    copy = for_inference(model, "int8", calibration=lambda: asked.append(1) or [IMAGES])
    assert asked and isinstance(copy.roi_heads.res5[0], OpenVINOSplit)
    with pytest.raises(UserError, match="INFERENCE_BACKEND is 'tensorrt': choose from auto, torch, openvino"):
        for_inference(model, "int8", "tensorrt")
    with pytest.raises(UserError, match="INFERENCE_DTYPE is 'fp8': choose from auto, fp32, bf16, fp16, int8, off"):
        for_inference(model, "fp8")


def test_unknown_dtype():
    with pytest.raises(UserError, match="fp32, bf16, fp16"):
        optimize_for_inference(torch.nn.Identity(), "fp8")


COPIES = [("fp32", "torch"), ("bf16", "torch"), ("fp32", "openvino"), ("int8", "auto")]


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("dtype, backend", COPIES)
@torch.no_grad()
def test_a_copy_can_be_copied_pickled_and_saved_and_takes_no_weights(dtype, backend):
    model = detector()
    optimized = optimize_for_inference(model, dtype, backend=backend, calibration=[IMAGES])
    expected = optimized(IMAGES)[0]["instances"]  # the first call lays weights out anew
    state = {name: value.clone() for name, value in optimized.state_dict().items()}
    for twin in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized)), saved(optimized)):
        assert torch.equal(twin(IMAGES)[0]["instances"].scores, expected.scores)
        assert twin.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in twin.state_dict().items())
    # All that the model computes with is in there: as many bytes at least as the numbers of such a detector take.
    numbers = sum(p.numel() for p in model.parameters())
    assert sum(value.nbytes for value in state.values()) >= numbers * {"int8": 1, "bf16": 2, "fp32": 4}[dtype]
    for part, weights in ((optimized, model.state_dict()), (optimized, state), (optimized.backbone, {}),
                          (optimized.roi_heads.res5, {})):  # fmt: skip
        with pytest.raises(UserError, match="an optimized copy takes no weights: load them into the model"):
            part.load_state_dict(weights, strict=False)
    assert all(torch.equal(value, state[name]) for name, value in optimized.state_dict().items())
    with pytest.raises(UserError, match="is an optimized copy already"):
        optimize_for_inference(optimized, "fp32")


@pytest.mark.parametrize("dtype, backend", COPIES)
@torch.no_grad()
def test_threads_get_the_results_of_their_own_images(dtype, backend):
    optimized = optimize_for_inference(detector(), dtype, backend=backend, calibration=[IMAGES])
    images = [[{"image": torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(i)) * 255}] for i in range(4)]
    copies = [optimized, copy.deepcopy(optimized)]
    expected = [optimized(image)[0]["instances"].scores.clone() for image in images]
    assert not torch.equal(expected[0], expected[1])

    @torch.no_grad()
    def run(number: int) -> bool:
        i = number % len(images)
        return torch.equal(copies[number % 3 % 2](images[i])[0]["instances"].scores, expected[i])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(48)))


@pytest.mark.parametrize("dtype, backend", COPIES)
@torch.no_grad()
def test_under_autocast_a_copy_keeps_its_own_precision(dtype, backend):
    optimized = optimize_for_inference(detector(), dtype, backend=backend, calibration=[IMAGES])
    boxes = [Boxes(torch.rand(30, 4) * 40 + torch.tensor([0, 0, 40.0, 40]))] * 2

    def parts():
        maps = optimized.backbone(optimized.preprocess_image(IMAGES).tensor)
        return maps["res4"], optimized.roi_heads.region_vectors([maps["res4"]], boxes)

    expected = parts()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(x, y) for x, y in zip(parts(), expected, strict=True))
        assert len(optimized(IMAGES)[0]["instances"]) > 0


@torch.no_grad()
def test_a_trunk_that_is_watched_stays_as_it_is(caplog):
    model, seen = detector(), []
    model.backbone.res3[0].register_forward_hook(lambda *given: seen.append(given[-1]))
    optimize_for_inference(model, "fp32")(IMAGES)
    assert len(seen) == 1 and "hooks on its parts stays as it is" in caplog.text


@torch.no_grad()
def test_a_block_that_is_its_own_shortcut_takes_a_float_stem_in_bf16():
    model = create_model("resnext11_2x4d_cifar", num_classes=5, stem_out_channels=16, res2_out_channels=16)
    x = torch.randn(2, 3, 32, 32)
    expected = random_statistics(model)(x)
    assert (optimize_for_inference(model, "bf16")(x) - expected).norm() < 0.05 * expected.norm()


def test_bf16_on_a_processor_that_onednn_refuses_it_on():
    code = """if True:
    import torch
    from resnext_det import create_model
    from resnext_det.inference.trunks import optimize_classifier
    model, x = create_model("resnext14_8x4d", num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise SystemExit(77)
    with torch.no_grad():
        expected, result = model(x), optimize_classifier(model, "bf16")(x)
    assert (result - expected).norm() < 0.05 * expected.norm()
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this torch asks the processor itself, which has what oneDNN wants, or is no x86")
    assert done.returncode == 0, done.stderr


@torch.no_grad()
def test_an_rpn_with_another_activation_keeps_it():
    model = detector()
    model.proposal_generator.rpn_head.conv.activation = torch.nn.LeakyReLU(0.5)
    features = [torch.randn(1, model.proposal_generator.rpn_head.conv.in_channels, 8, 8)]
    (expected,), _ = model.proposal_generator.rpn_head(features)
    (result,), _ = optimize_for_inference(model, "fp32").proposal_generator.rpn_head(features)
    torch.testing.assert_close(result, expected)


@torch.no_grad()
def test_int8_where_no_calibration_image_reaches_the_regions_part(caplog):
    model = detector()
    model.proposal_generator.post_nms_topk = {True: 1, False: 1}  # on a map so large the plain order is cheaper
    batch = [{"image": torch.arange(3 * 640 * 640).view(3, 640, 640) * 37 % 255.0}]
    optimized = optimize_for_inference(model, "int8", calibration=[batch])
    assert "1 of 3 parts had nothing to compute" in caplog.text
    assert len(optimized(batch)) == 1
    model.proposal_generator.post_nms_topk = optimized.proposal_generator.post_nms_topk = {True: 80, False: 80}
    assert len(optimized(IMAGES)[0]["instances"]) > 0  # its regions in float
