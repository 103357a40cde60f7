"""What ``resnext-det predict`` wrote, held against a set: images and classes match by name, whatever their ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import UserError, listed
from ..files import open_regular, shown
from .classes import match_classes
from .coco import Detections
from .dataset import Dataset
from .reading import read_json


def match_files(files: Iterable[str], images: Sequence[Mapping[str, Any]], source: str) -> dict[str, int]:
    """{file: image id} of a COCO set: the longest end of a file's path that is a ``file_name`` of the set.

    Raises:
        UserError: a file that the set does not have, or two files for one image.
    """
    known = {str(image.get("file_name")): image["id"] for image in images}
    found: dict[str, int] = {}
    owner: dict[int, str] = {}
    strange: list[str] = []
    for file in files:
        pieces = os.path.normpath(file).split(os.sep)
        names = ("/".join(pieces[i:]) for i in range(len(pieces)))
        image_id = next((known[name] for name in names if name in known), None)
        if image_id is None:
            strange.append(file)
        elif image_id in owner:
            raise UserError(f"{source}: {shown(owner[image_id])} and {shown(file)} are both its image {image_id}")
        else:
            found[file], owner[image_id] = image_id, file
    if strange:
        raise UserError(
            f"{source}: {len(strange)} of {len(strange) + len(found)} images are not among its images, such as "
            f"{listed(map(shown, strange), 3)}; give images of this set only"
        )
    return found


def read_predictions(path: str | os.PathLike, truth: Dataset) -> Detections | None:
    """The detections of a ``detections.json``, in the ids of ``truth``; None for another kind of file.

    Raises:
        UserError: no such file; images or classes that ``truth`` does not have.
    """
    with open_regular(path) as file:
        if not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    content = read_json(path)
    parts = [content.get(key) for key in ("images", "categories", "annotations")]
    if not all(isinstance(part, list) and all(isinstance(item, dict) for item in part) for part in parts):
        return None
    images, categories, annotations = parts
    if not all("score" in record for record in annotations) or not all("file_name" in image for image in images):
        return None
    source = shown(path)
    for item in [*images, *categories]:
        if not isinstance(item.get("id"), int | str):
            raise UserError(f"{source}: an image or category has no id, a number or text; predict again")
    files = [str(image["file_name"]) for image in images]
    ids = match_files(files, truth.image_records(), truth.source)
    image_ids = {image.get("id"): ids[file] for image, file in zip(images, files, strict=True)}
    names = [str(category.get("name")) for category in categories]
    places = match_classes(names, truth.class_names, model=source, source=truth.source)
    own = truth.category_ids.tolist()
    category_ids = {category.get("id"): own[place] for category, place in zip(categories, places, strict=True)}
    try:
        for record in annotations:
            record["image_id"] = image_ids[record["image_id"]]
            record["category_id"] = category_ids[record["category_id"]]
    except (KeyError, TypeError) as error:  # TypeError: a list in place of an id
        raise UserError(
            f"{source}: an annotation's image or category {shown(error)} is not in the file; predict again"
        ) from None
    return Detections.from_records(annotations, source)
