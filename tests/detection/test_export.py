"""The exported detector against the model it came from: every stage in PyTorch, the program, ONNX, the command."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from common import shared_data
from detectron2.config import get_cfg
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import ImageList
from pycocotools import mask as mask_tools

from resnext_det import UserError
from resnext_det.annotations.masks import decoded, encoded
from resnext_det.artifacts.about import ONNX, OPENVINO, About, write_about
from resnext_det.artifacts.building import (
    PARTS,
    openvino_model,
    parts_of,
    quantized,
    quantized_onnx,
    save_openvino,
    write_onnx,
)
from resnext_det.artifacts.running import ArtifactPredictor, pasted
from resnext_det.commands.export import main
from resnext_det.detection.coco_evaluator import detections_of
from resnext_det.detection.config import setup
from resnext_det.detection.evaluate import OfPixels
from resnext_det.detection.export import artifact
from resnext_det.detection.export import comparison as export_command
from resnext_det.detection.export import graph as export
from resnext_det.detection.export.comparison import runner
from resnext_det.detection.export.graph import (
    INPUTS,
    TORCH_THAT_CAN,
    ExportableDetector,
    _pool_by_size,
    export_onnx,
    export_program,
    least_side,
    sampling_matrix,
    save_program,
)
from resnext_det.detection.export.quantization import within
from resnext_det.detection.optimize import optimize_for_inference
from resnext_det.detection.prediction.detector import Predictor
from resnext_det.detection.roi_align import axis_weights
from resnext_det.weights import save_checkpoint

CONFIG = "detection/coco/X_50_32x4d_C4_1x.yaml"
SMALL = (
    "MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 14 MODEL.RESNETS.NUM_GROUPS 4 MODEL.RESNETS.WIDTH_PER_GROUP 2 "
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.NORM BN "
    "MODEL.BACKBONE.FREEZE_AT 0 MODEL.RPN.PRE_NMS_TOPK_TEST 300 MODEL.RPN.POST_NMS_TOPK_TEST 60 "
    "MODEL.ROI_HEADS.NUM_CLASSES 3 INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 200"
).split()

PYRAMID = (
    "MODEL.BACKBONE.NAME build_resnext_fpn_backbone MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] "
    "MODEL.FPN.IN_FEATURES ['res2','res3','res4','res5'] MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.ANCHOR_GENERATOR.SIZES [[8],[16],[32],[64],[128]] MODEL.RPN.IN_FEATURES ['p2','p3','p4','p5','p6'] "
    "MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES ['p2','p3','p4','p5'] "
    "MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 2 MODEL.ROI_BOX_HEAD.FC_DIM 32 "
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7"
).split()
MASKS = (
    "MODEL.MASK_ON",
    "True",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "8",
)


def detector(*more: str):
    torch.manual_seed(0)
    model = build_model(setup(CONFIG, [*SMALL, *more])).eval()
    for module in model.modules():  # norms as if trained, so that folding them is tested
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.0)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.2, 0.2)
    for parameter in (model.proposal_generator.rpn_head.anchor_deltas, model.roi_heads.box_predictor.bbox_pred):
        parameter.weight.data.mul_(10)  # boxes move away from their anchors
    if model.roi_heads.mask_on:
        model.roi_heads.mask_head.predictor.weight.data.mul_(1e4)  # else all cells are 0.5 but for rounding
    return model


@torch.no_grad()
def expected(model, single, originals) -> list:
    inputs = [{"image": x, "height": h, "width": w} for x, (h, w) in zip(single, originals, strict=True)]
    return [output["instances"] for output in model(inputs)]


def assert_same(outputs, instances) -> None:
    """Every detection has its partner; ranks may swap where scores are equal up to rounding."""
    for boxes, scores, classes, count, *masks, wanted in zip(*map(np.asarray, outputs), instances, strict=True):
        n = int(count)
        assert n == len(wanted) > 10
        theirs = [part.numpy() for part in (wanted.pred_boxes.tensor, wanted.scores, wanted.pred_classes)]
        theirs += [wanted.pred_masks.numpy()] if masks else []
        ours = [part[:n] for part in (boxes, scores, classes, *masks)]
        box, score, unmatched, pixels = export_command.compare(theirs, ours, threshold=-1)
        assert box < 1e-3 and score < 1e-5 and unmatched == 0 and len(masks) == wanted.has("pred_masks")
        if masks:
            assert pixels < 1e-4 * theirs[3].sum() < 1e-4 * 0.9 * theirs[3].size and not masks[0][n:].any()
        assert (np.diff(scores[:n]) <= 0).all()
        assert not boxes[n:].any() and not scores[n:].any() and (classes[n:] == -1).all()


def batch(*sizes: tuple[int, int]):
    """Images of those sizes in one padded batch, with rubbish in the padding; and the three inputs."""
    single = [torch.rand(3, *size) * 255 for size in sizes]
    images = torch.full((len(sizes), 3, max(s[0] for s in sizes), max(s[1] for s in sizes)), 99.0)
    for image, one in zip(images, single, strict=True):
        image[:, : one.shape[1], : one.shape[2]] = one
    originals = [(2 * h + 1, 2 * w - 1) for h, w in sizes]
    return single, originals, (images, torch.tensor(sizes), torch.tensor(originals))


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "True"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        MASKS,
        (*MASKS, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
        PYRAMID,
        (*PYRAMID, *MASKS),
        (*PYRAMID, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "2", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
    ],
)
@pytest.mark.parametrize("sizes", [[(128, 150)], [(90, 200), (130, 97), (64, 64)]])
def test_same_detections_before_export(sizes, more) -> None:
    model = detector(*more)
    single, originals, inputs = batch(*sizes)
    with torch.no_grad():
        outputs = ExportableDetector(model, regions_at_once=25)(*inputs)
    assert_same(outputs, expected(model, single, originals))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_sampling_matrix_is_roi_aligns(sampling_ratio: int) -> None:
    low = torch.rand(1, 200) * 40 - 0.5
    high = torch.minimum(low + torch.rand(1, 200) * 40, torch.tensor(39.5))
    low[0, 0], high[0, 0] = -0.5, 39.5  # the whole image
    high[0, 1] = low[0, 1]  # nothing
    wanted = axis_weights(low[0], high[0], 40, 14, sampling_ratio)
    torch.testing.assert_close(sampling_matrix(low, high, 40, 14, sampling_ratio)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("longest", [8, 20, 60])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_regions_of_every_size_are_pooled_as_torchvision_does(longest: int, sampling_ratio: int) -> None:
    """Squares of the map for small regions, all of it for large ones; in double precision."""
    maps = [torch.rand(2, channels, 40, 61, dtype=torch.float64) for channels in (3, 5)]
    low = torch.rand(300, 2, dtype=torch.float64) * torch.tensor([61, 40])
    high = torch.minimum(low + torch.rand(300, 2, dtype=torch.float64) * longest, torch.tensor([61.0, 40.0]))
    boxes, image = torch.cat([low, high], dim=1), torch.randint(2, (300,))
    boxes[0, 2:] = boxes[0, :2]  # nothing
    found = _pool_by_size(maps, boxes - 0.5, image, (14, 14), (1, 2), sampling_ratio)
    for part, pooled, step in zip(maps, found, (1, 2), strict=True):
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
        wanted = torchvision.ops.roi_align(part, rois, 14, 1.0, sampling_ratio, True)[:, :, ::step, ::step]
        torch.testing.assert_close(pooled[1:], wanted[1:], rtol=1e-9, atol=1e-9)


class Fixed(torch.nn.Module):
    """An RPN head with results of its own choice."""

    def __init__(self, *results: torch.Tensor) -> None:
        super().__init__()
        self.results = results

    def forward(self, features):
        return tuple([result] for result in self.results)


ROUNDING = 1e-7
"""Between PyTorch's logits and ONNX's; closer neighbors may swap ranks, and suppression then keeps another."""


def test_proposals_are_detectron2s_of_the_same_logits() -> None:
    """So where proposals differ, rounding has decided: it moves detectron2's own as well."""
    model = detector()
    rpn, graph = model.proposal_generator, ExportableDetector(model)
    anchors, rows, columns = graph.anchors.num_anchors[0], 12, 15
    features = torch.zeros(1, 1, rows, columns)
    logits = torch.randperm(anchors * rows * columns) * (ROUNDING / 4)
    deltas = torch.randn(1, anchors * 4, rows, columns) * 0.1

    def proposals(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rpn.rpn_head = graph.rpn_head = Fixed(logits.view(1, anchors, rows, columns), deltas)
        size = (rows * 16, columns * 16)
        theirs = rpn(ImageList(features, [size]), {"res4": features})[0][0].proposal_boxes.tensor
        ours = graph._propose([features], torch.tensor([[[*size[::-1], *size[::-1]]]]))[0]
        assert 20 < len(theirs) <= len(ours) and not ours[len(theirs) :].any()
        return ours[: len(theirs)], theirs

    with torch.no_grad():
        results = [proposals(logits), proposals(logits + (torch.rand(logits.shape) - 0.5) * (2 * ROUNDING))]
    for ours, theirs in results:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (_, exact), (_, rounded) = results
    assert not torch.equal(exact[: len(rounded)], rounded[: len(exact)])


def test_detections_are_detectron2s_of_the_same_scores() -> None:
    graph = ExportableDetector(detector())
    size, regions, classes = (96, 120), 60, 3
    corner = torch.rand(regions, classes, 2) * 50
    boxes = torch.cat([corner, corner + 10 + torch.rand(regions, classes, 2) * 40], dim=2)
    rest = torch.randperm(regions * classes).view(regions, classes) * (ROUNDING / 4)
    scores = 0.2 + rest
    (wanted,), _ = fast_rcnn_inference(
        [boxes.flatten(1)], [F.pad(scores, (0, 1))], [size], graph.threshold, graph.nms, graph.detections
    )
    sizes = torch.tensor([size])
    outputs = graph._select(scores[None], boxes[None], sizes, sizes)
    found, count = [output[0, : len(wanted)] for output in outputs[:3]], int(outputs[3])
    assert count == len(wanted) > 20
    for ours, theirs in zip(found, (wanted.pred_boxes.tensor, wanted.scores, wanted.pred_classes), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


new_enough = pytest.mark.skipif(torch.__version__ < TORCH_THAT_CAN, reason=f"export needs torch {TORCH_THAT_CAN}")


def test_a_torch_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise RuntimeError("Constraints violated (height, width)!")

    monkeypatch.setattr(torch.export, "export", refuse)
    monkeypatch.setattr(export, "TORCH_THAT_CAN", "99.0")
    with pytest.raises(UserError, match=r"torch .* cannot export .* \(RuntimeError\); install torch 99.0 or later"):
        export_program(detector())
    monkeypatch.setattr(export, "TORCH_THAT_CAN", "2.0")
    with pytest.raises(RuntimeError, match="Constraints violated"):
        export_program(detector())


@pytest.fixture(scope="module")
def exported():
    model = detector(*MASKS)
    return model, export_program(model)


@pytest.fixture(scope="module")
def core(exported, tmp_path_factory) -> Path:
    """Its ONNX; torch converts a program once."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("exported") / "core.onnx"
    export_onnx(exported[1], path)
    return path


@new_enough
@pytest.mark.slow
def test_program_takes_every_size_and_batch(exported) -> None:
    model, program = exported
    run = program.module()
    for sizes in ([(160, 97)], [(70, 180), (100, 64), (90, 90)]):
        single, originals, inputs = batch(*sizes)
        with torch.no_grad():
            outputs = run(*inputs)
        assert_same(outputs, expected(model, single, originals))


@new_enough
@pytest.mark.slow
def test_onnx_takes_every_size_and_batch(exported, core: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, _ = exported
    domains = {node.domain for node in onnx.load(str(core)).graph.node}
    assert domains == {""}  # standard operators only
    session = onnxruntime.InferenceSession(str(core), providers=["CPUExecutionProvider"])
    for sizes in ([(160, 97)], [(70, 180), (100, 64), (90, 90)]):
        single, originals, inputs = batch(*sizes)
        names = ("images", "sizes", "original_sizes")
        outputs = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        assert_same(outputs, expected(model, single, originals))


@new_enough
@pytest.mark.slow
def test_a_pyramid_as_program_and_onnx_and_in_8_bits(tmp_path: Path) -> None:
    """ONNX takes images whose highest maps have one cell, too."""
    onnxruntime, *_ = map(pytest.importorskip, ("onnxruntime", "onnxscript", "openvino", "nncf"))
    model = detector(*PYRAMID, *MASKS)
    program = export_program(model)
    run = program.module()
    export_onnx(program, tmp_path / "core.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "core.onnx"), providers=["CPUExecutionProvider"])
    for sizes in ([(40, 64)], [(70, 180), (100, 64), (90, 90)]):
        single, originals, inputs = batch(*sizes)
        wanted = expected(model, single, originals)
        if sizes[0][0] >= least_side(program):
            with torch.no_grad():
                assert_same(run(*inputs), wanted)
        assert_same(session.run(None, {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}), wanted)
    about = About(OPENVINO, "int8", ["a", "b", "c"], [1, 2, 3], "BGR", 128, 200, model_threshold=0.05)
    image = np.random.randint(0, 256, (131, 200, 3), dtype=np.uint8)
    wanted = Predictor(model, min_size=128, max_size=200, channel_order="BGR")([image])[0]
    graph = openvino_model(tmp_path / "core.onnx")
    convolutions = [op for op in graph.get_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")]
    assert sum(map(len, parts_of(graph).values())) == len(convolutions), "each belongs to a part"
    graph = quantized(tmp_path / "core.onnx", [[x.numpy() for x in batch((128, 160))[2]]])
    (found,) = ArtifactPredictor.of_model(graph, about, threads=1)([image])
    np.testing.assert_allclose(found.scores[:10], wanted.scores[:10], atol=0.1)
    assert len(found.masks) == len(found) > 10 and "Convolution" in rounded(graph)


def test_masks_are_pasted_and_written_as_in_pytorch() -> None:
    height, width = 61, 83
    masks, boxes = torch.rand(40, 14, 14), torch.rand(40, 4) * torch.tensor([width, height, width, height])
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    boxes[1] = torch.tensor([5.2, 7.3, 5.4, 7.5])  # within a pixel
    masks[2] = 1.0
    masks[3] = 0.0
    wanted = paste_masks_in_image(masks, boxes, (height, width)).numpy()
    for mask, box, theirs in zip(masks.numpy(), boxes.numpy(), wanted, strict=True):
        ours = pasted(mask, box, (height, width))
        assert np.array_equal(ours, theirs)
        assert encoded(ours) == mask_tools.encode(np.asfortranarray(ours, dtype=np.uint8))["counts"]
        assert np.array_equal(decoded(encoded(ours), (height, width)), ours)


def rounded(model) -> set[str]:
    """Kinds of operations of OpenVINO's model that take values rounded to 8 bits."""
    rounding = [operation for operation in model.get_ops() if operation.get_type_name() == "FakeQuantize"]
    return {taker.get_node().get_type_name() for op in rounding for taker in op.output(0).get_target_inputs()}


@new_enough
@pytest.mark.slow
def test_one_onnx_from_pixels_to_boxes_and_its_8_bits(exported, core: Path, tmp_path: Path) -> None:
    """PyTorch's detections from uint8 images of any size; int8 loaded gives the bits of int8 in memory."""
    onnx, *_ = map(pytest.importorskip, ("onnx", "onnxruntime", "openvino", "nncf"))
    model, _ = exported
    about = About(ONNX, "fp32", ["a", "b", "c"], [1, 2, 3], "BGR", 128, 200, model_threshold=0.05)
    write_onnx(core, tmp_path / ONNX, about)
    images = [np.random.randint(0, 256, (*size, 3), dtype=np.uint8) for size in ((300, 400), (120, 50), (131, 200))]
    predictor = ArtifactPredictor(tmp_path / ONNX)
    alone = Predictor(model, min_size=128, max_size=200, channel_order="BGR")
    expected = [alone([image])[0] for image in images]  # beside larger ones it would be padded
    for wanted, found in zip(expected, predictor(images), strict=True):
        near = [np.abs(found.boxes - box).max(axis=1).min() < 1e-2 for box in wanted.boxes]
        # Random weights: rounding decides a few of a hundred scores that differ in the fourth digit.
        assert len(found.scores) == len(wanted.scores) > 10 and np.mean(near) > 0.9
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
        assert found.mask_sizes.tolist() == wanted.mask_sizes.tolist() and type(found.masks[0]) is bytes
        assert np.mean([mask in wanted.masks for mask in found.masks]) > 0.8
    (rated,) = OfPixels(predictor, "RGB")([{"image": torch.from_numpy(images[0]).permute(2, 0, 1)}])
    assert detections_of(rated["instances"], 0).masks == predictor(images[:1])[0].masks

    inputs = [np.random.rand(1, 3, 128, 160).astype(np.float32) * 255, *[np.array([[128, 160]])] * 2]
    about.precision = "int8"
    sessions = []
    for kept in ((), PARTS):
        quantized_onnx(core, tmp_path / "core8.onnx", [inputs], kept)
        operators = Counter(node.op_type for node in onnx.load(str(tmp_path / "core8.onnx")).graph.node)
        assert (operators["QuantizeLinear"] > 0) == (not kept) and operators["Conv"] == 23
        write_onnx(tmp_path / "core8.onnx", tmp_path / "8.onnx", about)
        sessions.append(ArtifactPredictor(tmp_path / "8.onnx"))
    for wanted, found, same in zip(expected, *(session(images) for session in sessions), strict=True):
        assert len(found.scores) > 10 and not np.array_equal(found.scores, wanted.scores)
        np.testing.assert_allclose(found.scores[:10], wanted.scores[:10], atol=0.1)
        np.testing.assert_allclose(same.scores, wanted.scores, atol=1e-3)

    parts = parts_of(openvino_model(core))
    assert {part: len(names) for part, names in parts.items()} == {"trunk": 13, "proposals": 3, "regions": 7}
    takers = {kept: rounded(quantized(core, [inputs], kept)) for kept in ((), tuple(PARTS))}
    assert "Convolution" in takers[()] <= {"Convolution", "GroupConvolution", "Add", "MaxPool", "Reshape"}
    assert not takers[tuple(PARTS)], "coordinates of regions and their weights are no layers"
    graph = quantized(core, [inputs], ["trunk"])
    about = About(OPENVINO, "int8", ["a", "b", "c"], [1, 2, 3], "BGR", 128, 200, model_threshold=0.05)
    in_memory = ArtifactPredictor.of_model(graph, about, threads=1)
    (tmp_path / "int8").mkdir()
    about.files = dict.fromkeys(save_openvino(graph, tmp_path / "int8"), "")
    write_about(tmp_path / "int8", about)
    code = "import pickle, sys; from resnext_det.artifacts.running import ArtifactPredictor as P; "
    code += "images = pickle.load(sys.stdin.buffer); found = [P(sys.argv[1], threads=1).arrays(i) for i in images]; "
    code += "assert not {'torch', 'nncf', 'detectron2'} & sys.modules.keys(); pickle.dump(found, sys.stdout.buffer)"
    for files in (0, 1):  # the first start compiles, the second takes what it has kept
        assert len(list(tmp_path.glob("resnext_det/openvino/*"))) == files
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "int8")],
            input=pickle.dumps(images),
            capture_output=True,
            check=True,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        )
        for image, found, wanted in zip(images, pickle.loads(done.stdout), expected, strict=True):
            own = in_memory.arrays(image)
            assert all(np.array_equal(x, y) for x, y in zip(own, found, strict=True)) and len(found[1]) > 10
            assert not np.array_equal(own[1], wanted.scores.astype(np.float32)), "8 bits move scores"
            np.testing.assert_allclose(own[1][:10], wanted.scores[:10], atol=0.1)


def test_measuring_leaves_the_results_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = get_cfg()
    folders = [cfg.OUTPUT_DIR]
    for name in ("known_sets", "check_sets_from_config", "register_sets"):
        monkeypatch.setattr(artifact, name, lambda *args, **more: None)
    cfg.DATASETS.REGISTER = []
    monkeypatch.setattr(artifact, "evaluate_artifact", lambda cfg, *args, **more: folders.append(cfg.OUTPUT_DIR))
    artifact.measure(cfg, None, [])
    assert folders[0] == cfg.OUTPUT_DIR != folders[1] and not Path(folders[1]).exists()


def test_parts_stay_in_float_until_the_drop_is_allowed() -> None:
    costs = {"trunk": 0.5, "proposals": 0.05, "regions": 2.0}
    asked: list[list[str]] = []

    def build(kept):
        asked.append(list(kept))
        return sum(cost for part, cost in costs.items() if part not in kept)

    def accuracy(drop: float) -> dict:
        return {"bbox": {"AP": 50 - drop}}

    assert within(build, accuracy, 50.0, 3.0)[:2] == (pytest.approx(2.55), []) and asked == [[]]
    assert within(build, accuracy, 50.0, 0.6)[1] == ["regions"]
    model, kept, results = within(build, accuracy, 50.0, 0.1)
    assert kept == ["regions", "trunk"] and results["bbox"]["AP"] == pytest.approx(49.95)
    assert within(build, accuracy, 50.0, 0.0)[1] == ["regions", "trunk", "proposals"]
    with pytest.raises(UserError, match="gives no AP of boxes"):
        within(build, lambda drop: {"bbox": {"AP": float("nan")}}, 50.0, 0.1)


@new_enough
@pytest.mark.slow
def test_few_proposals_and_classes_are_exported(tmp_path: Path) -> None:
    """Fewer candidates than DETECTIONS_PER_IMAGE, and fewer proposals before NMS than behind it."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    few = [
        "MODEL.RPN.PRE_NMS_TOPK_TEST",
        "20",
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        "30",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "3",
    ]
    model = detector(*few)
    program = export_program(model)
    export_onnx(program, tmp_path / "core.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "core.onnx"), providers=["CPUExecutionProvider"])
    single, originals, inputs = batch((160, 97))
    outputs = session.run(None, {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)})
    (wanted,) = expected(model, single, originals)
    assert int(outputs[3][0]) == len(wanted) > 0
    write_onnx(
        tmp_path / "core.onnx", tmp_path / ONNX, About(ONNX, "fp32", ["a", "b", "c"], [1, 2, 3], "BGR", 128, 200, 0.05)
    )
    (found,) = ArtifactPredictor(tmp_path / ONNX)([np.random.randint(0, 256, (160, 97, 3), dtype=np.uint8)])
    assert len(found) > 0 and found.masks is None


def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(program: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", torn)
    (tmp_path / "detector.pt2").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        save_program(None, tmp_path / "detector.pt2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_size_outside_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.export,
        "load",
        lambda path: SimpleNamespace(module=lambda: None, range_constraints={0: SimpleNamespace(lower=32)}),
    )
    with pytest.raises(UserError, match="an image of 20x100 once resized; it takes sides of 32 to 16384 pixels"):
        pixels = np.zeros((20, 100, 3), dtype=np.uint8)
        runner(tmp_path / "detector.pt2")(pixels, pixels.transpose(2, 0, 1).astype(np.float32))


@new_enough
@pytest.mark.slow
def test_command_checks_real_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    single = sorted((shared_data("coco_mini") / "val2017").glob("*.jpg"))[:3]
    model = detector()
    save_checkpoint(tmp_path / "detector.pth", model.state_dict(), {"channel_order": "RGB"})
    weights = [*SMALL, "MODEL.WEIGHTS", str(tmp_path / "detector.pth")]
    checks = [word for path in single for word in ("--check", str(path))]
    arguments = ["--config-file", CONFIG, "--output", str(tmp_path / "out"), "--format", "torch", *checks, *weights]
    main(arguments)
    reported = capsys.readouterr().out
    assert "3 images, " in reported and ", 0 differ; boxes within " in reported
    about = json.loads((tmp_path / "out" / "detector.json").read_text("utf-8"))
    assert about["class_names"] and about["channel_order"] == "RGB"
    outcomes = about["agreement"]["detector.pt2"]
    assert [Path(o["image"]).name for o in outcomes] == [path.name for path in single]
    assert all(o["detections"] == o["exported"] > 0 and o["box"] < 0.01 for o in outcomes)


def test_a_difference_is_counted() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], dtype=np.float32)
    scores, classes = np.array([0.9, 0.5], dtype=np.float32), np.array([0, 1])
    same = (boxes, scores, classes)
    assert export_command.compare(same, same, 0.05) == (0, 0, 0, 0)
    assert export_command.compare(same, (boxes[::-1], scores[::-1], classes[::-1]), 0.05) == (0, 0, 0, 0)
    box, score, unmatched, _ = export_command.compare(same, (boxes + 0.5, scores - 0.25, classes), 0.05)
    assert (box, unmatched) == (0.5, 0) and score == pytest.approx(0.25)
    assert export_command.compare(same, (boxes, scores, classes[::-1]), 0.05)[2] == 4
    assert export_command.compare(same, (boxes[:1], scores[:1], classes[:1]), 0.05)[2] == 1
    assert export_command.compare((boxes[:0], scores[:0], classes[:0]), same, 0.05)[2] == 2
    found = (*same, np.ones((2, 4, 4), dtype=np.float32))
    masks = np.stack([pasted(mask, box, (50, 50)) for mask, box in zip(found[3], boxes, strict=True)])
    assert export_command.compare((*same, masks), found, 0.05) == (0, 0, 0, 0)
    masks[0, 5, 5] = masks[1, 30:33, 30:32] = False
    assert export_command.compare((*same, masks), found, 0.05) == (0, 0, 1, 7), "one pixel is rounding, six are not"


def test_refusals() -> None:
    with pytest.raises(UserError, match="only Faster and Mask R-CNN with an RPN"):
        ExportableDetector(detector("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"))
    model = detector(*MASKS)
    model.roi_heads.mask_head = torch.nn.Sequential()
    with pytest.raises(
        UserError, match="MaskRCNNConvUpsampleHead is known, and not Sequential; set MODEL.MASK_ON False"
    ):
        ExportableDetector(model)
    with pytest.raises(UserError, match="or StandardROIHeads without keypoints"):
        ExportableDetector(detector(*PYRAMID, "MODEL.KEYPOINT_ON", "True"))
    with pytest.raises(UserError, match="only the poolers ROIAlign and ROIAlignV2 are known"):
        ExportableDetector(detector(*PYRAMID, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"))
    model = detector()
    model.roi_heads.box_predictor.use_sigmoid_ce = True
    with pytest.raises(UserError, match="USE_SIGMOID_CE True is not known"):
        ExportableDetector(model)
    with pytest.raises(UserError, match="give the detector itself"):
        ExportableDetector(optimize_for_inference(detector()))
    wide = "MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.NUM_GROUPS 32".split()
    with pytest.raises(UserError, match="norm of .* depends on the batch"):
        ExportableDetector(detector("MODEL.RESNETS.NORM", "GN", *wide))


def test_traced_for_torchscript_takes_other_sizes() -> None:
    """`torch.jit.trace`, as detectron2's TracingAdapter does it; the head takes its plain path there."""
    model = detector()

    class Tensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image):
            found = self.model.inference([{"image": image}], do_postprocess=False)[0]
            return found.pred_boxes.tensor, found.scores, found.pred_classes

    with torch.no_grad():
        traced = torch.jit.trace(Tensors(), (torch.rand(3, 120, 150) * 255,), check_trace=False)
        image = torch.rand(3, 90, 200) * 255
        boxes, scores, classes = traced(image)
        (wanted,) = model.inference([{"image": image}], do_postprocess=False)
    theirs = [part.numpy() for part in (wanted.pred_boxes.tensor, wanted.scores, wanted.pred_classes)]
    box, score, unmatched, _ = export_command.compare(theirs, [boxes.numpy(), scores.numpy(), classes.numpy()], -1)
    assert len(boxes) == len(wanted) > 10 and box < 1e-3 and score < 1e-5 and unmatched == 0
