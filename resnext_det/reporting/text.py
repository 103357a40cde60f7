"""Names from data as matplotlib draws them: plain text, in a font with the letters if there is one."""

from __future__ import annotations

from functools import cache

from ..files import shown

_LENGTH = 40  # characters

_WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Noto Sans Devanagari", "Noto Sans Arabic", "Noto Sans Thai",
    "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip
"""Families that have what matplotlib's own font lacks; of these the system's are used."""


def drawn(name: str, instead: str = "") -> str:
    """A name from data as text of a drawing: one line, and a dollar is a dollar, not the beginning of a formula.

    Args:
        instead: drawn where no font of :func:`fonts` has all its letters.
    """
    text = shown(name, _LENGTH)
    if instead and not text.isascii() and not _letters().issuperset(map(ord, text)):
        return instead
    return text.replace("$", r"\$")


@cache
def fonts() -> list[str]:
    """Families for text with names from data: matplotlib takes the first that has a letter."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(family for family in _WIDE if family in known)]


@cache
def _letters() -> frozenset[int]:
    """Codes of the letters that :func:`fonts` have."""
    from matplotlib import font_manager, ft2font

    paths = {font_manager.findfont(family) for family in fonts()}
    return frozenset().union(*(ft2font.FT2Font(path).get_charmap() for path in paths))
