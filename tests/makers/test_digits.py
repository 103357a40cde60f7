import hashlib
import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from resnext_det import UserError
from resnext_det.commands.make_digits import main
from resnext_det.makers import digits as digits_maker
from resnext_det.makers.digits import CLASSES, Settings

SMALL = Settings(train=12, minival=6, seed=3, size=120)
FULL_SPLIT = digits_maker.load_split()


@pytest.fixture(scope="module", autouse=True)
def fewer_digits():
    """Every tenth digit, so that the tests write 180 images and not 1,797."""
    with pytest.MonkeyPatch.context() as patch:
        train, held_out = FULL_SPLIT
        patch.setattr(digits_maker, "load_split", lambda: (train[::10], held_out[::10]))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert digits_maker.make_digits(folder, SMALL)
    return folder


def hashes(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*") if f.is_file()
    }


def test_split_is_disjoint_complete_and_even():
    from sklearn.datasets import load_digits

    train, held_out = FULL_SPLIT
    assert sorted(d.number for d in train + held_out) == list(range(1797))
    target = load_digits().target
    for part, low, high in ((train, 0.79, 0.81), (held_out, 0.19, 0.21)):
        assert all(d.label == target[d.number] for d in part)
        share = Counter(d.label for d in part)
        assert all(low < share[c] / (target == c).sum() < high for c in range(10))
    # No digit is in both parts as a copy under another number either.
    assert not {d.ink.tobytes() for d in train} & {d.ink.tobytes() for d in held_out}


def test_same_settings_same_bytes_other_seed_other_images(folder, tmp_path):
    digits_maker.make_digits(tmp_path / "again", SMALL)
    first, again = hashes(folder), hashes(tmp_path / "again")
    assert first == again and len(first) > 100

    digits_maker.make_digits(tmp_path / "other", Settings(train=12, minival=6, seed=4, size=120))
    other = hashes(tmp_path / "other")
    images = [f for f in first if f.endswith(".png")]
    assert not [f for f in images if other.get(f) == first[f]]


def test_classification_tree_uses_each_digit_once_and_keeps_the_split(folder):
    seen = {}
    for split, digits in zip(("train", "val"), digits_maker.load_split(), strict=True):
        assert {f.name for f in (folder / "classification" / split).iterdir()} == set(CLASSES)
        files = list((folder / "classification" / split).glob("*/*.png"))
        seen[split] = {int(f.stem): CLASSES.index(f.parent.name) for f in files}
        assert len(files) == len(digits) and seen[split] == {d.number: d.label for d in digits}
    assert not seen["train"].keys() & seen["val"].keys()
    shown = Image.open(files[0])
    assert shown.mode == "RGB" and shown.size == (64, 64)


@pytest.mark.parametrize(("split", "scenes"), [("train", SMALL.train), ("minival", SMALL.minival)])
def test_detection_json_is_valid_coco(folder, split, scenes):
    detection = folder / "detection"
    file = detection / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    assert content["info"] and content["licenses"]
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    for part in ("images", "annotations", "categories", "licenses"):
        assert [x["id"] for x in content[part]] == list(range(1, len(content[part]) + 1))
    coco = COCO(str(file))
    assert len(coco.imgs) == scenes == len(list((detection / split).glob("*.png")))
    for image_id, image in coco.imgs.items():
        with Image.open(detection / split / image["file_name"]) as shown:
            assert shown.mode == "RGB" and shown.size == (image["width"], image["height"])
            assert 0.8 * SMALL.size <= min(shown.size) and max(shown.size) <= SMALL.size
        boxes = coco.imgToAnns[image_id]
        assert 1 <= len(boxes) <= digits_maker.MOST_DIGITS
        for a in boxes:
            x, y, w, h = a["bbox"]
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= image["width"] and y + h <= image["height"]
            assert a["area"] == w * h and a["iscrowd"] == 0 and 1 <= a["category_id"] <= 10
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert digits_maker._covered(a["bbox"], b["bbox"]) <= digits_maker.MOST_COVERED


def test_scenes_are_written_with_the_digits_of_their_split_only(tmp_path, monkeypatch):
    used = {}

    def remember(rng, digits, *args):
        used.setdefault(current[0], set()).update(d.number for d in digits)
        return compose(rng, digits, *args)

    current, compose, write = [""], digits_maker.compose_scene, digits_maker.write_detection

    def write_detection(folder, *args):
        current[0] = folder.name
        return write(folder, *args)

    monkeypatch.setattr(digits_maker, "compose_scene", remember)
    monkeypatch.setattr(digits_maker, "write_detection", write_detection)
    monkeypatch.setattr(digits_maker, "write_classification", lambda folder, *args: os.makedirs(folder) or 0)
    digits_maker.make_digits(tmp_path / "digits", SMALL)
    train, held_out = ({d.number for d in part} for part in FULL_SPLIT)
    assert used["train"] and used["train"] <= train
    assert used["minival"] and used["minival"] <= held_out


def test_box_is_where_the_ink_is():
    digit = FULL_SPLIT[0][0]
    rng = np.random.default_rng(0)
    with_digit, [(label, (x, y, w, h))] = digits_maker.compose_scene(rng, [digit], 100, 120, (40, 40))
    without, _ = digits_maker.compose_scene(np.random.default_rng(0), [], 100, 120, (40, 40))
    changed = np.abs(with_digit.astype(int) - without).max(axis=2) > 25  # above the grain
    inside = np.zeros_like(changed)
    inside[y : y + h, x : x + w] = True
    assert label == digit.label and 34 <= max(w, h) <= 46
    assert changed[inside].mean() > 0.3 and changed[~inside].mean() < 0.02


def test_every_digit_fits_its_image_at_its_largest():
    for digit in FULL_SPLIT[0] + FULL_SPLIT[1]:
        for angle in (-digits_maker.MOST_TURNED, 0, digits_maker.MOST_TURNED):
            shape = digits_maker.render_digit(digit.ink, digits_maker.CROP_DIGIT[1], angle).shape
            assert max(shape) < digits_maker.CROP_SIZE


@pytest.mark.parametrize("digit", FULL_SPLIT[0][::97])
@pytest.mark.parametrize("side", [24, 72])
def test_rendered_digit_touches_its_frame(digit, side):
    opacity = digits_maker.render_digit(digit.ink, side, 10)
    assert opacity.min() >= 0 and opacity.max() == 1
    assert all(edge.max() > 0.4 for edge in (opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]))
    assert 0.8 * side <= max(opacity.shape) <= 1.3 * side


def test_images_are_warmer_than_they_are_blue(folder):
    images = [np.asarray(Image.open(f)).reshape(-1, 3).mean(0) for f in folder.glob("detection/train/*.png")]
    red, _, blue = np.mean(images, axis=0)
    assert red > blue + 10


def test_second_run_does_nothing(folder):
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert not digits_maker.make_digits(folder, SMALL)
    assert before == {f: f.stat().st_mtime_ns for f in folder.rglob("*")}


def test_lost_image_other_settings_and_interrupted_runs_are_made_again(tmp_path, monkeypatch):
    folder = tmp_path / "digits"
    digits_maker.make_digits(folder, SMALL)
    (folder / "mine.txt").write_text("kept")
    lost = folder / "detection/train/000001.png"
    lost.unlink()
    assert digits_maker.make_digits(folder, SMALL) and lost.is_file()

    with monkeypatch.context() as patch:
        patch.setattr(digits_maker, "write_detection", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            digits_maker.make_digits(folder, Settings(5, 5, 3, 120))
    assert digits_maker.make_digits(folder, SMALL)
    assert digits_maker.make_digits(folder, Settings(5, 5, 3, 120))
    assert len(list(folder.glob("detection/train/*.png"))) == 5
    assert (folder / "mine.txt").read_text() == "kept"


def test_refuses_a_folder_it_did_not_make(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="not made by make_digits"):
        digits_maker.make_digits(tmp_path, SMALL)
    with pytest.raises(UserError, match="not made by make_digits"):
        digits_maker.make_digits(tmp_path / "photo.jpg", SMALL)
    assert (tmp_path / "photo.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(("argument", "value"), [("--train", "0"), ("--minival", "-1"), ("--seed", "-1")])
def test_bad_settings_name_the_flag(argument, value, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "digits"), argument, value])
    assert f"argument {argument}: {value}: must be at least" in capsys.readouterr().err
    with pytest.raises(UserError, match="--size"):
        main(["--output", str(tmp_path / "digits"), "--size", "80"])


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    arguments = ["--train", "2", "--minival", "1", "--size", "120"]
    main(arguments)
    main(arguments)
    assert (tmp_path / "digits/detection/annotations/instances_minival.json").is_file()
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "written",
        "already there with these settings",
    ]
