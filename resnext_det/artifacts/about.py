"""``detector.json``: what an exported detector is. One schema, one reader; an ONNX file alone holds the same in itself.

A key that a later version adds is left alone; ``version`` rises when an old reader would go wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import UserError, listed
from ..files import CONFIG_BYTES, finite, open_regular, read_regular, shown, write_json

ABOUT = "detector.json"
ONNX, OPENVINO = "detector.onnx", "detector.xml"
KIND = "resnext_det detector"
VERSION = 1
METADATA = "resnext_det"
"""Key of an ONNX file's metadata that holds the text of ``detector.json``."""


@dataclass
class About:
    """What a folder holds.

    Attributes:
        graph: the file that is run: :data:`ONNX` by onnxruntime, :data:`OPENVINO` by OpenVINO.
        precision: "fp32" or "int8".
        class_names: in the order of the model's classes.
        category_ids: of the same in the data set of the training.
        channel_order: of the graph's input, "RGB" or "BGR"; an ONNX file takes RGB whatever stands here.
        min_size, max_size: to which images are resized, INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; min_size 0 keeps them.
        thresholds: scores from which the classes are kept, in their order, as the checkpoint holds them; or empty.
        model_threshold: score below which the graph itself leaves out detections.
        files: {name: SHA-256} of what lies beside detector.json.
        weights_sha256: of the checkpoint it was made from.
        calibration: {image file: SHA-256}, on which int8 measured its ranges.
        versions: of the libraries that made it.
        accuracy: metrics measured at the export, by set; empty where nothing was measured.
        config: the configuration of the training, YAML.
        kept_float: parts that int8 left in float.
    """

    graph: str
    precision: str
    class_names: list[str]
    category_ids: list[int]
    channel_order: str
    min_size: int
    max_size: int
    model_threshold: float
    thresholds: list[float] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    weights_sha256: str = ""
    calibration: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    kept_float: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The values of ``detector.json``."""
        return finite({"kind": KIND, "version": VERSION, **asdict(self)})


def is_artifact(path: str | os.PathLike) -> bool:
    """Whether ``path`` is meant as one: a folder with :data:`ABOUT`, or an ONNX file."""
    return os.fspath(path).endswith(".onnx") or os.path.isfile(os.path.join(path, ABOUT))


def write_about(folder: Path, about: About, **more: Any) -> None:
    """Write ``detector.json`` last: with it the folder is whole. ``more`` stands in it for people."""
    about.files = {name: sha256(folder / name) for name in sorted(about.files)}
    write_json(folder / ABOUT, {**more, **about.to_json()})


def read_about(path: str | os.PathLike) -> About:
    """What the folder holds, its files checked against their hashes.

    Raises:
        UserError: one line that names the file and the field.
    """
    folder = Path(path)
    file = folder / ABOUT
    text = read_regular(file, CONFIG_BYTES)
    about = parse(text, shown(file))
    needed = {about.graph} | ({Path(about.graph).stem + ".bin"} if about.graph == OPENVINO else set())
    if missing := needed - set(about.files):
        raise UserError(f"{shown(file)}: files does not name {listed(sorted(missing))}; export it again")
    for name, digest in about.files.items():
        if sha256(folder / name) != digest:
            raise UserError(
                f"{shown(folder / name)}: damaged or replaced, {ABOUT} has another SHA-256; export it again"
            )
    return about


def sha256(path: str | os.PathLike) -> str:
    """Of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse(text: bytes | str, where: str) -> About:
    """The values of ``detector.json``, each of its type and range.

    Raises:
        UserError: as :func:`read_about`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({shown(error)}); export it again") from None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise UserError(f"{where}: does not describe a detector of resnext-det export or quantize; export it again")
    if values.get("version") != VERSION:
        raise UserError(
            f"{where}: version {shown(values.get('version'))}, and this package reads {VERSION}; export it again, or "
            "use the package that wrote it"
        )
    known = {f.name for f in fields(About)}
    about = {key: value for key, value in values.items() if key in known}
    for name, (check, wanted) in _SCHEMA.items():
        if name not in about:
            raise UserError(f"{where}: {name} is missing; export it again")
        if not check(about[name]):
            raise UserError(f"{where}: {name} is {shown(about[name], 80)}, and not {wanted}; export it again")
    found = About(**about)
    _check_together(found, where)
    return found


def _check_together(about: About, where: str) -> None:
    if len(about.category_ids) != len(about.class_names):
        raise UserError(
            f"{where}: {len(about.category_ids)} category_ids for {len(about.class_names)} class_names; export it again"
        )
    if about.min_size > about.max_size:
        raise UserError(f"{where}: min_size {about.min_size} is above max_size {about.max_size}; export it again")
    if about.thresholds and len(about.thresholds) != len(about.class_names):
        raise UserError(
            f"{where}: {len(about.thresholds)} thresholds for {len(about.class_names)} class_names; export it again"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _unit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _text_to_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _hashed(value: Any) -> bool:
    return _text_to_text(value) and all(Path(name).name == name and name not in (".", "..") for name in value)


_SCHEMA: Mapping[str, tuple[Any, str]] = {
    "graph": (lambda v: v in (ONNX, OPENVINO), f"{ONNX} or {OPENVINO}"),
    "precision": (lambda v: v in ("fp32", "int8"), "fp32 or int8"),
    "class_names": (lambda v: _texts(v) and len(v) > 0 and len(set(v)) == len(v), "a list of different names"),
    "category_ids": (lambda v: isinstance(v, list) and all(map(_whole, v)), "a list of whole numbers"),
    "channel_order": (lambda v: v in ("RGB", "BGR"), "RGB or BGR"),
    "min_size": (lambda v: _whole(v) and v >= 0, "a whole number of pixels"),
    "max_size": (lambda v: _whole(v) and v >= 1, "a whole number of pixels"),
    "model_threshold": (_unit, "a score between 0 and 1"),
    "thresholds": (lambda v: isinstance(v, list) and all(map(_unit, v)), "a list of scores between 0 and 1"),
    "files": (_hashed, "SHA-256 by name of a file beside it"),
    "weights_sha256": (lambda v: isinstance(v, str), "text"),
    "calibration": (_text_to_text, "SHA-256 by image"),
    "versions": (_text_to_text, "version by library"),
    "accuracy": (lambda v: isinstance(v, dict), "metrics by set"),
    "config": (lambda v: isinstance(v, str), "text"),
    "kept_float": (_texts, "a list of parts"),
}
