"""What prediction must never do to its inputs, and what is left of a run that ended early."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from forked import group_is_empty, start, wait
from matplotlib.font_manager import findSystemFonts
from PIL import Image
from tiny import TinyRun

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from resnext_det import UserError, load_detector
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.evaluation import evaluate
from resnext_det.annotations.predicted import match_files, read_predictions
from resnext_det.commands import evaluate as evaluate_command
from resnext_det.commands import predict as command
from resnext_det.detection.initial_weights import architecture
from resnext_det.prediction import parts
from resnext_det.prediction.drawings import targets
from resnext_det.prediction.inputs import find_inputs, frames_of, spread
from resnext_det.prediction.run import predict
from resnext_det.reporting import boxes
from resnext_det.reporting.boxes import drawable
from resnext_det.weights import save_checkpoint

CATEGORIES = [{"id": 4, "name": "thing"}]


def white(pixels) -> list[Detections]:
    """One box for each image, its score the mean of the image."""
    one = np.zeros(1, dtype=np.int64)
    box = np.array([[0, 0, 5, 5]], dtype=np.float32)
    return [Detections(one, one.copy(), box.copy(), np.array([image.mean() / 255])) for image in pixels]


def write(folder: Path, number: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(np.full((20, 30, 3), (100 + 10 * i) % 256, dtype=np.uint8)).save(folder / f"{i:02}.png")
    return sorted(folder.glob("*.png"))


def write_video(path: Path, frames: int) -> None:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12.0, (160, 100))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write mp4v")
    rng = np.random.default_rng(0)
    for i in range(frames):
        pixels = rng.integers(0, 60, (100, 160, 3)).astype(np.uint8)
        pixels[:, : 4 * i + 1] = 255
        video.write(pixels)
    video.release()


def run(paths, folder, **choices):
    return predict(white, paths, folder, **{"categories": CATEGORIES, "score_threshold": 0.1, **choices})


def content(folder: Path) -> dict:
    return json.loads((folder / "detections.json").read_text())


# Inputs stay whole


@pytest.mark.parametrize("output", ["in", "link", "in/sub/.."])
def test_an_output_that_would_replace_an_input_is_refused(tmp_path, output):
    paths = write(tmp_path / "in", 2)
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "link").symlink_to("in")
    before = [path.read_bytes() for path in paths]
    with pytest.raises(UserError, match="would replace the input .*--no-drawings"):
        run(find_inputs([str(tmp_path / "in")], output=tmp_path / output), tmp_path / output)
    assert [path.read_bytes() for path in paths] == before and sorted((tmp_path / "in").glob("*.png")) == paths
    run(paths, tmp_path / output, draw=False)  # the JSON replaces nothing
    assert [path.read_bytes() for path in paths] == before


def test_a_hard_link_to_an_input_is_an_input(tmp_path):
    (path, other) = write(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    os.link(path, tmp_path / "out" / other.name)
    with pytest.raises(UserError, match="would replace the input"):
        targets([path, other], tmp_path / "out")


def test_links_in_the_output_folder_are_not_followed(tmp_path):
    paths = write(tmp_path / "in", 2)
    write_video(tmp_path / "in" / "v.mp4", 3)
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("00.png", "v.mp4", "detections.json", "parts"):
        (tmp_path / "out" / name).symlink_to(precious if name != "parts" else tmp_path)
    run([*paths, tmp_path / "in" / "v.mp4"], tmp_path / "out")
    assert precious.read_text() == "mine" and not (tmp_path / "manifest.json").exists()
    assert not any((tmp_path / "out" / name).is_symlink() for name in ("00.png", "v.mp4", "detections.json", "parts"))
    assert cv2.VideoCapture(str(tmp_path / "out" / "v.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_what_is_found_and_what_is_left_out(tmp_path, caplog):
    write(tmp_path / "in", 2)
    for name in ("a.jfif", "b.JP2", "c.wmv", "d.mts", "notes.txt", "no_ending"):
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in" / "best.jpg").mkdir()
    run([tmp_path / "in" / "00.png"], tmp_path / "in" / "out")
    with caplog.at_level(logging.INFO):
        inputs = [str(tmp_path / "in"), str(tmp_path / "in" / "0*.png"), str(tmp_path / "in" / ".." / "in" / "00.png")]
        found = find_inputs(inputs, output=tmp_path / "in" / "out")
    assert [path.name for path in found] == ["00.png", "01.png", "a.jfif", "b.JP2", "c.wmv", "d.mts"]
    assert "left out, neither images nor videos by their ending: 2 (1 no ending, 1 .txt)" in caplog.text
    assert "in the output folder" in caplog.text and "out': 1" in caplog.text
    with pytest.raises(UserError, match="txt: no images"):
        find_inputs([str(tmp_path / "in" / "*.txt")])


def test_frames_behind_a_damaged_place_are_read(tmp_path):
    write_video(tmp_path / "v.mp4", 40)
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    (tmp_path / "v.mp4").write_bytes(data)
    lines = []
    frames = list(frames_of(tmp_path / "v.mp4", missing=lines.append))
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices)) and indices[-1] == 39 and 20 < len(indices) < 40
    assert f"{40 - len(indices)} of 40 frames cannot be read" in lines[0]
    last = (frames[-1].pixels[50].mean(-1) > 150).sum()
    assert last == pytest.approx(4 * 39 + 1, abs=3), "frames keep their numbers"


def test_examples_are_spread_over_inputs_and_frames(tmp_path):
    paths = write(tmp_path / "in", 9)
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    values = [int(pixels[0, 0, 0]) for pixels in spread(paths, 3)]
    assert values == [100, 130, 160]
    write_video(tmp_path / "v.mp4", 39)
    widths = [int((pixels[50].mean(-1) > 150).sum()) for pixels in spread([tmp_path / "v.mp4"], 3)]
    assert len(widths) == 3 and widths[0] > 20 and widths[-1] > 120


@pytest.mark.parametrize("value", [50, -0.1, float("nan")])
def test_a_threshold_is_between_0_and_1(tmp_path, value):
    with pytest.raises(UserError, match="--score-threshold .* between 0 and 1"):
        run(write(tmp_path / "in", 1), tmp_path / "out", score_threshold=value)


def test_the_limit_on_pixels_holds(tmp_path):
    with pytest.raises(UserError, match="megapixels"):
        run(write(tmp_path / "in", 1), tmp_path / "out", max_megapixels=0.0001)


def test_names_are_drawn_as_plain_text_or_as_the_id(monkeypatch):
    assert drawable("$1_$ <b>", "7") == "$1_$ <b>"
    monkeypatch.setattr(boxes, "_system_fonts", list)
    assert drawable("\U00013000 of no font", "7") == "7"
    (path,) = [path for path in findSystemFonts() if path.endswith("DejaVuSans.ttf")][:1] or [None]
    monkeypatch.setattr(boxes, "_system_fonts", lambda: [("none.ttf", frozenset()), (path, frozenset({0x0531}))])
    assert drawable("\u0531", "7") == "\u0531"  # Armenian
    if path:
        black = np.zeros((60, 120, 3), dtype=np.uint8)
        texts = [
            boxes.draw_boxes(black, np.array([[0, 40, 9, 9]]), [text], [(9, 9, 9)]) for text in ("\u0531", "\x1b[31m")
        ]
        assert np.asarray(texts[0]).max() > 200 and np.asarray(texts[1]).max() > 200


# What is done is never lost


def test_a_broken_image_leaves_what_is_done_and_resume_goes_on(tmp_path, caplog):
    paths = write(tmp_path / "in", 6)
    undisturbed = tmp_path / "undisturbed"
    whole = paths[4].read_bytes()
    run(paths, undisturbed)
    paths[4].write_bytes(whole[:-30])
    with pytest.raises(UserError, match="04.png.*--broken skip"):
        run(paths, tmp_path / "out")
    assert "4 of 6 done so far" in caplog.text and not (tmp_path / "out" / "detections.json").exists()
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    paths[4].write_bytes(whole)
    with pytest.raises(UserError, match="began with score_threshold 0.1, this one has 0.2"):
        run(paths, tmp_path / "out", resume=True, score_threshold=0.2)
    with pytest.raises(UserError, match="began with inputs 6, this one has 5"):
        run(paths[:5], tmp_path / "out", resume=True)
    looked_at = []
    predict(
        lambda pixels: looked_at.extend(pixels) or white(pixels),
        paths, tmp_path / "out", categories=CATEGORIES, score_threshold=0.1, resume=True,
    )  # fmt: skip
    assert len(looked_at) == 2
    for name in ("detections.json", *(path.name for path in paths)):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()
    images = content(tmp_path / "out")["images"]
    assert [image["id"] for image in images] == [1, 2, 3, 4, 5, 6]


def test_torn_lines_and_units_are_computed_again(tmp_path):
    paths = write(tmp_path / "in", 6)
    run(paths, tmp_path / "whole", batch_size=2)
    (part,) = (tmp_path / "whole" / "parts").glob("*.jsonl")
    data = part.read_bytes()
    for end in random.Random(0).sample(range(len(data)), 25):
        folder = tmp_path / str(end)
        run(paths, folder, batch_size=2)
        (torn,) = (folder / "parts").glob("*.jsonl")
        torn.write_bytes(data[:end])
        (folder / "detections.json").unlink()
        run(paths, folder, batch_size=2, resume=True)
        assert (folder / "detections.json").read_bytes() == (tmp_path / "whole" / "detections.json").read_bytes()


def test_lines_and_rows_hold_what_coco_does(tmp_path):
    """A whole run is merged again into another form; scores below the threshold leave images without detections."""
    paths = write(tmp_path / "in", 5)
    run(paths, tmp_path / "out", score_threshold=0.45)
    whole = content(tmp_path / "out")
    found = {
        image["id"]: [a for a in whole["annotations"] if a["image_id"] == image["id"]] for image in whole["images"]
    }
    kept = {i: [{key: a[key] for key in ("bbox", "score", "category_id")} for a in found[i]] for i in found}
    wanted = [{**image, "annotations": kept[image["id"]]} for image in whole["images"]]
    assert [len(row["annotations"]) for row in wanted] == [0, 0, 1, 1, 1]
    again = {"score_threshold": 0.45, "resume": True}
    lines = run(paths, tmp_path / "out", form="jsonl", **again).path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == wanted
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(run(paths, tmp_path / "out", form="parquet", **again).path)
    assert json.loads(table.schema.metadata[b"categories"]) == CATEGORIES
    without = {"segmentation": None, "keypoints": None}
    rows = [{**row, "frame": None, "annotations": [{**a, **without} for a in row["annotations"]]} for row in wanted]
    assert table.to_pylist() == rows


def test_parquet_without_its_library_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"--format parquet: needs pyarrow: pip install 'resnext-det\[parquet\]'"):
        run(write(tmp_path / "in", 1), tmp_path / "out", form="parquet")
    assert not (tmp_path / "out").exists()


def test_results_of_an_earlier_run_do_not_stay_beside_new_ones(tmp_path, caplog):
    paths = write(tmp_path / "in", 3)
    run(paths, tmp_path / "out")
    before = (tmp_path / "out" / "detections.json").read_bytes()
    run(paths[:1], tmp_path / "out")
    assert len(content(tmp_path / "out")["images"]) == 1
    assert (tmp_path / "out" / "earlier_run_1" / "detections.json").read_bytes() == before
    assert "earlier_run_1" in caplog.text


def test_two_runs_do_not_share_a_folder(tmp_path):
    paths = write(tmp_path / "in", 2)
    run(paths, tmp_path / "out")
    with parts.Part(tmp_path / "out", 0), pytest.raises(UserError, match="another prediction is at work"):
        run(paths, tmp_path / "out", resume=True)
    run(paths, tmp_path / "out", resume=True)


def test_the_best_score_is_known_where_nothing_is_above_the_threshold(tmp_path):
    summary = run(write(tmp_path / "in", 3), tmp_path / "out", score_threshold=0.9)
    assert summary.detections == 0 and summary.best == pytest.approx(120 / 255)


def test_results_are_rated_by_the_ids_of_a_set_or_by_names(tmp_path):
    paths = write(tmp_path / "val", 3)
    size = {"width": 30, "height": 20}
    images = [{"id": 10 - i, "file_name": f"val/{path.name}", **size} for i, path in enumerate(paths)]
    truth = {"images": images, "categories": [{"id": 1, "name": "other"}, {"id": 4, "name": "thing"}]}
    truth["annotations"] = [
        {"id": i, "image_id": image["id"], "category_id": 4, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        for i, image in enumerate(images, 1)
    ]
    (tmp_path / "set.json").write_text(json.dumps(truth))
    ids = match_files(map(str, paths), images, "set.json")
    categories = [{"id": 7, "name": "thing"}, {"id": 4, "name": "other"}]  # numbered in another way
    run(paths, tmp_path / "ids", image_ids=ids, categories=[{"id": 4, "name": "thing"}, {"id": 1, "name": "other"}])
    found = content(tmp_path / "ids")
    assert [image["id"] for image in found["images"]] == [10, 9, 8]
    assert evaluate(read_ground_truth(truth), Detections.from_records(found["annotations"])).results()["AP"] == 100
    run(paths, tmp_path / "own", categories=categories)
    for output in ("ids", "own"):
        files = ["--gt", tmp_path / "set.json", "--dt", tmp_path / output / "detections.json"]
        evaluate_command.main([str(word) for word in (*files, "--out", tmp_path / "results.json")])
        assert json.loads((tmp_path / "results.json").read_text())["bbox"]["AP"] == 100
    with pytest.raises(UserError, match="1 of 4 images are not among its images, such as .*x.png"):
        match_files(map(str, [*paths, tmp_path / "x.png"]), images, "set.json")
    run(paths, tmp_path / "new", categories=[*categories[:1], {"id": 4, "name": "new"}])
    with pytest.raises(UserError, match="its classes are not those of .*'new'"):
        read_predictions(tmp_path / "new" / "detections.json", read_ground_truth(truth))
    assert read_predictions(tmp_path / "set.json", read_ground_truth(truth)) is None  # ground truth: no scores


# A real, tiny detector


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[TinyRun, Path]:
    """Weights that hold their configuration, as a training writes them; they find something by chance."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = TinyRun(folder)
    cfg = tiny.config("run")
    torch.manual_seed(0)
    from resnext_det.detection.data.loaders import register_sets

    register_sets(cfg.DATASETS.REGISTER)
    facts = {**architecture(cfg), "config": cfg.dump()}
    save_checkpoint(folder / "detector.pth", build_model(cfg).state_dict(), facts)
    return tiny, folder / "detector.pth"


def test_three_lines_of_python(trained, tmp_path):
    tiny, weights = trained
    detector = load_detector(weights, dtype="fp32", device="cpu", score_threshold=0.0)
    path = Path(tiny.sets[1][2]) / "0.png"
    pixels = np.asarray(Image.open(path))
    of_path, of_array, of_pillow = detector(path), detector(pixels), detector([Image.open(path)])[0]
    assert len(of_path) > 0 and set(of_path.names) <= {"red", "blue"}
    for other in (of_array, of_pillow):
        np.testing.assert_array_equal(of_path.boxes, other.boxes)
        np.testing.assert_array_equal(of_path.scores, other.scores)
    record = of_path.to_coco(image_id=5)[0]
    x1, y1, x2, y2 = of_path.boxes[0].tolist()
    assert record["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-4)
    assert record["image_id"] == 5 and record["category_id"] == {"red": 3, "blue": 8}[of_path.names[0]]
    assert of_path.draw().size == (80, 64) and (np.asarray(of_path.draw()) != pixels).any()
    arguments = of_path.for_supervision()
    assert arguments["xyxy"].shape == (len(of_path), 4) and arguments["class_id"].dtype.kind == "i"
    assert list(arguments["data"]["class_name"]) == of_path.names
    assert detector(path, score_threshold=1.0).names == []
    with pytest.raises(UserError, match=r"\(64, 80\) of uint8; give \(H, W, 3\) uint8 in RGB"):
        detector(pixels[:, :, 0])


def test_the_thresholds_of_the_weights_count_unless_one_is_named(trained, tmp_path, caplog):
    tiny, weights = trained
    path = Path(tiny.sets[1][2]) / "0.png"
    data = torch.load(weights, weights_only=True)
    every = load_detector(weights, dtype="fp32", device="cpu", score_threshold=0.0)(path)
    most = max(every.names, key=every.names.count)
    median = float(np.median([score for name, score in zip(every.names, every.scores, strict=True) if name == most]))
    thresholds = {name: median if name == most else 0.0 for name in ("red", "blue")}
    data["metadata"] |= {"thresholds": list(thresholds.values())}
    torch.save(data, tmp_path / "w.pth")
    found = load_detector(tmp_path / "w.pth", dtype="fp32", device="cpu")(path)
    kept = [score >= thresholds[name] for name, score in zip(every.names, every.scores, strict=True)]
    assert 0 < len(found) == sum(kept) < len(every)
    words = ["--weights", tmp_path / "w.pth", "--dtype", "fp32", "--input", path]
    with caplog.at_level("INFO"):
        command.main([str(word) for word in [*words, "--output", tmp_path / "own"]])
        command.main([str(word) for word in [*words, "--output", tmp_path / "named", "--score-threshold", 0]])
    listed = ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
    assert caplog.text.count(f"best F1 of each class: {listed}") == 1
    numbers = [len(json.loads((tmp_path / n / "detections.json").read_text())["annotations"]) for n in ("own", "named")]
    assert numbers == [len(found), len(every)]


def test_features_belong_to_their_boxes(trained):
    tiny, weights = trained
    detector = load_detector(weights, dtype="off", device="cpu", score_threshold=0.0)
    pixels = np.asarray(Image.open(Path(tiny.sets[1][2]) / "0.png"))
    result, plain = detector(pixels, features=True), detector(pixels)
    np.testing.assert_allclose(result.boxes, plain.boxes, atol=1e-3)
    model = detector.predictor._model
    heads = model.roi_heads
    inputs = detector.predictor._inputs([pixels])
    with torch.no_grad():
        maps = model.backbone(model.preprocess_image(inputs).tensor)
        scale = inputs[0]["image"].shape[2] / pixels.shape[1]
        region = torch.from_numpy(result.boxes) * scale
        pooled = heads.pooler([maps[name] for name in heads.in_features], [Boxes(region)])
        expected = heads.res5(pooled).mean((2, 3))
    np.testing.assert_allclose(result.features, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert plain.features is None and detector(pixels, features=True, score_threshold=1.0).features.shape[0] == 0


def test_a_detector_serves_threads_and_is_pickled(trained):
    tiny, weights = trained
    for dtype in ("fp32", "off"):
        detector = load_detector(weights, dtype=dtype, device="cpu", score_threshold=0.0)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 255, (40 + 8 * i, 60, 3)).astype(np.uint8) for i in range(6)]
        expected = [detector(image).boxes for image in images]
        copy = pickle.loads(pickle.dumps(detector))
        wrong = []

        def work(offset, detector=detector, copy=copy, images=images, expected=expected, wrong=wrong):
            for i in range(6):
                number = (i + offset) % 6
                for one in (detector, copy):
                    if not np.array_equal(one(images[number]).boxes, expected[number]):
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_what_load_detector_refuses(trained, tmp_path):
    tiny, weights = trained
    cfg = tiny.config("run")
    save_checkpoint(tmp_path / "old.pth", torch.load(weights, weights_only=True)["model"], architecture(cfg))
    with pytest.raises(UserError, match="old.pth: does not hold its configuration.*config="):
        load_detector(tmp_path / "old.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_detector(tmp_path / "old.pth", config=tmp_path / "config.yaml", device="cpu").class_names
    for text, expected in (
        ("_BASE_: /etc/passwd", "names another file as _BASE_"),
        ("MODEL: {NONSENSE: 1}", "its configuration: unknown key MODEL.NONSENSE"),
        ("MODEL: [", "its configuration: not YAML"),
    ):
        facts = {**architecture(cfg), "config": text}
        save_checkpoint(tmp_path / "odd.pth", torch.load(weights, weights_only=True)["model"], facts)
        with pytest.raises(UserError, match=expected):
            load_detector(tmp_path / "odd.pth")
    with pytest.raises(
        UserError, match="a detector of 2 classes, and MODEL.ROI_HEADS.NUM_CLASSES is 5; set .*config.yaml"
    ):
        file = tmp_path / "five.yaml"
        file.write_text(cfg.dump().replace("NUM_CLASSES: 2", "NUM_CLASSES: 5"))
        load_detector(weights, config=file, device="cpu")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_detector(tmp_path)
    with pytest.raises(UserError, match="dtype 'fp4'"):
        load_detector(weights, dtype="fp4")


def arguments(weights: Path, output: Path, *inputs: object, more: tuple = ()) -> list[str]:
    words = ["--weights", weights, "--output", output, "--score-threshold", 0, "--dtype", "fp32"]
    return [str(word) for word in (*words, *more, "--input", *inputs)]


def test_the_command_takes_weights_alone(trained, tmp_path, caplog):
    tiny, weights = trained
    folder = Path(tiny.sets[1][2])
    with caplog.at_level(logging.INFO):
        more = ("--ids-from", tiny.sets[1][1], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01")
        command.main([*arguments(weights, tmp_path / "out", folder), *more[2:]])
    assert "the model itself leaves out what is below MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.01" in caplog.text
    assert {c["name"]: c["id"] for c in content(tmp_path / "out")["categories"]} == {"red": 3, "blue": 8}
    command.main(arguments(weights, tmp_path / "ids", folder, more=more[:2]))
    found = content(tmp_path / "ids")
    truth = read_ground_truth(tiny.sets[1][1])
    assert [image["id"] for image in found["images"]] == truth.image_ids.tolist()
    evaluate(truth, Detections.from_records(found["annotations"]))


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_runs_killed_at_random_and_shared_by_workers_end_in_equal_bytes(trained, tmp_path):
    """With one process and with two."""
    _, weights = trained
    paths = write(tmp_path / "in", 14)
    write_video(tmp_path / "in" / "v.mp4", 6)
    log = tmp_path / "log"

    def begin(output: Path, workers: int = 1) -> int:
        more = ("--resume", "--workers", workers)
        return start(["predict", *arguments(weights, output, tmp_path / "in", more=more)], log)

    seconds = {}
    for workers in (2, 1):
        began = time.monotonic()
        assert wait(begin(tmp_path / f"whole_{workers}", workers)) == 0, log.read_text()
        seconds[workers] = time.monotonic() - began
    generator = random.Random(1)
    for workers in (1, 2):
        output = tmp_path / f"killed_{workers}"
        for _ in range(3):
            process = begin(output, workers)
            time.sleep(generator.uniform(0, 1) * seconds[workers])
            os.killpg(process, signal.SIGKILL)
            assert wait(process) in (0, -signal.SIGKILL) and group_is_empty(process), log.read_text()
        assert wait(begin(output, workers)) == 0, log.read_text()
        for path in [Path("detections.json"), *(Path(path.name) for path in paths)]:
            assert (output / path).read_bytes() == (tmp_path / "whole_1" / path).read_bytes()
        assert not list(output.glob(".*"))


@pytest.mark.slow
def test_a_stopping_signal_leaves_with_75_and_says_what_is_done(trained, tmp_path):
    _, weights = trained
    write(tmp_path / "in", 150)
    process = start(["predict", *arguments(weights, tmp_path / "out", tmp_path / "in")], tmp_path / "log")
    while not any(path.read_bytes().count(b"\n") > 1 for path in (tmp_path / "out").glob("parts/*.jsonl")):
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    code, text = wait(process), (tmp_path / "log").read_text()
    assert code == 75 and "of 150 done so far" in text and "Traceback" not in text
