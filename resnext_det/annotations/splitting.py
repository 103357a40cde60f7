"""Splits of a labeled set: stratified by class, near-duplicates kept together, the same for the same seed."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import open_regular, shown
from ..images import read_image

HASH_BITS = 4
"""Bits of 64 in which the difference hashes of near-duplicates may differ."""

RMS = 6.0
"""Gray levels of 255 by which their 32x32 thumbnails may differ, root mean square."""


@dataclass(frozen=True)
class Fingerprints:
    """Of N images: ``digests`` of their bytes, ``hashes`` (N,) uint64, ``thumbnails`` (N, 1024) float32."""

    digests: list[str]
    hashes: np.ndarray
    thumbnails: np.ndarray


def fingerprints(paths: Sequence[Path]) -> Fingerprints:
    """What near-duplicates share: re-encoded, resized, or lightly changed copies of one image.

    Raises:
        UserError: an image that cannot be read.
    """
    digests, hashes = [], np.zeros(len(paths), dtype=np.uint64)
    thumbnails = np.zeros((len(paths), 1024), dtype=np.float32)
    for i, path in enumerate(paths):
        with open_regular(path) as file:
            digests.append(hashlib.sha256(file.read()).hexdigest())
        gray = Image.fromarray(read_image(path, "RGB")).convert("L")
        small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
        hashes[i] = np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)[0]
        thumbnails[i] = np.asarray(gray.resize((32, 32), Image.Resampling.BOX), dtype=np.float32).ravel()
    return Fingerprints(digests, hashes, thumbnails)


def _near(first: Fingerprints, second: Fingerprints, i: int) -> np.ndarray:
    """Which images of ``second`` are near-duplicates of number ``i`` of ``first``."""
    bits = np.unpackbits((second.hashes ^ first.hashes[i]).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
    candidates = np.flatnonzero(bits <= HASH_BITS)
    difference = second.thumbnails[candidates] - first.thumbnails[i]
    return candidates[np.sqrt((difference**2).mean(axis=1)) <= RMS]


def shared_images(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path, str]]:
    """Images that two splits share: (one, other, ``"same bytes"`` or ``"near-duplicate"``).

    Raises:
        UserError: an image that cannot be read.
    """
    ours, theirs = fingerprints(first), fingerprints(second)
    found = []
    for i, path in enumerate(first):
        for j in _near(ours, theirs, i).tolist():
            kind = "same bytes" if ours.digests[i] == theirs.digests[j] else "near-duplicate"
            found.append((path, second[j], kind))
    return found


def near_groups(paths: Sequence[Path]) -> list[list[int]]:
    """Numbers of the images, those that are near-duplicates of one another together."""
    prints = fingerprints(paths)
    parent = list(range(len(paths)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(len(paths)):
        for j in _near(prints, prints, i).tolist():
            parent[max(root(i), root(j))] = min(root(i), root(j))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(paths)):
        groups[root(i)].append(i)
    return list(groups.values())


def assign(
    groups: Sequence[Sequence[int]], classes: Sequence[Counter], shares: Sequence[float], seed: int
) -> list[int]:
    """The part of each image: the rarest class first, to the part that lacks most of it.

    Args:
        groups: numbers of images that stay together.
        classes: of each image, {class: objects}.
        shares: of the parts, with the sum 1.
        seed: decides between equals.
    """
    order = [list(group) for group in groups]
    random.Random(seed).shuffle(order)
    contents = [sum((classes[i] for i in group), Counter()) for group in order]
    total: Counter = sum(contents, Counter())
    lacking = [{name: share * number for name, number in total.items()} for share in shares]
    images = [share * len(classes) for share in shares]
    parts, left = [0] * len(classes), set(range(len(order)))
    while left:
        remaining: Counter = sum((contents[g] for g in left), Counter())
        rarest = min(remaining, key=lambda name: (remaining[name], str(name)), default=None)
        chosen = [g for g in sorted(left) if rarest is None or contents[g][rarest]]
        for g in sorted(chosen, key=lambda g: (-contents[g][rarest], -len(order[g]))):
            wants = [(lack.get(rarest, 0) / s, free / s) for lack, free, s in zip(lacking, images, shares, strict=True)]
            part = max(range(len(shares)), key=lambda p: wants[p])
            for name, number in contents[g].items():
                lacking[part][name] -= number
            images[part] -= len(order[g])
            for i in order[g]:
                parts[i] = part
            left.discard(g)
    return parts


def split_document(
    document: Mapping, image_root: str | Path, shares: Mapping[str, float], seed: int = 0
) -> dict[str, dict]:
    """``document``, in COCO's form, as one document for each of ``shares``; every image and box is in one of them.

    Args:
        shares: {split: its share}, with the sum 1.

    Raises:
        UserError: fewer groups of images than splits; an image that cannot be read.
    """
    records = document["images"]
    place = {record["id"]: i for i, record in enumerate(records)}
    classes: list[Counter] = [Counter() for _ in records]
    for annotation in document.get("annotations", ()):
        classes[place[annotation["image_id"]]][annotation["category_id"]] += 1
    groups = near_groups([Path(image_root) / record["file_name"] for record in records])
    if len(groups) < len(shares):
        raise UserError(
            f"{shown(image_root)}: {len(groups)} different images cannot fill {len(shares)} splits; add some"
        )
    parts = assign(groups, classes, list(shares.values()), seed)
    result = {}
    for number, split in enumerate(shares):
        kept = {record["id"] for record, part in zip(records, parts, strict=True) if part == number}
        result[split] = {
            **document,
            "images": [record for record in records if record["id"] in kept],
            "annotations": [a for a in document.get("annotations", ()) if a["image_id"] in kept],
        }
        if not kept:
            raise UserError(f"split {split}: no image is left for it; give it a larger share")
    return result
