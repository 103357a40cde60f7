"""Tables of results, in Markdown or plain text: the paper's columns first, "not run" where nobody ran it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from tabulate import tabulate

from ..errors import UserError

Results = Mapping[str, float | None]
"""Metrics of one run, such as ``results.json``'s ``bbox``. None (JSON's null) is NaN: measured, and nothing to say."""

AP_COLUMNS = {
    "AP50": "AP@0.5",
    "AP": "AP",
    "AP75": "AP@0.75",
    "APs": "AP small",
    "APm": "AP medium",
    "APl": "AP large",
}
"""Columns of a detection table; the first two are those of the paper's Table 8."""
ERROR_COLUMNS = {"top1_error": "top-1 error", "top5_error": "top-5 error"}
"""Columns of a classification table (paper Tables 3 to 6)."""

NOT_RUN = "not run"
QUOTED = "quoted"
NO_VALUE = "–"
STYLES = {"markdown": "pipe", "plain": "simple"}


def results_table(
    runs: Mapping[str, Results | None],
    columns: Mapping[str, str],
    *,
    paper: Mapping[str, Results] | None = None,
    quoted: Collection[str] = (),
    first: str = "",
    digits: int = 1,
    style: str = "markdown",
) -> str:
    """One line for each run, one column for each metric.

    Args:
        runs: results by name, in the order to show. A run that is None, or lacks a metric, reads "not run"; a metric
            that is None or NaN reads "–".
        columns: {metric: heading}.
        paper: the paper's results by the names of ``runs``; a metric it gives for any of them gets a second column.
        quoted: names of ``runs`` that the paper quotes from others: they read "quoted" where others read "not run".
        first: heading of the names.
        digits: decimals.
        style: "markdown" or "plain".

    Raises:
        UserError: unknown style.

    Example:
        >>> print(results_table({"X50": {"AP50": 49.7}, "X101": None}, {"AP50": "AP@0.5"}, style="plain"))
                AP@0.5
        ----  --------
        X50       49.7
        X101   not run
    """
    if style not in STYLES:
        raise UserError(f"table style {style!r}: choose from {', '.join(STYLES)}")
    paper = paper or {}
    headings, cells = [first], {name: [name] for name in runs}
    for metric, heading in columns.items():
        in_paper = any(metric in paper.get(name, {}) for name in runs)
        headings += [heading, f"{heading} (paper)"] if in_paper else [heading]
        for name, results in runs.items():
            missing = QUOTED if name in quoted else NOT_RUN
            cells[name].append(_number(results[metric], digits) if results and metric in results else missing)
            if in_paper:
                published = paper.get(name, {}).get(metric)
                cells[name].append(_number(published, digits))
    return tabulate(
        list(cells.values()),
        headings,
        tablefmt=STYLES[style],
        disable_numparse=True,  # 50.0 stays 50.0
        colalign=["left"] + ["right"] * (len(headings) - 1),
    )


def ap_table(runs: Mapping[str, Results | None], **options: Any) -> str:
    """:func:`results_table` of detectors: AP@0.5 and AP as in the paper's Table 8, then COCO's other four."""
    return results_table(runs, AP_COLUMNS, **options)


def error_table(runs: Mapping[str, Results | None], **options: Any) -> str:
    """:func:`results_table` of classifiers: top-1 and top-5 error in percent, as in the paper's Tables 3 to 6."""
    return results_table(runs, ERROR_COLUMNS, **{"digits": 2, **options})


def class_table(results: Results, **options: Any) -> str:
    """:func:`results_table` with one line for each class of a detector: AP@0.5 (where it is given) and AP.

    Args:
        results: with ``AP-<class>`` and perhaps ``AP50-<class>``; anything else in it is left out.

    Raises:
        UserError: no class in ``results``.
    """
    classes = [key.removeprefix("AP-") for key in results if key.startswith("AP-")]
    if not classes:
        raise UserError("results hold no AP-<class>: evaluate a set with more than one class")
    columns = {key: AP_COLUMNS[key] for key in ("AP50", "AP") if f"{key}-{classes[0]}" in results}
    lines = {name: {key: results[f"{key}-{name}"] for key in columns} for name in classes}
    return results_table(lines, columns, **{"first": "class", **options})


def _number(value: float | None, digits: int) -> str:
    return NO_VALUE if value is None or math.isnan(value) else f"{value:.{digits}f}"
