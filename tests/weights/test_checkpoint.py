"""Files of every kind read as one kind of object, and written so that everything comes back."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import caffe2_names, randomise_norms
from torch import Tensor

from resnext_det import UserError, compat, create_model
from resnext_det.variants import parse_name
from resnext_det.weights import load_strictly, read_checkpoint, save_checkpoint
from resnext_det.weights.conversion import summary
from resnext_det.weights.metadata import FAIR_RESNEXT, IMAGENET_RGB, MSRA, architecture_of
from resnext_det.weights.naming import from_native


@pytest.fixture
def state() -> dict[str, Tensor]:
    return randomise_norms(create_model("resnext14_8x14d", num_classes=10)).state_dict()


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tensors_and_metadata_come_back(state, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    metadata = {**IMAGENET_RGB, "class_names": ["a", "b"], "recipe": "paper", "top1_error": 22.2, "input_size": 224}
    save_checkpoint(path, state, metadata)
    read = read_checkpoint(path)
    assert same_tensors(read.tensors, state)
    assert read.source == "native-classifier"
    assert read.metadata == {**metadata, **architecture_of(state)}
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_pth_opens_as_plain_tensors(state, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", state, {"recipe": "paper"})
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["metadata"] == {"recipe": "paper"} and same_tensors(content["model"], state)


@pytest.mark.parametrize("first", [b"\x80", b"PK", b"\x1f\x8b", b"<"])
def test_safetensors_that_begin_like_another_file(first: bytes, state, tmp_path: Path) -> None:
    """The first bytes are the header's length, so any can stand there."""
    save_checkpoint(tmp_path / "a.safetensors", state, {})
    data = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    padding = next(n for n in range(1 << 16) if (length + n).to_bytes(8, "little").startswith(first))
    header = data[8 : 8 + length] + b" " * padding
    (tmp_path / "a.safetensors").write_bytes((length + padding).to_bytes(8, "little") + header + data[8 + length :])
    assert same_tensors(read_checkpoint(tmp_path / "a.safetensors").tensors, state)


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    """safetensors' own writer has the header's two texts in either order."""
    written = set()
    for _ in range(20):
        save_checkpoint(tmp_path / "a.safetensors", {"é": torch.ones(3)}, {"class_names": ['é\x7f"\n']})
        written.add((tmp_path / "a.safetensors").read_bytes())
    assert len(written) == 1


def test_safetensors_open_elsewhere(state, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", state, {})
    assert same_tensors(safetensors.torch.load_file(tmp_path / "a.safetensors"), state)


def test_a_failed_write_leaves_the_old_file(state, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, state, {})
    before = path.read_bytes()
    with pytest.raises(UserError, match="metadata may hold plain values only"):
        save_checkpoint(path, state, {"recipe": "x", "model": object()})
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="weights are written as .pth or .safetensors"):
        save_checkpoint(tmp_path / "a.pkl", state, {})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
        lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}, "best_acc1": np.float64(77.0)},
        lambda s: {"model": {f"module._orig_mod.{key}": value for key, value in s.items()}},
        lambda s: {"model": {"unused": torch.ones(1)}, "model_ema": {"n_averaged": torch.tensor(5)} | s},
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1)},
    ],
    ids=["bare", "state_dict", "model", "module", "compiled", "model_ema", "arguments"],
)
def test_wrappings(state, wrap, tmp_path: Path) -> None:
    torch.save(wrap(from_native(state, "torchvision", "test")), tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read.source == "torchvision" and same_tensors(read.tensors, state)
    assert read.metadata["channel_order"] == "RGB" and read.metadata["source_sha256"] == read.sha256


def test_files_of_old_torch(state, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert same_tensors(read_checkpoint(tmp_path / "a.pth").tensors, state)


def test_files_of_a_run(state, tmp_path: Path) -> None:
    pytest.importorskip("fvcore")
    from resnext_det.engine.checkpoint import RunCheckpointer

    model = create_model("resnext14_8x14d", num_classes=10)
    model.load_state_dict(state)
    metadata = {**IMAGENET_RGB, "class_names": ["cat"]}
    RunCheckpointer(model, str(tmp_path), metadata).save("model_final", iteration=7)
    read = read_checkpoint(tmp_path / "model_final.pth")
    assert read.source == "native-classifier" and same_tensors(read.tensors, state)
    assert read.metadata["class_names"] == ["cat"] and read.metadata["channel_order"] == "RGB"


def test_detectron2s_conversion_of_torchvision(state, tmp_path: Path) -> None:
    """As its tools/convert-torchvision-to-d2.py writes them, fc under a stem."""
    arrays = {f"stem.{key}" if key.startswith("fc.") else key: value.numpy() for key, value in state.items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    read = read_checkpoint(tmp_path / "R-50.pkl")
    assert same_tensors(read.tensors, state)
    assert IMAGENET_RGB.items() <= read.metadata.items()


def test_the_average_is_preferred_and_reported(state, tmp_path: Path) -> None:
    average = {f"module.{key}": value for key, value in state.items()} | {"n_averaged": torch.tensor(3)}
    raw = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": raw, "model_ema": average, "iteration": 7, "metadata": {}}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert same_tensors(read.tensors, state) and str(read) == f"{tmp_path / 'a.pth'} (model_ema)"
    assert "source: native-classifier (model_ema), " in summary(read)


def test_old_detectron2_detectors(tmp_path: Path) -> None:
    model = {
        "backbone.stem.conv1.weight": torch.ones(64, 3, 7, 7),
        "pixel_mean": torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4),
    }
    torch.save({"model": model, "iteration": 1}, tmp_path / "model_final.pth")
    read = read_checkpoint(tmp_path / "model_final.pth")
    assert read.source == "detectron2-detector" and list(read.tensors) == ["backbone.stem.conv1.weight"]
    assert read.metadata["pixel_mean"] == [1.0, 2.0, 3.0] and "channel_order" not in read.metadata


@pytest.mark.parametrize(
    ("name", "preset", "statistics"),
    [
        ("resnet50", MSRA, False),
        ("resnext50_32x4d", FAIR_RESNEXT, True),
        pytest.param("resnext101_32x8d", FAIR_RESNEXT, False, marks=pytest.mark.slow),
    ],
)
def test_zoo_pickles_give_the_features_of_detectron2s_own_loader(name, preset, statistics, tmp_path: Path) -> None:
    if compat.detectron2_folder() is None:
        pytest.skip("no detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    stride_in_1x1 = preset["stride_in_1x1"]
    blobs = caffe2_names(randomise_norms(create_model(name)).state_dict(), statistics)
    blobs |= {"conv1_w_momentum": np.ones(3, np.float32), "conv1_b": np.ones(64, np.float32)}  # both unused
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(blobs if statistics else {"blobs": blobs}, protocol=2))

    read = read_checkpoint(path)
    assert read.source == "detectron2-zoo"
    assert {key: read.metadata[key] for key in preset} == preset
    ours = create_model(name, stride_in_1x1=stride_in_1x1).eval()
    report = load_strictly(ours, read)
    assert not report.new and not report.unused

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    variant = parse_name(name)
    cfg.MODEL.RESNETS.DEPTH = variant.depth
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = variant.cardinality, variant.width
    stock = torch.nn.Module()
    stock.backbone = build_backbone(cfg).eval()
    DetectionCheckpointer(stock).load(str(path))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = stock.backbone(x)["res5"]
        features = ours.res5(ours.res4(ours.res3(ours.res2(ours.stem(x)))))
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
