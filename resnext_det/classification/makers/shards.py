"""Pack a folder of classified pictures into WebDataset shards, or write the index of shards that exist."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...engine.cli import at_least
from ...errors import UserError
from ..data import ImageFolder
from ..shards import index_shards
from .folders import new_folder

NAME_LENGTH = 60  # of a file's own name in its key; a tar header holds 100 characters


def write_shards(pictures: ImageFolder, out: str | Path, per_shard: int = 5000, seed: int = 0) -> int:
    """Write ``out/000000.tar``, ... in random order, with their index, and return the number of shards.

    The files are copied as they are. The same pictures and seed give the same bytes.

    Raises:
        UserError: ``out`` exists, or the package webdataset is missing.
    """
    try:
        from webdataset import ShardWriter
    except ImportError as error:
        raise UserError("shards need the package webdataset: pip install 'resnext-det[webdataset]'") from error
    with new_folder(out) as folder:
        with ShardWriter(str(folder / "%06d.tar"), maxcount=per_shard, mtime=0, verbose=0, encoder=False) as writer:
            for number, index in enumerate(np.random.default_rng(seed).permutation(len(pictures))):
                path = Path(pictures.files[index])
                # No dots: a WebDataset key ends at the first. The number keeps equal names apart.
                key = f"{number:08d}_{re.sub('[^A-Za-z0-9_-]', '_', path.stem)[:NAME_LENGTH]}"
                label = str(pictures.labels[index]).encode()
                writer.write({"__key__": key, path.suffix[1:].lower(): path.read_bytes(), "cls": label})
        index_shards(str(folder), pictures.classes)
        return len(list(folder.glob("*.tar")))


def read_class_list(path: str | os.PathLike) -> list[str]:
    """Class names from a text file, one a line; blank lines are skipped.

    Raises:
        UserError: no such file, no names, or a name twice.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; it holds one class name a line")
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; it holds one class name a line") from error
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: {'names a class twice' if names else 'holds no class names'}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="pictures in one folder per class")
    parser.add_argument("out", nargs="?", help="new folder for the shards")
    parser.add_argument("--per-shard", type=int, default=5000, help="pictures in a shard (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the order (%(default)s)")
    parser.add_argument("--index", metavar="FOLDER", help="only write the index of the shards in FOLDER")
    parser.add_argument("--classes", metavar="FILE", help="with --index: class names, one a line, by class number")
    args = parser.parse_args(argv)
    if args.index:
        if args.folder:
            raise UserError("--index FOLDER stands alone: the shards are there already")
        count = index_shards(args.index, read_class_list(args.classes) if args.classes else None)
        print(f"{args.index}: index of {count} pictures")
        return
    if not args.out:
        raise UserError("make_shards: name a folder of pictures and a new folder, or give --index FOLDER")
    if args.per_shard < 1:
        raise UserError(f"--per-shard {args.per_shard}: must be above 0")
    pictures = ImageFolder(args.folder)
    count = write_shards(pictures, args.out, args.per_shard, args.seed)
    print(f"{args.out}: {len(pictures)} pictures of {len(pictures.classes)} classes in {count} shards")
