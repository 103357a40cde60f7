"""Pack a folder of classified images into WebDataset shards, or write the index of shards that exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..classification.data import ImageFolder
from ..classification.shards import index_shards
from ..errors import UserError
from .folders import is_made, new_folder, recipe

NAME_LENGTH = 60  # of a file's own name in its key; a tar header holds 100 characters


def write_shards(image_set: ImageFolder, out: str | Path, per_shard: int = 5000, seed: int = 0) -> int:
    """Write ``out/000000.tar``, ... in random order, with their index, and return the number of shards.

    The files are copied as they are. The same images and seed give the same bytes.

    Raises:
        UserError: ``out`` exists, or the package webdataset is missing.
    """
    try:
        from webdataset import ShardWriter
    except ImportError as error:
        raise UserError("shards need the package webdataset: pip install 'resnext-det[webdataset]'") from error
    made_by = recipe("make-shards", image_set.root, per_shard=per_shard, seed=seed)
    if is_made(out, made_by):
        return len(list(Path(out).glob("*.tar")))
    with new_folder(out, made_by) as folder:
        with ShardWriter(str(folder / "%06d.tar"), maxcount=per_shard, mtime=0, verbose=0, encoder=False) as writer:
            for number, index in enumerate(np.random.default_rng(seed).permutation(len(image_set))):
                path = Path(image_set.files[index])
                # No dots: a WebDataset key ends at the first. The number keeps equal names apart.
                key = f"{number:08d}_{re.sub('[^A-Za-z0-9_-]', '_', path.stem)[:NAME_LENGTH]}"
                label = str(image_set.labels[index]).encode()
                writer.write({"__key__": key, path.suffix[1:].lower(): path.read_bytes(), "cls": label})
        index_shards(str(folder), image_set.classes)
        return len(list(folder.glob("*.tar")))
