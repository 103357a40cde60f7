"""Detection from WebDataset shards: the very images and records, wherever images are read."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det.annotations.formats import read_checked
from resnext_det.commands import check, convert_data, make_shards, train
from resnext_det.errors import UserError
from resnext_det.files import open_regular, read_regular
from resnext_det.images import read_image
from resnext_det.makers.synthetic import detection_config, draw_detection_set


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    file, images = draw_detection_set(tmp_path / "set", 7)
    make_shards.main([str(file), str(tmp_path / "shards"), "--labels", "--images", str(images), "--per-shard", "3"])
    return tmp_path / "shards"


def by_id(document: dict) -> list[tuple]:
    objects = {image["id"]: [a for a in document["annotations"] if a["image_id"] == image["id"]]
               for image in document["images"]}  # fmt: skip
    return sorted(
        (image["id"], image["width"], image["height"], json.dumps(objects[image["id"]])) for image in document["images"]
    )


def test_they_hold_the_same_images_and_records(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(list(shards.glob("*.tar"))) == 3
    before, after = (read_checked(tmp_path / "set", tmp_path / "set" / "images"), read_checked(shards))
    assert by_id(before.document) == by_id(after.document)
    assert before.document["categories"] == after.document["categories"]
    files = [{i["id"]: Path(s.image_root, i["file_name"]) for i in s.document["images"]} for s in (before, after)]
    for number, file in files[1].items():
        assert read_regular(file, 10**9) == files[0][number].read_bytes()
        assert np.array_equal(read_image(file), read_image(files[0][number]))
    check.main(
        ["--json", str(shards / "instances.json"), "--images", str(shards), "--shares-with", str(tmp_path / "set")]
    )
    assert capsys.readouterr().out.count("keep it in one split") == 7
    ours = ["--json", str(tmp_path / "set" / "instances.json"), "--images", str(tmp_path / "set" / "images")]
    check.main([*ours, "--shares-with", str(shards)])
    assert capsys.readouterr().out.count("keep it in one split") == 7
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: is none of COCO"):
        check.main([*ours, "--shares-with", str(tmp_path / "none")])
    convert_data.main([str(shards), str(tmp_path / "yolo"), "--to", "yolo"])
    again = read_checked(tmp_path / "yolo" / "data.yaml:train").document
    assert len(again["annotations"]) == len(before.document["annotations"])


def test_the_index_is_made_of_the_shards_alone(shards: Path) -> None:
    whole = (shards / "instances.json").read_bytes()
    make_shards.main(["--labels", "--index", str(shards)])
    assert (shards / "instances.json").read_bytes() == whole
    (shards / "instances.json").unlink()
    with pytest.raises(UserError, match="--classes FILE"):
        make_shards.main(["--labels", "--index", str(shards)])
    (shards / "names.txt").write_text("box\ndisc\n")
    make_shards.main(["--labels", "--index", str(shards), "--classes", str(shards / "names.txt")])
    assert (shards / "instances.json").read_bytes() == whole


def test_a_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = detection_config(tmp_path, 4)
    (name, file, images), *more = yaml.safe_load(config.read_text())["DATASETS"]["REGISTER"]
    make_shards.main([file, str(tmp_path / "s"), "--labels", "--images", images, "--per-shard", "5"])
    ends = []
    for run, place in (("a", [name, file, images]), ("b", [f"{name}_shards", str(tmp_path / "s"), ""])):
        words = ["DATASETS.REGISTER", json.dumps([place, *more]), "DATASETS.TRAIN", f"('{place[0]}',)",
                 "DATASETS.TEST", f"('{place[0]}',)", "SEED", "1", "OUTPUT_DIR", str(tmp_path / run)]  # fmt: skip
        train.main(["--config-file", str(config), *words, "DATALOADER.NUM_WORKERS", "1" if run == "b" else "0"])
        weights = torch.load(tmp_path / run / "model_final.pth", weights_only=True)["model"]
        ends.append((weights, json.loads((tmp_path / run / "results.json").read_text())["bbox"]))
    assert all(torch.equal(value, ends[1][0][key]) for key, value in ends[0][0].items())
    assert ends[0][1] == ends[1][1]
    assert "mapped" in (tmp_path / "b" / "log.txt").read_text() or (tmp_path / "b" / "cache").is_dir()


def test_what_is_not_there_has_a_line(shards: Path, tmp_path: Path) -> None:
    records = json.loads((shards / "instances.json").read_text())
    names = [image["file_name"] for image in records["images"]]
    shard, place = names[0].split("/")
    offset, size, _ = place.split("-", 2)
    for wrong in (f"0-{size}-a.png", f"{int(offset) + 512}-{size}-a.png", f"{offset}-{int(size) - 1}-a.png",
                  f"{offset}-99999999-a.png", f"{10**14}-{size}-a.png"):  # fmt: skip
        with pytest.raises(UserError, match="write its index anew"):
            open_regular(shards / shard / wrong)
    with pytest.raises(UserError, match="more than the limit"):
        open_regular(shards / shard / place, limit=int(size) - 1)
    with pytest.raises(UserError, match="no such file"):
        open_regular(shards / shard / "a.png")
    (shards / shard).unlink()
    with pytest.raises(UserError, match=r"images\[\d\].file_name.*is not in"):
        read_checked(shards)
    os.mkfifo(shards / shard)
    with pytest.raises(UserError, match="is not in"):
        read_checked(shards)


def test_a_link_out_of_the_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    (shards / "000000.tar").rename(tmp_path / "else.tar")
    (shards / "000000.tar").symlink_to(tmp_path / "else.tar")
    with pytest.raises(UserError, match="is a link out of"):
        read_checked(shards)


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{}", b'{"image": {}}', b'{"image": 1, "annotations": []}', b"[" * 9999]
)
def test_a_record_that_is_none_names_its_shard(record: bytes, tmp_path: Path) -> None:
    for name, data in (("a.json", record), ("a.png", b"x")):
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.json", "a.png"):
            tar.add(tmp_path / name, name)
    with pytest.raises(UserError, match=r"0.tar: broken: "):
        make_shards.main(["--labels", "--index", str(tmp_path), "--classes", str(_names(tmp_path))])


def _names(folder: Path) -> Path:
    (folder / "names.txt").write_text("a\n")
    return folder / "names.txt"
