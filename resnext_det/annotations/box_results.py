"""Result files that hold boxes and nothing else, read fast; msgspec is imported here alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from ..files import open_regular
from .reading import no_cycle_search

BLOCK = 1 << 18
"""Bytes that are read at a time."""


class Found(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A detection that is a box and nothing else."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def stream_boxes(path: str | os.PathLike) -> Iterator[list[Found]]:
    """The items of a result file of boxes, some thousands at a time, in a tenth of the time of ``stream_list``.

    The text is cut after what looks like the end of an item. Where it was none, the piece before the cut is no JSON.

    Raises:
        msgspec.MsgspecError: the file holds something else, which ``stream_list`` reads, or explains.
    """
    decoder = msgspec.json.Decoder(list[Found])

    def decode(block: bytes) -> list[Found]:
        try:
            items = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(str(error)) from None
        if block.count(b":") != len(Found.__struct_fields__) * len(items):  # no key or value holds a colon
            raise msgspec.DecodeError("a key stands twice")
        return items

    with open_regular(path) as file, no_cycle_search():
        opening, rest = b"", b""
        while block := file.read(BLOCK):
            rest += block
            cut = rest.rfind(b"},")
            if cut >= 0:
                yield decode(opening + rest[: cut + 1] + b"]")
                opening, rest = b"[", rest[cut + 2 :]
        last = decode(opening + rest)
        if opening and not last:
            raise msgspec.DecodeError("a comma before the end")
        yield last
