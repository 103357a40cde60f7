"""``check`` and ``evaluate`` with ``--output-dir``: the same words, and no second look at what has not changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from resnext_det import UserError, cli
from resnext_det.annotations import coco, formats
from resnext_det.annotations.check import inspection
from resnext_det.annotations.coco import read_ground_truth
from resnext_det.makers.synthetic import draw_detection_set

SQUARE = [[1, 1, 20, 1, 20, 20, 1, 20]]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """(annotations with something to warn of, image folder), both old."""
    file, images = draw_detection_set(tmp_path / "set", 4)
    edit(file, lambda d: d["annotations"][0].update(bbox=[-9, 2, 20, 20], area=-1))
    for place in (images, *images.iterdir()):
        os.utime(place, (1, 1))
    results = [{"image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.5} for i in (1, 2, 3)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    return file, images


def edit(file: Path, change) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.fixture
def call(tmp_path: Path, monkeypatch, capsys, caplog):
    """A function that runs a command: how often it parsed annotations, and all that it said."""
    parsed: list[object] = []
    real = inspection.inspect_document
    for room in (coco, inspection):
        monkeypatch.setattr(room, "inspect_document", lambda *a, **k: parsed.append(a) or real(*a, **k))
    real_read = formats.reading._read
    monkeypatch.setattr(formats.reading, "_read", lambda *a: parsed.append(a) or real_read(*a))

    def called(*arguments: object, kept: bool = True) -> tuple[int, str]:
        formats.forget()
        parsed.clear()
        caplog.clear()
        capsys.readouterr()
        name, *rest = map(str, arguments)
        more = ["--output-dir", str(tmp_path / "run")] if kept else []
        try:
            cli.call(name, [*rest, *more])
            ended = ""
        except UserError as error:
            ended = str(error)
        words = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        return len(parsed), "\n".join([capsys.readouterr().out, *words, ended])

    return called


def both(call, *arguments: object) -> None:
    """The first call looks at everything, the second at nothing, and all say what is said without the folder."""
    plain, first, second = call(*arguments, kept=False), call(*arguments), call(*arguments)
    assert plain[0] and first[0] and not second[0]
    assert plain[1] == first[1] == second[1] != ""


@pytest.mark.parametrize("more", [(), ("--iou-type", "segm"), ("--max-detections", 1)])
def test_evaluate(made, call, tmp_path, more) -> None:
    file, _ = made
    if "segm" in more:
        for each in (file, tmp_path / "results.json"):
            edit(each, lambda d: [r.update(segmentation=SQUARE) for r in (d["annotations"] if "images" in d else d)])
    command = ["evaluate", "--gt", file, "--dt", tmp_path / "results.json", *more]
    call(*command, kept=False)
    assert sorted(os.listdir(tmp_path)) == ["results.json", "set"]
    both(call, *command)
    edit(file, lambda d: d["annotations"].pop())
    both(call, *command)
    (cache,) = (tmp_path / "run" / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-70])
    both(call, *command)
    edit(file, lambda d: d["annotations"][1].update(category_id=77))
    assert [call(*command)[0] > 0, call(*command)[0] > 0] == [True, True], "an error is not kept"
    file.unlink()
    assert "no such file" in call(*command)[1]


def test_what_is_read_once_serves_masks_apart(made, tmp_path) -> None:
    file, _ = made
    edit(file, lambda d: [a.update(segmentation=[[1, 1, 20, 1, 20, 20]]) for a in d["annotations"]])
    for masks in (False, True, False, True):
        found = read_ground_truth(file, masks, folder=tmp_path / "run")
        assert (found.masks is not None) == masks
        assert found.records() == read_ground_truth(file, masks).records()
    assert len(os.listdir(tmp_path / "run" / "cache")) == 2


CHANGES = {
    "an annotation": lambda file, images: edit(file, lambda d: d["annotations"].pop()),
    "an image": lambda file, images: Image.new("RGB", (8, 8)).save(images / "0001.png"),
    "an image removed": lambda file, images: (images / "0002.png").unlink(),
    "a name": lambda file, images: (images / "0002.png").rename(images / "0002.PNG"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_check(made, call, tmp_path, change) -> None:
    file, images = made
    command = ["check", "--json", file, "--images", images]
    both(call, *command)
    both(call, *command, "--strict")  # two errors, and exit code 2 each time
    CHANGES[change](file, images)
    both(call, *command)


def test_check_of_labels_in_many_files(made, call, tmp_path) -> None:
    file, images = made
    cli.call("convert-data", [str(file), str(tmp_path / "yolo"), "--to", "yolo", "--images", str(images)])
    labels = sorted((tmp_path / "yolo" / "labels").rglob("*.txt"))
    for place in (tmp_path / "yolo").rglob("*"):
        os.utime(place, (1, 1))
    command = ["check", "--json", tmp_path / "yolo" / "data.yaml", "--images", tmp_path / "yolo"]
    both(call, *command)
    labels[0].write_text(labels[0].read_text().replace("0 ", "1 ", 1))
    both(call, *command)
    labels[0].unlink()
    both(call, *command)


def test_the_folder_is_for_the_check_of_one_set(made, call) -> None:
    file, images = made
    (file.parent.parent / "run").touch()
    assert "run: is no folder" in call("check", "--json", file, "--images", images)[1]
    (file.parent.parent / "run").unlink()
    assert "leave out" in call("check", "--json", file, "--images", images, "--fix", file.with_name("x.json"))[1]
