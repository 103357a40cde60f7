"""Splits: every box in one of them, classes in proportion, near-duplicates together, the same twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_det import cli
from resnext_det.annotations.splitting import assign, near_groups, shared_images
from resnext_det.errors import UserError


def write_images(folder: Path, number: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    for i in range(number):
        blocks = generator.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(blocks).resize((80, 60)).save(folder / f"{i:03d}.png")
    return sorted(folder.glob("*.png"))


def copies(folder: Path, paths: list[Path]) -> None:
    """Near-duplicates of the first two: JPEG, and half the size."""
    with Image.open(paths[0]) as image:
        image.save(folder / "copy0.jpg", quality=60)
    with Image.open(paths[1]) as image:
        image.resize((40, 30)).save(folder / "copy1.png")


def test_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 30)
    copies(tmp_path, paths)
    every = [*paths, tmp_path / "copy0.jpg", tmp_path / "copy1.png"]
    assert sorted(map(sorted, (g for g in near_groups(every) if len(g) > 1))) == [[0, 30], [1, 31]]
    assert shared_images(paths[:3], [*paths[2:], every[-2]]) == [
        (paths[0], every[-2], "near-duplicate"), (paths[2], paths[2], "same bytes"),
    ]  # fmt: skip


def test_classes_are_shared_in_proportion() -> None:
    generator = np.random.default_rng(0)
    classes = [
        Counter(generator.choice(["often", "some", "rare"], 3, p=[0.8, 0.15, 0.05]).tolist()) for _ in range(400)
    ]
    parts = assign([[i] for i in range(400)], classes, [0.7, 0.2, 0.1], seed=0)
    total = sum(classes, Counter())
    for part, share in enumerate([0.7, 0.2, 0.1]):
        own = sum((c for c, p in zip(classes, parts, strict=True) if p == part), Counter())
        assert all(abs(own[name] - share * total[name]) <= 2 + 0.02 * total[name] for name in total)


@pytest.mark.parametrize("folds", [False, True])
def test_the_command_loses_no_box_and_repeats_itself(folds: bool, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 20)
    copies(tmp_path / "images", paths)
    names = sorted(p.name for p in (tmp_path / "images").iterdir())
    document = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "annotations": [], "images": []}
    for i, name in enumerate(names, start=1):
        document["images"].append({"id": i, "file_name": name})
        document["annotations"].append(
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 2, 20, 20], "area": 400, "iscrowd": 0}
        )
    (tmp_path / "all.json").write_text(json.dumps(document))
    flags = ["--folds", "4"] if folds else ["--val", "0.25", "--test", "0.25"]
    line = [str(tmp_path / "all.json"), "OUT", "--images", str(tmp_path / "images"), *flags]
    for out in ("one", "two"):
        cli.call("split", [word.replace("OUT", str(tmp_path / out)) for word in line])
    files = sorted(p.name for p in (tmp_path / "one").glob("instances_*"))
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    parts = [f for f in files if not folds or f.endswith("_val.json")]
    assert len(parts) == (4 if folds else 3)
    read = [json.loads((tmp_path / "one" / f).read_text()) for f in parts]
    assert sorted(a["id"] for d in read for a in d["annotations"]) == list(range(1, len(names) + 1))
    homes = {image["file_name"]: part for part, d in enumerate(read) for image in d["images"]}
    assert homes["000.png"] == homes["copy0.jpg"] and homes["001.png"] == homes["copy1.png"]


def test_more_splits_than_images_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)
    document = {
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [],
        "images": [{"id": 1, "file_name": "000.png"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="1 different images cannot fill 2 splits"):
        cli.call("split", [str(tmp_path / "all.json"), str(tmp_path / "o"), "--images", str(tmp_path / "images")])


def test_check_names_the_images_that_two_splits_share(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = write_images(tmp_path / "val", 3)
    write_images(tmp_path / "train", 1)
    record = {"id": 1, "file_name": paths[0].name}
    document = {"categories": [{"id": 1, "name": "a"}], "annotations": [], "images": [record]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    files = ["--json", str(tmp_path / "val.json"), "--images", str(tmp_path / "val")]
    cli.call("check", [*files, "--shares-with", str(tmp_path / "train")])
    assert f"{paths[0]}: same bytes: {tmp_path / 'train' / '000.png'}" in capsys.readouterr().out
