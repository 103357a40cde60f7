"""Measuring the ways to run a detector: what is measured, what is chosen, and that the written one runs that way."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_det import load_detector
from resnext_det.commands import tune as command
from resnext_det.detection.tuning import Choice, Row, choices_of, chosen, front, rows_of, seconds_of


def made(choice: Choice) -> tuple[float, float]:
    """(seconds, AP) of a machine on which OpenVINO is slower in fp32 and faster in bf16."""
    by_type = {("fp32", "torch"): 1.0, ("fp32", "openvino"): 1.2, ("bf16", "torch"): 0.6, ("bf16", "openvino"): 0.5}
    lost = {"fp32": 0.0, "bf16": 0.1}[choice.dtype] + 2 * (choice.regions < 100) + 5 * (choice.min_size < 80)
    return by_type[choice.dtype, choice.backend] * choice.regions / 100 * choice.min_size / 80, 40 - lost


def config(tiny_run):
    cfg = tiny_run.config("tuned")
    cfg.defrost()
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.INPUT.MIN_SIZE_TEST = 100, 80
    return cfg


def test_the_slower_backend_is_left_and_ap_is_measured_once(tiny_run) -> None:
    choices = choices_of(config(tiny_run), ["fp32", "bf16"], [1, 0.5], [1, 0.5], [2], [1, 4])
    assert len(choices) == 2 * 2 * 2 * 2 * 2
    rated, timed = Counter(), Counter()

    def load(choice):
        return choice

    def seconds(detect, batch):
        timed[detect] += 1
        return made(detect)[0]

    def accuracy(detect):
        rated[detect.dtype, detect.regions, detect.min_size] += 1
        return made(detect)[1]

    rows = list(rows_of(choices, load, seconds, accuracy, {}))
    assert rated == dict.fromkeys(rated, 1) and len(rated) == 8
    kept = Counter((row.choice.dtype, row.choice.backend) for row in rows)
    assert kept == {("fp32", "torch"): 8, ("fp32", "openvino"): 1, ("bf16", "torch"): 1, ("bf16", "openvino"): 8}
    assert all((row.seconds, row.ap) == made(row.choice) for row in rows)
    again = list(rows_of(choices, load, seconds, accuracy, {row.choice: row for row in rows[:10]}))
    assert again == rows and max(timed.values()) == 2 and sum(timed.values()) == 2 * len(rows) - 10
    best = chosen(rows, 2.2)
    assert (best.choice.dtype, best.choice.backend, best.choice.regions) == ("bf16", "openvino", 50)
    assert best.choice.min_size == 80 and chosen(rows, 0).choice.dtype == "fp32"


def test_the_front_is_what_nobody_beats() -> None:
    random = np.random.default_rng(0)
    choice = Choice("fp32", "torch", 1, 1, 1, 1)
    rows = [Row(choice, *random.integers(0, 12, 2).tolist()) for _ in range(60)]

    def beaten(row: Row) -> bool:
        return any(o.seconds <= row.seconds and o.ap >= row.ap and (o.seconds, o.ap) != (row.seconds, row.ap)
                   for o in rows)  # fmt: skip

    assert {(row.seconds, row.ap) for row in front(rows)} == {(r.seconds, r.ap) for r in rows if not beaten(r)}


def test_batches_are_of_their_size_and_time_is_an_images() -> None:
    clock, sizes = iter(range(0, 100, 3)), []
    assert seconds_of(lambda images: sizes.append(len(images)), [np.zeros(1)] * 5, 2, lambda: next(clock)) == 1.5
    assert sizes == [2] * 4, "one to warm up; the last is filled up from the first"


def test_the_command_writes_a_detector_that_runs_as_measured(tiny_run, tmp_path: Path) -> None:
    from resnext_det.commands import train

    out = tmp_path / "tuned"
    words = ["--config-file", tiny_run.file, *tiny_run.options("for_tuning", "SOLVER.MAX_ITER", 2)]
    train.main(list(map(str, words)))
    weights = tiny_run.folder / "for_tuning" / "model_final.pth"
    words = [
        "--weights",
        weights,
        "--output",
        out,
        "--sizes",
        1,
        0.5,
        "--regions",
        0.5,
        "--images",
        1,
        "--max-drop",
        100,
    ]
    command.main(list(map(str, words)))
    found = json.loads((out / "tune.json").read_text())
    best = min(found["rows"], key=lambda row: row["seconds"])
    assert {row["min_size"] for row in found["rows"]} == {64, 32} and found["rows"][0]["backend"] == "torch"
    assert Image.open(out / "pareto.png").size > (500, 300)
    detector = load_detector(out / "detector")
    model = detector.predictor._model
    assert (
        detector.class_names == ["red", "blue"]
        and detector.predictor._resize.short_edge_length == [best["min_size"]] * 2
    )
    assert model.proposal_generator.post_nms_topk[False] == best["regions"] == 15
    before = (out / "tune.json").stat().st_mtime_ns
    with pytest.raises(SystemExit, match="2"):
        command.main([*map(str, words[:-1]), "-1"])
    assert (out / "tune.json").stat().st_mtime_ns == before
