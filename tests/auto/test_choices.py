"""Settings from statistics: each rule on numbers whose outcome is known, and the plan with a clock that is made up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision.ops import box_iou

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det.auto.choices import (
    FEW_ITERATIONS,
    MOST_EPOCHS,
    SMALL_OBJECT,
    STRIDE,
    Choice,
    Machine,
    Measured,
    Start,
    choose_anchors,
    choose_input,
    choose_network,
    choose_schedule,
    choose_size,
    config_text,
    make_plan,
    matched,
    schedule,
    value_of,
)
from resnext_det.auto.statistics import Statistics
from resnext_det.detection.config import setup
from resnext_det.detection.config_check import check_config
from resnext_det.weights.metadata import IMAGENET_RGB, MSRA

CPU, SCRATCH = Machine("cpu", 2), Start("", {}, "none at hand")
RESNEXT = {"depth": 50, "cardinality": 32, "width": 4, **IMAGENET_RGB}


def data_of(boxes: Sequence[tuple[float, float]], names: Sequence[str] = ("cell",), **changes) -> Statistics:
    """10 images of 640x480 that share the boxes."""
    numbers = np.arange(len(boxes))
    values = {
        "class_names": list(names), "images_with": np.full(len(names), 10), "short": np.full(10, 480.0),
        "long": np.full(10, 640.0), "boxes": np.array(boxes, dtype=float), "image": numbers % 10,
        "category": numbers % len(names),
        "mean": np.array(IMAGENET_RGB["pixel_mean"]), "std": np.array(IMAGENET_RGB["pixel_std"]), "gray": False,
    }  # fmt: skip
    return Statistics(**values | changes)


@pytest.mark.parametrize("side", [20, 40, 60, 80])
def test_smaller_objects_get_two_cells(side: int) -> None:
    data = data_of([(side, side)] * 20)
    size = choose_size(data)
    sides = data.sides(size.short, size.long)
    assert abs(np.quantile(sides, 0.25) - SMALL_OBJECT) <= side / 480 * STRIDE / 2  # the short side is rounded
    assert size.long / size.short == pytest.approx(640 / 480, abs=STRIDE / size.short)


def test_sizes_are_bounded() -> None:
    assert choose_size(data_of([(400, 400)])).short == 160
    assert choose_size(data_of([(4, 4)])).short == 800
    tiny = data_of([(4, 4)], short=np.full(10, 40.0), long=np.full(10, 40.0))
    assert choose_size(tiny).short == 80, "no more than twice as large as the images are"


def test_matched_is_the_overlap_of_centered_boxes() -> None:
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(2, 5, (50, 2)))
    sizes, ratios = (16.0, 40.0), (0.5, 1.0)
    anchors = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios]

    def centered(wh) -> torch.Tensor:
        half = torch.as_tensor(np.array(wh)) / 2
        return torch.cat([-half, half], dim=1)

    expected = (box_iou(centered(sides), centered(anchors)).amax(dim=1) >= 0.5).double().mean().item()
    assert 0.2 < expected < 0.9
    assert matched(sides, np.full(50, 0.02), sizes, ratios) == pytest.approx(expected)


def test_anchors_cover_the_boxes() -> None:
    rng = np.random.default_rng(0)
    side, shape = np.exp(rng.uniform(np.log(20), np.log(60), 200)), np.exp(rng.uniform(-0.3, 0.3, 200))
    data = data_of(np.stack([side * shape, side / shape], axis=1))
    settings = choose_anchors(data, choose_size(data)).settings
    (sizes,), (ratios,) = settings.values()
    boxes = data.sides(*((size := choose_size(data)).short, size.long))
    assert matched(boxes, data.shares, sizes, ratios) > 0.97
    assert sizes == sorted(sizes) and ratios == sorted(ratios)
    one = choose_anchors(data_of([(40, 20)] * 9), choose_size(data_of([(40, 20)] * 9))).settings
    assert one["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == [[0.5]], "height to width"


def test_a_class_of_few_large_boxes_has_its_anchors_too() -> None:
    """As the white cells of BCCD: 7% of the boxes, twice as large as the others."""
    data = data_of([(40, 40)] * 93 + [(90, 90)] * 7, ["red", "white"], category=np.repeat([0, 1], [93, 7]))
    (sizes,), _ = choose_anchors(data, choose_size(data)).settings.values()
    boxes = data.sides(*((size := choose_size(data)).short, size.long))
    assert matched(boxes, data.shares, sizes, [1.0]) == pytest.approx(1)


def frozen(start: Start, data: Statistics) -> tuple[int, str]:
    choices = choose_network(start, data, CPU)
    return value_of(choices, "MODEL.BACKBONE.FREEZE_AT"), value_of(choices, "MODEL.RESNETS.NORM")


def test_stages_are_frozen_where_images_are_like_the_pretraining() -> None:
    start, like = Start("w.pth", RESNEXT, "--weights", True), data_of([(40, 40)])
    assert frozen(start, like) == (2, "FrozenBN")
    assert frozen(start, data_of([(40, 40)], gray=True)) == (0, "BN")
    assert frozen(start, data_of([(40, 40)], mean=like.mean + 100)) == (0, "BN")
    assert frozen(start, data_of([(40, 40)], std=like.std / 3)) == (0, "BN")
    assert frozen(SCRATCH, like) == (0, "BN")
    blue = data_of([(40, 40)], mean=np.array([60.0, 100.0, 170.0]))
    bgr = Start("w.pth", {**RESNEXT, **MSRA, "pixel_mean": [170.0, 100.0, 60.0]}, "--weights", True)
    assert frozen(bgr, blue) == (2, "FrozenBN"), "the weights' mean is in their channel order"
    assert frozen(start, blue) == (0, "BN")


def test_rare_classes_and_mirrors() -> None:
    def chosen(data: Statistics) -> dict:
        found = choose_input(data, choose_size(data))
        return {key: value for choice in found for key, value in choice.settings.items()}

    assert chosen(data_of([(40, 40)], ["3", "8"]))["INPUT.RANDOM_FLIP"] == "none"
    assert chosen(data_of([(40, 40)], ["left shoe"]))["INPUT.RANDOM_FLIP"] == "none"
    assert chosen(data_of([(40, 40)], ["leftover"]))["INPUT.RANDOM_FLIP"] == "horizontal"
    rare = data_of(
        [(40, 40)], ["a", "b"], images_with=np.array([100, 3]), short=np.full(100, 480.0), long=np.full(100, 640.0)
    )
    assert chosen(rare)["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert "DATALOADER.SAMPLER_TRAIN" not in chosen(data_of([(40, 40)], ["a", "b"]))


@pytest.mark.parametrize("iterations", [1, 2, 3, 10, 11, 1000])
def test_schedules_end_before_the_last_iteration(iterations: int) -> None:
    keys = schedule(iterations)
    steps = keys["SOLVER.STEPS"]
    assert steps == sorted(set(steps)) and all(0 < step < iterations for step in steps)
    assert keys["SOLVER.WARMUP_ITERS"] < iterations and keys["SOLVER.CHECKPOINT_PERIOD"] >= 1


def test_iterations_fit_the_time_and_the_data() -> None:
    data = data_of([(40, 40)])
    assert choose_schedule(data, 4, 0.5, 100).settings["SOLVER.MAX_ITER"] == 200
    assert choose_schedule(data, 4, 0.5, 1e9).settings["SOLVER.MAX_ITER"] == MOST_EPOCHS * 10 / 4


class Timed:
    """A machine whose step takes ``per_pixel`` seconds a pixel; one of batches above ``most`` finds no memory."""

    def __init__(self, per_pixel: float, most: int = 99) -> None:
        self.per_pixel, self.most, self.sizes, self.batches = per_pixel, most, [], []

    def __call__(self, choices: Sequence[Choice]) -> Measured:
        self.sizes.append(value_of(choices, "INPUT.MIN_SIZE_TEST"))
        self.batches.append(value_of(choices, "SOLVER.IMS_PER_BATCH"))
        if self.batches[-1] > self.most:
            return Measured(math.inf, math.inf)
        large = 20 if value_of(choices, "MODEL.RESNETS.DEPTH") == 50 else 1
        return Measured(large * self.per_pixel * self.sizes[-1] ** 2, 0.1)


def test_images_become_smaller_where_the_time_is_short() -> None:
    data = data_of([(40, 40)] * 20)
    enough, short = Timed(1 / 384**2), Timed(1 / 384**2)
    assert make_plan(data, SCRATCH, CPU, lambda measured: 1000.0, enough).iterations == MOST_EPOCHS * 10 / 4
    assert enough.sizes == [384]
    plan = make_plan(data, SCRATCH, CPU, lambda measured: FEW_ITERATIONS / 2, short)
    assert short.sizes[0] == 384 and short.sizes[-1] < 300 and plan.iterations >= FEW_ITERATIONS * 0.9
    assert "fit into the time" in next(c.reason for c in plan.choices if c.what == "image size")


def test_weights_that_nobody_asked_for_are_given_up_before_the_time_is() -> None:
    data = data_of([(40, 40)] * 20)
    for asked, expected in ((False, ""), (True, "w.pth")):
        start = Start("w.pth", RESNEXT, "at hand", asked)
        plan = make_plan(data, start, CPU, lambda measured: 100.0, Timed(0.2 / 160**2))
        assert value_of(plan.choices, "MODEL.WEIGHTS") == expected


def test_the_batch_is_halved_until_it_fits() -> None:
    timed = Timed(1e-9, most=2)
    plan = make_plan(data_of([(40, 40)] * 20), SCRATCH, Machine("cuda", 8), lambda measured: 100.0, timed)
    assert timed.batches == [8, 4, 2] and value_of(plan.choices, "SOLVER.BASE_LR") == 0.01


def test_the_file_holds_every_setting_and_reason_and_is_a_config(tmp_path: Path) -> None:
    data = data_of([(40, 40), (30, 60)] * 20, ["a: b", "#c"])
    for start in (SCRATCH, Start("w.pth", RESNEXT, "at hand")):
        choices = make_plan(data, start, CPU, lambda measured: 100.0, Timed(1e-9)).choices
        text = config_text(choices, ["made by", "a test"])
        words = " ".join(text.replace("#", " ").split())
        for choice in choices:
            assert " ".join(choice.reason.replace("#", " ").split()) in words, choice
        loaded = yaml.safe_load(text)
        for key, value in ((k, v) for choice in choices for k, v in choice.settings.items()):
            node = loaded
            for part in key.split("."):
                node = node[part]
            assert node == value, key
        file = tmp_path / "config.yaml"
        file.write_text(text)
        check_config(setup(str(file)), eval_only=False)
