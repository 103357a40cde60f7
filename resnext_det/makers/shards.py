"""Pack classified or labeled images into WebDataset shards, or write the index of shards that exist."""

from __future__ import annotations

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.check import read_document
from ..annotations.formats import Source
from ..classification.data import ImageFolder
from ..classification.shards import index_shards, read_shard
from ..errors import UserError
from ..files import read_regular, write_json
from ..images import MAX_IMAGE_BYTES
from .folders import is_made, new_folder, recipe

NAME_LENGTH = 60  # of a file's own name in its key; a tar header holds 100 characters
RECORDS = "instances.json"
"""Beside labeled shards: all records, with each image's place. ``KEY.json`` in a shard holds those of one image."""
RECORD_BYTES = 1 << 26


def write_shards(image_set: ImageFolder, out: str | Path, per_shard: int = 5000, seed: int = 0) -> int:
    """Write ``out/000000.tar``, ... in random order, with their index, and return the number of shards.

    The files are copied as they are. The same images and seed give the same bytes.

    Raises:
        UserError: ``out`` exists, or the package webdataset is missing.
    """
    made_by = recipe("make-shards", image_set.root, per_shard=per_shard, seed=seed)
    if is_made(out, made_by):
        return len(list(Path(out).glob("*.tar")))
    with new_folder(out, made_by) as folder:
        files = [Path(file) for file in image_set.files]
        _pack(folder, files, [{"cls": str(label).encode()} for label in image_set.labels], per_shard, seed)
        index_shards(str(folder), image_set.classes)
        return len(list(folder.glob("*.tar")))


def write_labeled_shards(sources: Mapping[str, Source], out: str | Path, per_shard: int, seed: int) -> dict[str, int]:
    """As :func:`write_shards`, for checked sets of labels: ``KEY.jpg`` and ``KEY.json``, and :data:`RECORDS`.

    Args:
        sources: {split: set}. Of several each gets a folder in ``out``.

    Returns:
        {folder: number of its shards}.
    """
    folders = {str(Path(out, split if len(sources) > 1 else "")): source for split, source in sources.items()}
    made_by = recipe("make-shards", *{s.image_root for s in sources.values()}, per_shard=per_shard, seed=seed,
                     records=json.dumps([source.document for source in sources.values()]))  # fmt: skip
    if not is_made(out, made_by):
        with new_folder(out, made_by) as part:
            for place, source in folders.items():
                folder = part / Path(place).relative_to(out)
                folder.mkdir(exist_ok=True)
                document, objects = source.document, defaultdict(list)
                for record in document.get("annotations", ()):
                    objects[record["image_id"]].append(record)
                labels = [
                    {"json": json.dumps({"image": image, "annotations": objects[image["id"]]}).encode()}
                    for image in document["images"]
                ]
                files = [Path(source.image_root, image["file_name"]) for image in document["images"]]
                _pack(folder, files, labels, per_shard, seed)
                index_labeled_shards(folder, document["categories"])
    return {place: len(list(Path(place).glob("*.tar"))) for place in folders}


def index_labeled_shards(root: str | Path, categories: Sequence[dict] | None = None) -> int:
    """Write :data:`RECORDS` of the labeled shards in ``root``, ours or other people's; returns the number of images.

    ``file_name`` becomes the image's place, ``SHARD.tar/OFFSET-SIZE-NAME``, which every reader of images knows.

    Args:
        categories: COCO's; None takes those of the older file.

    Raises:
        UserError: no shards, a broken tar file, a sample without image or record, no categories.
    """
    folder = Path(root)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"{root}: no *.tar files")
    if categories is None:
        if not (folder / RECORDS).exists():
            raise UserError(f"{root}: no {RECORDS}, which names the classes; give them with --classes FILE")
        categories = read_document(folder / RECORDS)["categories"]
    images, annotations = [], []
    for path in paths:
        for name, offset, size, record in read_shard(path, ".json", _record):
            place = f"{path.name}/{offset}-{size}-{name.replace('/', '_')}"
            images.append({**record["image"], "file_name": place})
            annotations += record["annotations"]
    write_json(folder / RECORDS, {"images": images, "annotations": annotations, "categories": list(categories)})
    return len(images)


def _record(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    file = tar.extractfile(member)
    try:
        record = json.loads(file.read()) if file and member.size <= RECORD_BYTES else None
    except RecursionError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("image"), dict):
        raise ValueError(f"{member.name} holds no record of an image")
    if not isinstance(record.get("annotations"), list):
        raise ValueError(f"{member.name} has no list of annotations")
    return record


def _pack(folder: Path, files: Sequence[Path], labels: Sequence[dict[str, bytes]], per_shard: int, seed: int) -> None:
    """Write the files in random order, each with its label, {ending: bytes}."""
    try:
        from webdataset import ShardWriter
    except ImportError as error:
        raise UserError("shards need the package webdataset: pip install 'resnext-det[webdataset]'") from error
    with ShardWriter(str(folder / "%06d.tar"), maxcount=per_shard, mtime=0, verbose=0, encoder=False) as writer:
        for number, index in enumerate(np.random.default_rng(seed).permutation(len(files))):
            path = files[index]
            # No dots: a WebDataset key ends at the first. The number keeps equal names apart.
            key = f"{number:08d}_{re.sub('[^A-Za-z0-9_-]', '_', path.stem)[:NAME_LENGTH]}"
            image = {path.suffix[1:].lower(): read_regular(path, MAX_IMAGE_BYTES)}
            writer.write({"__key__": key, **image, **labels[index]})
