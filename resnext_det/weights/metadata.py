"""What has to be known beside the tensors: the network, and the images it was trained on.

Metadata is a dict of plain values that travels inside every file this package writes. Keys, all optional:

=================  ====================================================================================
depth              layers, a key of ``variants.BLOCKS_PER_STAGE`` (int)
cardinality        C, the number of groups (int)
width              d, the bottleneck width of one group in res2 (int)
stem_out_channels  channels behind the first convolution, 64 in the paper (int)
res2_out_channels  channels behind res2, 256 in the paper (int)
cifar              a 3x3 stem and three stages, for images of 32x32 (bool)
form               of the block: "a", "b" or "c" of the paper's Fig. 3
kind               of block and stem, one of ``variants.KINDS`` (str)
residual           with shortcuts (bool; False is the network of Sec. 5.1)
stride_in_1x1      a stage halves the map in its first 1x1 convolution instead of the 3x3 (bool)
norm_eps           added to the variance of every batch norm (float)
channel_order      "RGB" or "BGR"
pixel_mean         three floats on the scale 0-255, in ``channel_order``; of other channels, one for each
pixel_std          three floats on the scale 0-255, in ``channel_order``
input_size         side of the training or test crop in pixels (int)
class_names        list of str, in the order of the outputs
source             where the weights come from: a library, or a file's name (str)
source_sha256      of the file they were converted from (str)
recipe             name of the training recipe (str)
top1_error         percent on the validation set of the pretraining, single crop (float)
thresholds         scores from which a detector's classes are kept, in their order: best F1 (list of float)
config             a detector's whole configuration, YAML of detectron2's keys and ours (str)
=================  ====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..files import shown
from ..variants import BLOCKS_PER_STAGE
from .naming import trunk_name

Metadata = dict[str, Any]

KEYS: dict[str, type] = {
    "depth": int,
    "cardinality": int,
    "width": int,
    "stem_out_channels": int,
    "res2_out_channels": int,
    "cifar": bool,
    "form": str,
    "kind": str,
    "residual": bool,
    "stride_in_1x1": bool,
    "norm_eps": float,
    "channel_order": str,
    "pixel_mean": list,
    "pixel_std": list,
    "input_size": int,
    "class_names": list,
    "source": str,
    "source_sha256": str,
    "recipe": str,
    "top1_error": float,
    "thresholds": list,
    "config": str,
}

DETECTRON2_KEYS: dict[str, str] = {
    "depth": "MODEL.RESNETS.DEPTH",
    "cardinality": "MODEL.RESNETS.NUM_GROUPS",
    "width": "MODEL.RESNETS.WIDTH_PER_GROUP",
    "stem_out_channels": "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "res2_out_channels": "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "kind": "MODEL.RESNEXT.KIND",
    "norm_eps": "MODEL.RESNETS.NORM_EPS",
    "channel_order": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
}
"""The config keys that have to agree with the metadata."""

_PRESET = ("channel_order", "pixel_mean", "pixel_std", "stride_in_1x1", "norm_eps")


def on_255(values: Any) -> list[float]:
    """Statistics on the scale 0-1 as torchvision, timm and pretraining have them, on our scale 0-255."""
    return [float(f"{255 * value:.9g}") for value in values]  # 123.675, not 123.67499999999999


IMAGENET_RGB: Metadata = {
    "channel_order": "RGB",
    "pixel_mean": on_255((0.485, 0.456, 0.406)),
    "pixel_std": on_255((0.229, 0.224, 0.225)),
    "stride_in_1x1": False,
    "norm_eps": 1e-5,
}
_CAFFE2_MEAN = [103.53, 116.28, 123.675]
MSRA: Metadata = {
    "channel_order": "BGR",
    "pixel_mean": _CAFFE2_MEAN,
    "pixel_std": [1.0, 1.0, 1.0],
    "stride_in_1x1": True,
    "norm_eps": 1e-5,
}
FAIR_RESNEXT: Metadata = {**MSRA, "pixel_std": [57.375, 57.12, 58.395], "stride_in_1x1": False}


def metadata_of_source(source: str, architecture: Metadata) -> Metadata:
    """What is known of every file of a source; nothing for detectors, whose config decided."""
    if source in ("torchvision", "timm", "cadene", "detectron2-torchvision"):
        return {**IMAGENET_RGB, "source": source}
    if source == "timm-d":
        return {**IMAGENET_RGB, "source": "timm"}
    if source == "timm-v2":  # its files differ in their color statistics
        return {"channel_order": "RGB", "stride_in_1x1": False, "norm_eps": 1e-5, "source": "timm"}
    if source == "detectron2-zoo":
        # The zoo's ResNets are MSRA's, its ResNeXt was trained at FAIR.
        return {**(MSRA if architecture.get("cardinality", 1) == 1 else FAIR_RESNEXT), "source": source}
    return {}


def architecture_of(tensors: Mapping[str, Tensor]) -> Metadata:
    """What the names and shapes of native tensors tell of the network; depth only where all its stages are there."""
    found: Metadata = {}
    blocks: dict[int, int] = {}
    paths = 0
    trunk = {short: tensor for name, tensor in tensors.items() if (short := trunk_name(name))}
    for name, tensor in trunk.items():
        match = re.fullmatch(r"res([2-5])\.(\d+)\.(?:paths\.(\d+)\.)?(conv[123])\.weight", name)
        if match is None:
            continue
        stage, block, path = int(match[1]), int(match[2]), match[3]
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
        if (stage, block, match[4]) == (2, 0, "conv2") and tensor.ndim == 4 and tensor.shape[1] > 0:
            paths += path is not None
            found |= {"cardinality": paths or tensor.shape[0] // tensor.shape[1], "width": tensor.shape[1]}
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    deep = "stem.conv3.weight" in trunk
    stem, out = trunk.get("stem.conv3.weight" if deep else "stem.conv1.weight"), _last_convolution(trunk)
    if stem is not None and stem.ndim == 4:
        cifar = stem.shape[2] == 3 and 5 not in blocks and not deep
        found |= {"stem_out_channels": stem.shape[0], "cifar": cifar}
    if out is not None and out.ndim == 4:
        found |= {"res2_out_channels": out.shape[0], "residual": any(".shortcut." in name for name in trunk)}
        kinds = {"res2.0.norm1.weight": "v2", "res2.0.se.fc1.weight": "se", "stem.conv3.weight": "d"}
        found["kind"] = next((kind for name, kind in kinds.items() if name in trunk), "plain")
        found["form"] = "c" if not paths else "b" if "res2.0.conv3.weight" in trunk else "a"
    if sorted(blocks) == [2, 3, 4] and len(set(counts)) == 1 and found.get("cifar"):
        return {"depth": 9 * counts[0] + 2, **found}
    depth = next((depth for depth, table in BLOCKS_PER_STAGE.items() if table == counts), None)
    return found if depth is None else {"depth": depth, **found}


def _last_convolution(trunk: Mapping[str, Tensor]) -> Tensor | None:
    """The weight whose rows are the channels behind res2's first block."""
    return next((trunk[name] for name in ("res2.0.conv3.weight", "res2.0.paths.0.conv3.weight") if name in trunk), None)


def check_types(metadata: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a known key whose value is of the wrong type. Other keys are left alone."""
    for key, kind in KEYS.items():
        value = metadata.get(key)
        if value is None:
            continue
        good = (
            isinstance(value, int | float)
            if kind is float
            else isinstance(value, list | tuple if kind is list else kind)
        )
        if key in ("pixel_mean", "pixel_std"):
            good = good and len(value) > 0
            good = good and all(isinstance(number, int | float) and abs(number) < 1e6 for number in value)
        if key == "thresholds":
            good = good and all(isinstance(number, int | float) and 0 <= number <= 1 for number in value)
        if key == "pixel_std":
            good = good and all(number > 0 for number in value)
        if key == "channel_order":
            good = value in ("RGB", "BGR")
        if not good:
            raise UserError(f"{where}: its metadata says {key} = {shown(repr(value))}; convert the file again")


def same(a: Any, b: Any) -> bool:
    """Equal, numbers to six figures."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return a == b


def check_metadata(
    found: Mapping[str, Any], expected: Mapping[str, Any], where: str, keys: Mapping[str, str] = DETECTRON2_KEYS
) -> None:
    """Compare a file's metadata with the config; keys that either lacks are not compared.

    Args:
        found: metadata of the file.
        expected: the config's values, under the metadata's keys.
        where: the file, for the message.
        keys: the config key of each compared metadata key, for the fix in the message; "" if no key can fix it.

    Raises:
        UserError: they contradict each other; the message holds the settings that fix it.
    """
    wrong = [
        key
        for key in keys
        if found.get(key) is not None and expected.get(key) is not None and not same(found[key], expected[key])
    ]
    if wrong:
        says = ", ".join(f"{keys[key] or key} {_value(expected[key])}" for key in wrong)
        unsettable = [key for key in wrong if not keys[key]]
        if unsettable:
            fix = f"no key changes {', '.join(unsettable)}: take other weights"
        else:
            fix = "set " + " ".join(f"{keys[key]} {_value(found[key])}" for key in wrong) + ", or take other weights"
        raise UserError(f"{where}: its weights contradict {says} of the config; {fix}")


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e-3 else str(value)


def preset(metadata: Mapping[str, Any], where: str = "the weights") -> dict[str, Any]:
    """The settings that belong to the weights, by config key (``INPUT.PRESET: auto``).

    Raises:
        UserError: the file does not say all of them.
    """
    missing = [key for key in _PRESET if metadata.get(key) is None]
    if missing:
        raise UserError(
            f"{where}: does not say its {', '.join(missing)}, so INPUT.PRESET cannot be auto; "
            f"remove INPUT.PRESET and set {', '.join(DETECTRON2_KEYS[key] for key in missing)}"
        )
    return {DETECTRON2_KEYS[key]: metadata[key] for key in _PRESET}
