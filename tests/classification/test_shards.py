"""Shards hold what the folder holds, each image once per epoch, whoever reads; and their mistakes have names."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det import UserError
from resnext_det.classification import shards as module
from resnext_det.classification.data import ImageFolder, TrainingLoader, evaluation_loader
from resnext_det.classification.shards import ENTRY, ShardedImages, index_shards, open_images
from resnext_det.commands.make_shards import main
from resnext_det.makers.shards import write_shards

COUNT = 26  # no multiple of batches, processes or shards


def read_color(sample) -> tuple[int, int]:
    """(the image's number, its label)."""
    return sample.image.getpixel((0, 0))[0], sample.label


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        path = root / "folder" / f"class{i % 3}" / f"some.name {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (i, 0, 0)).save(path)
    write_shards(ImageFolder(root / "folder"), root / "shards", per_shard=4)
    return root


def test_same_images_and_classes(folder: Path) -> None:
    plain, packed = ImageFolder(folder / "folder"), open_images(folder / "shards")
    assert isinstance(packed, ShardedImages) and packed.classes == plain.classes
    assert len(packed.shards) == 7
    ours, theirs = ({read_color(set_[i]) for i in range(len(set_))} for set_ in (packed, plain))
    assert ours == theirs and len(ours) == COUNT


def test_few_shards_are_open_at_a_time_and_none_in_a_spawned_worker(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    packed = open_images(folder / "shards")
    for _ in range(2):
        assert len({read_color(packed[i]) for i in range(COUNT)}) == COUNT
        assert len(packed._files) == 2
    spawned = pickle.loads(pickle.dumps(packed))
    for handle in packed._files.values():
        os.close(handle)  # what a process that does not share them would see
    assert len({read_color(spawned[i]) for i in range(COUNT)}) == COUNT


@pytest.mark.parametrize("kind", ["folder", "shards", "window"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_image_once_per_epoch(folder: Path, kind: str, world_size: int, workers: int) -> None:
    """And the stream is one and the same for all numbers of processes and workers, and continues where resumed."""
    image_set = open_images(folder / ("folder" if kind == "folder" else "shards"), window=9 if kind == "window" else 0)
    batch = 4 // world_size

    def read(start: int, batches: int, workers: int, world_size: int) -> list[int]:
        loaders = [
            iter(
                TrainingLoader(
                    *(image_set, read_color, 4 // world_size),
                    **{"seed": 3, "workers": workers, "rank": rank, "world_size": world_size, "start_batch": start},
                )
            )
            for rank in range(world_size)
        ]
        steps = [torch.stack([next(loader)[0] for loader in loaders], dim=1) for _ in range(batches)]
        return torch.cat(steps).flatten().tolist()

    stream = read(0, 14, workers, world_size)  # two epochs
    assert sorted(stream[:COUNT]) == sorted(stream[COUNT : 2 * COUNT]) == list(range(COUNT))
    assert stream[:COUNT] != stream[COUNT : 2 * COUNT]
    assert stream == read(0, 14, 0, 1)
    assert read(5, 2, workers, world_size) == stream[20:28]
    seen = []
    for rank in range(world_size):
        place = {"workers": workers, "rank": rank, "world_size": world_size}
        seen += torch.cat([part[0] for part in evaluation_loader(image_set, read_color, batch, **place)]).tolist()
    assert sorted(seen) == list(range(COUNT))


def test_a_window_keeps_reading_within_few_shards(folder: Path) -> None:
    image_set = open_images(folder / "shards", window=8)
    shards = image_set.entries["shard"][image_set.order(0, 0)]
    assert all(len(set(shards[i : i + 8])) <= 3 for i in range(0, COUNT, 8))
    assert (image_set.order(0, 1) != image_set.order(0, 0)).any()


def test_classes_follow_training(folder: Path) -> None:
    classes = ["class2", "new", "class1", "class0"]
    plain, packed = ImageFolder(folder / "folder", classes), ShardedImages(folder / "shards", classes)
    assert {read_color(s) for s in packed} == {read_color(s) for s in plain}
    with pytest.raises(UserError, match="class0 .* not among the 2 classes of training"):
        ShardedImages(folder / "shards", ["class1", "class2"])


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def foreign(path: Path, *names: str) -> Path:
    file = io.BytesIO()
    Image.new("RGB", (3, 3), (7, 0, 0)).save(file, "PNG")
    with tarfile.open(path / "a.tar", "w") as tar:
        for name in names:
            add(tar, name, b"11" if name.endswith("cls") else b"{}" if name.endswith("json") else file.getvalue())
    return path


def test_other_peoples_shards_are_indexed(tmp_path: Path) -> None:
    index_shards(foreign(tmp_path, "./x/k.cls", "./x/k.json", "./x/k.png", "y/k.png", "y/k.cls"))
    image_set = open_images(tmp_path)
    assert len(image_set) == 2 and image_set.classes[11] == "11" and image_set.classes[1] == "01"
    assert read_color(image_set[1]) == (7, 11)
    (tmp_path / "names.txt").write_text("\n".join(f"name{i}" for i in range(12)))
    main(["--index", str(tmp_path), "--classes", str(tmp_path / "names.txt")])
    assert open_images(tmp_path).classes[11] == "name11"


def test_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    main([str(folder / "folder"), str(tmp_path / "again"), "--per-shard", "4"])
    for path in (folder / "shards").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_mistakes_have_names(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample k has no .cls"):
        index_shards(foreign(tmp_path, "k.png"))
    with pytest.raises(UserError, match="index.json: no such file; write it"):
        open_images(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"x" * 700)
    with pytest.raises(UserError, match="a.tar: broken"):
        index_shards(tmp_path)
    with pytest.raises(UserError, match="is there already"):
        main([str(folder / "folder"), str(folder / "shards")])
    write_shards(ImageFolder(folder / "folder"), tmp_path / "torn", per_shard=20)
    with open(tmp_path / "torn" / "000001.tar", "r+b") as file:
        file.truncate(1024)
    with pytest.raises(UserError, match="000001.tar: missing, or not the"):
        open_images(tmp_path / "torn")


def test_a_broken_image_is_named_by_its_worker(folder: Path, tmp_path: Path) -> None:
    write_shards(ImageFolder(folder / "folder"), tmp_path / "shards", per_shard=99)
    entry = np.load(tmp_path / "shards" / "index.npy")[4]
    with open(tmp_path / "shards" / "000000.tar", "r+b") as file:
        file.seek(entry["offset"])
        file.write(b"\0" * entry["size"])
    loader = evaluation_loader(open_images(tmp_path / "shards"), read_color, 4, workers=1)
    with pytest.raises(UserError, match=r"^\S*000000.tar: 00000004_some_name_\d+.png: not an image") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["shards"][0]["samples"] == COUNT


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["k.jpg", "k.png", "k.cls"], "sample k has two images, .jpg and .png"),
        (["a.b.png", "a.c.cls"], "sample a.b has no .cls"),
        (["a.cls", "a.json"], "sample a has no image"),
    ],
)
def test_what_is_ambiguous_in_a_shard_is_refused(tmp_path: Path, names, line) -> None:
    with pytest.raises(UserError, match=line):
        index_shards(foreign(tmp_path, *names))


def test_keys_with_dots_and_further_fields(tmp_path: Path) -> None:
    assert index_shards(foreign(tmp_path, "v1.0.cls", "v1.0.png", "k.cls", "k.png", "k.mask.png", "k.json")) == 2


def test_a_shard_cut_at_a_header_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path, "a.png", "a.cls", "b.png", "b.cls") / "a.tar"
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:third])
    with pytest.raises(UserError, match="its end is missing"):
        index_shards(tmp_path)


@pytest.mark.parametrize("label", [b"-1", b"1000000000", b"x", b"9" * 99, "\u00b2".encode()])
def test_class_numbers_have_a_range(tmp_path: Path, label: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "k.png", b"")
        add(tar, "k.cls", label)
    with pytest.raises(UserError, match="holds no class number below 1000000"):
        index_shards(tmp_path)


def test_a_damaged_index_is_one_line(tmp_path: Path) -> None:
    write_shards_of = foreign(tmp_path, "x/k.cls", "x/k.png")
    index_shards(write_shards_of)
    facts, entries = (tmp_path / "index.json").read_bytes(), (tmp_path / "index.npy").read_bytes()
    whole = json.loads(facts)
    broken = [{**whole, **change} for change in (
        {"classes": []}, {"classes": "ab"}, {"classes": ["a", "a"]}, {"classes": [1]}, {"classes": None},
        {"shards": {}},
        {"shards": [{"name": "../a.tar", "bytes": 1}]}, {"shards": [{"name": "a.tar"}]}, {"shards": [3]},
        {"shards": [{"name": "a.tar", "bytes": -1}]}, {"shards": [{"name": "a.tar", "bytes": "9"}]}, {"shards": []},
    )]  # fmt: skip
    texts = [json.dumps(value).encode() for value in broken] + [
        b"[" * 100000,
        b"\xff",
        b"",
        b"3",
        b'{"classes": 1e999}',
    ]
    for text in texts:
        (tmp_path / "index.json").write_bytes(text)
        with pytest.raises(UserError):
            open_images(tmp_path)
    (tmp_path / "index.json").write_bytes(facts)
    good = np.frombuffer(entries[-20:], ENTRY).copy()
    for field, value in (("shard", 7), ("shard", -1), ("offset", 2**40), ("offset", 0), ("size", -1), ("label", 99)):
        wrong = good.copy()
        wrong[field] = value
        np.save(tmp_path / "index.npy", wrong)
        with pytest.raises(UserError, match="its index is torn"):
            open_images(tmp_path)
    for data in (entries[:-1], entries.replace(b"(1,)", b"(9,)"), b"", b"\x93NUMPY", entries[:40]):
        (tmp_path / "index.npy").write_bytes(data)
        with pytest.raises(UserError, match="its index is torn"):
            open_images(tmp_path)


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(UserError, match="is a pipe"):
        index_shards(tmp_path)
