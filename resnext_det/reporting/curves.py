"""Training curves from ``metrics.json``, one or several runs in one image, and error against model size.

matplotlib's figures are used directly: nothing global is set, no window system is needed.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from ..config_files import read_yaml
from ..errors import UserError
from ..files import COUNT, RESULTS_FILE, atomic_write, parse_state, read_state
from ..variants import Variant, parse_name
from .text import drawn

Metrics = dict[str, tuple[np.ndarray, np.ndarray]]
"""{metric: (iterations, values)}, both (N,), iterations rising; a value may be NaN."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#4d4d4d")
"""Distinct with every common kind of color vision (Okabe and Ito), darkest first."""
GRAY = "#5a6270"
PANEL = (5.4, 3.7)  # inches
DOTS_PER_INCH = 130
LOG_RANGE = 1e4
MANY_POINTS = 60  # beyond, noisy curves are drawn faintly under their running mean


def read_metrics(run: str | os.PathLike) -> Metrics:
    """Read a run's ``metrics.json``, detectron2's lines of ``{"iteration": 19, "total_loss": 1.2, ...}``.

    A line that was cut off is skipped. If a run was resumed at an earlier iteration, the lines written later count and
    those they repeat are dropped.

    Args:
        run: the file, or the folder that holds it.

    Raises:
        UserError: no such file, or no complete line in it.
    """
    file = Path(run)
    file = file / "metrics.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"{file}: no such file; name a run's OUTPUT_DIR or its metrics.json")
    lines: dict[int, dict[str, float]] = {}
    last = -1
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = parse_state(text, {"iteration": COUNT}, "", "")
        except UserError:
            continue
        iteration = line.pop("iteration")
        if iteration < last:
            lines = {i: values for i, values in lines.items() if i <= iteration}
        last = iteration
        lines.setdefault(iteration, {}).update(
            {key: math.nan if value is None else float(value) for key, value in line.items() if _is_number(value)}
        )
    if not lines:
        raise UserError(f"{file}: holds no complete line of metrics; let the run write some first")
    metrics: dict[str, list[tuple[int, float]]] = {}
    for iteration in sorted(lines):
        for key, value in lines[iteration].items():
            metrics.setdefault(key, []).append((iteration, value))
    return {key: (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])) for key, pairs in metrics.items()}


def _is_number(value: object) -> bool:
    return value is None or type(value) is float or (type(value) is int and -1e308 < value < 1e308)


def read_runs(runs: Sequence[str | os.PathLike]) -> dict[str, Metrics]:
    """:func:`read_metrics` of each, by the shortest end of its path that tells it from the others.

    Raises:
        UserError: as :func:`read_metrics`, or the same run twice.
    """
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("a run is named twice: name each once")
    parts = [(path.parent if path.name == "metrics.json" else path).parts for path in paths]
    length = 1
    while len({p[-length:] for p in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return {"/".join(p[-length:]): read_metrics(path) for p, path in zip(parts, paths, strict=True)}


def curves_figure(runs: Mapping[str, Metrics]) -> Figure:
    """Every panel that ``runs`` have numbers for: losses, AP, top-1 error (Figures 5 and 6), learning rate, speed.

    A run alone shows the parts of its loss too; several share one legend on top, and a color each in all panels.

    Raises:
        UserError: no run, or none of these numbers in any.
    """
    panels = [draw for has, draw in PANELS if any(has(metrics) for metrics in runs.values())]
    if not panels:
        raise UserError("nothing to draw: the runs hold no loss, AP, error or learning rate")
    columns = min(len(panels), 3 if len(panels) != 4 else 2)
    rows = math.ceil(len(panels) / columns)
    several = len(runs) > 1
    # With several runs a strip on top holds the legend, as many lines as it needs.
    per_line = max(1, min(len(runs), round(columns * PANEL[0] / (0.9 + 0.085 * max(map(len, runs))))))
    strip = 0.15 + 0.26 * math.ceil(len(runs) / per_line) if several else 0
    height = rows * PANEL[1] + strip
    figure = Figure(figsize=(columns * PANEL[0], height), dpi=DOTS_PER_INCH)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - strip / height), w_pad=0.12, h_pad=0.12)
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(runs)}
    for i, draw in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        draw(axes, runs, colors)
        _finish(axes)
    if several:
        handles = [Line2D([], [], color=colors[name], linewidth=2.5, label=drawn(name)) for name in runs]
        figure.legend(handles=handles, loc="upper center", ncols=per_line, frameon=False, fontsize=11)
    return figure


Point = tuple[float, float, str] | tuple[float, float, str, float]


def size_figure(series: Mapping[str, Sequence[Point]], *, error: str = "test error (%)") -> Figure:
    """Error against model size, as in Figure 7: a line for each way of making a network bigger.

    Args:
        series: {name: [(millions of parameters, error in percent, label of the point), ...]}; a fourth value is the
            standard error, drawn as a bar.
        error: title of the vertical axis.

    Raises:
        UserError: no points.
    """
    if not any(series.values()):
        raise UserError("nothing to draw: no network has both a size and an error")
    figure = Figure(figsize=(7.2, 5.0), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ends = sorted(points[-1][1] for points in map(sorted, series.values()) if points)
    for (name, points), color, marker in zip(series.items(), _cycle(COLORS), _cycle("os^Dv"), strict=False):
        points = sorted(points)
        size, value = [p[0] for p in points], [p[1] for p in points]
        bars = [p[3] if len(p) > 3 else 0 for p in points]
        axes.plot(size, value, color=color, marker=marker, markersize=7, linewidth=1.8, label=drawn(name))
        if any(bars):
            axes.errorbar(size, value, bars, color=color, linestyle="none", capsize=4)
        # The curve that ends lowest has its labels below, the others above: labels must not overlap.
        below = len(ends) > 1 and points[-1:] and points[-1][1] == ends[0]
        for x, y, label, *_ in points:
            axes.annotate(
                drawn(label),
                (x, y),
                xytext=(-6, -5) if below else (6, 5),
                textcoords="offset points",
                ha="right" if below else "left",
                va="top" if below else "bottom",
                fontsize=9,
                color=color,
            )
    axes.margins(x=0.1, y=0.14)
    axes.set_xlabel("parameters (millions, log scale)")
    axes.set_ylabel(error)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=10)
    _finish(axes)
    return figure


def read_sizes(runs: Sequence[str | os.PathLike]) -> dict[str, list[Point]]:
    """What :func:`size_figure` takes, from the finished pretraining runs in the folders ``runs``.

    Runs of one network, with other seeds, count as their mean with its standard error. Networks of one path are
    "wider", the others "more paths"; the narrowest single-path network begins both lines.

    Raises:
        UserError: a folder without ``config.yaml`` and ``results.json`` of a pretraining run.
    """
    errors: dict[tuple[Variant, float], list[float]] = {}
    for run in map(Path, runs):
        try:
            name = read_yaml(run / "config.yaml")["MODEL"]["NAME"]
            numbers = {"parameters": float, "top1_error": float}
            results = read_state(run / RESULTS_FILE, numbers, "evaluate the run again")
            network = parse_name(name), results["parameters"] / 1e6
            errors.setdefault(network, []).append(results["top1_error"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{run}: holds no finished pretraining run ({error}); name its OUTPUT_DIR") from error
    series: dict[str, list[Point]] = {"wider": [], "more paths": []}
    for (variant, size), values in sorted(errors.items(), key=lambda item: item[0][1]):
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        point = (size, statistics.mean(values), variant.template, spread)
        if variant.cardinality > 1 or not series["wider"]:
            series["more paths"].append(point)
        if variant.cardinality == 1:
            series["wider"].append(point)
    return series


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write ``figure`` as PNG, whole or not at all."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")


def _cycle(items: Sequence[str]) -> Iterator[str]:
    while True:
        yield from items


def _finish(axes: Axes) -> None:
    axes.grid(True, which="major", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa2ad")
    axes.tick_params(colors=GRAY, which="both", labelsize=10)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=11, color="#2c333c")


def _name(axes: Axes, title: str, x: str = "iteration", y: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color="#1c2128")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _curve(
    axes: Axes, points: tuple[np.ndarray, np.ndarray], color: str, label: str | None = None, **line: Any
) -> None:
    """One noisy curve; when it has many points, faint under its running mean."""
    x, y = points
    line = {"linewidth": 1.7, **line}
    if len(x) > MANY_POINTS:
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.25)
        y = _running_mean(y, max(5, len(y) // 40))
    axes.plot(x, y, color=color, label=label, **line)
    if len(x) == 1:
        axes.plot(x, y, color=color, marker="o")


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """(N,) means over up to ``width`` neighbors; a NaN stays NaN and is seen."""
    known = np.isfinite(values)
    window = np.ones(min(width, len(values)))
    total = np.convolve(np.where(known, values, 0), window, mode="same")
    count = np.convolve(known, window, mode="same")
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _log_if_positive(axes: Axes, plotted: Sequence[np.ndarray], spread: float = 5) -> None:
    """Log scale when all values are positive and their range is wide."""
    values = np.concatenate(plotted)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > spread * values.min():
        axes.set_yscale("log")
        if values.max() > LOG_RANGE * values.min():  # such as the end of a cosine schedule
            axes.set_ylim(bottom=values.max() / LOG_RANGE)
        elif values.max() < 1000 * values.min():
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(_plain_number)
        axes.yaxis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, _position: float) -> str:
    return f"{value:g}"


def _losses(axes: Axes, runs: Mapping[str, Metrics], colors: Mapping[str, str]) -> None:
    several = len(runs) > 1
    _name(axes, "Loss")
    plotted = []
    for name, metrics in runs.items():
        if "total_loss" in metrics:
            color = colors[name] if several else "#1c2128"
            _curve(axes, metrics["total_loss"], color, None if several else "total")
            plotted.append(metrics["total_loss"][1])
        parts = [key for key in metrics if key.startswith("loss_")]
        for key, color in zip([] if several else parts, _cycle(COLORS), strict=False):
            _curve(axes, metrics[key], color, key.removeprefix("loss_").replace("_", " "), linewidth=1.3)
            plotted.append(metrics[key][1])
    _log_if_positive(axes, plotted)
    if not several and len(plotted) > 1:
        _legend(axes, axes.get_legend_handles_labels()[0])


def _legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """One line beside the title: inside, it would cover curves."""
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False,
                fontsize=9.5, borderaxespad=0.1, columnspacing=1.0, handlelength=1.5, handletextpad=0.5)  # fmt: skip


def _average_precision(axes: Axes, runs: Mapping[str, Metrics], colors: Mapping[str, str]) -> None:
    _name(axes, "Average precision", y="percent")
    for name, metrics in runs.items():
        for key, style in (("bbox/AP50", "-"), ("bbox/AP", "--")):
            if key in metrics:
                axes.plot(*metrics[key], style, color=colors[name], linewidth=1.8, marker="o", markersize=4)
    axes.set_ylim(bottom=0)
    _keys(axes, {"AP@0.5": "-", "AP": "--"})


def _top1_error(axes: Axes, runs: Mapping[str, Metrics], colors: Mapping[str, str]) -> None:
    """Thin and dashed for training, thick for validation, by epoch where every run knows its own.

    Dotted where only the classes of the test compete: 5K-way and 1K-way of Figure 6 (TEST.AMONG both).
    """
    rates = {name: _iterations_per_epoch(metrics) for name, metrics in runs.items() if _has_error(metrics)}
    by_epoch = all(rates.values())
    _name(axes, "Top-1 error", "epoch" if by_epoch else "iteration", "percent")
    for name, rate in rates.items():
        for key, style in (("train/top1_error", "--"), ("top1_error", "-"), ("top1_error_among", ":")):
            if key not in runs[name]:
                continue
            iterations, values = runs[name][key]
            x = (iterations + 1) / rate if by_epoch else iterations
            if style == "--":
                _curve(axes, (x, values), colors[name], linewidth=1.1, linestyle=style)
            else:
                marker = "o" if len(x) <= 30 else None
                axes.plot(x, values, style, color=colors[name], linewidth=2.2, marker=marker, markersize=4)
    axes.set_ylim(bottom=0)
    among = {"test's classes": ":"} if any("top1_error_among" in runs[name] for name in rates) else {}
    _keys(axes, {"validation": "-", **among, "training": "--"})


def _iterations_per_epoch(metrics: Metrics) -> float | None:
    if "epoch" not in metrics or not np.isfinite(metrics["epoch"][1][-1]) or metrics["epoch"][1][-1] <= 0:
        return None
    iterations, epochs = metrics["epoch"]
    return (iterations[-1] + 1) / epochs[-1]


def _keys(axes: Axes, styles: Mapping[str, Any]) -> None:
    """What solid and dashed mean, in gray: colors belong to the runs."""
    handles = [
        Line2D([], [], color=GRAY, linestyle=style, linewidth=1.8 if style == "-" else 1.3, label=label)
        for label, style in styles.items()
    ]
    _legend(axes, handles)


def _learning_rate(axes: Axes, runs: Mapping[str, Metrics], colors: Mapping[str, str]) -> None:
    _name(axes, "Learning rate")
    plotted = {name: metrics["lr"] for name, metrics in runs.items() if "lr" in metrics}
    widths = np.linspace(5, 1.8, len(plotted)) if len(plotted) > 1 else [1.8]  # equal schedules all stay visible
    for width, (name, points) in zip(widths, plotted.items(), strict=True):
        axes.plot(*points, color=colors[name], linewidth=width, marker="o" if len(points[0]) == 1 else "")
    _log_if_positive(axes, [values for _, values in plotted.values()])


def _speed(axes: Axes, runs: Mapping[str, Metrics], colors: Mapping[str, str]) -> None:
    _name(axes, "Speed", y="iterations per second")
    for name, metrics in runs.items():
        if "time" in metrics:
            iterations, seconds = metrics["time"]
            with np.errstate(divide="ignore"):
                rate = np.where(seconds > 0, 1 / seconds, np.nan)
            _curve(axes, (iterations, rate), colors[name])
    axes.set_ylim(bottom=0)


def _has_error(metrics: Metrics) -> bool:
    return "top1_error" in metrics or "train/top1_error" in metrics


def _has(*keys: str) -> Callable[[Metrics], bool]:
    return lambda metrics: any(key in metrics for key in keys)


PANELS: tuple[tuple[Callable[[Metrics], bool], Callable], ...] = (
    (_has("bbox/AP", "bbox/AP50"), _average_precision),
    (_has_error, _top1_error),
    (_has("total_loss"), _losses),
    (_has("lr"), _learning_rate),
    (_has("time"), _speed),
)
"""Which numbers a panel needs, and what draws it; in the order of the image."""
