"""Sort ImageNet's 50,000 validation images, flat as published, into one folder per class."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import shown
from .folders import is_made, new_folder, recipe

DEVKIT_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
DEVKIT_CLASSES = "data/meta.mat"
WORDNET = re.compile(r"n\d{8}")


def read_labels(path: str | os.PathLike) -> list[str]:
    """The class (WordNet id) of every validation image, by the image's number from 1.

    Args:
        path: the development kit's folder; or a text file with one WordNet id per image
            (imagenet_2012_validation_synset_labels.txt); or Kaggle's LOC_val_solution.csv.

    Raises:
        UserError: none of these, or a line without a WordNet id.
    """
    path = Path(path)
    if path.is_dir():
        return _read_devkit(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; give ImageNet's development kit or a file of WordNet ids")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = [(r["ImageId"], r["PredictionString"].split()[0]) for r in csv.DictReader(text.splitlines())]
            labels = _in_order(path, rows)
        else:
            labels = text.split()
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: torn, or neither a list of WordNet ids nor Kaggle's table ({error})") from error
    if not labels:
        raise UserError(f"{path}: holds no labels")
    for number, label in enumerate(labels, 1):
        if not WORDNET.fullmatch(label):
            raise UserError(f"{path}: entry {number} is {label!r}, not a WordNet id such as n01440764")
    return labels


def _in_order(path: Path, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Labels by the numbers in the images' names, which must be 1, 2, ... once each: one amiss would shift the rest."""
    numbered: dict[int, str] = {}
    for line, (name, label) in enumerate(rows, 2):
        match = re.fullmatch(r".*_(\d{8})", name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(rows) or number in numbered:
            raise UserError(
                f"{path}: ImageId of line {line} is {shown(name, 50)!r}; the numbers must be 1 to {len(rows)}, "
                "each once"
            )
        numbered[number] = label
    return [numbered[number] for number in sorted(numbered)]


def _read_devkit(folder: Path) -> list[str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("the development kit's meta.mat needs scipy: pip install scipy") from error
    try:
        numbers = [int(word) for word in (folder / DEVKIT_TRUTH).read_text().split()]
        synsets = loadmat(folder / DEVKIT_CLASSES, squeeze_me=True)["synsets"]
        names = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        return [names[number] for number in numbers]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; name the folder ILSVRC2012_devkit_t12") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder}: torn, or not ImageNet's development kit ({error})") from error


def sort_images(images: str | os.PathLike, labels: Sequence[str], out: str | os.PathLike) -> int:
    """Link (or copy, across disks) every image into ``out/class/`` and return the number of classes.

    Args:
        images: folder of ``ILSVRC2012_val_00000001.JPEG``, ...; it stays as it is.

    Raises:
        UserError: an image without a label or a label without its image; ``out`` exists.
    """
    found: dict[int, Path] = {}
    for path in Path(images).glob("*"):
        match = re.fullmatch(r".*_(\d{8})\.jpe?g", path.name, re.IGNORECASE)
        if match and path.is_file():
            found[int(match[1])] = path
    wrong = sorted(set(found) ^ set(range(1, len(labels) + 1)))
    if wrong:
        what = "has no label" if wrong[0] in found else "is missing"
        raise UserError(
            f"{images}: {len(found)} images and {len(labels)} labels; image number {wrong[0]} {what} "
            f"({len(wrong)} such); unpack ILSVRC2012_img_val.tar there"
        )
    made_by = recipe("make-imagenet-val", images, labels=hashlib.sha256(" ".join(labels).encode()).hexdigest())
    if is_made(out, made_by):
        return len(set(labels))
    with new_folder(out, made_by) as folder:
        for number, label in enumerate(labels, 1):
            place = folder / label / found[number].name
            place.parent.mkdir(exist_ok=True)
            try:
                os.link(found[number].resolve(), place)
            except OSError:  # another disk
                shutil.copy2(found[number], place)
    return len(set(labels))
