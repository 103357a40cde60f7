"""Reading an image the one way the whole package reads it: upright, RGB of 8 bits, of a bounded size.

The dataset check and the training pipeline both come through here: training sees the very image that was checked.

Rules, stated once:
    * The EXIF orientation is applied; the size of an image is its size after that. Unreadable EXIF counts as none.
    * Gray, palette, CMYK and RGBA become RGB (alpha is dropped); of an animation the first frame is read.
    * 16-bit gray is divided by 256 (the high byte is kept), as Pillow does for 16-bit RGB. 32-bit integer and float
      images have no fixed range and are refused.
    * An image of more than ``max_megapixels`` is refused from its header, before any memory is taken for its pixels.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, overload

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from .errors import UserError
from .files import open_regular, shown

MAX_MEGAPIXELS = 178.956970
"""Pillow's own limit against decompression bombs: a quarter of a gigabyte of RGB, twice."""

MAX_IMAGE_BYTES = 1 << 30
"""Larger files are refused; 179 megapixels of uncompressed 16-bit RGB fit in."""

POLICIES = ("error", "skip", "load")
"""What to do with an image that cannot be decoded whole: stop, leave it out, or use what can be decoded of it."""

# Pillow reads many more formats, some by starting other programs (EPS, WMF); these are the ones images come in.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .mpo .pgm .png .pnm .ppm .tif .tiff .webp".split()
)

_EXIF_ORIENTATION = 0x0112
_HEADER_BYTES = 1 << 16
_COMMENT = re.compile(rb"#[^\r\n]*")
_PPM_HEADER = re.compile(rb"P(?:[14]|\S+\s+\S+)\s+\S+\s+\S+\s")  # width, height and, but for bitmaps, the largest value
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The size limit and the tolerance for truncated files are global variables of Pillow.
_pillow_globals = threading.RLock()


class BrokenImage(UserError):
    """The file is not an image, or ends or fails before all of it is decoded."""


@dataclass(frozen=True)
class ImageHeader:
    """What a file's header says.

    Attributes:
        width, height: in pixels, upright (after the EXIF orientation).
        orientation: EXIF's, 1 (upright) to 8.
        mode: Pillow's name for channels and depth, such as ``RGB``, ``CMYK``, ``I;16``.
        several: whether more frames or pages follow the first, which is the one that is read.
        format: Pillow's name for the kind of file, one of :data:`FORMATS`.
    """

    width: int
    height: int
    orientation: int
    mode: str
    several: bool
    format: str = ""

    @property
    def turned(self) -> bool:
        """Whether width and height are stored the other way round."""
        return self.orientation >= 5


@overload
def read_image(
    path: str | Path, format: str = "BGR", *, max_megapixels: float = MAX_MEGAPIXELS, policy: Literal["error"] = "error"
) -> np.ndarray: ...
@overload
def read_image(
    path: str | Path, format: str = "BGR", *, max_megapixels: float = MAX_MEGAPIXELS, policy: str
) -> np.ndarray | None: ...
def read_image(
    path: str | Path, format: str = "BGR", *, max_megapixels: float = MAX_MEGAPIXELS, policy: str = "error"
) -> np.ndarray | None:
    """The image in ``path`` by the rules of this module.

    Args:
        format: "BGR" or "RGB", the order of the channels.
        max_megapixels: larger images are refused, whatever the policy.
        policy: one of :data:`POLICIES`, for a file that cannot be decoded whole.

    Returns:
        uint8 (H, W, 3), contiguous. None for an image to leave out: policy "skip", or "load" where nothing can be
        decoded.

    Raises:
        BrokenImage: policy "error" and the file cannot be decoded whole.
        UserError: missing file, too large, or pixels without a fixed range.
    """
    if format not in ("BGR", "RGB"):
        raise UserError(f"image format {format!r}: choose BGR or RGB (INPUT.FORMAT)")
    check_policy(policy)
    with quiet_pillow():
        try:
            rgb = _read_rgb(path, max_megapixels, policy)
        except BrokenImage:
            if policy == "error":
                raise
            return None
    return np.ascontiguousarray(rgb[:, :, ::-1]) if format == "BGR" else rgb


def read_header(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """Size, orientation and mode, without decoding the pixels.

    Raises:
        BrokenImage: the file is not an image.
        UserError: missing file, too large, or pixels without a fixed range.
    """
    with quiet_pillow(), open_image(path, max_megapixels) as image:
        return describe(image)


def format_of_name(name: str) -> str:
    """The format that the ending of a file's name stands for; "" for other endings."""
    Image.init()
    return Image.registered_extensions().get(Path(name).suffix.lower(), "")


def check_policy(policy: str) -> None:
    """Raises UserError for anything but one of :data:`POLICIES`."""
    if policy not in POLICIES:
        raise UserError(f"policy {policy!r} for broken images: choose from {', '.join(POLICIES)}")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's warnings (corrupt EXIF, odd palettes, large images) say nothing that this module does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def open_image(path: str | Path, max_megapixels: float) -> Iterator[Image.Image]:
    """Pillow's lazy image behind ``path``, its size already checked. Errors while it is used become BrokenImage."""
    try:
        with open_regular(path, MAX_IMAGE_BYTES) as file, identified(file) as image:
            check_size(path, image, max_megapixels)
            _check_mode(path, image)
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on broken files
        reason = "not an image that Pillow reads" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenImage(f"{path}: cannot be decoded ({shown(_one_line(reason))}); replace or remove it") from None


def identified(file: IO[bytes]) -> Image.Image:
    """Pillow's lazy image of an open file of one of :data:`FORMATS`.

    The limit on pixels is ours (:func:`check_size`): Pillow's would name neither the file nor a way to raise it.

    Raises:
        Exception: nearly any, of Pillow's, for a broken file.
    """
    head = file.read(_HEADER_BYTES)
    file.seek(0)
    # Pillow reads a PPM's header byte by byte and its comments to their end: a gigabyte of them takes minutes.
    if head[:1] == b"P" and len(head) == _HEADER_BYTES and not _PPM_HEADER.match(_COMMENT.sub(b"", head)):
        raise ValueError(f"a header of more than {_HEADER_BYTES} bytes")
    with _pillow_globals:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=available_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def describe(image: Image.Image) -> ImageHeader:
    """The header of an open image."""
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation >= 5 else image.size
    return ImageHeader(width, height, orientation, image.mode, _several(image), image.format or "")


def decode(path: str | Path, max_megapixels: float, *, truncated: bool = False) -> None:
    """Decode all of ``path`` and forget it; a JPEG at an eighth of its size, which reads the whole file and is faster.

    Raises:
        BrokenImage: the file cannot be decoded whole, or with ``truncated`` not at all.
        UserError: as :func:`read_image`.
    """
    with open_image(path, max_megapixels) as image, _truncated_files(truncated):
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()


def _read_rgb(path: str | Path, max_megapixels: float, policy: str) -> np.ndarray:
    with open_image(path, max_megapixels) as image, _truncated_files(policy == "load"):
        orientation = _orientation(image)
        image = _to_rgb(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.array(image, dtype=np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_16_bit(image):
        high_byte = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        image = Image.fromarray(high_byte)
    return image.convert("RGB")


def _is_16_bit(image: Image.Image) -> bool:
    # Older Pillow opens 16-bit PNG, and every Pillow 16-bit PGM, in its mode of 32 bits.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def check_size(path: str | Path, image: Image.Image, max_megapixels: float) -> None:
    """Raises UserError for an image of more pixels."""
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise UserError(
            f"{path}: {image.width}x{image.height} is {megapixels:.1f} megapixels, more than the limit max_megapixels="
            f"{max_megapixels:g}; shrink the image or raise the limit"
        )


def _check_mode(path: str | Path, image: Image.Image) -> None:
    if image.mode in ("F", "LAB") or (image.mode.startswith("I") and not _is_16_bit(image)):
        raise UserError(
            f"{path}: {_MODES.get(image.mode, image.mode)} pixels have no fixed range to show; "
            "convert it to 8-bit RGB or 16-bit gray"
        )


_MODES = {"F": "floating-point", "I": "32-bit integer", "LAB": "L*a*b*"}


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # corrupt EXIF fails in many ways, and none of them spoils the pixels
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _several(image: Image.Image) -> bool:
    try:  # not n_frames, which walks through the whole file
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a broken second one does not spoil the first
        return False


@contextmanager
def _truncated_files(allowed: bool) -> Iterator[None]:
    """Sets Pillow's switch; takes the lock only when it has to change it, so that threads can decode side by side."""
    if ImageFile.LOAD_TRUNCATED_IMAGES == allowed:
        yield
        return
    with _pillow_globals:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, allowed
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


@cache
def available_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
