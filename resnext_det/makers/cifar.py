"""Unpack CIFAR-10 or CIFAR-100 as published (python or binary version), or as images, into class folders."""

from __future__ import annotations

import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import open_regular, safe_component, shown
from ..images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from ..weights.reading import unpickle
from .folders import is_made, new_folder, recipe

PIXELS = 3 * 32 * 32
Part = tuple[str, np.ndarray, np.ndarray]
"""(train or test, uint8 (N, 3072) pixels by channel, (N,) class numbers)."""


def unpack(archive: str | Path, out: str | Path) -> dict[str, int]:
    """Write ``out/{train,test}/class/*`` and return the number of images in each.

    Args:
        archive: cifar-{10,100}-{python,binary}.tar.gz as published, written as PNG; or a tar file of images under
            ``train/class/`` and ``test/class/``, which are copied as they are.

    Raises:
        UserError: no such file, or another archive; ``out`` exists.
    """
    counts = {"train": 0, "test": 0}
    made_by = recipe("make-cifar", archive)
    if is_made(out, made_by):
        return {split: sum(path.is_file() for path in Path(out, split).rglob("*")) for split in counts}
    try:
        with open_regular(archive) as file, tarfile.open(fileobj=file) as tar, new_folder(out, made_by) as folder:
            files = {PurePosixPath(member.name): member for member in tar if member.isfile()}
            for place, data in _images(tar, files):
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                counts[place.parts[0]] += 1
            while tar.fileobj and tar.fileobj.read(1 << 20):  # the checksum of a compressed archive is at its end
                pass
            if not all(counts.values()):
                raise UserError(f"{archive}: holds no training or no test images of CIFAR")
    except UserError as error:
        raise (
            error if str(archive) in str(error) or str(out) in str(error) else UserError(f"{archive}: {error}")
        ) from None
    except OSError as error:
        if error.errno is None:  # gzip and bz2 say so that a checksum is wrong
            raise UserError(f"{archive}: torn: {shown(error)}; copy or download it again") from error
        raise
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, LookupError, ValueError, TypeError,
            AttributeError) as error:  # fmt: skip
        raise UserError(f"{archive}: torn, or not an archive of CIFAR: {shown(error)}") from error
    return counts


def _images(tar: tarfile.TarFile, files: dict[PurePosixPath, tarfile.TarInfo]) -> Iterator[tuple[Path, bytes]]:
    """(split/class/name, contents of the file) of every image."""
    by_name = {path.name: _opened(tar, member) for path, member in files.items() if _is_published(path.name)}
    if by_name:
        names, parts = _read_published(by_name)
        counts = {"train": 0, "test": 0}
        for split, pixels, labels in parts:
            for array, label in zip(pixels.reshape(-1, 3, 32, 32), labels, strict=True):
                file = io.BytesIO()
                Image.fromarray(array.transpose(1, 2, 0)).save(file, "PNG", compress_level=1)
                yield Path(split, names[label], f"{counts[split]:05d}.png"), file.getvalue()
                counts[split] += 1
        return
    for path, member in files.items():
        split_class_name = path.parts[-3:]
        if path.suffix.lower() in IMAGE_SUFFIXES and split_class_name[0] in ("train", "test"):
            if member.size > MAX_IMAGE_BYTES:
                raise ValueError(f"{path.name} has {member.size} bytes")
            split, *names = split_class_name
            yield Path(split, *(safe_component(name, "file name") for name in names)), _opened(tar, member).read()


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None, "a regular file"
    return file


def _is_published(name: str) -> bool:
    return bool(
        re.fullmatch(r"(data_batch_\d|test_batch|train|test)(\.bin)?|batches\.meta(\.txt)?|meta|.*_names\.txt", name)
    )


def _read_published(files: dict[str, IO[bytes]]) -> tuple[list[str], list[Part]]:
    """(class names, parts) of the four published archives."""
    hundred = "train" in files or "train.bin" in files
    binary = any(name.endswith(".bin") for name in files)
    if binary:
        names = files["fine_label_names.txt" if hundred else "batches.meta.txt"].read().decode().split()
    else:
        meta = _unpickled(files["meta" if hundred else "batches.meta"])
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
            data = _unpickled(files[name])
            labels = np.array(data[b"fine_labels" if hundred else b"labels"])
            parts.append((split, np.asarray(data[b"data"]), labels))
    for _, pixels, labels in parts:
        if (
            pixels.dtype != np.uint8
            or labels.dtype.kind not in "iu"
            or not 0 <= labels.min() <= labels.max() < len(names)
        ):
            raise ValueError("pixels that are no bytes, or labels without a class name")
    return [safe_component(name, "class name") for name in names], parts


def _unpickled(file: IO[bytes]) -> Any:
    return unpickle(file, "a part of it", file.seek(0, os.SEEK_END), encoding="bytes")
