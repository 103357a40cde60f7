"""Unpack CIFAR-10 or CIFAR-100 as published (python or binary version), or as images, into class folders."""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..classification.data import EXTENSIONS
from ..errors import UserError
from .folders import new_folder

PIXELS = 3 * 32 * 32
Part = tuple[str, np.ndarray, np.ndarray]
"""(train or test, uint8 (N, 3072) pixels by channel, (N,) class numbers)."""

_SAFE = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy", "_codecs")
    for name in ("_reconstruct", "ndarray", "dtype", "encode")
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries and arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module, name)


def unpack(archive: str | Path, out: str | Path) -> dict[str, int]:
    """Write ``out/{train,test}/class/*`` and return the number of images in each.

    Args:
        archive: cifar-{10,100}-{python,binary}.tar.gz as published, written as PNG; or a tar file of images under
            ``train/class/`` and ``test/class/``, which are copied as they are.

    Raises:
        UserError: no such file, or another archive; ``out`` exists.
    """
    counts = {"train": 0, "test": 0}
    try:
        with tarfile.open(archive) as tar, new_folder(out) as folder:
            files = {PurePosixPath(member.name): member for member in tar if member.isfile()}
            for place, data in _pictures(tar, files):
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                counts[place.parts[0]] += 1
            if not all(counts.values()):
                raise UserError(f"{archive}: holds no training or no test images of CIFAR")
    except FileNotFoundError as error:
        raise UserError(f"{archive}: no such file") from error
    except (tarfile.TarError, EOFError, pickle.UnpicklingError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{archive}: torn, or not an archive of CIFAR: {error}") from error
    return counts


def _pictures(tar: tarfile.TarFile, files: dict[PurePosixPath, tarfile.TarInfo]) -> Iterator[tuple[Path, bytes]]:
    """(split/class/name, contents of the file) of every image."""
    by_name = {path.name: tar.extractfile(member) for path, member in files.items() if _is_published(path.name)}
    if by_name:
        names, parts = _read_published(by_name)
        counts = {"train": 0, "test": 0}
        for split, pixels, labels in parts:
            for picture, label in zip(pixels.reshape(-1, 3, 32, 32), labels, strict=True):
                file = io.BytesIO()
                Image.fromarray(picture.transpose(1, 2, 0)).save(file, "PNG", compress_level=1)
                yield Path(split, names[label], f"{counts[split]:05d}.png"), file.getvalue()
                counts[split] += 1
        return
    for path, member in files.items():
        split_class_name = path.parts[-3:]
        if path.suffix.lower() in EXTENSIONS and split_class_name[0] in ("train", "test"):
            yield Path(*split_class_name), tar.extractfile(member).read()


def _is_published(name: str) -> bool:
    return re.fullmatch(r"(data_batch_\d|test_batch|train|test)(\.bin)?|batches\.meta(\.txt)?|meta|.*_names\.txt", name)


def _read_published(files: dict[str, io.BufferedReader]) -> tuple[list[str], list[Part]]:
    """(class names, parts) of the four published archives."""
    hundred = "train" in files or "train.bin" in files
    binary = any(name.endswith(".bin") for name in files)
    if binary:
        names = files["fine_label_names.txt" if hundred else "batches.meta.txt"].read().decode().split()
    else:
        meta = _ArrayUnpickler(files["meta" if hundred else "batches.meta"], encoding="bytes").load()
        names = [name.decode() for name in meta[b"fine_label_names" if hundred else b"label_names"]]
    parts = []
    for name in sorted(files):
        split = "test" if name.startswith("test") else "train"
        if not name.startswith(("train", "test", "data_batch")):
            continue
        if binary:
            rows = np.frombuffer(files[name].read(), np.uint8).reshape(-1, PIXELS + 1 + hundred)
            parts.append((split, rows[:, 1 + hundred :], rows[:, int(hundred)]))  # CIFAR-100: coarse, fine, pixels
        else:
            data = _ArrayUnpickler(files[name], encoding="bytes").load()
            labels = np.array(data[b"fine_labels" if hundred else b"labels"])
            parts.append((split, np.asarray(data[b"data"]), labels))
    return names, parts
