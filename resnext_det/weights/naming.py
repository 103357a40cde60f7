"""Names of the same tensors in different libraries, recognized and translated to detectron2's, which are ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..errors import UserError

COUNTER = "num_batches_tracked"  # batch norms have it, frozen ones do not; loaded where both sides do, never missed
_DETECTOR_PARTS = ("backbone.", "roi_heads.", "proposal_generator.", "sem_seg_head.")
# Constants that detectron2 < 0.5 saved with its detectors; the config holds them now.
_DETECTOR_CONSTANTS = re.compile(r"pixel_(mean|std)|.*\banchor_generator\.cell_anchors\..*")
# Training state that Caffe2 saved among the weights. Its networks build conv1 without bias, so `conv1_b`, which the
# MSRA files hold, was never used.
_CAFFE2_STATE = re.compile(r".*_momentum|lr|model_iter|weight_order|conv1_b")
_CAFFE2_CONV = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3", "branch1": "shortcut"}
_CAFFE2_NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
_SE_NAME = re.compile(r"layer([1-4])\.(\d+\.se\.fc[12]\.(?:weight|bias))")
# The children of a block in the files converted from the authors' Torch models.
_CADENE_CONV = {"0.0.0": "conv1", "0.0.3": "conv2", "0.1": "conv3", "1.0": "shortcut"}
_CADENE_NORM = {"0.0.1": "conv1", "0.0.4": "conv2", "0.2": "conv3", "1.1": "shortcut"}


def detect(names: Iterable[str], where: str) -> str:
    """Which library's names these are: ``torchvision`` (timm's are the same), ``timm-d`` (deep stem), ``timm-v2``
    (pre-activation), ``cadene``, ``detectron2-zoo``, ``detectron2-torchvision``, ``native-classifier`` or
    ``native-detector`` (detectron2's detectors are named alike).

    Raises:
        UserError: names of no library that is read.
    """
    names = set(names)
    if any(name.startswith("backbone.body.") for name in names):
        raise UserError(f"{where}: a torchvision detector; of torchvision only classifiers are read")
    if is_detector(names):
        return "native-detector"
    if "stem.fc.weight" in names:  # only detectron2's tool for torchvision's weights writes such a name
        return "detectron2-torchvision"
    if "stem.conv1.weight" in names:
        return "native-classifier"
    if "conv1_w" in names:
        return "detectron2-zoo"
    if "features.0.weight" in names and any(name.startswith("features.4.0.0.") for name in names):
        return "cadene"
    if "stem.conv.weight" in names and any(name.startswith("stages.0.blocks.0.") for name in names):
        if "stages.0.blocks.0.norm1.running_mean" not in names:
            raise UserError(
                f"{where}: BiT's network has group norm and standardized weights, another function; of timm's "
                "pre-activation networks those with batch norm are read, such as resnetv2_50"
            )
        return "timm-v2"
    if "conv1.0.weight" in names and any(name.startswith("layer1.") for name in names):
        return "timm-d"
    if "conv1.weight" in names and any(name.startswith("layer1.") for name in names):
        return "torchvision"
    raise UserError(
        f"{where}: not a ResNet or ResNeXt of torchvision, timm, pretrainedmodels, detectron2 or this package: "
        f"its first tensor is {min(names)}"
    )


def to_native(tensors: Mapping[str, Tensor], source: str, where: str) -> dict[str, Tensor]:
    """Translate every name of ``source`` to ours. The tensors stay as they are.

    Raises:
        UserError: a name that the source's ResNets and ResNeXts do not have, such as an attention layer's.
    """
    rename = _RENAME[source]
    native: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if source == "detectron2-zoo" and _CAFFE2_STATE.fullmatch(name):
            continue
        if source.endswith("-detector") and _DETECTOR_CONSTANTS.fullmatch(name):
            continue
        new = rename(name)
        if new is None:
            raise UserError(f"{where}: {name} is no part of a ResNet or ResNeXt: another family of networks")
        if new in native:
            raise UserError(f"{where}: {name} is there twice under different names")
        native[new] = tensor.flatten(1) if name == "head.fc.weight" else tensor  # timm's is a 1x1 convolution
    if source == "detectron2-zoo":
        _add_folded_statistics(native)
    if any(trunk_name(name) == "res2.0.conv2.weight" for name in native) and not any(
        (trunk_name(name) or "").endswith(".conv3.weight") for name in native
    ):
        raise UserError(f"{where}: a network of basic blocks (ResNet-18 or 34); the family has bottleneck blocks only")
    return native


def is_detector(names: Iterable[str]) -> bool:
    """Whether these native names are a detector's."""
    return any(name.startswith(_DETECTOR_PARTS) for name in names)


def from_native(tensors: Mapping[str, Tensor], target: str, where: str) -> dict[str, Tensor]:
    """Translate a classifier's names to those of ``target``, "native", "torchvision" or "timm".

    Raises:
        UserError: a tensor that the target's ResNets and ResNeXts have no name for.
    """
    if target == "native":
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        new = _native_to_torchvision(name)
        if new is None:
            raise UserError(f"{where}: {target} has no place for {name}")
        renamed[new] = tensor
    return renamed


def trunk_name(name: str) -> str | None:
    """The name without the part of a detector it lies in: ``roi_heads.res5.0...`` is ``res5.0...``; None for a head."""
    match = re.fullmatch(
        r"(?:(?:backbone\.)?(?:bottom_up\.)?|roi_heads\.(?=res5\.(?!norm\.)))((?:stem|res[2-5])\..*)", name
    )
    return match[1] if match else None


def classifier_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The trunk of a detector under a classifier's names; a classifier's tensors as they are.

    Raises:
        UserError: no trunk, or one tensor twice.
    """
    if not is_detector(tensors):
        return dict(tensors)
    trunk: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = trunk_name(name)
        if new in trunk:
            raise UserError(f"{where}: holds {new} twice, in the backbone and in roi_heads")
        if new is not None:
            trunk[new] = tensor
    if not trunk:
        raise UserError(f"{where}: a detector without a ResNet or ResNeXt backbone")
    return trunk


def _same(name: str) -> str:
    return name


def _without_stem(name: str) -> str:
    return name.removeprefix("stem.") if name.startswith("stem.fc.") else name


def _torchvision_to_native(name: str) -> str | None:
    if name in ("fc.weight", "fc.bias"):
        return name
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        kind, leaf = match.groups()
        return f"stem.conv1.{leaf}" if kind == "conv" else f"stem.conv1.norm.{leaf}"
    if match := _SE_NAME.fullmatch(name):
        return f"res{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))\.(\w+)", name):
        layer, block, kind, number, part, leaf = match.groups()
        is_norm = kind == "bn" or part == "1"
        conv = f"conv{number}" if kind else "shortcut"
        return f"res{int(layer) + 1}.{block}.{conv}.{'norm.' if is_norm else ''}{leaf}"
    return None


def _timm_d_to_native(name: str) -> str | None:
    """The stem is one sequence of three convolutions, and the pooling of a shortcut counts as a layer of it."""
    if match := re.fullmatch(r"conv1\.([013467])\.(\w+)", name):
        layer = int(match[1])
        return f"stem.conv{layer // 3 + 1}.{'norm.' if layer % 3 else ''}{match[2]}"
    if name.startswith("bn1."):
        return f"stem.conv3.norm.{name[4:]}"
    if match := re.fullmatch(r"(layer[1-4]\.\d+\.downsample\.)([12])(\.\w+)", name):
        name = f"{match[1]}{int(match[2]) - 1}{match[3]}"
    return _torchvision_to_native(name)


def _timm_v2_to_native(name: str) -> str | None:
    if match := re.fullmatch(r"head\.fc\.(weight|bias)", name):
        return f"fc.{match[1]}"
    if match := re.fullmatch(r"stages\.([0-3])\.blocks\.(\d+)\.(conv[123]|norm[123]|downsample\.conv)\.(\w+)", name):
        part = "shortcut" if match[3].startswith("downsample") else match[3]
        return f"res{int(match[1]) + 2}.{match[2]}.{part}.{match[4]}"
    if match := re.fullmatch(r"norm\.(\w+)", name):
        return f"res5.end.norm.{match[1]}"
    return "stem.conv1.weight" if name == "stem.conv.weight" else None


def _native_to_torchvision(name: str) -> str | None:
    if name in ("fc.weight", "fc.bias"):
        return name
    if match := re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name):
        norm, leaf = match.groups()
        return f"bn1.{leaf}" if norm else f"conv1.{leaf}"
    if match := re.fullmatch(r"res([2-5])\.(\d+)\.(conv([123])|shortcut)\.(norm\.)?(\w+)", name):
        stage, block, _, number, norm, leaf = match.groups()
        if number:
            part = f"bn{number}" if norm else f"conv{number}"
        else:
            part = "downsample.1" if norm else "downsample.0"
        return f"layer{int(stage) - 1}.{block}.{part}.{leaf}"
    return None


def _cadene_to_native(name: str) -> str | None:
    if match := re.fullmatch(r"(?:last_linear|fc)\.(weight|bias)", name):
        return f"fc.{match[1]}"
    if match := re.fullmatch(r"features\.([01])\.(\w+)", name):
        return f"stem.conv1.{'norm.' if match[1] == '1' else ''}{match[2]}"
    if match := re.fullmatch(r"features\.([4-7])\.(\d+)\.0\.([\d.]+)\.(\w+)", name):
        stage, block, child, leaf = int(match[1]) - 2, match[2], match[3], match[4]
        if child in _CADENE_CONV:
            return f"res{stage}.{block}.{_CADENE_CONV[child]}.{leaf}"
        if child in _CADENE_NORM:
            return f"res{stage}.{block}.{_CADENE_NORM[child]}.norm.{leaf}"
    return None


def _caffe2_to_native(name: str) -> str | None:
    if match := re.fullmatch(r"(?:pred|fc1000)_([wb])", name):
        return f"fc.{'weight' if match[1] == 'w' else 'bias'}"
    if name == "conv1_w":
        return "stem.conv1.weight"
    if match := re.fullmatch(r"(?:res_)?conv1_bn_(s|b|rm|riv)", name):
        return f"stem.conv1.norm.{_CAFFE2_NORM[match[1]]}"
    if match := re.fullmatch(r"res([2-5])_(\d+)_(branch2[abc]|branch1)_(?:w|bn_(s|b|rm|riv))", name):
        stage, block, branch, norm = match.groups()
        return f"res{stage}.{block}.{_CAFFE2_CONV[branch]}.{f'norm.{_CAFFE2_NORM[norm]}' if norm else 'weight'}"
    return None


_RENAME: dict[str, Callable[[str], str | None]] = {
    "torchvision": _torchvision_to_native,
    "timm": _torchvision_to_native,
    "timm-d": _timm_d_to_native,
    "timm-v2": _timm_v2_to_native,
    "cadene": _cadene_to_native,
    "detectron2-zoo": _caffe2_to_native,
    "detectron2-torchvision": _without_stem,
    "native-classifier": _same,
    "native-detector": _same,
    "detectron2-detector": _same,
}


def _add_folded_statistics(native: dict[str, Tensor]) -> None:
    """Caffe2 folded mean and variance into scale and shift: give each norm the mean 0 and variance 1.

    detectron2's loader does the same, so the features are its own. (The norm's eps stays: 5e-6 of the scale.)
    """
    for name in [name for name in native if name.endswith(".norm.weight")]:
        norm = name.removesuffix("weight")
        native.setdefault(norm + "running_mean", torch.zeros_like(native[name]))
        native.setdefault(norm + "running_var", torch.ones_like(native[name]))
