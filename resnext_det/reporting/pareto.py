"""Time against accuracy: every way that was measured, and the line of those that none beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from .curves import COLORS, DOTS_PER_INCH, GRAY, _finish

Point = tuple[float, float, str]


def pareto_figure(points: Sequence[Point], front: Sequence[Point], chosen: tuple[float, float]) -> Figure:
    """AP over seconds an image. Names and labels are the program's own words, drawn as they are.

    Args:
        points: (seconds, AP in percent, name of its group).
        front: (seconds, AP, label), rising.
        chosen: (seconds, AP), marked by a ring.
    """
    figure = Figure(figsize=(8.6, 5.2), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.plot([p[0] for p in front], [p[1] for p in front], color=GRAY, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for group, color, marker in zip(dict.fromkeys(p[2] for p in points), COLORS, "os^Dv<>P", strict=False):
        own = [p for p in points if p[2] == group]
        axes.scatter([p[0] for p in own], [p[1] for p in own], color=color, marker=marker, s=36, label=group)
    axes.scatter(*chosen, s=190, facecolors="none", edgecolors="black", linewidths=1.4, label="chosen")
    for number, (seconds, ap, text) in enumerate(front):
        axes.annotate(
            text, (seconds, ap), xytext=(9, -11 if number % 2 else 6), textcoords="offset points", fontsize=7.5
        )
    axes.margins(x=0.25, y=0.12)
    axes.set_xlabel("seconds an image (log scale)")
    axes.set_ylabel("AP (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=10, loc="lower right")
    _finish(axes)
    return figure
