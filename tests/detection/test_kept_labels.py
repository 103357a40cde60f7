"""Sets of many files, in every format: read once, taken from the cache while nothing has changed, and only then."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from resnext_det.annotations import formats
from resnext_det.annotations.dataset import Dataset, Texts
from resnext_det.annotations.formats import reading
from resnext_det.detection.data.checked_sets import CheckOptions, check_sets
from resnext_det.detection.data.loaders import register_sets

BOX = "<object><name>{}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>{}</ymax></bndbox></object>"
CVAT = (
    "<annotations><version>1.1</version>{}</annotations>",
    '<image id="{0}" name="{1}.png" width="64" height="48"><box label="{2}" xtl="4" ytl="4" xbr="30" ybr="{3}"/>'
    "</image>",
)


class Labels:
    """A set of some format in ``folder``: what is registered, and its images' labels."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.objects = kind, folder, {}
        self.images = folder / {"yolo": "images/train", "lists": "images/train", "voc": "JPEGImages"}.get(kind, ".")
        self.labels = folder / {"yolo": "labels/train", "lists": "labels/train", "voc": "Annotations"}.get(kind, ".")
        self.path = folder
        if kind == "yolo":
            folder.mkdir(parents=True)
            self.path = folder / "data.yaml"
            self.path.write_text("train: images/train\nnames: [ant, bee]\n")
        elif kind == "lists":
            self.labels.mkdir(parents=True)
            (folder / "classes.txt").write_text("ant\nbee\n")
            self.path = self.images
        for name in "abc":
            self.write(name, "ant", 30)

    def write(self, name: str, kind: str, bottom: int) -> None:
        """Label the image ``name``, which is made where there is none."""
        self.objects[name] = (kind, bottom)
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.images / f"{name}.png").exists():
            Image.new("RGB", (64, 48)).save(self.images / f"{name}.png")
        if self.kind in ("yolo", "lists"):
            text = f"{int(kind == 'bee')} 0.25 0.{bottom + 10} 0.3 0.4\n"
            (self.labels / f"{name}.txt").write_text(text)
        elif self.kind in ("voc", "flat"):
            text = f"<annotation><filename>{name}.png</filename>{BOX.format(kind, bottom)}</annotation>"
            (self.labels / f"{name}.xml").write_text(text)
        elif self.kind == "labelme":
            shape = {"label": kind, "points": [[4, 4], [30, bottom]], "shape_type": "rectangle"}
            (self.labels / f"{name}.json").write_text(json.dumps({"shapes": [shape], "imagePath": f"{name}.png"}))
        else:
            self.write_all()

    def remove(self, name: str) -> None:
        """Take away the labels of an image, and the image where the format would miss it."""
        del self.objects[name]
        if self.kind == "cvat":
            self.write_all()
        else:
            next(self.labels.glob(f"{name}.[xtj]*")).unlink()

    def write_all(self) -> None:
        images = (CVAT[1].format(i, name, *what) for i, (name, what) in enumerate(self.objects.items()))
        (self.folder / "annotations.xml").write_text(CVAT[0].format("".join(images)))


def make_old(folder: Path, time: int = 1) -> None:
    for place in (folder, *folder.rglob("*")):
        os.utime(place, (time, time))


def assert_equal(one: Dataset, other: Dataset) -> None:
    for field in fields(Dataset):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "places":
            assert ours is not None
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, strict=True)
        else:
            assert list(ours) == list(theirs) if isinstance(ours, Texts) else ours == theirs, field.name


@pytest.fixture
def start(tmp_path, monkeypatch, caplog):
    """A function that starts a run with these labels: how often they were parsed, and the set."""
    caplog.set_level(logging.INFO)
    parsed: list[str] = []
    inner = reading._read
    monkeypatch.setattr(reading, "_read", lambda *a: parsed.append(a[0]) or inner(*a))
    (tmp_path / "run").mkdir()
    name = f"labels {tmp_path}"

    def run(labels: Labels, folder: Path | None = tmp_path / "run", level: str = "auto") -> tuple[int, Dataset]:
        forgotten()
        register_sets([[name, str(labels.path), ""]])
        found = check_sets([name], [], classes=None, options=CheckOptions(level=level), folder=folder)[name]
        assert MetadataCatalog.get(name).image_root == found.image_root
        count = len(parsed)
        parsed.clear()
        return count, found

    def forgotten() -> None:
        formats.forget()
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    yield run
    forgotten()


KINDS = ["yolo", "lists", "voc", "flat", "cvat", "labelme"]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_parsed_again_only_once_they_have_changed(kind, tmp_path, start) -> None:
    labels = Labels(kind, tmp_path / "set")
    make_old(tmp_path / "set")

    def both() -> Dataset:
        """Of a start that parses and one that does not."""
        first, again = start(labels), start(labels)
        assert (first[0], again[0]) == (1, 0)
        assert_equal(again[1], start(labels, None)[1])
        return again[1]

    assert [len(both()), start(labels)[0]] == [3, 0]

    labels.write("b", "bee", 31)
    make_old(tmp_path / "set")  # as long and as old as before, where the format has a list of the classes
    assert both().class_names[-1] == "bee"
    labels.write("d", "bee", 30)
    assert len(both()) == 4
    labels.remove("a")
    assert len(both()) == 3

    (cache,) = (tmp_path / "run" / "cache").iterdir()
    data = bytearray(cache.read_bytes())
    data[data.index(b"b.png")] ^= 1
    cache.write_bytes(data)
    both()
    cache.write_bytes(data[:-300])
    both()


def change_names(labels: Labels) -> None:
    labels.path.write_text("train: images/train\nnames: [ant, cow]\n")


def new_folder(labels: Labels) -> None:
    (labels.images / "deep").mkdir()
    shutil.copy(labels.images / "a.png", labels.images / "deep")


def test_another_value_of_a_variable_is_another_set(tmp_path, start, monkeypatch) -> None:
    labels, other = Labels("yolo", tmp_path / "one"), Labels("yolo", tmp_path / "other")
    other.remove("a")
    labels.path.write_text("path: $LABELS\ntrain: images/train\nnames: [ant, bee]\n")
    make_old(tmp_path)
    for folder, count in ((labels.folder, 1), (labels.folder, 0), (other.folder, 1)):
        monkeypatch.setenv("LABELS", str(folder))
        found = start(labels)
        assert (found[0], len(found[1])) == (count, 2 + (folder == labels.folder))


CHANGES: dict[str, tuple[str, Callable[[Labels], object]]] = {
    "names": ("yolo", change_names),
    "another size": ("yolo", lambda s: Image.new("RGB", (32, 48)).save(s.images / "a.png")),
    "an image without labels": ("yolo", lambda s: shutil.copy(s.images / "a.png", s.images / "z.png")),
    "a folder below": ("lists", new_folder),
    "labels beside the image": ("yolo", lambda s: shutil.move(s.labels / "a.txt", s.images)),
    "a nearer list of classes": ("lists", lambda s: (s.images / "classes.txt").write_text("ant\nwasp\n")),
    "a list of classes": ("flat", lambda s: (s.folder.parent / "labels.txt").write_text("ant\nwasp\n")),
    "another ending": ("voc", lambda s: os.rename(s.images / "a.png", s.images / "a.webp")),
    "an image folder": ("cvat", lambda s: shutil.copytree(s.folder, s.folder / "images")),
    "another format": ("labelme", lambda s: (s.folder / "annotations.xml").write_text(
        CVAT[0].format(CVAT[1].format(1, "a", "ant", 30)))),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_not_there_counts_too(change, tmp_path, start) -> None:
    kind, make = CHANGES[change]
    labels = Labels(kind, tmp_path / "above" / "set")
    make_old(tmp_path / "above")
    start(labels, level="json")
    assert start(labels, level="json")[0] == 0
    make(labels)
    count, found = start(labels, level="json")
    assert count == 1
    assert_equal(start(labels, level="json")[1], found)
