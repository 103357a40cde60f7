"""Classified images in WebDataset shards: tar files that are read at random, by an index of where each image lies.

A folder of shards holds ``*.tar`` (each sample an image and its class number: ``key.jpg``, ``key.cls``), and
``index.json`` and ``index.npy``, which :func:`index_shards` writes. With the index a shard is no stream but a list of
images, so the order of training is the one of :mod:`..engine.sampler`: each image once per epoch however many
processes and workers read, and a resumed run continues at the very next batch.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..errors import UserError
from ..files import atomic_write, open_regular, read_regular, read_state, safe_component, shown, write_json
from ..images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from .augmentation import Sample
from .data import ImageFolder, ImageSet, match_classes, open_image

logger = logging.getLogger(__name__)

INDEX, ENTRIES = "index.json", "index.npy"
ENTRY = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("size", "<i4"), ("label", "<i4")])
_NPY_HEAD = re.compile(  # all that numpy.save writes before such entries; numpy makes nothing of what a file says
    rb"\x93NUMPY\x01\x00..\{'descr': "
    + re.escape(repr(np.lib.format.dtype_to_descr(ENTRY)).encode())
    + rb", 'fortran_order': False, 'shape': \((\d{1,12}),\), \} *\n",
    re.DOTALL,
)
MAX_CLASSES = 1_000_000
_INDEX_BYTES = 1 << 30  # about 50 million images
OPEN_FILES = 64  # per worker; a set may have more shards than a process may open files


def open_images(
    root: str, classes: Sequence[str] | None = None, window: int = 0, *, folder: str | os.PathLike | None = None
) -> ImageSet:
    """A folder of shards or one of class folders, whichever ``root`` is. Arguments as for the two classes."""
    if any(Path(root).glob("*.tar")) or (Path(root) / INDEX).is_file():
        return ShardedImages(root, classes, window)
    return ImageFolder(root, classes, folder)


class ShardedImages(Dataset):
    """The images of a folder of shards, with the interface of :class:`~.data.ImageFolder`.

    Args:
        root: the folder.
        classes: as for ImageFolder.
        window: training shuffles the shards and then stretches of this many samples, so that reading stays within few
            files at a time; 0 shuffles the whole set.

    Attributes:
        classes: tuple of class names; a label is an index into it.
        labels: (samples,) integers.

    Raises:
        UserError: no index, an index of other shards, a class unknown to training.
    """

    def __init__(self, root: str, classes: Sequence[str] | None = None, window: int = 0) -> None:
        self.root, self.window = Path(root), window
        own, shards, self.entries = _read_index(self.root)
        self.shards = [self.root / shard["name"] for shard in shards]
        for path, shard in zip(self.shards, shards, strict=True):
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"{path}: missing, or not the {shard['bytes']} bytes its index knows; copy it again, or write the "
                    f"index anew: tools/make_shards.py --index {root}"
                )
        self.classes, renumbered = match_classes(root, own, classes)
        self.labels = np.asarray(renumbered)[self.entries["label"]]
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        shard, offset, size, _ = self.entries[index].tolist()
        data = os.pread(self._file(shard), tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
        name = data[:100].rstrip(b"\0").decode(errors="replace")  # from the header before the image
        path = f"{self.shards[shard]}: {name}"
        image = open_image(io.BytesIO(data[tarfile.BLOCKSIZE :]), path)
        return Sample(image, int(self.labels[index]), path)

    def _file(self, shard: int) -> int:
        """An open file; reading at an offset leaves it as it was, so that forked workers may share it."""
        if shard not in self._files:
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        self._files.move_to_end(shard)
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return self._files[shard]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": OrderedDict()}  # a spawned worker opens its own

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Sample numbers in the order of one epoch: shards shuffled, then each window."""
        generator = np.random.default_rng((seed, epoch))
        if not self.window:
            return generator.permutation(len(self))
        ends = np.searchsorted(self.entries["shard"], np.arange(len(self.shards) + 1))
        parts = [np.arange(ends[shard], ends[shard + 1]) for shard in generator.permutation(len(self.shards))]
        order = np.concatenate(parts)
        for start in range(0, len(order), self.window):
            generator.shuffle(order[start : start + self.window])
        return order


def index_shards(root: str, classes: Sequence[str] | None = None) -> int:
    """Write the index of the shards in ``root``, ours or other people's, and return the number of images.

    Args:
        classes: names by class number; None takes those of an older index, else the numbers themselves are the names.

    Raises:
        UserError: no shards, a broken tar file, a sample without image or class number.
    """
    folder = Path(root)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"{root}: no *.tar files")
    if classes is None and (folder / INDEX).is_file():
        classes = _facts(folder)[0]
    shards, entries = [], []
    for number, path in enumerate(paths):
        samples = read_shard(path, ".cls", _class_number)
        entries += [(number, offset, size, label) for _, offset, size, label in samples]
        shards.append({"name": path.name, "bytes": path.stat().st_size, "samples": len(samples)})
    array = np.array(entries, dtype=ENTRY)
    highest = int(array["label"].max())
    if classes is None:
        classes = [str(i).zfill(len(str(highest))) for i in range(highest + 1)]
    if highest >= len(classes) or array["label"].min() < 0:
        raise UserError(f"{root}: class numbers {array['label'].min()} to {highest}, but {len(classes)} class names")
    with atomic_write(folder / ENTRIES, "wb") as file:
        np.save(file, array)
    write_json(folder / INDEX, {"classes": list(classes), "shards": shards})
    return len(array)


def _read_index(root: Path) -> tuple[list[str], list[dict], np.ndarray]:
    """(class names, shards, entries) of the index that :func:`index_shards` wrote, each checked."""
    again = f"tools/make_shards.py --index {root}"
    for name in (INDEX, ENTRIES):
        if not (root / name).exists():
            raise UserError(f"{root / name}: no such file; write it: {again}")
    try:
        classes, shards = _facts(root)
        data = read_regular(root / ENTRIES, _INDEX_BYTES)
        head = _NPY_HEAD.match(data)
        if head is None or len(data) - head.end() != int(head[1]) * ENTRY.itemsize:
            raise ValueError(f"{ENTRIES} holds no entries")
        entries = np.frombuffer(data, ENTRY, offset=head.end())
        if (
            not ((0 <= entries["shard"]) & (entries["shard"] < len(shards))).all()
            or (np.diff(entries["shard"]) < 0).any()
        ):
            raise ValueError("a shard that is not listed")
        ends = np.array([shard["bytes"] for shard in shards], np.int64)[entries["shard"]]
        if (entries["size"] < 0).any() or (entries["offset"] < tarfile.BLOCKSIZE).any():
            raise ValueError("a place before the shard")
        if (entries["offset"] > ends - entries["size"]).any():
            raise ValueError("a place behind the shard's end")
        if not ((0 <= entries["label"]) & (entries["label"] < len(classes))).all():
            raise ValueError("a class without a name")
    except ValueError as error:
        raise UserError(f"{root}: its index is torn ({shown(error)}); write it anew: {again}") from error
    return classes, shards, entries


def _facts(root: Path) -> tuple[list[str], list[dict]]:
    """(class names, shards) of ``index.json``.

    Raises:
        UserError: not what :func:`index_shards` writes.
    """
    schema = {"classes": [str], "shards": [{"name": str, "bytes": range(1 << 50)}]}
    fix = f"remove it and write it anew: tools/make_shards.py --index {root} --classes FILE"
    facts = read_state(root / INDEX, schema, fix)
    names = [safe_component(shard["name"], f"{root / INDEX}: shard") for shard in facts["shards"]]
    for kind, given in (("shards", names), ("classes", facts["classes"])):
        if not given or len(set(given)) < len(given):
            raise UserError(f"{root / INDEX}: its {kind} are none, or one stands twice; {fix}")
    return facts["classes"], facts["shards"]


def read_shard(
    path: Path, kind: str, parse: Callable[[tarfile.TarFile, tarfile.TarInfo], Any]
) -> list[tuple[str, int, int, Any]]:
    """(name, offset, size, label) of every image of a shard.

    Only the headers are read, and the files that hold the labels.

    Args:
        kind: ending of these files, such as ``.cls``.
        parse: reads one of them, or raises ValueError.

    Raises:
        UserError: no tar file, a torn one, a sample without image or label.
    """
    found: dict[str, dict[str, Any]] = {}
    images: dict[str, str] = {}
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stem, ending = os.path.splitext(member.name)
                if not member.isfile() or not os.path.basename(stem).strip("."):
                    continue
                if member.offset_data + member.size > path.stat().st_size:
                    raise ValueError(f"{member.name} is cut off")
                if ending.lower() in IMAGE_SUFFIXES:
                    if stem in images:
                        raise ValueError(
                            f"sample {stem} has two images, {images[stem]} and {ending}: leave one, or name the other "
                            f"{stem}.mask{ending}"
                        )
                    if member.size > MAX_IMAGE_BYTES:
                        raise ValueError(f"{member.name} has {member.size} bytes")
                    images[stem] = ending
                    found.setdefault(stem, {}).update(offset=member.offset_data, size=member.size)
                elif ending == kind:
                    found.setdefault(stem, {})["label"] = parse(tar, member)
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError("its end is missing; copy it again")
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: broken: {shown(error)}; shards are plain tar files with KEY.jpg and KEY{kind}"
        ) from error
    samples = []
    for stem, sample in found.items():
        if len(sample) == 3:
            samples.append((stem + images[stem], sample["offset"], sample["size"], sample["label"]))
        elif len(found.get(_webdataset_key(stem), sample)) < 3 or _webdataset_key(stem) == stem:
            # else another field of a whole sample, such as KEY.mask.png
            raise UserError(
                f"{path}: sample {shown(stem)} has no {'image' if 'label' in sample else kind}; make it anew"
            )
    if not samples:
        raise UserError(f"{path}: holds no images; remove it")
    return samples


def _class_number(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    text = tar.extractfile(member).read() if member.size <= 20 else b""
    if not text.strip().isdigit() or int(text) >= MAX_CLASSES:
        raise ValueError(f"{member.name} holds no class number below {MAX_CLASSES}")
    return int(text)


def _webdataset_key(stem: str) -> str:
    """WebDataset's rule: a key ends at the first dot of a file's own name."""
    folder, name = os.path.split(stem)
    return os.path.join(folder, name.partition(".")[0])
