"""Images of any number of channels, of 8 or 16 bits, in full: PNG by OpenCV, TIFF by tifffile.

:mod:`.images` reads everything else, as RGB of 8 bits. Here nothing is converted: the channels of the file are those of
the result, and there is no EXIF orientation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import read_regular, shown
from .images import MAX_IMAGE_BYTES, MAX_MEGAPIXELS, BrokenImage, ImageHeader, read_header

TIFF, PNG = (".tif", ".tiff"), (".png",)
DTYPES = ("uint8", "uint16")


def read_channels(path: str | Path, channels: int, *, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """float32 (H, W, ``channels``), the values as in the file: 0 to 255, or to 65535 for 16 bits.

    Raises:
        BrokenImage: the file cannot be decoded whole.
        UserError: missing, too large, neither PNG nor TIFF, other channels, neither 8 nor 16 bits, or no library.
    """
    pixels = _tiff(path, max_megapixels) if _is_tiff(path) else _png(path, max_megapixels)
    if pixels.dtype.name not in DTYPES:
        raise UserError(f"{path}: has pixels of {pixels.dtype}; INPUT.CHANNELS reads 8 and 16 bits, convert it")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] != channels:
        raise UserError(
            f"{path}: has {pixels.shape[2]} channels and INPUT.CHANNELS is {channels}; all images need this many"
        )
    return np.ascontiguousarray(pixels, dtype=np.float32)


def viewable(pixels: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 for people: of other channels the first three, or the first alone, from dark to bright."""
    if pixels.dtype == np.uint8:
        return pixels
    pixels = pixels[:, :, [0, 1, 2] if pixels.shape[2] > 2 else [0, 0, 0]]
    return (255 * (pixels - pixels.min()) / max(np.ptp(pixels), 1e-6)).astype(np.uint8)


def header_of_channels(path: str | Path, channels: int, max_megapixels: float, *, decode: bool) -> ImageHeader:
    """Size and kind of a file for :func:`read_channels`; with ``decode`` the rest was read too, and fits.

    Raises:
        BrokenImage, UserError: as :func:`read_channels`.
    """
    kind = "TIFF" if _is_tiff(path) else "PNG"
    if decode:
        height, width = read_channels(path, channels, max_megapixels=max_megapixels).shape[:2]
    elif kind == "PNG":
        return read_header(path, max_megapixels=max_megapixels)
    else:
        height, width = _tiff(path, max_megapixels, only_size=True)
    return ImageHeader(width, height, 1, f"{channels} channels", False, kind)


def _is_tiff(path: str | Path) -> bool:
    ending = Path(path).suffix.lower()
    if ending not in TIFF + PNG:
        raise UserError(f"{path}: INPUT.CHANNELS other than 3 is for PNG and TIFF; convert it")
    return ending in TIFF


def _png(path: str | Path, max_megapixels: float) -> np.ndarray:
    read_header(path, max_megapixels=max_megapixels)  # a size that is refused, before any memory is taken
    try:
        import cv2
    except ImportError:
        raise UserError(f"{path}: INPUT.CHANNELS needs OpenCV for PNG; pip install opencv-python-headless") from None
    pixels = cv2.imdecode(np.frombuffer(read_regular(path, MAX_IMAGE_BYTES), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise BrokenImage(f"{path}: cannot be decoded; replace or remove it")
    if pixels.ndim == 3:  # OpenCV's order is BGR
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _tiff(path: str | Path, max_megapixels: float, *, only_size: bool = False) -> Any:
    """The pixels (H, W) or (H, W, C) of the first page, or of all pages where each is a channel; or (H, W)."""
    try:
        import tifffile
    except ImportError:
        raise UserError(f"{path}: INPUT.CHANNELS needs tifffile for TIFF; pip install tifffile") from None
    with open_tiff(path, tifffile) as file:
        try:
            series = file.series[0]
            axes, shape = series.axes, dict(zip(series.axes, series.shape, strict=True))
            height, width = shape["Y"], shape["X"]
        except Exception as error:  # tifffile raises many kinds for broken files
            raise BrokenImage(f"{path}: cannot be decoded ({shown(error)}); replace or remove it") from None
        if height * width / 1e6 > max_megapixels:
            raise UserError(f"{path}: {width}x{height} is more than the limit max_megapixels={max_megapixels:g}")
        if only_size:
            return height, width
        if len(axes) > 3 or np.prod(series.shape) * series.dtype.itemsize > MAX_IMAGE_BYTES:
            raise UserError(f"{path}: its pixels are {axes} of {series.shape}; give height, width and channels")
        try:
            pixels = series.asarray()
        except Exception as error:
            raise BrokenImage(f"{path}: cannot be decoded ({shown(error)}); replace or remove it") from None
    others = [axis for axis in axes if axis not in "YX"]
    return np.transpose(pixels, [axes.index(axis) for axis in ("Y", "X", *others)])


def open_tiff(path: str | Path, tifffile: Any) -> Any:
    """An open TIFF.

    Raises:
        BrokenImage: it is none.
    """
    import io
    import logging

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it has to say becomes an error here
    data = read_regular(path, MAX_IMAGE_BYTES)
    try:
        return tifffile.TiffFile(io.BytesIO(data))
    except Exception as error:
        raise BrokenImage(f"{path}: cannot be decoded ({shown(error)}); replace or remove it") from None
