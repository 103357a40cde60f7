"""Prediction on images and videos, with a detector that finds the one white rectangle in an image."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from resnext_det import UserError, create_model
from resnext_det.commands import predict as command
from resnext_det.detection.config import add_resnext_config
from resnext_det.detection.prediction import detector as module
from resnext_det.detection.prediction.command import split_settings
from resnext_det.detection.prediction.detector import Predictor
from resnext_det.prediction.inputs import find_inputs, read_rgb
from resnext_det.prediction.run import predict
from resnext_det.weights import save_checkpoint


class WhiteRectangle(torch.nn.Module):
    """Gives the box of what is bright, its mean blue as the score, and class 1; remembers its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, inputs):
        self.batches.append(len(inputs))
        outputs = []
        for given in inputs:
            image = given["image"]
            rows, columns = torch.where(image[2] > 128)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            scale = given["width"] / image.shape[2]
            instances = Instances((given["height"], given["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[float(v) for v in box], [0, 0, 1, 1]]) * scale)
            instances.scores = torch.stack([image[0][rows, columns].mean() / 255, torch.tensor(0.1)])
            instances.pred_classes = torch.tensor([1, 0])
            outputs.append({"instances": instances})
        return outputs


def scene(left: int = 20, top: int = 10, width: int = 160, height: int = 100) -> np.ndarray:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[top : top + 40, left : left + 60] = (255, 255, 204)  # RGB
    return pixels


@pytest.fixture
def detector():
    return Predictor(WhiteRectangle(), min_size=200, max_size=1000)


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}]


def run(detector, folder, inputs, **choices):
    summary = predict(detector, inputs, folder, **{"categories": CATEGORIES, **choices})
    return summary, json.loads((folder / "detections.json").read_text())


def test_images_are_resized_in_order_and_given_back_in_their_own_pixels(detector, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(scene(left=20 + 10 * number)).save(tmp_path / "in" / f"{number}.png")
    Image.fromarray(scene()).save(tmp_path / "in" / "sub" / "0.png")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    lines = []
    inputs = find_inputs([str(tmp_path / "in")])
    summary, content = run(detector, tmp_path / "out", inputs, batch_size=3, progress=lines.append)
    assert detector._model.batches == [3, 1]
    assert (summary.frames, summary.detections) == (4, 4)
    assert "4/4 images" in lines[-1] and "0 s left" in lines[-1]
    assert [c["name"] for c in content["categories"]] == ["dog", "cat"]
    for number, (image, found) in enumerate(zip(content["images"], content["annotations"], strict=True)):
        assert (found["image_id"], found["category_id"]) == (image["id"], 9)
        np.testing.assert_allclose(found["bbox"], [20 + 10 * (number % 3), 10, 60, 40], atol=1)
        assert found["score"] == pytest.approx(204 / 255, abs=0.02), "the first channel is blue"
    drawn = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert drawn == ["0.png", "0_2.png", "1.png", "2.png"]
    changed = np.asarray(Image.open(tmp_path / "out" / "0.png")) != scene()
    assert changed[10, 40:70].any() and not changed[70:].any()


@pytest.mark.parametrize("size", [(9000, 2), (2, 9000)])
def test_case_37_a_image_thinner_than_a_pixel_once_resized(detector, size):
    (found,) = detector([np.full((*size, 3), 255, dtype=np.uint8)])
    assert len(found) == 2 and np.isfinite(found.boxes).all()


def test_exif_orientation_is_respected(tmp_path):
    image = Image.fromarray(scene())
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = read_rgb(tmp_path / "turned.jpg")
    assert pixels.shape == (160, 100, 3)
    assert pixels[40, 70].min() > 128 and pixels[40, 20].max() < 128


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(scene()).convert(mode).save(path)
    assert read_rgb(path).shape == (100, 160, 3)


def test_sixteen_bits_are_read_as_in_training(tmp_path):
    gray = np.linspace(0, 65535, 160 * 100, dtype=np.uint16).reshape(100, 160)
    Image.fromarray(gray).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), np.repeat((gray >> 8)[:, :, None], 3, axis=2))


def test_broken_images_by_policy(detector, tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.mp4").write_bytes(b"not a video")
    inputs = find_inputs([str(tmp_path)])
    with pytest.raises(UserError, match="b.png: cannot be decoded.*--broken skip"):
        run(detector, tmp_path / "out", inputs)
    summary, content = run(detector, tmp_path / "out", inputs, broken="skip")
    assert [text.partition(":")[0].rsplit("/")[-1] for text in summary.broken] == ["b.png", "c.mp4"]
    assert len(content["images"]) == 1


def test_files_patterns_folders_and_stdin(tmp_path):
    for name in ("a.png", "b.png", "c.jpg"):
        Image.fromarray(scene()).save(tmp_path / name)
    names = [path.name for path in find_inputs([str(tmp_path / "*.png"), "-"], [f"{tmp_path}/c.jpg\n", "\n"])]
    assert names == ["a.png", "b.png", "c.jpg"]
    with pytest.raises(UserError, match="no such file"):
        find_inputs([str(tmp_path / "none*.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        find_inputs([str(tmp_path / "empty")])


@pytest.mark.parametrize("name, code", [("clip.avi", "MJPG"), ("clip.mp4", "mp4v")])
def test_a_video_in_and_out(detector, tmp_path, name, code):
    video = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*code), 12.0, (160, 100))
    if not video.isOpened():
        pytest.skip(f"this OpenCV cannot write {code}")
    for number in range(10):
        video.write(np.ascontiguousarray(scene(left=5 * number)[:, :, ::-1]))
    video.release()
    summary, content = run(detector, tmp_path / "out", find_inputs([str(tmp_path / name)]), batch_size=4)
    assert summary.frames == 10 and [image["frame"] for image in content["images"]] == list(range(10))
    lefts = [found["bbox"][0] for found in content["annotations"]]
    np.testing.assert_allclose(lefts, 5 * np.arange(10), atol=2)
    drawn = cv2.VideoCapture(str(tmp_path / "out" / name))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 10 and drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    there, pixels = drawn.read()
    # the box's left edge has the class's color now
    assert there and np.abs(pixels[30, 0:3].astype(int).mean(0) - pixels[30, 40]).max() > 40


def test_settings_are_distinguished_from_inputs():
    assert split_settings(["a.jpg", "MODEL.WEIGHTS", "w.pth"], ["SEED", "1"]) == (
        ["a.jpg"],
        ["MODEL.WEIGHTS", "w.pth", "SEED", "1"],
    )
    assert split_settings(["a.jpg", "b.MODEL"], []) == (["a.jpg", "b.MODEL"], [])


def test_class_names_come_from_the_weights_where_the_set_does_not_fit(tmp_path, caplog):
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}],
        "annotations": [],
        "categories": [{"id": i, "name": f"n{i}"} for i in (0, 2, 5)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("not_here",)
    assert module.categories_of(cfg, ["n2", "n5"]) == ([1, 2], ["n2", "n5"])
    assert module.categories_of(cfg, ["n2"]) == module.categories_of(cfg) == ([1, 2], ["class 1", "class 2"])
    cfg.DATASETS.REGISTER = [["not_here", str(tmp_path / "truth.json"), str(tmp_path)]]  # n0 is an unused root
    assert module.categories_of(cfg, ["n2", "n5"]) == ([2, 5], ["n2", "n5"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    assert module.categories_of(cfg) == ([0, 2, 5], ["n0", "n2", "n5"])
    assert not caplog.text
    assert module.categories_of(cfg, ["n5", "n0", "n2"]) == ([5, 0, 2], ["n5", "n0", "n2"])
    assert "in another order" in caplog.text
    with pytest.raises(UserError, match="not_here: its classes are not those of the weights"):
        module.categories_of(cfg, ["a", "n0", "n2"])


def test_command_line(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(get_cfg().dump())
    save_checkpoint(tmp_path / "w.pth", create_model("resnet14", 2).state_dict(), {})
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}],
        "annotations": [],
        "categories": [{"id": i, "name": f"n{i}"} for i in (4, 2)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    Image.fromarray(scene()).save(tmp_path / "a.png")

    def load(cfg, read, examples):
        assert cfg.MODEL.RESNEXT.INFERENCE_DTYPE == "bf16"
        assert cfg.MODEL.WEIGHTS == str(tmp_path / "w.pth")
        assert [example.shape for example in examples()] == [scene().shape]  # for int8
        detector = Predictor(WhiteRectangle(), min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=1000)
        return detector, *module.categories_of(cfg)

    monkeypatch.setattr("resnext_det.detection.prediction.command.load_predictor", load)
    files = [
        "--config-file",
        tmp_path / "config.yaml",
        "--dtype",
        "bf16",
        "--output",
        tmp_path / "out",
        "--input",
        tmp_path / "a.png",
    ]
    register = [["set", str(tmp_path / "truth.json"), "."]]
    settings = ["MODEL.WEIGHTS", tmp_path / "w.pth", "DATASETS.TEST", "('set',)", "DATASETS.REGISTER", register]
    settings += ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu"]
    command.main([str(part) for part in files + settings])
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["annotations"][0]["category_id"] == 4 and content["categories"][1]["name"] == "n4"
    with pytest.raises(UserError, match="no such file"):
        command.main([str(part) for part in files[:-1] + ["missing.png"] + settings])
