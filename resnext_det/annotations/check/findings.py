"""What a check finds: one line each, that names file, id, field and the fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...files import shown

SEVERITIES = ("error", "warning", "note")
"""An error stops training; a warning says that something was left out or changed; a note that it was filled in."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        severity: one of :data:`SEVERITIES`.
        code: a short name for this kind of finding, the same for every record it is found in.
        file: the JSON file or the image.
        id: of the image, annotation or category; None where there is none.
        field: the JSON field, such as ``annotations[5].bbox``.
        message: what is wrong.
        fix: what to do about it.
    """

    severity: str
    code: str
    file: str
    id: object
    field: str
    message: str
    fix: str

    def __str__(self) -> str:
        name = "" if self.id is None else f" (id {shorten(self.id)})"
        field = f"{self.field}{name}: " if self.field else ""
        return shown(" ".join(f"{self.file}: {field}{self.message}; {self.fix}".split()), 2000)


class Findings:
    """Collects findings; keeps at most ``listed`` of a kind in full and counts the rest."""

    def __init__(self, file: str, listed: int = 20) -> None:
        self.file, self.listed = file, listed
        self.items: list[Finding] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(
        self,
        severity: str,
        code: str,
        message: str,
        fix: str,
        *,
        id: object = None,
        field: str = "",
        file: str | None = None,
        count: int = 1,
    ) -> None:
        """``count`` is the number of records this one finding stands for."""
        kind = (severity, code)
        if self.counts[kind] < self.listed:
            self.items.append(Finding(severity, code, file or self.file, id, field, message, fix))
        self.counts[kind] += count

    def add_each(self, severity: str, code: str, records: Iterable, word: Callable[[int], dict]) -> None:
        """One finding for each of ``records`` (row numbers); ``word`` makes the arguments of :meth:`add` of a row."""
        records = list(records)
        for record in records[: self.listed]:
            self.add(severity, code, **word(int(record)))
        if len(records) > self.listed:
            self.counts[(severity, code)] += len(records) - self.listed

    def count(self, severity: str) -> int:
        """How many records have findings of this severity."""
        return sum(n for (kind, _), n in self.counts.items() if kind == severity)

    def of(self, severity: str) -> list[Finding]:
        """The listed findings of one severity, in the order found."""
        return [item for item in self.items if item.severity == severity]


def shorten(value: object, length: int = 60) -> str:
    """``repr`` of a JSON value on one short line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits; very deep nesting
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def some(values: Iterable, most: int = 10) -> str:
    """``1, 2, 3 and 40 more``."""
    values = list(values)
    text = ", ".join(shorten(value) for value in values[:most])
    return text if len(values) <= most else f"{text} and {len(values) - most} more"
