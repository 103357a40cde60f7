"""Folders of images as people have them: flat, with stray files, with classes missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det import UserError
from resnext_det.classification import listing
from resnext_det.classification.augmentation import ImageNetTraining
from resnext_det.classification.data import ImageFolder
from resnext_det.commands.pretrain import main


def made(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 10, 10)).save(path, "PNG")
    return root


def test_classes_sorted_and_images_found_below(tmp_path: Path) -> None:
    image_set = ImageFolder(made(tmp_path, "b/2.png", "a/deep/er/1.JPEG", "a/0.webp", ".hidden/0.png"))
    assert image_set.classes == ("a", "b") and image_set.labels.tolist() == [0, 0, 1]
    assert [Path(sample.path).name for sample in image_set] == ["0.webp", "1.JPEG", "2.png"]


def test_flat_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 files and no class folders.*make_imagenet_val"):
        ImageFolder(made(tmp_path, "1.png", "2.png"))


def test_stray_files_are_named_and_skipped(tmp_path: Path, caplog) -> None:
    made(tmp_path, "a/1.png", "b/1.png", "a/film.mp4", "a/no_extension", "list.txt")
    assert len(ImageFolder(tmp_path)) == 2
    (message,) = caplog.messages
    assert "skipped 3 files" in message and all(n in message for n in ("film.mp4", "no_extension", "list.txt"))


def test_classes_without_images(tmp_path: Path, caplog) -> None:
    """An error in training; in testing the numbers of training stay, whatever folders there are."""
    made(tmp_path, "a/1.png", "c/1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="class folder b has no images"):
        ImageFolder(tmp_path)
    image_set = ImageFolder(tmp_path, ["0", "a", "b", "c", "d"])
    assert image_set.labels.tolist() == [1, 3]
    assert "no images of 3 classes: b, 0, d" in caplog.messages[-1]
    with pytest.raises(UserError, match="class c .1 such. is not among the 2 classes of training"):
        ImageFolder(tmp_path, ["a", "b"])


def test_images_of_other_kinds(tmp_path: Path, monkeypatch) -> None:
    """Gray, palette, CMYK and RGBA become RGB; what has no meaning in 8 bits, or is too large, is named."""
    made(tmp_path, "a/0.png", "b/0.png")
    for i, mode in enumerate(("L", "P", "RGBA", "LA", "1")):
        Image.new(mode, (8, 8)).save(tmp_path / "a" / f"{i}.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "a" / "5.jpg")
    for sample in ImageFolder(tmp_path):
        assert ImageNetTraining(8, (0.5, 1.0), 0.5, 0.4, 0.1)(sample)[0].shape == (3, 8, 8)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "a" / "6.png")
    with pytest.raises(UserError, match=r"6.png: I(;16)? pixels; save it with 8 bits"):
        list(ImageFolder(tmp_path))
    monkeypatch.setattr("resnext_det.classification.data.MAX_MEGAPIXELS", 1e-5)
    with pytest.raises(UserError, match="0.png: .*megapixels"):
        list(ImageFolder(tmp_path))


def test_imagenet_5k_way_and_1k_way(tmp_path: Path) -> None:
    """Table 6: the same weights and images; the second time only the classes of the test set compete."""
    made(tmp_path / "train", *(f"{name}/{i}.png" for name in "abc" for i in range(2)))
    made(tmp_path / "val", *(f"{name}/{i}.png" for name in "ab" for i in range(2)))
    (tmp_path / "config.yaml").write_text(f"""
MODEL: {{NAME: resnext11_2x2d_cifar, STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 8, DEVICE: cpu}}
DATASETS: {{TRAIN: {tmp_path}/train, TEST: {tmp_path}/val}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{AUGMENTATION: cifar, CROP_SIZE: 8}}
TEST: {{SHORT_SIDE: 8, CROP_SIZE: 8}}
SOLVER: {{EPOCHS: 1, STEPS: [], IMS_PER_BATCH: 6, REFERENCE_BATCH: 6}}
""")
    out = tmp_path / "out"
    command = ["--config-file", str(tmp_path / "config.yaml")]
    main([*command, "OUTPUT_DIR", str(out)])
    assert len(list((out / "cache").glob("*.listing"))) == 2
    weights = torch.load(out / "model_final.pth", weights_only=True)
    weights["model"]["fc.bias"] = torch.tensor([0.0, -99.0, 99.0])  # always c; a where c does not compete
    torch.save(weights, tmp_path / "c.pth")
    errors = {}
    for among in ("train", "test"):
        evaluation = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "c.pth"), "TEST.AMONG", among]
        main([*command, *evaluation, "OUTPUT_DIR", str(tmp_path / among)])
        errors[among] = json.loads((tmp_path / among / "results.json").read_text())["top1_error"]
    assert errors == {"train": 100.0, "test": 50.0}
    both = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "c.pth"), "TEST.AMONG", "both"]
    main([*command, *both, "OUTPUT_DIR", str(tmp_path / "both")])
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    assert (results["top1_error"], results["top1_error_among"]) == (100.0, 50.0)


def test_links_are_followed_and_hidden_entries_skipped(tmp_path: Path, caplog) -> None:
    """As torchvision's ImageFolder finds them, but for what is hidden."""
    caplog.set_level("INFO")
    made(tmp_path / "set", "a/1.png", "b/1.png", "a/.thumbs/2.png", "a/deep/.x.png", ".cache/1.png")
    made(tmp_path, "store/3.png", "other/4.png")
    (tmp_path / "set" / "a" / "3.png").symlink_to(tmp_path / "store" / "3.png")
    (tmp_path / "set" / "b" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "b" / "itself").symlink_to(tmp_path / "set" / "b")
    found = ImageFolder(tmp_path / "set")
    assert sorted(Path(file).name for file in found.files) == ["1.png", "1.png", "3.png", "4.png"]
    assert "followed 3 links, skipped 2 hidden entries" in caplog.text


def test_a_folder_one_level_too_high_is_named(tmp_path: Path) -> None:
    made(tmp_path, "train/a/1.png", "train/b/1.png")
    with pytest.raises(UserError, match=f"one class, train; name the folder below: {tmp_path}/train"):
        ImageFolder(tmp_path)
    made(tmp_path / "one", "a/1.png")
    with pytest.raises(UserError, match="one class, a; training needs two or more"):
        ImageFolder(tmp_path / "one")
    assert ImageFolder(tmp_path / "one", ["a", "b"]).classes == ("a", "b")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch):
    """A function that opens a set as a run does: how many folders were listed, and the set."""
    inner, scanned = os.scandir, []
    monkeypatch.setattr(listing.os, "scandir", lambda path: scanned.append(path) or inner(path))
    (tmp_path / "run").mkdir()

    def opened(classes: list[str] | None = None) -> tuple[int, ImageFolder]:
        scanned.clear()
        found = ImageFolder(tmp_path / "set", classes, tmp_path / "run")
        count, plain = len(scanned), ImageFolder(tmp_path / "set", classes)
        assert list(found.files) == list(plain.files) and found.labels.tolist() == plain.labels.tolist()
        return count, found

    return opened


def link(place: Path, to: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(to)


CHANGES = {
    "an image": lambda at: Image.new("RGB", (8, 8)).save(at / "set/a/deep/er/9.png"),
    "one removed": lambda at: (at / "set/b/2.png").unlink(),
    "one renamed": lambda at: (at / "set/b/2.png").rename(at / "set/b/5.png"),
    "a folder": lambda at: made(at, "set/c/1.png"),
    "a folder below": lambda at: made(at, "set/b/new/1.png"),
    "a folder that was empty": lambda at: made(at, "set/b/empty/1.png"),
    "a link that leads elsewhere": lambda at: link(at / "set/b/more", at / "third"),
    "a link that leads nowhere": lambda at: (at / "store/3.png").unlink(),
    "a folder behind a link": lambda at: made(at, "other/5.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_listing_is_taken_from_the_cache_until_something_changes(tmp_path: Path, listed, change, caplog) -> None:
    made(
        tmp_path, "set/b/2.png", "set/a/deep/er/1.JPEG", "set/a/0.webp", "set/a/.x/0.png", "store/3.png", "other/4.png"
    )
    made(tmp_path, "third/4.png", "third/6.png")
    (tmp_path / "set" / "b" / "empty").mkdir()
    (tmp_path / "set" / "b" / "film.mp4").touch()
    link(tmp_path / "set" / "a" / "3.png", tmp_path / "store" / "3.png")
    link(tmp_path / "set" / "b" / "more", tmp_path / "other")
    for place in [tmp_path / "set", *tmp_path.glob("*/**")]:
        os.utime(place, (1, 1))
    caplog.set_level("INFO")
    assert [listed()[0], listed()[0], listed(["b", "x", "a"])[0]] == [7, 0, 0]
    caplog.clear()
    found = listed()[1]
    assert len(set(caplog.messages[:2]) & set(caplog.messages[2:])) == 2  # the same words without the cache
    CHANGES[change](tmp_path)
    count, after = listed()
    assert count and list(after.files) != list(found.files) or change == "a link that leads elsewhere"
    assert listed()[0] == 0
    (file,) = (tmp_path / "run" / "cache").iterdir()
    data = bytearray(file.read_bytes())
    data[data.index(b"0.webp")] ^= 1
    file.write_bytes(data)
    assert listed()[0] and "made again" in caplog.text and not listed()[0]
    file.chmod(0o666)
    assert listed()[0]


def test_a_folder_that_changes_while_it_is_listed_is_not_kept(tmp_path: Path, listed) -> None:
    made(tmp_path, "set/a/1.png", "set/b/1.png")
    os.utime(tmp_path / "set" / "b", (1e11, 1e11))
    assert [listed()[0], listed()[0]] == [3, 3]
    with pytest.raises(UserError, match="not among"):
        listed(["a"])
