"""From statistics to settings, each with its reason: pure functions, without torch.

What is said of a rule's worth is said in docs/auto.md; where it says "not measured", the rule is custom, not proof.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from ..errors import listed
from .statistics import Statistics

STRIDE = 16
"""Pixels of the image in a cell of res4."""
SMALL_OBJECT = 2 * STRIDE
"""Pixels that the smaller objects get: two cells, the least that a region's features can be taken from."""
SHORTEST, LONGEST = 160, 800
"""Short sides to choose from, the longer one detectron2's."""
MOST_EPOCHS = 150
"""A longer training of a small set learns it by heart."""
FEW_ITERATIONS = 200
LEAST_ITERATIONS = 20
MATCH = 0.5
"""IoU from which an anchor fits a box."""
CPU_REGIONS = 16
"""Of each image that the head learns from; with 64 a step on BCCD takes 0.51 CPU seconds in place of 0.29."""
SMALL_NETWORK = {"depth": 14, "cardinality": 8, "width": 8, "stem_out_channels": 32, "res2_out_channels": 128}
LARGE_NETWORK = {"depth": 50, "cardinality": 32, "width": 4}
"""Networks for a start from random weights, as the metadata of checkpoints name them."""


@dataclass(frozen=True)
class Choice:
    """Some settings that belong together, and why they are so.

    Attributes:
        what: a name for people.
        settings: {config key: value}.
        reason: one sentence, without the full stop.
    """

    what: str
    settings: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        device: "cuda" or "cpu".
        cores: of the processor, those that this process may use.
        bf16: it has units that multiply bf16.
    """

    device: str
    cores: int
    bf16: bool = False


@dataclass(frozen=True)
class Start:
    """Where the network starts from.

    Attributes:
        weights: MODEL.WEIGHTS; "" for random ones.
        found: their metadata; empty for none.
        reason: why these.
        asked: the user has named them, so no others stand in for them.
    """

    weights: str
    found: Mapping[str, Any]
    reason: str
    asked: bool = False


@dataclass(frozen=True)
class Size:
    """Of resized images: short side and the limit of the long one, pixels; why."""

    short: int
    long: int
    reason: str


def choose_size(data: Statistics) -> Size:
    """The short side at which the smaller objects (the lower quartile) are :data:`SMALL_OBJECT` pixels wide."""
    native = float(np.median(data.short))
    share = float(np.quantile(np.sqrt(data.boxes.prod(axis=1)) / data.short[data.image], 0.25))
    wanted = SMALL_OBJECT / share
    low, high = min(SHORTEST, 2 * native), min(LONGEST, 2 * native)
    short = _multiple(min(max(wanted, low), high))
    bound = (
        f", but at least {low:g}" if wanted < low else f", but at most {high:g}" if wanted > high else ""
    )  # fmt: skip
    reason = (
        f"a quarter of the objects is smaller than {100 * share:.0f}% of the image's short side (median {native:g} "
        f"pixels); {wanted:.0f} would make them {SMALL_OBJECT} pixels wide, two cells of res4{bound}"
    )
    return _with_long_side(data, Size(short, 0, reason))


def smaller_size(data: Statistics, size: Size, factor: float, reason: str) -> Size:
    """``size`` with ``factor`` of the pixels, at least :data:`SHORTEST`; the same where nothing is left to save."""
    short = max(min(SHORTEST, size.short), _multiple(size.short * math.sqrt(factor)))
    return size if short >= size.short else _with_long_side(data, Size(short, 0, f"{size.reason}; {reason}"))


def _with_long_side(data: Statistics, size: Size) -> Size:
    """All but the most elongated images keep their short side."""
    aspect = min(float(np.quantile(data.long / data.short, 0.99)), 2.0)
    return replace(size, long=_multiple(size.short * aspect + 0.49 * STRIDE))


def _multiple(side: float) -> int:
    return max(STRIDE, STRIDE * round(side / STRIDE))


def spaced(values: np.ndarray, shares: np.ndarray, step: float, most: int) -> list[float]:
    """At most ``most`` numbers in the range of ``values``, each about ``step`` times the one before.

    Args:
        shares: what each value counts; the smallest and largest values, 5% of the sum each, are left out.
    """
    order = np.argsort(values)
    below = np.cumsum(shares[order]) / shares.sum()
    low, high = (float(values[order][np.searchsorted(below, part)]) for part in (0.05, 0.95))
    number = min(max(math.ceil(math.log(high / low, step) - 1e-9), 1), most)
    edges = np.geomspace(low, high, number + 1)
    return np.sqrt(edges[:-1] * edges[1:]).tolist()


def matched(boxes: np.ndarray, shares: np.ndarray, sizes: Sequence[float], ratios: Sequence[float]) -> float:
    """The part of boxes that some anchor overlaps by :data:`MATCH` when centered on it.

    Args:
        boxes: (A, 2) width and height.
        shares: (A,) what each counts; their sum is 1.
    """
    anchors = np.array([(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios])
    shared = np.minimum(boxes[:, None], anchors).prod(axis=2)
    overlap = shared / (boxes.prod(axis=1)[:, None] + anchors.prod(axis=1) - shared)
    return float((overlap.max(axis=1) >= MATCH) @ shares)


def choose_anchors(data: Statistics, size: Size) -> Choice:
    """Sizes a factor of 1.6 apart over the range of the boxes, shapes a factor of 2; every class counts alike."""
    boxes, shares = data.sides(size.short, size.long), data.shares
    sizes = [float(round(v)) for v in spaced(np.sqrt(boxes.prod(axis=1)), shares, 1.6, 5)]
    ratios = [round(v, 2) for v in spaced(boxes[:, 1] / boxes[:, 0], shares, 2.0, 3)]
    stock = matched(boxes, shares, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    own = matched(boxes, shares, sizes, ratios)
    return Choice(
        "anchors",
        {"MODEL.ANCHOR_GENERATOR.SIZES": [sizes], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [ratios]},
        f"sizes and shapes (height to width) of the resized boxes, 1.6 and 2 times apart: {len(sizes) * len(ratios)} "
        f"anchors match {100 * own:.0f}% of the boxes by IoU {MATCH:g}, every class counted alike, detectron2's 15 "
        f"{100 * stock:.0f}%",
    )


def choose_network(start: Start, data: Statistics, machine: Machine) -> list[Choice]:
    """The network, its norm and the stages that stay as they are."""
    weights, found, why = start.weights, start.found, start.reason
    network = dict(found) if weights else SMALL_NETWORK if machine.device == "cpu" else LARGE_NETWORK
    resnets = {
        "DEPTH": network["depth"],
        "NUM_GROUPS": network["cardinality"],
        "WIDTH_PER_GROUP": network["width"],
        "STEM_OUT_CHANNELS": network.get("stem_out_channels", 64),
        "RES2_OUT_CHANNELS": network.get("res2_out_channels", 256),
        "STRIDE_IN_1X1": bool(network.get("stride_in_1x1", False)),
        "OUT_FEATURES": ["res4"],
    }
    keys = {f"MODEL.RESNETS.{key}": value for key, value in resnets.items()}
    if network.get("kind", "plain") != "plain":
        keys["MODEL.RESNEXT.KIND"] = network["kind"]
    frozen, norm, reason = _frozen(weights, network, data)
    layers = f"{network['depth']} layers"
    what = f"{layers}, as the weights are" if weights else f"random weights: {layers}, for a {machine.device.upper()}"
    return [
        Choice(
            "detector",
            {
                "VERSION": 2,
                "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
                "MODEL.DEVICE": "auto",
                "MODEL.BACKBONE.NAME": "build_resnext_backbone",
                "MODEL.ROI_HEADS.NAME": "ResNeXtC4ROIHeads",
            },
            "Faster R-CNN on res4 with res5 as its head",
        ),
        Choice("network", {"MODEL.WEIGHTS": weights, **keys}, f"{why}; {what}"),
        _colors_of(weights, data),
        Choice("frozen stages", {"MODEL.BACKBONE.FREEZE_AT": frozen, "MODEL.RESNETS.NORM": norm}, reason),
    ]


def _colors_of(weights: str, data: Statistics) -> Choice:
    if weights:
        return Choice("colors", {"INPUT.PRESET": "auto"}, "channel order, mean and deviation are those of the weights")
    return Choice(
        "colors",
        {
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [round(float(v), 2) for v in data.mean],
            "MODEL.PIXEL_STD": [round(float(v), 2) for v in data.std],
        },
        "measured on the training images",
    )


def _frozen(weights: str, network: Mapping[str, Any], data: Statistics) -> tuple[int, str, str]:
    """(FREEZE_AT, NORM, the reason)."""
    if not weights:
        return 0, "BN", "nothing is pretrained, so every layer and norm learns"
    if network["depth"] < LARGE_NETWORK["depth"]:
        return 0, "BN", f"a network of {network['depth']} layers is small: all of it goes on learning"
    mean, std = np.array(network["pixel_mean"]), np.array(network["pixel_std"])
    own_mean, own_std = (v[::-1] if network["channel_order"] == "BGR" else v for v in (data.mean, data.std))
    deviation = np.where(std > 1, std, 57.4)  # of MSRA's weights, which are not divided by any
    shift, ratio = float(np.abs((own_mean - mean) / deviation).max()), float((own_std / deviation).min())
    if data.gray or shift > 1 or ratio < 0.5:
        unlike = "gray" if data.gray else f"{shift:.1f} deviations off in color" if shift > 1 else "low in contrast"
        return 0, "BN", f"the images are {unlike}, unlike those of the pretraining: all layers and norms learn anew"
    kept = f"the colors are like those of the pretraining ({shift:.1f} deviations off): its first stages and norms stay"
    return 2, "FrozenBN", kept


def choose_heads(data: Statistics, size: Size, machine: Machine) -> list[Choice]:
    """How many regions are looked at, and how finely."""
    most, mean = data.most_in_an_image, len(data.boxes) / len(data.short)
    if machine.device == "cpu":
        sampled, why = CPU_REGIONS, "few, since a CPU spends most of its time on them"
    else:
        sampled = int(min(max(64, 2 ** math.ceil(math.log2(4 * mean))), 512))
        why = "a quarter of them may hold objects"
    kept = int(min(max(100, 5 * most), 1000))
    side = float(np.median(np.sqrt(data.sides(size.short, size.long).prod(axis=1))))
    fine = side >= 7 * STRIDE
    classes, boxes = len(data.class_names), len(data.boxes)
    few = boxes < 500 * classes
    return [
        Choice(
            "regions",
            {
                "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 4 * kept,
                "MODEL.RPN.POST_NMS_TOPK_TRAIN": kept,
                "MODEL.RPN.PRE_NMS_TOPK_TEST": 4 * kept,
                "MODEL.RPN.POST_NMS_TOPK_TEST": kept,
                "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": sampled,
                "TEST.DETECTIONS_PER_IMAGE": max(100, math.ceil(1.5 * most)),
            },
            f"an image has {mean:.1f} objects, the fullest {most}: {kept} proposals, {sampled} of them to learn from, "
            f"{why}",
        ),
        Choice(
            "pooling",
            {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14 if fine else 7},
            f"half of the resized objects are {side:.0f} pixels or wider, {side / STRIDE:.1f} cells of res4"
            + ("" if fine else "; more bins than cells cost time and show nothing new"),
        ),
        Choice(
            "classes",
            {"MODEL.ROI_HEADS.NUM_CLASSES": classes, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": few},
            f"{boxes} boxes of {classes} classes ({listed(data.class_names, 5)}): "
            + (
                "too few for a box regressor of each class"
                if few
                else "enough for a box regressor of each class"
            ),
        ),
    ]  # fmt: skip


def choose_input(data: Statistics, size: Size) -> list[Choice]:
    """Image sizes and what is done to images."""
    turned = [n for n in data.class_names if len(n.strip()) == 1 or re.search(r"\b(left|right)\b", n.lower())]
    rare = float(data.images_with[data.images_with > 0].min(initial=len(data.short)) / len(data.short))
    choices = [
        Choice(
            "image size",
            {
                "INPUT.MIN_SIZE_TRAIN": [size.short],
                "INPUT.MAX_SIZE_TRAIN": size.long,
                "INPUT.MIN_SIZE_TEST": size.short,
                "INPUT.MAX_SIZE_TEST": size.long,
            },
            size.reason,
        ),
        Choice(
            "mirroring",
            {"INPUT.RANDOM_FLIP": "none" if turned else "horizontal"},
            f"the classes {listed(turned, 3)} mean something else in a mirror"
            if turned
            else "no class's name speaks against it",
        ),
    ]
    if rare < 0.1 and len(data.class_names) > 1:
        name = data.class_names[int(np.where(data.images_with > 0, data.images_with, np.inf).argmin())]
        choices.append(
            Choice(
                "rare classes",
                {"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD": 0.1},
                f"{name} is in {100 * rare:.1f}% of the images: those with classes in fewer than 10% come more often",
            )
        )
    return choices


def choose_batch(data: Statistics, machine: Machine, frozen: bool, divided: int = 1) -> Choice:
    """Images per step, and the learning rate that goes with them.

    Args:
        frozen: the norms do not learn.
        divided: by so much, since the memory is small.
    """
    batch = max(1, min(8 if machine.device == "cuda" else 4, len(data.short)) // divided)
    rate = 0.02 * batch / 16 if frozen else 0.005 * batch
    return Choice(
        "batch",
        {
            "SOLVER.IMS_PER_BATCH": batch,
            "SOLVER.BASE_LR": rate,
            "DATALOADER.NUM_WORKERS": min(4, machine.cores // 2),
        },
        f"{batch} images a step on a {machine.device.upper()}{'; its memory holds no more' * (divided > 1)}; rate "
        + ("0.02 for 16 images, detectron2's" if frozen else "0.02 for 4, since norms that learn bear more"),
    )


def choose_precision(machine: Machine) -> Choice:
    """The fastest type that training bears without a scaled loss."""
    where = "this GPU" if machine.device == "cuda" else "this processor"
    return Choice(
        "precision",
        {"SOLVER.PRECISION": "bf16" if machine.bf16 else "fp32"},
        f"{where} {'multiplies' if machine.bf16 else 'does not multiply'} bf16",
    )


def choose_schedule(data: Statistics, batch: int, step: float, seconds: float) -> Choice:
    """As many iterations as fit, the rate lowered at 80% and 95%.

    Args:
        step: seconds that an iteration takes.
        seconds: left for the training.
    """
    fitting = max(1, int(seconds / step))
    most = math.ceil(MOST_EPOCHS * len(data.short) / batch)
    iterations = min(fitting, most)
    epochs = iterations * batch / len(data.short)
    limit = f"; {fitting} would fit, but {MOST_EPOCHS} epochs are enough" if most < fitting else ""
    return Choice("schedule", schedule(iterations), (
        f"an iteration takes {step:.2f} s here and {seconds:.0f} s are left for training: {iterations} iterations, "
        f"{epochs:.1f} epochs of {len(data.short)} images{limit}"
    ))  # fmt: skip


def schedule(iterations: int) -> dict[str, Any]:
    """The keys of a schedule of so many iterations."""
    steps = sorted({round(0.8 * iterations), round(0.95 * iterations)} - {0, iterations})
    return {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": steps,
        "SOLVER.WARMUP_ITERS": min(100, iterations // 10),
        "SOLVER.CHECKPOINT_PERIOD": max(1, min(100, math.ceil(iterations / 10))),
        "SOLVER.KEEP_CHECKPOINTS": 2,
        "TEST.EVAL_PERIOD": 0,
    }


def value_of(choices: Sequence[Choice], key: str) -> Any:
    """The value that ``choices`` give a key."""
    return next(choice.settings[key] for choice in choices if key in choice.settings)


def config_text(choices: Sequence[Choice], header: Sequence[str]) -> str:
    """A YAML file: every setting under its section, above the first of each choice the reason."""
    tree: dict[str, Any] = {}
    for choice in choices:
        for key, value in choice.settings.items():
            node, parts = tree, key.split(".")
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            node[parts[-1]] = (choice, value)
    return "".join(f"# {line}\n" for line in header) + "".join(_lines(tree, "", set()))


def _lines(node: Mapping[str, Any], indent: str, explained: set[str]) -> list[str]:
    lines, last = [], None
    for key, value in sorted(node.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            lines += [f"{indent}{key}:\n", *_lines(value, indent + "  ", explained)]
            continue
        choice, found = value
        if choice is not last:
            reason = "see above" if choice.what in explained else choice.reason
            wrapped = textwrap.wrap(f"{choice.what}: {reason}", 110 - len(indent))
            lines += [f"{indent}# {line}\n" for line in wrapped]
            explained.add(choice.what)
            last = choice
        text = yaml.safe_dump(found, default_flow_style=True, width=10**6, allow_unicode=True)
        lines.append(f"{indent}{key}: {text.removesuffix('...' + chr(10)).strip()}\n")
    return lines


@dataclass(frozen=True)
class Measured:
    """Seconds of one iteration, and of one image in evaluation; infinite where the memory does not hold it."""

    step: float
    image: float


@dataclass(frozen=True)
class Plan:
    """All settings of a run, and what they were measured at."""

    choices: list[Choice]
    measured: Measured

    @property
    def iterations(self) -> int:
        """Of the training."""
        return value_of(self.choices, "SOLVER.MAX_ITER")


def make_plan(
    data: Statistics,
    start: Start,
    machine: Machine,
    seconds: Callable[[Measured], float],
    measure: Callable[[Sequence[Choice]], Measured],
) -> Plan:
    """Every setting. Where the time is short, images become smaller; then weights nobody asked for are given up.

    Args:
        seconds: that are left for the training, given what an image costs in evaluation.
        measure: times the training of some settings.
    """
    size, scale = choose_size(data), 1
    for _ in range(12):  # each round halves the batch, makes images smaller, or gives up the weights
        network = choose_network(start, data, machine)
        frozen = value_of(network, "MODEL.RESNETS.NORM") == "FrozenBN"
        batch = choose_batch(data, machine, frozen, scale)
        choices = [*network, choose_anchors(data, size), *choose_heads(data, size, machine)]
        choices += [*choose_input(data, size), batch, choose_precision(machine)]
        images = batch.settings["SOLVER.IMS_PER_BATCH"]
        measured = measure([*choices, Choice("timing", schedule(1), "")])
        if math.isinf(measured.step) and images > 1:
            scale *= 2
            continue
        fitting = seconds(measured) / measured.step
        if fitting >= FEW_ITERATIONS:
            break
        reason = f"only {max(fitting, 0):.0f} iterations of {size.short} pixels fit into the time, so it is smaller"
        smaller = smaller_size(data, size, max(fitting, 1) / FEW_ITERATIONS, reason)
        if smaller.short < size.short:
            size = smaller
        elif start.weights and not start.asked and machine.device == "cpu":
            reason = f"{start.weights} is at hand, but only {max(fitting, 0):.0f} iterations of it fit into the time"
            start, size = Start("", {}, reason), choose_size(data)
        else:
            break
    return Plan([*choices, choose_schedule(data, images, measured.step, seconds(measured))], measured)
