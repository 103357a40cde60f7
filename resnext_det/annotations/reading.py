"""The one reader of JSON from users: what the file really is, where it breaks, and why."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import UserError
from ..files import open_regular, shown

CHUNK = 10_000
"""Records of a list that are Python objects at a time."""

_BLOCK = 1 << 18  # bytes
_SPACE = re.compile(r"[ \t\n\r]*")
_BEGINNINGS = (
    (b"\x1f\x8b", "is gzip: unpack it (gunzip)"),
    (b"PK\x03\x04", "is a ZIP archive: unpack it"),
    (b"BZh", "is bzip2: unpack it"),
    (b"\xfd7zXZ", "is xz: unpack it"),
    (b"\xff\xfe", "is UTF-16: write it as UTF-8"),
    (b"\xfe\xff", "is UTF-16: write it as UTF-8"),
    (b"<", "is XML or HTML, not JSON: give the JSON file"),
    (b"\x89HDF", "is HDF5, not JSON: give the JSON file"),
    (b"SQLite", "is a database, not JSON: give the JSON file"),
)


def read_json(
    path: str | os.PathLike, hint: str = "give the annotations' JSON file", *, limit: int | None = None
) -> Any:
    """What a JSON file holds; a byte order mark of UTF-8 is passed over.

    Args:
        path: a regular file.
        hint: follows "no such file".
        limit: most bytes that it may have.

    Raises:
        UserError: missing, another kind of file, or broken JSON: where, and the likely reason.
    """
    text = _text(path, hint, limit)
    with _one_line_errors(path, text), no_cycle_search():
        return json.loads(text, object_pairs_hook=one_of_each)


def stream_list(path: str | os.PathLike, hint: str = "give the results' JSON file") -> Iterator[list]:
    """The items of a JSON file that is one list, :data:`CHUNK` at a time. Never are all of them objects at once.

    Raises:
        UserError: as :func:`read_json`; the file is not a list, and what it is instead.
    """
    text = _text(path, hint)
    decode = json.JSONDecoder(object_pairs_hook=one_of_each).raw_decode
    with _one_line_errors(path, text), no_cycle_search():
        at = _after_space(text, 0)
        if text[at : at + 1] != "[":
            raise UserError(_not_a_list(json.loads(text)))
        at = _after_space(text, at + 1)
        items: list = []
        ended = text[at : at + 1] == "]"
        at += ended
        while not ended:
            item, at = decode(text, at)
            items.append(item)
            mark = text[at : at + 1]
            if mark != "," and mark != "]":
                at = _after_space(text, at)
                mark = text[at : at + 1]
            if mark not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            ended = mark == "]"
            at = at + 1 if ended else _after_space(text, at + 1)
            if len(items) == CHUNK or ended:
                yield items
                items = []
        end = _after_space(text, at)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)


def one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; of a key that stands twice Python would keep the last, in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        which = f" in the object with id {shown(found['id'], 40)}" if "id" in found else ""
        raise UserError(f"{shown(twice, 60)!r} stands twice{which}; keep one of them")
    return found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _text(path: str | os.PathLike, hint: str, limit: int | None = None) -> str:
    try:
        with open_regular(path, limit) as file:
            data = file.read()
    except UserError as error:
        if str(error).endswith("no such file"):
            raise UserError(f"{error}; {hint}") from None
        raise
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror}); check the disk") from None
    for beginning, what in _BEGINNINGS:
        if data.lstrip()[:8].startswith(beginning) if beginning == b"<" else data.startswith(beginning):
            raise UserError(f"{shown(path)}: {what}")
    if b"\0" in data[:4]:
        raise UserError(f"{shown(path)}: is UTF-16 or UTF-32, or not text: write it as UTF-8")
    if not data.strip():
        raise UserError(f"{shown(path)}: is empty; copy it again, or write it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 text at byte {error.start}; write it as UTF-8") from None


@contextmanager
def _one_line_errors(path: str | os.PathLike, text: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(_json_error(path, text, error)) from None
    except (RecursionError, ValueError) as error:  # very deep nesting, integers of thousands of digits
        raise UserError(f"{shown(path)}: not usable JSON ({shown(error, 120)}); write it again") from None


def _json_error(path: str | os.PathLike, text: str, error: json.JSONDecodeError) -> str:
    near = text[error.pos : error.pos + 40]
    if near.startswith(("np.", "numpy.", "int64(", "float32(", "array(", "tensor(")):
        why = f"numpy's notation {' '.join(near.split())[:20]!r}: convert with int(), float() or .tolist()"
    elif error.msg == "Extra data" and near.lstrip().startswith(("{", "[")):
        why = "several JSON values, one after the other (JSON lines): write one list or object"
    elif not near.strip() or error.msg.startswith("Unterminated"):
        why = "the file ends in the middle: copy it again; if json.dump stopped at a numpy integer, use int()"
    else:
        why = f"{error.msg.lower()}: correct it there"
    return f"{shown(path)}: not JSON at line {error.lineno}, column {error.colno}; {why}"


def _not_a_list(content: Any) -> str:
    if isinstance(content, dict) and {"images", "annotations"} & content.keys():
        return "is ground truth (images, annotations), not a list of detections; are --gt and --dt swapped?"
    kind = {dict: "an object", str: "a text", type(None): "null"}.get(type(content), "a number")
    return f"is {kind}, not a list of detections, [{{image_id, category_id, bbox, score}}, ...]; write the list"


@contextmanager
def no_cycle_search() -> Iterator[None]:
    """Python's search for reference cycles is off: of millions of small objects without any it would take most time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def return_memory() -> None:
    """Give the system what was freed: glibc would keep it, as many small pieces between others that are still used."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
