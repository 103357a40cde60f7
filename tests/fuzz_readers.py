"""Hostile files for every reader: each is read or refused in one line, and nothing else ever happens.

    python tests/fuzz_readers.py --inputs 20000 [READER ...]

Input number N of a reader is one of its whole files, damaged as N says: values of a document replaced by odd ones, then
bytes changed. Child processes read a thousand each, with 2 GiB of memory beyond what they begin with and 20 s of CPU
time for an input. A signal, an exception that is no UserError, a message of two lines, and no end are finds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.config import get_cfg
from PIL import Image, features
from toy import ToyModel, ToyRun

from resnext_det.annotations.check import Options, inspect_coco, inspect_document, report
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.evaluation import evaluate
from resnext_det.annotations.formats import read as read_labels
from resnext_det.annotations.masks import compressed
from resnext_det.annotations.predicted import read_predictions
from resnext_det.classification.data import ImageFolder
from resnext_det.classification.shards import ShardedImages, index_shards
from resnext_det.commands.benchmark import _known
from resnext_det.detection.config import add_resnext_config
from resnext_det.detection.config_check import check_config
from resnext_det.detection.data.proposals import read_proposals, write_proposals
from resnext_det.engine.checkpoint import seal
from resnext_det.engine.config import load_config
from resnext_det.engine.dump import load_weights, read_dump, summary
from resnext_det.engine.evaluations import find_metric, read_evaluations
from resnext_det.errors import UserError
from resnext_det.files import METRICS, read_state
from resnext_det.images import POLICIES, read_header, read_image
from resnext_det.makers.cifar import unpack
from resnext_det.makers.shards import write_shards
from resnext_det.paper.reproduce import SETTINGS_FILE, Command, options_of_file
from resnext_det.paper.study import _table, of_run, read_runs, read_study
from resnext_det.prediction.parts import begin, merge, whole_units
from resnext_det.prediction.run import Summary
from resnext_det.reporting.curves import read_metrics
from resnext_det.weights import read_checkpoint, save_checkpoint
from resnext_det.weights.reading import read_file, read_pickle, read_torch

MEMORY, SECONDS = 2 << 30, 20
AT_ONCE = 1000  # inputs of one child


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
        files: writes what else a folder needs, and gives {file name: what it holds}, bytes or a document.
        read: reads the folder, of which the named file is damaged; raises UserError where it refuses.
        encode: a document as the bytes of its file.
        fragments: bytes to insert, for what no chance would find.
    """

    files: Callable[[Path], dict[str, Any]]
    read: Callable[[Path, str], object]
    encode: Callable[[Any], bytes] = lambda document: json.dumps(document).encode()
    fragments: Sequence[bytes] = ()


READERS: dict[str, Reader] = {}

ODD = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**70, 10**400, -(2**63), 0.5, -0.0, 1e-320, 1e308, -1e308,
    float("nan"), float("inf"), "", " ", "x" * 5000, "a\x1b[2J\nb", "\ud800", "a\0b", "../x", "/etc/passwd", "NaN", "1",
    "é", [], {},
    [[]], [None], {"": None}, [1, 2, 3, 4], [[1, 2], [3, 4]], ["x"], "%s%n{0}{}", "${HOME}", "~",
]  # fmt: skip
JSON_FRAGMENTS = [
    b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"1e999", b"-Infinity", b"NaN", b'"\\ud800"', b"\\u0000",
    b"\xff", b"\xef\xbb\xbf", b"//", b",", b"}", b"]", b":", b'"', b"\x00", b"\x1b[2J\n", b"1.", b"0x1",
]  # fmt: skip


def odd(document: Any, chance: random.Random) -> Any:
    """A copy with one to three values replaced, left out, repeated, renamed or moved into a list."""
    document = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        waiting = [document]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict | list):
                keys = list(node) if isinstance(node, dict) else range(min(len(node), 50))
                places += [(node, key) for key in keys]
                waiting += [node[key] for key in keys]
        if not places:
            return chance.choice(ODD)
        node, key = chance.choice(places)
        kind = chance.randrange(8)
        if kind == 0:
            del node[key]
        elif kind == 1:
            node[key] = [node[key]]
        elif kind == 2 and isinstance(node, dict):
            node[str(chance.choice(ODD))[:100]] = node.pop(key)
        elif kind == 3 and isinstance(node, list):
            node.insert(0, copy.deepcopy(node[key]))
        elif kind == 4:
            other, place = chance.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                node[key] = copy.deepcopy(other[place])
        else:
            node[key] = copy.deepcopy(chance.choice(ODD))
    return chance.choice(ODD) if chance.random() < 0.01 else document


def damage(data: bytes, chance: random.Random, fragments: Sequence[bytes] = ()) -> bytes:
    """``data`` with one to six changes: bytes, fragments, repeats, cuts."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(7)
        if kind == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            changed[place : place + chance.randint(0, 1)] = chance.choice(fragments or [b"\0", b"\xff" * 8])
        elif kind == 2 and changed:
            changed[place : place + 1] = bytes([changed[min(place, len(changed) - 1)] ^ 1 << chance.randrange(8)])
        elif kind == 3:
            changed[place:place] = changed[place : place + chance.randint(1, 64)] * chance.randint(1, 20)
        elif kind == 4:
            del changed[place : place + chance.randint(1, 16)]
        elif kind == 5:
            changed[place : place + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f" + b"\xff" * 3])
        elif chance.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def made(reader: Reader, files: dict[str, Any], number: int, name: str) -> tuple[str, bytes]:
    """(file name, bytes) of input ``number`` of the reader called ``name``."""
    chance = random.Random(f"{name} {number}")
    file = chance.choice(sorted(files))
    content = files[file]
    if isinstance(content, bytes):
        return file, damage(content, chance, reader.fragments)
    try:
        data = reader.encode(odd(content, chance) if chance.random() < 0.8 else content)
    except (OverflowError, RecursionError, TypeError, ValueError, pickle.PicklingError):  # no such file can be written
        data = reader.encode(content)
    return file, damage(data, chance, reader.fragments) if chance.random() < 0.3 else data


def attack(name: str, first: int, count: int, folder: Path, progress: Callable[[int], object] = bool) -> list[str]:
    """Read inputs ``first`` to ``first + count``; the finds, each one text."""
    reader, finds = READERS[name], []
    folder.mkdir(parents=True, exist_ok=True)
    files = reader.files(folder)
    whole = {file: content if isinstance(content, bytes) else reader.encode(content) for file, content in files.items()}
    for file, data in whole.items():
        (folder / file).write_bytes(data)
    for number in range(first, first + count):
        progress(number)
        file, data = made(reader, files, number, name)
        (folder / file).write_bytes(data)
        try:
            with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
                reader.read(folder, file)
        except UserError as error:
            if len(str(error)) > 4000:  # the command shows so many characters, on one line
                finds.append(f"{name} {number} ({file}): a long message: {str(error)[:200]!r}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}:{where.lineno}"
            finds.append(f"{name} {number} ({file}): {type(error).__name__}: {str(error)[:150]} at {place}")
        (folder / file).write_bytes(whole[file])
    return finds


def every(*readings: Callable[[], object]) -> None:
    """Call all; the last UserError is raised again."""
    refused = None
    for reading in readings:
        try:
            reading()
        except UserError as error:
            refused = error
    if refused is not None:
        raise refused


# JSON of data sets and results

IMAGES = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in (1, 2)]
CATEGORIES = [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}]
OBJECT = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 2.5], "area": 7.5, "iscrowd": 0}
FOUND = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 2.5], "score": 0.5}
LOOSE = Options(decode=False, workers=1)


def _set(folder: Path) -> dict[str, Any]:
    for i in (1, 2):
        Image.new("RGB", (8, 6)).save(folder / f"{i}.png")
    objects = [{"id": i, **OBJECT} for i in (1, 2, 3)]
    objects[2]["keypoints"], objects[2]["num_keypoints"] = [1, 2, 2, 3, 3, 1], 2
    truth = {"images": IMAGES, "categories": CATEGORIES, "annotations": objects, "info": {"a": 1}}
    return {
        "gt.json": truth,
        "dt.json": [FOUND, {**FOUND, "image_id": 2}],
        "predicted.json": {**truth, "annotations": [{"id": 1, **FOUND}]},
    }


def _read_set(folder: Path, file: str) -> None:
    def check() -> None:
        checked = inspect_coco(folder / "gt.json", folder, LOOSE)
        assert report(checked).replace("\n", "").isprintable()
        if not checked.errors:
            checked.dataset_dicts()
        checked.raise_errors()

    def compare() -> None:
        truth = read_ground_truth(folder / "gt.json")
        found = read_predictions(folder / "predicted.json", truth) if file == "predicted.json" else None
        evaluate(truth, Detections.from_json(folder / "dt.json") if found is None else found)

    every(check, compare)


READERS["json"] = Reader(_set, _read_set, fragments=JSON_FRAGMENTS)


# run lengths and polygons

RUNS = {"size": [6, 8], "counts": [5, 4, 39]}
PACKED = {"size": [6, 8], "counts": compressed([5, 4, 39]).decode()}
SHAPES = [[[1, 1, 5, 1, 5, 4, 1, 4]], [[1, 1, 5, 1, 5, 4], [2, 2, 4, 2, 4, 4.5]], RUNS, PACKED]


def _masks(folder: Path) -> dict[str, Any]:
    truth = {
        "images": IMAGES,
        "categories": CATEGORIES,
        "annotations": [{"id": i, **OBJECT, "segmentation": s} for i, s in enumerate(SHAPES, 1)],
    }
    truth["annotations"][2]["iscrowd"] = 1
    return {"gt.json": truth, "dt.json": [{**FOUND, "segmentation": shape} for shape in SHAPES]}


def _read_masks(folder: Path, file: str) -> None:
    def check() -> None:
        checked = inspect_coco(folder / "gt.json", None, Options(decode=False, masks=True, for_training=True))
        if not checked.errors:
            checked.dataset_dicts(masks=True)
        checked.raise_errors()

    def compare() -> None:
        truth = read_ground_truth(folder / "gt.json", with_masks=True)
        evaluate(truth, Detections.from_json(folder / "dt.json"), "segm")

    every(check, compare)


READERS["masks"] = Reader(
    _masks, _read_masks, fragments=[b"oooooo", b"P", b"0", b"[[[", b"1e300", b"-1,", b'"', b"]],["]
)


# configurations

CONFIG = {
    "SOLVER": {"BASE_LR": 0.02, "MAX_ITER": 100, "STEPS": [60, 80], "IMS_PER_BATCH": 4},
    "MODEL": {
        "DEVICE": "cpu", "RESNETS": {"DEPTH": 50, "OUT_FEATURES": ["res4"]},
        "BACKBONE": {"NAME": "build_resnext_backbone"}, "PIXEL_MEAN": [1.0, 2.0, 3.0],
    },
    "DATASETS": {"REGISTER": [["a", "b.json", "c"]], "TRAIN": ["a"], "TEST": ["a"], "BROKEN_IMAGES": "skip"},
    "INPUT": {"MIN_SIZE_TRAIN": [64], "FORMAT": "BGR"},
    "SEED": 1,
}  # fmt: skip
STUDY = [
    {"name": "c4", "benchmark": "c4-inference", "minutes": 2, "arguments": ["--quick"]},
    {"name": "t", "table": 3, "seeds": [0, 1], "set": {"SOLVER.EPOCHS": 2}, "width": "1/2", "data": "x", "weights": {}},
]
STOCK = get_cfg()
add_resnext_config(STOCK)


def _configs(folder: Path) -> dict[str, Any]:
    return {"config.yaml": CONFIG, "study.yaml": STUDY, "settings.yaml": {"SOLVER": {"EPOCHS": 2}, "SEED": 1}}


def _read_configs(folder: Path, file: str) -> None:
    if file == "study.yaml":
        read_study(str(folder / file))
    elif file == "settings.yaml":
        options_of_file(str(folder / file))
    else:
        cfg = STOCK.clone()
        load_config(cfg, str(folder / file), [])
        check_config(cfg, eval_only=False)


READERS["yaml"] = Reader(
    _configs,
    _read_configs,
    fragments=[
        b"&a [*a]", b"&a", b"*a", b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!binary x", b"- " * 60,
        b"[" * 60, b"_BASE_: config.yaml\n", b"_BASE_: http://x\n", b"2001-99-99", b"0x", b"1_0", b"? ", b"\t",
        b"---\n",
        b"%YAML 9", b"!!timestamp 2001-01-01", b"!!set {a}", b"!!omap [a: 1]", b"\n", b": ", b".inf",
        b"!!float x", b"!!int x",
    ],
)  # fmt: skip


# images

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
FORMATS = [
    ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("GIF", "P"),
    ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("PPM", "RGB"), ("JPEG2000", "RGB"), ("AVIF", "RGB"),
]  # fmt: skip


def _images(folder: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 4), dtype=np.uint8)
    files = {}
    for kind, mode in FORMATS:
        if kind == "AVIF" and not features.check("avif") or kind == "JPEG2000" and not features.check("jpg_2000"):
            continue
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels, "RGBA")
        more = (
            {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}
            if kind == "JPEG"
            else {}
        )
        (picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)).save(
            buffer, kind, **more
        )
        files[f"{kind}_{mode.replace(';', '')}"] = buffer.getvalue()
    return files


def _read_images(folder: Path, file: str) -> None:
    every(
        lambda: read_header(folder / file, max_megapixels=1),
        *(lambda policy=policy: read_image(folder / file, policy=policy, max_megapixels=1) for policy in POLICIES),
    )


READERS["images"] = Reader(
    _images,
    _read_images,
    fragments=[b"\xff\xd8", b"\xff\xda", b"\xff\xc0\0\x11", b"IDAT", b"IHDR", b"\xff\xff\xff\xff", b"#" * 100,
        b"P6\n9 9\n", b"II*\0",
               b"MM\0*", b"RIFF", b"\xff\x4f\xff\x51", b"ftypavif", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"acTL", b"iCCP"],
)  # fmt: skip


# shards


def _shards(folder: Path) -> dict[str, Any]:
    for number in range(4):
        path = folder / "classes" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (number, 0, 0)).save(path)
    shutil.rmtree(folder / "made", ignore_errors=True)
    write_shards(ImageFolder(folder / "classes"), folder / "made", per_shard=2)
    index = json.loads((folder / "made" / "index.json").read_text())
    return {"index.json": index} | {p.name: p.read_bytes() for p in (folder / "made").iterdir() if p.suffix != ".json"}


def _read_shards(folder: Path, file: str) -> None:
    images = ShardedImages(str(folder))
    for i in range(min(len(images), 20)):
        _ = images[i]


def _index_shards(folder: Path, file: str) -> None:
    kept = {name: (folder / name).read_bytes() for name in ("index.json", "index.npy")}
    try:
        every(lambda: index_shards(str(folder)), lambda: _read_shards(folder, file))
    finally:
        for name, data in kept.items():
            (folder / name).write_bytes(data)


TAR_FRAGMENTS = [
    b"\x93NUMPY",
    b"'descr': ",
    b"(9999999999,)",
    b"ustar\0",
    b"ustar  \0",
    b"\0" * 512,
    b"../../x",
    b"L",
    b"x",
    b"g",
    b"S",
    b"77777777777",
]
READERS["shards"] = Reader(_shards, lambda *of: every(lambda: _read_shards(*of), lambda: _index_shards(*of)),
                           fragments=TAR_FRAGMENTS)  # fmt: skip


# checkpoints of runs, and what weights say of themselves


METADATA = {"depth": 50, "class_names": ["a", "b"], "pixel_mean": [1.0, 2.0, 3.0], "channel_order": "RGB"}


def _saved(document: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    if random.random() < 0.5:
        with contextlib.suppress(RuntimeError):
            seal(buffer)
    return buffer.getvalue()


def _checkpoints(folder: Path) -> dict[str, Any]:
    ToyRun(folder / "run").train(2)
    content = torch.load(folder / "run" / "model_final.pth", weights_only=True)
    content["metadata"] = {
        "depth": 50,
        "class_names": ["a", "b"],
        "pixel_mean": [1.0, 2.0, 3.0],
        "channel_order": "RGB",
    }
    return {"model_final.pth": content, "last_checkpoint": b"model_final.pth"}


def _read_checkpoints(folder: Path, file: str) -> None:
    every(
        lambda: ToyRun(folder).resume(),
        lambda: read_checkpoint(folder / "model_final.pth"),
    )


READERS["checkpoints"] = Reader(
    _checkpoints,
    _read_checkpoints,
    _saved,
    [b"../x", b"/", b"model_0000001.pth", b"\n", b"PK\x05\x06", b"\x80\x02", b"\0"],
)


def _weights(folder: Path) -> dict[str, Any]:
    model = resnext_det.create_model("resnext14_2x4d", 3)
    metadata = {
        "depth": 14,
        "class_names": ["a", "b", "c"],
        "pixel_mean": [1.0, 2.0, 3.0],
        "channel_order": "RGB",
        "config": json.dumps(CONFIG),
    }
    save_checkpoint(folder / "s.safetensors", model.state_dict(), metadata)
    tensors = {key: value for key, value in model.state_dict().items() if value.numel() < 3000}
    return {
        "w.pth": {"model": tensors, "metadata": metadata},
        "s.safetensors": (folder / "s.safetensors").read_bytes(),
    }


def _read_weights(folder: Path, file: str) -> None:
    read_checkpoint(folder / file)


READERS["weights"] = Reader(
    _weights, _read_weights, _saved, [*JSON_FRAGMENTS[2:], b'"dtype":', b'"F64"', b"data_offsets"]
)


# dumps

FACTS = {
    "reason": "loss at iteration 3", "iteration": 3, "seed": 1, "process": 0, "processes": 1, "accumulate": 1,
    "precision": "fp32", "loss_scale": 1.0, "learning_rate": [0.1], "losses": [{"loss_a": 1.0, "loss_b": None}],
    "gradient_norms": {"linear.weight": 1.0},
    "batches": [{"batch": 3, "samples": [{"position": 1, "index": 2, "file_name": "2.jpg", "annotation_ids": [1]}]}],
}  # fmt: skip


def _dumps(folder: Path) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save({"model": ToyModel().state_dict()}, buffer)
    return {"process_0.json": FACTS, "weights.pth": buffer.getvalue()}


def _read_dumps(folder: Path, file: str) -> None:
    def facts() -> None:
        found = read_dump(folder)
        assert summary(found).isprintable()

    every(facts, lambda: load_weights(ToyModel(), folder))


READERS["dumps"] = Reader(_dumps, _read_dumps, fragments=JSON_FRAGMENTS)


# our own files of JSON

PATHS = {"paths": ["1.png"]}
STATE: dict[str, tuple[Any, Callable[[Path], object]]] = {
    "results.json": (
        {"bbox": {"AP": 1.5, "AP50": None}, "parameters": 9, "top1_error": 2.0},
        lambda file: read_state(file, METRICS, "x"),
    ),
    "runs.json": (
        {"t, a, seed 0": {"command": "x", "finished": True, "results": {"AP": 1.0}, "iteration": 2, "epoch": None}},
        lambda file: _table({"a": list(read_runs(file.parent).values())}, {"a": "A"}, {"AP": "AP"}),
    ),
    "reproduce.json": ({"tool": "train", "config": "x.yaml", "options": ["A", "1"]}, lambda f: _command(f).finished()),
    "benchmark.json": (
        {"rows": {"a": {"b": 1.0}}, "machine": {"processor": "p", "gpu": "g", "torch": "t", "settings": "s"}},
        lambda file: _known(str(file), {"processor": "p", "gpu": "g", "torch": "t", "settings": "s"}),
    ),
    "evaluations.jsonl": (
        b'{"iteration": 2, "images": 4, "bbox": {"AP": 3.5}}\n{"iteration": 4, "images": 8, "bbox": {"AP": null}}\n',
        lambda file: [find_metric(record, "AP") for record in read_evaluations(file)],
    ),
    "metrics.json": (
        b'{"iteration": 2, "total_loss": 3.5, "lr": 0.1}\n{"iteration": 3, "total_loss": NaN}\n',
        lambda file: (read_metrics(file), of_run(_command(file), True)),
    ),
    "parts/manifest.json": (
        {"version": 1, "paths": ["1.png"]},
        lambda f: begin(f.parents[1], PATHS, resume=True),
    ),
    "parts/0001_0000.jsonl": (
        b'{"unit": 0, "image": {"file_name": "1.png", "width": 8, "height": 6}, "annotations": [{"category_id": 1, '
        b'"bbox": [1, 2, 3, 4], "score": 0.5}], "end": true}\n{"unit": 1, "broken": "x", "end": true}\n',
        lambda file: every(
            lambda: whole_units(file.parents[1]),
            lambda: Summary.of(file.parents[1], file),
            lambda: merge(file.parents[1], CATEGORIES),
            lambda: merge(file.parents[1], CATEGORIES, {"1.png": 1}),
        ),
    ),
}


def _command(file: Path) -> Command:
    (file.parent / "run").mkdir(exist_ok=True)
    for name, place in (("reproduce.json", SETTINGS_FILE), ("metrics.json", "metrics.json")):
        shutil.copyfile(file.parent / name, file.parent / "run" / place)
    return Command("train", Path("x.yaml"), file.parent / "run", ("A", "1"), (file.parent / "none",))


def _state(folder: Path) -> dict[str, Any]:
    (folder / "parts").mkdir(exist_ok=True)
    return {name: content for name, (content, _) in STATE.items()}


READERS["state"] = Reader(_state, lambda folder, file: STATE[file][1](folder / file), fragments=JSON_FRAGMENTS)


# labels in other formats

LABELS = {
    "voc/Annotations/1.xml": b"<annotation><filename>1.png</filename><size><width>8</width>"
    b"<height>6</height><depth>3</depth></size>"
    b"<object><name>ant</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>5</ymax></bndbox>"
    b"</object></annotation>",
    "voc/ImageSets/Main/train.txt": b"1\n",
    "cvat/annotations.xml": b'<?xml version="1.0"?><annotations><version>1.1</version><meta><task><labels>'
    b"<label><name>ant</name>"
    b'</label></labels></task></meta><image id="0" name="1.png" width="8" height="6">'
    b'<box label="ant" xtl="1" ytl="1" xbr="3" ybr="5"/>'
    b'<polygon label="ant" points="1,1;2,1;2,3"/></image></annotations>',
    "labelme/1.json": {"imagePath": "1.png", "imageWidth": 8, "imageHeight": 6, "shapes": [
        {"label": "ant", "points": [[1, 1], [3, 5]], "shape_type": "rectangle"},
        {"label": "ant", "points": [[1, 1], [3, 5], [4, 1]], "shape_type": "polygon"}]},
    "yolo/data.yaml": {"path": ".", "train": "images", "names": ["ant", "bee"]},
    "yolo/labels/1.txt": b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.4 0.1 0.4 0.4\n",
}  # fmt: skip


def _labels(folder: Path) -> dict[str, Any]:
    for name in LABELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for place in ("voc/JPEGImages", "cvat", "labelme", "yolo/images"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / place / "1.png")
    return LABELS


def _read_labels(folder: Path, file: str) -> None:
    kind = file.partition("/")[0]
    place = folder / ("voc/ImageSets/Main/train.txt" if kind == "voc" else kind)
    from resnext_det.annotations.formats import reading

    reading._cached.cache_clear()
    source = read_labels(place)
    checked = inspect_document(source.document, str(place), source.image_root, LOOSE)
    assert report(checked).replace("\n", "").isprintable()


READERS["labels"] = Reader(
    _labels,
    _read_labels,
    fragments=[
        *JSON_FRAGMENTS[2:],
        b'<!DOCTYPE a [<!ENTITY b "c">]>',
        b"&b;",
        b"<a>" * 2000,
        b"<![CDATA[",
        b"../",
        b"1e400 ",
        b"nan ",
    ],
)


# proposals, CIFAR's archives, pickles


def _proposals(folder: Path) -> dict[str, Any]:
    write_proposals(folder / "p.pkl", [1, "a"], [np.ones((2, 4), np.float32)] * 2, [np.ones(2, np.float32)] * 2)
    return {"p.pkl": (folder / "p.pkl").read_bytes()}


PICKLE_FRAGMENTS = [
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\ntNI-1\nI-1\nI63\ntb",
    b"cnumpy.core.multiarray\nscalar\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nSize\n",
    b"(I-1\nI1099511627776\nt",
    b"\x8a\xff" + b"\xff" * 255,
    b"0", b"2", b"h\x00", b"h\x01", b"\x94", b"R", b"b", b"\x85", b"s",
    *(opcode.code.encode("latin1") for opcode in __import__("pickletools").opcodes),
]  # fmt: skip
READERS["proposals"] = Reader(
    _proposals, lambda folder, file: read_proposals(folder / file), fragments=PICKLE_FRAGMENTS
)


def _archives(folder: Path) -> dict[str, Any]:
    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    rows = np.zeros((2, 3073), np.uint8).tobytes()
    batch = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2)
    names = pickle.dumps({b"label_names": [b"a", b"b"]}, 2)
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    return {
        "python.tar": tar({"c/data_batch_1": batch, "c/test_batch": batch, "c/batches.meta": names}),
        "binary.tar": tar({"c/data_batch_1.bin": rows, "c/test_batch.bin": rows, "c/batches.meta.txt": b"a\nb\n"}),
        "images.tar": tar({"train/a/1.png": image.getvalue(), "test/a/1.png": image.getvalue()}),
    }  # fmt: skip


def _read_archives(folder: Path, file: str) -> None:
    try:
        unpack(folder / file, folder / "out")
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)
    assert not (folder.parent / "x").exists()


READERS["archives"] = Reader(
    _archives, _read_archives, fragments=[*TAR_FRAGMENTS, *PICKLE_FRAGMENTS[:6], b"a/../", b"/x"]
)


def pickled_files(folder: Path | None = None) -> dict[str, Any]:
    """Whole files of every kind of pickle."""
    content = {
        "model": OrderedDict(a=torch.ones(2, 3), b=torch.arange(4).half(), c=torch.tensor([True])),
        "metadata": {"depth": 50, "names": ["x", "y"], "f": 1.5},
        "args": Namespace(lr=0.1),
        "best": np.float64(3.5),
    }
    arrays = {
        "conv1_w": np.ones((2, 3, 1, 1), np.float32),
        "s": np.array([b"ab"]),
        "f": np.asfortranarray(np.ones((2, 3))),
        "ids": [1, 2**70, "x", b"y", None, (1, 2), {3}],
        "o": np.array([{}, []], dtype=object),
        "d": np.zeros(1, [("a", "f4"), ("b", "O")]),
    }
    files: dict[str, Any] = {f"{protocol}.pkl": pickle.dumps(arrays, protocol) for protocol in range(6)}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        files[f"{'zipped' if zipped else 'legacy'}.pth"] = buffer.getvalue()
    return files


def _read_pickles(folder: Path, file: str) -> None:
    # A false pointer shows when it is followed.
    every(*(lambda reader=reader: str(reader(folder / file)) for reader in (read_file, read_pickle, read_torch)))


READERS["pickles"] = Reader(pickled_files, _read_pickles, fragments=PICKLE_FRAGMENTS)


def child(name: str, first: int, count: int, folder: Path) -> None:
    """What a child process does: the finds and the number of the input that it is at go into files of ``folder``."""
    for stream in (1, 2):
        os.dup2(os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    logging.disable(logging.CRITICAL)
    if sys.platform.startswith("linux"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    place = os.open(folder / "at", os.O_RDWR)

    def progress(number: int) -> None:
        os.pwrite(place, f"{number:12d}".encode(), 0)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
        signal.alarm(30 * SECONDS)  # for what waits: the machine may be shared

    finds = attack(name, first, count, folder / "files", progress)
    (folder / "finds").write_text("".join(f"{find}\n" for find in finds), encoding="utf-8", errors="backslashreplace")


def fuzz(name: str, inputs: int, first: int = 0) -> list[str]:
    """Read that many inputs in forked processes; the finds."""
    finds, number, end = [], first, first + inputs
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        deaths = 0
        while number < end and deaths < 20:
            count = min(AT_ONCE, end - number)
            (folder / "at").write_text(f"{number:12d}")
            (folder / "finds").write_text("")
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    child(name, number, count, folder)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            finds += (folder / "finds").read_text(encoding="utf-8").splitlines()
            at = int((folder / "at").read_text())
            if code:
                output = (folder / "output").read_text(errors="replace")[-1500:]
                finds.append(f"{name} {at}: ended by {code}: {output}")
                number, deaths = at + 1, deaths + 1
            else:
                number += count
    return finds


def kind_of(find: str) -> str:
    """A find without what differs from one input to the next."""
    return re.sub(r"^\S+ \d+ |'.*'|\".*\"|/tmp/\S+|byte \w+|position \d+", "", find)[:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", default=list(READERS), help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.readers:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        finds = fuzz(name, args.inputs, args.first)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = f"{usage.ru_utime - before:.0f} s of CPU time, at most {usage.ru_maxrss >> 10} MiB so far"
        print(f"{name}: {args.inputs} inputs, {len(finds)} finds; {used}")
        kinds = Counter(map(kind_of, finds))
        firsts = {kind_of(find): find for find in reversed(finds)}
        for kind, count in kinds.most_common():
            print(f"  {count} x {firsts[kind]}", flush=True)


if __name__ == "__main__":
    main()
