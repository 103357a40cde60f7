import json
import math
import subprocess
import sys

import numpy as np
import pytest
from common import ROOT
from forked import call
from PIL import Image

from resnext_det import UserError
from resnext_det.commands.curves import main
from resnext_det.reporting.curves import (
    _running_mean,
    curves_figure,
    read_metrics,
    read_runs,
    read_sizes,
    save_figure,
    size_figure,
)


def write(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
    (folder / "metrics.json").write_text("".join(text))
    return folder


def detector(folder, iterations=3000, period=20):
    lines = []
    for i in range(period - 1, iterations, period):
        decay = math.exp(-i / 900)
        line = {"iteration": i, "lr": 0.02 if i < 2000 else 0.002, "time": 0.5, "total_loss": 0.3 + 3 * decay}
        line |= {"loss_cls": 0.2 + 2 * decay, "loss_box_reg": 0.1 + decay}
        if (i + 1) % 500 == 0:
            line |= {"bbox/AP": 60 * (1 - decay), "bbox/AP50": 90 * (1 - decay), "bbox/APl": math.nan}
        lines.append(line)
    return write(folder, *lines)


def classifier(folder, epochs=4, per_epoch=10):
    lines = []
    for i in range(epochs * per_epoch):
        line = {"iteration": i, "lr": 0.1, "total_loss": 2.0, "train/top1_error": 50.0 - i, "time": 0.1}
        if (i + 1) % per_epoch == 0:
            line |= {"epoch": (i + 1) / per_epoch, "top1_error": 60.0 - i, "top5_error": 5.0}
        lines.append(line)
    return write(folder, *lines)


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return axes


def test_reads_values_and_keeps_nan(tmp_path):
    run = write(
        tmp_path, {"iteration": 19, "a": 1.5, "b": math.nan, "who": "x", "yes": True}, {"iteration": 39, "b": None}
    )
    metrics = read_metrics(run)
    assert set(metrics) == {"a", "b"}
    assert metrics["a"][0].tolist() == [19] and metrics["a"][1].tolist() == [1.5]
    assert metrics["b"][0].tolist() == [19, 39] and np.isnan(metrics["b"][1]).all()
    assert read_metrics(run / "metrics.json").keys() == metrics.keys()


@pytest.mark.parametrize(
    "torn", ['{"iteration": 39, "to', "{", "17", '{"total_loss": 3}', "\0\0\0", "[]", '{"iteration": null}']
)
def test_lines_cut_off_are_skipped(tmp_path, torn):
    run = write(tmp_path, {"iteration": 19, "total_loss": 2.0}, torn + "\n", {"iteration": 59, "total_loss": 1.0}, torn)
    assert read_metrics(run)["total_loss"][0].tolist() == [19, 59]


def test_after_a_resume_what_was_written_later_counts(tmp_path):
    first = [{"iteration": i, "loss": float(i), "old": 0.0} for i in (9, 19, 29, 39)]
    again = [{"iteration": i, "loss": 100.0 + i} for i in (19, 24)]
    metrics = read_metrics(write(tmp_path, *first, *again))
    assert metrics["loss"][0].tolist() == [9, 19, 24]
    assert metrics["loss"][1].tolist() == [9.0, 119.0, 124.0]


def test_lines_of_one_iteration_are_one(tmp_path):
    metrics = read_metrics(write(tmp_path, {"iteration": 9, "a": 1, "b": 1}, {"iteration": 9, "b": 2}))
    assert metrics["a"][1].tolist() == [1] and metrics["b"][1].tolist() == [2]


@pytest.mark.parametrize("content", [None, "", '{"iteration": 1', "\n"])
def test_nothing_to_read_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match="metrics.json|no such file"):
        read_metrics(tmp_path if content is not None else tmp_path / "none")


def test_runs_have_the_shortest_names_that_differ(tmp_path):
    runs = [write(tmp_path / name, {"iteration": 0, "lr": 1.0}) for name in ("a/x", "b/x", "b/y")]
    assert list(read_runs(runs[:1])) == ["x"]
    assert list(read_runs([runs[0], runs[2] / "metrics.json"])) == ["x", "y"]
    assert list(read_runs(runs)) == ["a/x", "b/x", "b/y"]
    with pytest.raises(UserError, match="twice"):
        read_runs([runs[0], runs[0]])


def test_running_mean_equals_the_mean_of_neighbours_and_keeps_nan():
    values = np.random.default_rng(0).normal(size=30)
    values[12] = np.nan
    smooth = _running_mean(values, 5)
    expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(30)]
    expected[12] = np.nan
    np.testing.assert_allclose(smooth, expected)


def test_detector_alone(tmp_path):
    metrics = read_metrics(detector(tmp_path / "X50"))
    figure = curves_figure({"X50": metrics})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Average precision",
        "Loss",
        "Learning rate",
        "Speed",
    ]
    ap50, ap = panel(figure, "Average precision").lines
    np.testing.assert_array_equal(ap50.get_ydata(), metrics["bbox/AP50"][1])
    np.testing.assert_array_equal(ap.get_xdata(), metrics["bbox/AP"][0])
    losses = panel(figure, "Loss")
    assert losses.get_yscale() == "log"
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["total", "cls", "box reg"]
    assert panel(figure, "Speed").lines[-1].get_ydata() == pytest.approx(2.0)
    assert not figure.legends


def test_several_runs_share_a_legend_and_keep_their_colors(tmp_path):
    runs = read_runs([detector(tmp_path / name) for name in ("R50", "X50", "X101")])
    figure = curves_figure(runs)
    (legend,) = figure.legends
    colors = [line.get_color() for line in legend.get_lines()]
    assert [text.get_text() for text in legend.get_texts()] == list(runs) and len(set(colors)) == 3
    assert [line.get_color() for line in panel(figure, "Learning rate").lines] == colors
    assert [line.get_color() for line in panel(figure, "Average precision").lines[::2]] == colors


def test_top1_error_by_epoch(tmp_path):
    figure = curves_figure({"x": read_metrics(classifier(tmp_path))})
    axes = panel(figure, "Top-1 error")
    training, validation = axes.lines
    assert axes.get_xlabel() == "epoch"
    np.testing.assert_allclose(validation.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(validation.get_ydata(), [51, 41, 31, 21])
    np.testing.assert_allclose(training.get_xdata()[[0, 9, 39]], [0.1, 1, 4])


def test_both_ways_of_figure_6(tmp_path):
    """Among all classes of training and among those of the test; a run that has one only shows one."""
    lines = [
        {"iteration": 10 * i + 9, "epoch": i + 1, "top1_error": 90.0 - 9 * i, "top1_error_among": 70.0 - 9 * i,
         "train/top1_error": 95.0 - 9 * i} for i in range(5)
    ]  # fmt: skip
    runs = {"5k": read_metrics(write(tmp_path / "5k", *lines)), "1k": read_metrics(classifier(tmp_path / "1k"))}
    axes = panel(curves_figure(runs), "Top-1 error")
    training, validation, among = axes.lines[:3]
    assert (training.get_linestyle(), validation.get_linestyle(), among.get_linestyle()) == ("--", "-", ":")
    np.testing.assert_allclose(among.get_ydata(), [70, 61, 52, 43, 34])
    np.testing.assert_allclose(among.get_xdata(), validation.get_xdata())
    assert len(axes.lines) == 5 and len(axes.get_legend().get_texts()) == 3
    save_figure(curves_figure(runs), tmp_path / "fig6.png")


def test_top1_error_by_iteration_when_one_run_has_no_epochs_yet(tmp_path):
    started = write(tmp_path / "started", {"iteration": 3, "train/top1_error": 90.0})
    figure = curves_figure(read_runs([classifier(tmp_path / "done"), started]))
    assert panel(figure, "Top-1 error").get_xlabel() == "iteration"


@pytest.mark.parametrize("values", [[math.nan, math.nan], [0.0, 0.0], [-1.0, 1e9], [math.inf, 1.0], [1.0]])
def test_odd_numbers_are_drawn(tmp_path, values):
    lines = [{"iteration": i, "total_loss": v, "lr": v, "time": v} for i, v in enumerate(values)]
    save_figure(curves_figure({"odd": read_metrics(write(tmp_path, *lines))}), tmp_path / "odd.png")
    assert Image.open(tmp_path / "odd.png").size[0] > 600


def test_no_text_covers_another(tmp_path):
    names = ["R_50_C4_1x", "X_50_32x4d_C4_1x", "a_run_with_quite_a_long_name_of_its_own", "X_101_64x4d_C4_3x", "b", "c"]
    runs = [detector(tmp_path / name) for name in names] + [classifier(tmp_path / "pretrain")]
    for figure in (curves_figure(read_runs(runs[:1])), curves_figure(read_runs(runs))):
        figure.draw_without_rendering()
        boxes = []
        for axes in figure.axes:
            boxes += [axes._left_title.get_window_extent(), axes.xaxis.label.get_window_extent()]
            boxes += [axes.get_legend().get_window_extent()] if axes.get_legend() else []
        boxes += [legend.get_window_extent() for legend in figure.legends]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert all(0 <= b.x0 and b.x1 <= figure.bbox.x1 and 0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)


def test_nothing_to_draw(tmp_path):
    for runs in ({}, {"x": read_metrics(write(tmp_path, {"iteration": 0, "eta_seconds": 1}))}):
        with pytest.raises(UserError, match="nothing to draw"):
            curves_figure(runs)
    with pytest.raises(UserError, match="nothing to draw"):
        size_figure({"wider": []})


def test_error_against_size(tmp_path):
    wider = [(36.3, 3.7, "1x256d"), (6.8, 4.1, "1x64d")]
    figure = size_figure({"wider": wider, "cardinality": [(34.4, 3.65, "8x64d"), (68.1, 3.58, "16x64d")], "none": []})
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [6.8, 36.3])
    assert {text.get_text() for text in axes.texts} == {"1x256d", "1x64d", "8x64d", "16x64d"}
    save_figure(figure, tmp_path / "size.png")
    assert Image.open(tmp_path / "size.png").mode in ("RGB", "RGBA")


def test_tool_draws_without_detectron2_and_without_pyplot(tmp_path):
    run, out = detector(tmp_path / "run"), tmp_path / "curves.png"
    code = (
        "import sys; sys.modules['detectron2'] = sys.modules['matplotlib.pyplot'] = None\n"
        f"from resnext_det.commands import curves; curves.main([{str(run)!r}, '--out', {str(out)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size[0] > 1000


def test_tool_says_which_run_is_missing(tmp_path):
    done = call("tools/plot_curves.py", tmp_path / "nowhere", "--out", tmp_path / "x.png", folder=ROOT)
    assert done.returncode == 2 and "nowhere: no such file" in done.stderr and "Traceback" not in done.stderr


def finished(folder, name, parameters, error):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"MODEL:\n  NAME: {name}\n")
    (folder / "results.json").write_text(json.dumps({"top1_error": error, "top5_error": 1.0, "parameters": parameters}))
    return str(folder)


def test_sizes_of_finished_runs(tmp_path):
    """The points of Figure 7: two seeds are one mean; the plain network begins both lines."""
    runs = [
        finished(tmp_path / "a", "resnext29_1x128d_cifar", 13_800_000, 4.4),
        finished(tmp_path / "b", "resnet29_cifar", 4_900_000, 5.0),
        finished(tmp_path / "c", "resnext29_2x64d_cifar", 6_900_000, 4.5),
        finished(tmp_path / "d", "resnext29_2x64d_cifar", 6_900_000, 4.7),
    ]
    series = read_sizes(runs)
    assert series["wider"] == [(4.9, 5.0, "1x64d", 0.0), (13.8, 4.4, "1x128d", 0.0)]
    (_, more) = series["more paths"]
    assert more[:3] == (6.9, pytest.approx(4.6), "2x64d") and more[3] > 0
    (axes,) = size_figure(series).axes
    (bar,) = [c for c in axes.collections[0].get_segments() if len(c) == 2 and c[0][0] == 6.9]
    assert bar[1][1] - bar[0][1] == pytest.approx(2 * more[3]), "a bar of one standard error up and down"
    main([*runs, "--size", "--out", str(tmp_path / "sizes.png")])
    assert Image.open(tmp_path / "sizes.png").width > 500
    with pytest.raises(UserError, match="holds no finished pretraining run"):
        read_sizes([tmp_path])
