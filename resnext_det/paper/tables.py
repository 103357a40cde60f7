"""The paper's Tables 3 to 8: published numbers, and the configurations here that are meant to give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..reporting.tables import ERROR_COLUMNS

PROTOCOLS = ("paper", "joint")
"""Of Table 8: RPN and Fast R-CNN as two networks, or one training."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: as in the paper.
        config: of the training, under ``configs/``; for Table 8 the network's part of its name.
        paper: published numbers, by metric.
        test: ``KEY VALUE ...`` of another evaluation of the trained network; rows with the same ``config`` share one
            training.
    """

    label: str
    config: str
    paper: Mapping[str, float]
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        rows: by the short names that select them on the command line.
        columns: {metric: heading}.
        detection: of detectors.
        runs: how many the paper takes the mean of.
        quoted: lines that the paper takes from others, {label: numbers}; nothing here trains them.
    """

    title: str
    rows: Mapping[str, Row]
    columns: Mapping[str, str] = field(default_factory=lambda: ERROR_COLUMNS)
    detection: bool = False
    runs: int = 1
    quoted: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def _errors(top1: float, top5: float | None = None) -> dict[str, float]:
    return {"top1_error": top1} if top5 is None else {"top1_error": top1, "top5_error": top5}


def _table_3() -> Table:
    settings = ("1x64d", "2x40d", "4x24d", "8x14d", "32x4d")
    errors = {50: (23.9, 23.0, 22.6, 22.3, 22.2), 101: (22.0, 21.7, 21.4, 21.3, 21.2)}
    rows = {}
    for depth, values in errors.items():
        for setting, error in zip(settings, values, strict=True):
            plain = setting == "1x64d"
            name = f"resnet{depth}" if plain else f"resnext{depth}_{setting}"
            label = f"{'ResNet' if plain else 'ResNeXt'}-{depth} {setting}"
            rows[name] = Row(label, f"imagenet/{name}.yaml", _errors(error))
    return Table("ImageNet-1K, equal cost, growing cardinality", rows)


def _table_4() -> Table:
    rows = {
        "resnet101": ("ResNet-101 1x64d", 22.0, 6.0),
        "resnext101_32x4d": ("ResNeXt-101 32x4d", 21.2, 5.6),
        "resnet200": ("ResNet-200 1x64d", 21.7, 5.8),
        "resnext101_1x100d": ("ResNet-101, wider 1x100d", 21.3, 5.7),
        "resnext101_2x64d": ("ResNeXt-101 2x64d", 20.7, 5.5),
        "resnext101_64x4d": ("ResNeXt-101 64x4d", 20.4, 5.3),
    }
    return Table(
        "ImageNet-1K, twice the cost of ResNet-101 (the first two: once); ResNet-200 is quoted in the paper",
        {name: Row(label, f"imagenet/{name}.yaml", _errors(*values)) for name, (label, *values) in rows.items()},
    )


def _table_5() -> Table:
    large = ("TEST.SHORT_SIDE", "320", "TEST.CROP_SIZE", "320")
    networks = {
        "resnet101": ("ResNet-101", (22.0, 6.0), None),
        "resnet200": ("ResNet-200", (21.7, 5.8), (20.1, 4.8)),
        "resnext101_64x4d": ("ResNeXt-101 64x4d", (20.4, 5.3), (19.1, 4.4)),
    }
    rows = {}
    for name, (label, small_errors, large_errors) in networks.items():
        config = f"imagenet/{name}.yaml"
        rows[f"{name}-224"] = Row(f"{label}, 224x224", config, _errors(*small_errors))
        published = _errors(*large_errors) if large_errors else {}
        rows[f"{name}-320"] = Row(f"{label}, 320x320", config, published, test=large)
    # The paper tests as ResNet's (its [14]), whose Sec. 3.4 lists these short sides.
    dense = ("TEST.DENSE_SIZES", "(224, 256, 384, 480, 640)")
    rows["resnext101_64x4d-dense"] = Row(
        "ResNeXt-101 64x4d, multi-scale dense",
        "imagenet/resnext101_64x4d.yaml",
        _errors(17.7, 3.7),
        test=dense,
    )
    quoted = {
        "Inception-v3, 299x299": _errors(21.2, 5.6),
        "Inception-v4, 299x299": _errors(20.0, 5.0),
        "Inception-ResNet-v2, 299x299": _errors(19.9, 4.9),
        "Inception-ResNet-v2, multi-scale and multi-crop": _errors(17.8, 3.7),
    }
    title = "ImageNet-1K, single crop and multi-scale dense; ResNet-101 and 200 are quoted in the paper"
    return Table(title, rows, quoted=quoted)


def _table_6() -> Table:
    networks = {
        "resnet50": ("ResNet-50 1x64d", (45.5, 19.4), (27.1, 8.2)),
        "resnext50_32x4d": ("ResNeXt-50 32x4d", (42.3, 16.8), (24.4, 6.6)),
        "resnet101": ("ResNet-101 1x64d", (42.4, 16.9), (24.2, 6.8)),
        "resnext101_32x4d": ("ResNeXt-101 32x4d", (40.1, 15.1), (22.2, 5.7)),
    }
    rows = {}
    for name, (label, all_classes, of_test) in networks.items():
        config = f"imagenet5k/{name}.yaml"
        rows[f"{name}-5k"] = Row(f"{label}, 5K-way", config, _errors(*all_classes))
        rows[f"{name}-1k"] = Row(f"{label}, 1K-way", config, _errors(*of_test), test=("TEST.AMONG", "test"))
    return Table("ImageNet-5K, tested on ImageNet-1K's validation set", rows)


def _table_7() -> Table:
    errors = {"8x64d": (3.65, 17.77), "16x64d": (3.58, 17.31)}
    rows = {}
    for setting, values in errors.items():
        for classes, error in zip((10, 100), values, strict=True):
            label = f"ResNeXt-29 {setting}, CIFAR-{classes}"
            config = f"cifar/resnext29_{setting}_cifar{'' if classes == 10 else classes}.yaml"
            rows[f"{setting}-cifar{classes}"] = Row(label, config, _errors(error))
    # Not in the table: the plain network of Figure 7, whose error the paper gives as a point of a plot only.
    rows["1x64d-cifar10"] = Row("ResNet-29 1x64d, CIFAR-10 (Figure 7)", "cifar/resnext29_1x64d_cifar.yaml", {})
    quoted = {f"Wide ResNet, CIFAR-{classes}": _errors(error) for classes, error in ((10, 4.17), (100, 20.50))}
    return Table("CIFAR, the paper's numbers are means of 10 runs", rows, runs=10, quoted=quoted)


def _table_8() -> Table:
    rows = {
        "R50": ("ResNet-50 1x64d", "R_50", 47.6, 26.5),
        "X50": ("ResNeXt-50 32x4d", "X_50_32x4d", 49.7, 27.5),
        "R101": ("ResNet-101 1x64d", "R_101", 51.1, 29.8),
        "X101": ("ResNeXt-101 32x4d", "X_101_32x4d", 51.9, 30.0),
    }
    return Table(
        "COCO minival, Faster R-CNN C4",
        {name: Row(label, network, {"AP50": ap50, "AP": ap}) for name, (label, network, ap50, ap) in rows.items()},
        {"AP50": "AP@0.5", "AP": "AP"},
        detection=True,
    )


def _residual() -> Table:
    errors = {"resnet50": (23.9, 31.2), "resnext50_32x4d": (22.2, 26.1)}
    rows = {}
    for name, values in errors.items():
        label = "ResNet-50 1x64d" if name == "resnet50" else "ResNeXt-50 32x4d"
        for ending, error in zip(("", "_no_residual"), values, strict=True):
            row = Row(f"{label}, with{'out' if ending else ''}", f"imagenet/{name}{ending}.yaml", _errors(error))
            rows[name + ending] = row
    return Table("ImageNet-1K, with and without residual connections (Sec. 5.1)", rows)


TABLES: dict[int | str, Table] = {
    3: _table_3(),
    4: _table_4(),
    5: _table_5(),
    6: _table_6(),
    7: _table_7(),
    8: _table_8(),
    "residual": _residual(),  # it has no number
}
