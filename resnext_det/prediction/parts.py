"""Results on their way to the disk: appended to parts, resumed after any end, merged into one file.

``OUTPUT/parts/manifest.json`` says what the run is. ``OUTPUT/parts/ATTEMPT_RANK.jsonl`` holds a line for every image
and frame, appended as soon as it is done; every process and every attempt appends to a part of its own. The images
come in units, which are done whole or not at all: the last line of a unit has ``"end": true``, and lines behind the
last such line are thrown away when the run is resumed. ``OUTPUT/detections.json``, or another of :data:`FORMATS`,
appears when all units are there.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ..errors import UserError
from ..files import COUNT, atomic_path, atomic_write, parse_state, read_state, shown, write_json

logger = logging.getLogger(__name__)

FORMATS = {"coco": "detections.json", "jsonl": "detections.jsonl", "parquet": "detections.parquet"}
"""Files that a run can end in: one COCO data set, or a line or row for each image."""
PARTS = "parts"
MANIFEST = "manifest.json"
VERSION = 1
_RECORD = {
    "unit": COUNT, "end?": bool, "best?": float, "broken?": str,
    "image?": {"file_name": str, "width": COUNT, "height": COUNT, "frame?": COUNT},
    "annotations?": [{"bbox": [float] * 4, "score": float, "category_id": object}],
}  # fmt: skip
"""Schema of a line of a part."""


def begin(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> set[int]:
    """Make ``folder`` ready for a run, in one process only; returns the units that are done already.

    If the run is not resumed, an earlier run's results are archived in ``earlier_run_N``.

    Args:
        settings: plain values that must be the same for the run to be resumed.

    Raises:
        UserError: nothing to resume, or a run with other settings; the message names the first that differs.
    """
    parts = folder / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"version": VERSION, **json.loads(json.dumps(settings))}
    with _locked(parts, alone=True):
        if resume and (parts / MANIFEST).exists():
            manifest = read_state(parts / MANIFEST, {"version": int}, "start without --resume")
            _compare(manifest, wanted, folder)
            return whole_units(folder, cut=True)
        if resume:
            logger.info("--resume: %s holds no run yet, so this is a new one", folder)
        _archive(folder)
    parts.mkdir()
    write_json(parts / MANIFEST, wanted)
    return set()


@contextmanager
def _locked(parts: Path, *, alone: bool) -> Iterator[None]:
    """Processes at work hold the folder's lock together, one that begins holds it alone; any end releases it.

    Raises:
        UserError: others hold it, and ``alone``.
    """
    if fcntl is None or not parts.is_dir():
        yield
        return
    handle = os.open(parts, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            raise UserError(
                f"{parts.parent}: another prediction is at work there; wait for its end, or name another --output"
            ) from None
        # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def _archive(folder: Path) -> None:
    old = [folder / name for name in (PARTS, *FORMATS.values()) if os.path.lexists(folder / name)]
    if not old:
        return
    target = next(t for n in itertools.count(1) if not (t := folder / f"earlier_run_{n}").exists())
    target.mkdir()
    for path in old:
        os.replace(path, target / path.name)
    logger.warning(
        "%s held the results of an earlier run; they are in %s now (--resume would have gone on with it). Its "
        "drawings stay where they are.", folder, target,
    )  # fmt: skip


def _compare(found: Mapping, wanted: Mapping, folder: Path) -> None:
    for key in [*wanted, *found]:
        if found.get(key) != wanted.get(key):
            values = [text if len(text := repr(value.get(key))) < 80 else "other ones" for value in (found, wanted)]
            raise UserError(
                f"--resume: the run in {folder} began with {key} {values[0]}, this one has {values[1]}; give what it "
                "began with, or start without --resume"
            )


def whole_units(folder: Path, *, cut: bool = False) -> set[int]:
    """Units that are done, of all parts. With ``cut``, what stands behind the last whole one of a part is removed."""
    done: set[int] = set()
    for path in sorted((folder / PARTS).glob("*.jsonl")):
        whole = 0
        with open(path, "rb") as file:
            for line in file:
                record = _record(line)
                if record is None:
                    break
                if record.get("end"):
                    done.add(record["unit"])
                    whole = file.tell()
            torn = file.seek(0, os.SEEK_END) - whole
        if torn and cut:
            os.truncate(path, whole)
    return done


def _record(line: bytes) -> dict | None:
    """None for a line that is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_state(line, _RECORD, "", "")
    except UserError:
        return None
    return None if ("image" in record) != ("annotations" in record) else record


class Part:
    """One process's results of one attempt, appended line by line; a context manager."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._parts, self._rank = folder / PARTS, rank
        self._file: IO[str] | None = None
        self._lock = _locked(self._parts, alone=False)

    def __enter__(self) -> Part:
        self._lock.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.__exit__(None, None, None)

    def write(self, unit: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Append what was found in one unit. Each line leaves this process before the next is computed."""
        if self._file is None:
            for attempt in itertools.count(1):
                try:
                    name = self._parts / f"{attempt:04d}_{self._rank:04d}.jsonl"
                    self._file = open(name, "x", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
                    break
                except FileExistsError:
                    continue
        last: Mapping[str, Any] | None = None
        for record in records:
            if last is not None:
                self._append({"unit": unit, **last})
            last = record
        self._append({"unit": unit, **(last or {}), "end": True})

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def records(folder: Path) -> Iterator[dict]:
    """All lines of all parts by rising unit; memory does not grow with their number."""

    def lines(path: Path) -> Iterator[dict]:
        with open(path, "rb") as file:
            for line in file:
                record = _record(line)
                if record is None:
                    raise UserError(f"{path}: damaged; the same command with --resume computes what is lost")
                yield record

    paths = sorted((folder / PARTS).glob("*.jsonl"))
    return heapq.merge(*map(lines, paths), key=lambda record: record["unit"])


def merge(
    folder: Path,
    categories: Sequence[Mapping[str, Any]],
    ids: Mapping[str, int] | None = None,
    form: str = "coco",
) -> Path:
    """Write all parts in the order of the inputs into the file of ``form``; returns its path.

    Args:
        categories: COCO's records.
        ids: {file name: image id}; by default images are numbered from 1.
        form: of :data:`FORMATS`.
    """

    def images() -> Iterator[tuple[dict, list[dict]]]:
        found = (record for record in records(folder) if "image" in record)
        for number, record in enumerate(found):
            yield {"id": _image_id(record, number, ids, folder), **record["image"]}, record["annotations"]

    path = folder / FORMATS[form]
    if form == "parquet":
        _write_parquet(path, images(), categories)
    elif form == "jsonl":
        with atomic_write(path) as file:
            for image, annotations in images():
                file.write(json.dumps({**image, "annotations": annotations}) + "\n")
    else:
        _write_coco(path, images, categories)
    return path


def _write_coco(path: Path, images: Callable[[], Iterator], categories: Sequence[Mapping[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.write('{"images": [')
        for number, (image, _) in enumerate(images()):
            file.write((",\n" if number else "") + json.dumps(image))
        file.write(f'],\n"categories": {json.dumps(list(categories))},\n"annotations": [')
        number = 0
        for image, annotations in images():
            for found in annotations:
                number += 1
                area = found["bbox"][2] * found["bbox"][3]
                whole = {"id": number, **found, "image_id": image["id"], "area": area, "iscrowd": 0}
                file.write((",\n" if number > 1 else "") + json.dumps(whole))
        file.write("]}\n")


def _write_parquet(path: Path, images: Iterator, categories: Sequence[Mapping[str, Any]]) -> None:
    arrow, parquet = parquet_library()
    mask = arrow.struct({"size": arrow.list_(arrow.int64()), "counts": arrow.string()})
    of_box = {"bbox": arrow.list_(arrow.float64()), "score": arrow.float64(), "category_id": arrow.int64()}
    more = {"segmentation": mask, "keypoints": arrow.list_(arrow.float64())}
    columns = {"id": arrow.int64(), "file_name": arrow.string()}
    columns |= dict.fromkeys(("width", "height", "frame"), arrow.int64())
    columns["annotations"] = arrow.list_(arrow.struct(of_box | more))
    schema = arrow.schema(columns, metadata={"categories": json.dumps(list(categories))})
    with atomic_path(path) as unfinished, parquet.ParquetWriter(unfinished, schema) as writer:
        while rows := [{**image, "annotations": found} for image, found in itertools.islice(images, 1000)]:
            writer.write_batch(arrow.RecordBatch.from_pylist(rows, schema=schema))


def parquet_library() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError("--format parquet: needs pyarrow: pip install 'resnext-det[parquet]'") from error


def _image_id(record: Mapping[str, Any], number: int, ids: Mapping[str, int] | None, folder: Path) -> int:
    name = record["image"]["file_name"]
    if ids is not None and name not in ids:
        raise UserError(f"{folder / PARTS}: holds {shown(name)}, which is no input of this run; start without --resume")
    return number + 1 if ids is None else ids[name]
