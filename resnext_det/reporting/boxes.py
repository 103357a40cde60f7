"""Boxes drawn on an image, each with its label. Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import shown

Color = tuple[int, int, int]


def class_color(index: int) -> Color:
    """A color for each class; neighbors in the list are far apart on the wheel."""
    red, green, blue = colorsys.hsv_to_rgb((index * 0.61803398875) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Image.Image | np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[Color],
    *,
    scale: float = 1.0,
) -> Image.Image:
    """A copy of ``image`` with boxes and labels on it.

    Args:
        image: RGB, Pillow's or (H, W, 3) uint8.
        boxes: (N, 4) ``x, y, width, height`` in pixels of ``image``.
        labels: N texts, "" for none.
        colors: N colors.
        scale: size of the result by that of ``image``.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    image = image.convert("RGB") if size == image.size else image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    image = image.copy()
    draw = ImageDraw.Draw(image)
    line = max(2, round(min(image.size) / 250))
    font_size = max(11, round(min(image.size) / 36))
    for (x, y, width, height), label, color in zip(np.asarray(boxes) * scale, labels, colors, strict=True):
        x0, x1 = sorted((float(x), float(x + width)))
        y0, y1 = sorted((float(y), float(y + height)))
        draw.rectangle((x0, y0, x1, y1), outline=color, width=line)
        if not label:
            continue
        label = shown(label)
        font = _font_for(label, font_size)
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        text_width, text_height = right - left + 4, bottom - top + 4
        left_edge = min(max(x0, 0), max(image.width - text_width, 0))
        top_edge = y0 - text_height if y0 >= text_height else y0  # above the box, or inside where there is no room
        draw.rectangle((left_edge, top_edge, left_edge + text_width, top_edge + text_height), fill=color)
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        draw.text((left_edge + 2 - left, top_edge + 2 - top), label, font=font, fill="black" if dark else "white")
    return image


def drawable(name: str, instead: str) -> str:
    """``name`` where a font of this system has all its letters; else ``instead``."""
    return name if _drawn_by_default(shown(name)) or _system_font(shown(name)) else instead


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    path = None if _drawn_by_default(text) else _system_font(text)
    return _font(size) if path is None else ImageFont.truetype(path, size)


@cache
def _drawn_by_default(text: str) -> bool:
    """Whether Pillow's own font has all letters: a missing one looks like the one of a code that is no letter."""
    font = _font(16)
    missing = bytes(font.getmask("\U0010ffff"))
    return text.isascii() or not any(bytes(font.getmask(letter)) == missing for letter in set(text))


@cache
def _system_font(text: str) -> str | None:
    """The first font file of this system that has all letters; None where there is none."""
    return next((path for path, letters in _system_fonts() if letters.issuperset(map(ord, text))), None)


@cache
def _system_fonts() -> list[tuple[str, frozenset[int]]]:
    """Font files and the letters they have."""
    from fontTools.ttLib import TTFont  # both are slow to start, and few names need them
    from matplotlib.font_manager import findSystemFonts

    found = []
    for path in sorted(findSystemFonts()):
        try:
            with TTFont(path, fontNumber=0, lazy=True) as font:
                found.append((path, frozenset(font.getBestCmap() or ())))
        except Exception:  # broken fonts raise many kinds, and others may have the letters
            continue
    return found


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font of ``size`` pixels; Pillow before 10.1 has it in one size only."""
    try:
        return ImageFont.load_default(size=size)
    except TypeError:
        return ImageFont.load_default()
