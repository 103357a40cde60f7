"""Images of other channels than three: read in full, standardized by their own statistics, a stem from RGB weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import TinyRun

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det import UserError, load_detector
from resnext_det.channels import read_channels
from resnext_det.commands import export, predict, show, train
from resnext_det.detection.channels import STEMS, adapted_stem, measured
from resnext_det.detection.config import setup
from resnext_det.detection.config_check import check_config
from resnext_det.detection.data.mapper import ResizeShortestEdge
from resnext_det.weights import Checkpoint, read_checkpoint

cv2 = pytest.importorskip("cv2")


def pixels_of(channels: int, dtype: str = "uint16") -> np.ndarray:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 9, channels), endpoint=True)
    return values.astype(dtype)


def write_png(path: Path, pixels: np.ndarray) -> None:
    order = [2, 1, 0, 3] if pixels.shape[2] == 4 else [0]
    assert cv2.imwrite(str(path), pixels[:, :, order])


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_in_full(channels: int, dtype: str, tmp_path: Path) -> None:
    pixels = pixels_of(channels, dtype)
    write_png(tmp_path / "a.png", pixels)
    found = read_channels(tmp_path / "a.png", channels)
    assert found.dtype == np.float32 and np.array_equal(found, pixels)
    if dtype == "uint8":  # Pillow as the oracle of the order
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(6, 9, channels), pixels)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("form", ["contig", "separate", "pages"])
def test_tiff_in_full(channels: int, form: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels, planes = pixels_of(channels), np.moveaxis(pixels_of(channels), 2, 0)
    if channels == 1:
        tifffile.imwrite(tmp_path / "a.tif", pixels[:, :, 0])
    elif form == "pages":
        tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack")
    else:
        data = pixels if form == "contig" else planes
        tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", planarconfig=form)
    assert np.array_equal(read_channels(tmp_path / "a.tif", channels), pixels)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", pixels_of(4))
    Image.new("RGB", (9, 6)).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    for name, message in (
        ("a.png", "has 4 channels and INPUT.CHANNELS is 1"), ("a.jpg", "is for PNG and TIFF"),
        ("b.png", "cannot be decoded"), ("c.png", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_channels(tmp_path / name, 1)
    with pytest.raises(UserError, match="limit"):
        read_channels(tmp_path / "a.png", 4, max_megapixels=1e-6)


def test_broken_tiff_is_one_line(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "a.tif").write_bytes(b"II*\0what")
    with pytest.raises(UserError, match="cannot be decoded"):
        read_channels(tmp_path / "a.tif", 1)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((4, 4), np.float64))
    with pytest.raises(UserError, match="has pixels of float64"):
        read_channels(tmp_path / "b.tif", 1)


def test_resizing_treats_each_channel_as_pillow_does_a_gray_image() -> None:
    image = pixels_of(4).astype(np.float32)
    found = ResizeShortestEdge([4], 100, "choice").get_transform(image).apply_image(image)
    for c in range(4):
        gray = Image.fromarray(image[:, :, c]).resize((6, 4), Image.Resampling.BILINEAR)
        assert np.array_equal(found[:, :, c], np.asarray(gray))


@pytest.mark.parametrize("how", STEMS)
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_an_image_of_equal_channels_has_the_response_of_the_rgb_weights(how: str, channels: int) -> None:
    weight, gray = torch.randn(5, 3, 7, 7, dtype=torch.double), torch.randn(1, 1, 20, 20, dtype=torch.double)
    tensors, facts = {"backbone.stem.conv1.weight": weight}, {"pixel_mean": [1, 2, 3]}
    checkpoint = Checkpoint(tensors, "native-detector", facts, Path(), "")
    adapted = adapted_stem(checkpoint, channels, how)
    (found,) = adapted.tensors.values()
    assert found.shape == (5, channels, 7, 7) and "pixel_mean" not in adapted.metadata
    if how == "mean" or channels % 3 == 0:
        expected = F.conv2d(gray.expand(1, 3, 20, 20), weight)
        torch.testing.assert_close(F.conv2d(gray.expand(1, channels, 20, 20), found), expected)
    assert adapted_stem(checkpoint, 3, how) is checkpoint


def test_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    files, parts = [], []
    for i in range(3):
        parts.append(np.random.default_rng(i).integers(0, 65536, (6, 9, 4)).astype(np.uint16))
        write_png(tmp_path / f"{i}.png", parts[-1])
        files.append(str(tmp_path / f"{i}.png"))
    everything = np.concatenate(parts).reshape(-1, 4).astype(float)
    mean, std = measured(files, 4, 1.0)
    assert mean == pytest.approx(everything.mean(0), abs=1e-4) and std == pytest.approx(everything.std(0), abs=1e-4)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("INPUT.CHANNELS", "0"), "INPUT.CHANNELS 0: must be at least 1"),
        (("INPUT.STEM", "sum"), "choose from mean, repeat"),
        (("INPUT.CHANNELS", "1", "DATASETS.BROKEN_IMAGES", "load"), "set error or skip"),
        (("INPUT.CHANNELS", "1", "INPUT.COLOR.SATURATION", "0.1"), "is of RGB images"),
    ],
)
def test_nonsense_is_refused(pairs: tuple[str, ...], message: str, tmp_path: Path) -> None:
    cfg = setup(str(TinyRun(tmp_path).file), pairs)
    with pytest.raises(UserError, match=message):
        check_config(cfg, eval_only=False)


def as_16_bits_of_gray(run: TinyRun) -> None:
    """The sets of ``run`` with the red channel of their images, stretched to 16 bits."""
    for _, file, image_root in run.sets:
        document = json.loads(Path(file).read_text())
        for record in document["images"]:
            path = Path(image_root, record["file_name"])
            red = np.asarray(Image.open(path).convert("RGB"))[:, :, :1].astype(np.uint16) * 257
            path.unlink()
            write_png(path.with_suffix(".png"), red)
            record["file_name"] = path.with_suffix(".png").name
        Path(file).write_text(json.dumps(document))


def test_a_run_on_16_bits_of_gray_from_rgb_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = TinyRun(tmp_path)
    file = ["--config-file", str(run.file)]
    train.main([*file, *run.options("rgb", "SOLVER.MAX_ITER", 1)])
    as_16_bits_of_gray(run)
    gray = run.options("gray", "INPUT.CHANNELS", 1)
    train.main([*file, *gray, "MODEL.WEIGHTS", str(tmp_path / "rgb" / "model_final.pth")])
    said = capsys.readouterr().out
    assert "mean of the RGB filters, times 3/1, for INPUT.CHANNELS 1" in said and "measured on 6 training" in said
    weights = str(tmp_path / "gray" / "model_final.pth")
    trained = read_checkpoint(weights)
    (mean,), (std,) = trained.metadata["pixel_mean"], trained.metadata["pixel_std"]
    assert 90 * 257 < mean < 160 * 257 and std > 1000, "of 16 bits"
    assert trained.tensors["backbone.stem.conv1.weight"].shape[1] == 1
    results = json.loads((tmp_path / "gray" / "results.json").read_text())
    train.main([*file, "--eval-only", *gray, "MODEL.WEIGHTS", weights])
    assert json.loads((tmp_path / "gray" / "results.json").read_text()) == results
    show.main([*file, "--images", "2", "--out", str(tmp_path / "seen.png"), *gray])
    # Prediction sees what evaluation sees, as a command and in Python.
    _, labels, image_root = run.sets[1]
    (file_found,) = (tmp_path / "gray" / "inference").glob("*/coco_instances_results.json")
    evaluated = json.loads(file_found.read_text())
    out = ["--output", str(tmp_path / "found"), "--ids-from", labels]
    predict.main(["--weights", weights, "--input", image_root, *out, "--score-threshold", "0"])
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"]
    detector = load_detector(weights, score_threshold=0)
    files = [Path(image_root, r["file_name"]) for r in json.loads(Path(labels).read_text())["images"]]

    def keyed(records):
        return sorted((r["image_id"], r["category_id"], round(r["score"], 4)) for r in records)

    assert evaluated and keyed(found) == keyed(evaluated)
    assert sum(len(one) for one in detector(files)) == len(evaluated)
    pixels = read_channels(files[0], 1)
    assert np.array_equal(detector(pixels).boxes, detector(files[0]).boxes)
    assert detector(pixels).draw().mode == "RGB"
    with pytest.raises(UserError, match=r"INPUT.CHANNELS 1; give a file or \(H, W, 1\)"):
        detector(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match="an export is for RGB"):
        export.main(["--weights", weights, "--output", str(tmp_path / "exported")])
