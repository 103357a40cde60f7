"""A torchvision-shaped trunk within a larger network, such as one of self-supervised learning, found by its structure.

Programs put the trunk under names of their own: ``module.encoder_q.layer1.0...``, ``teacher.backbone.layer1.0...``,
``backbone.0.layer1.0...``, or as the numbered children of a Sequential (``backbone.4.0...``). A ``layer1.0.conv1`` with
a stem beside it is a trunk, whatever stands before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import UserError
from ..files import shown

_STEMS = ("conv1.weight", "conv1.0.weight")
_TRUNK = re.compile(r"(conv1|bn1|layer[1-9])\.")
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""A ResNet's modules by their place, as a Sequential of them names them."""
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model|net|network|state_dict|model_state_dict)\.)*")


@dataclass
class Trunk:
    """A trunk under torchvision's names.

    Attributes:
        tensors: {name: tensor}, with ``fc`` where the network was a classifier.
        branch: the names before the trunk's, without the last dot; "" where there are none.
        left_out: {part of the file: tensors}.
    """

    tensors: dict[str, Tensor]
    branch: str = ""
    left_out: dict[str, int] = field(default_factory=dict)


def holds_trunk(names: Mapping[str, object]) -> bool:
    """Whether a trunk is among these names."""
    return any(isinstance(name, str) and (_is_start(name) or _is_native(name)) for name in names)


def find_trunk(tensors: Mapping[str, Tensor], where: str, branch: str = "") -> Trunk:
    """The trunk among ``tensors``; all of them as they are where they are not of this shape.

    Args:
        branch: which one, where there are several: a part of the names before it, such as ``encoder_q``.

    Raises:
        UserError: several trunks and no ``branch``, or a ``branch`` that is not there.
    """
    prefixes = sorted({prefix for name in tensors if (prefix := _prefix(name, tensors)) is not None})
    if any(name.startswith("backbone.body.") for name in tensors):  # a torchvision detector
        prefixes = []
    if not prefixes:
        if branch:
            raise UserError(f"{where}: holds no trunk of its own under {shown(branch)}; leave the branch out")
        return Trunk(_without_common_prefix(tensors))
    names = [_branch(prefix) for prefix in prefixes]
    fitting = [p for p, name in zip(prefixes, names, strict=True) if branch in ("", name) or branch in name.split(".")]
    if len(fitting) != 1:
        what = f"no branch {shown(branch)}" if branch and not fitting else f"{len(fitting)} trunks"
        there = ", ".join(shown(name) or "one without a name" for name in names)
        raise UserError(
            f"{where}: {what}; it holds {there}: choose with --branch NAME (convert) or MODEL.WEIGHTS_BRANCH"
        )
    (prefix,) = fitting
    return _take(tensors, prefix, is_classifier=len(prefixes) == 1)


def _is_start(name: str) -> bool:
    return bool(re.search(r"(^|\.)(layer1|4)\.0\.conv1\.weight$", name))


def _is_native(name: str) -> bool:
    return bool(re.search(r"(^|\.)res2\.0\.conv1\.weight$", name))


def _prefix(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """What stands before a trunk's names, if ``name`` is where one begins."""
    if not _is_start(name):
        return None
    if name.endswith("layer1.0.conv1.weight"):
        prefix = name.removesuffix("layer1.0.conv1.weight")
        return prefix if any(prefix + stem in tensors for stem in _STEMS) else None
    prefix = name.removesuffix("4.0.conv1.weight")
    return prefix if f"{prefix}0.weight" in tensors and tensors[f"{prefix}0.weight"].ndim == 4 else None


def _branch(prefix: str) -> str:
    return re.sub(rf"^{_WRAPPERS.pattern}", "", prefix).rstrip(".")


def _take(tensors: Mapping[str, Tensor], prefix: str, *, is_classifier: bool) -> Trunk:
    numbered = f"{prefix}layer1.0.conv1.weight" not in tensors
    found: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if numbered and inner:
            first, dot, rest = inner.partition(".")
            inner = f"{_CHILDREN[first]}{dot}{rest}" if first in _CHILDREN else ""
        if _TRUNK.match(inner):
            found[inner] = tensor
        else:
            left_out[_part(name, prefix)] += 1
    for fc in (f"{prefix}fc.", f"{_parent(prefix)}head.fc.", f"{_parent(prefix)}fc.") if is_classifier else ():
        if _is_head_of(tensors, fc, found):
            found |= {f"fc.{leaf}": tensors[f"{fc}{leaf}"] for leaf in ("weight", "bias")}
            left_out[_part(f"{fc}weight", prefix)] -= 2
            break
    return Trunk(found, _branch(prefix), {part: count for part, count in left_out.items() if count > 0})


def _parent(prefix: str) -> str:
    """``model.`` of ``model.backbone.``."""
    return prefix.rstrip(".").rpartition(".")[0] + "." if "." in prefix.rstrip(".") else ""


def _is_head_of(tensors: Mapping[str, Tensor], fc: str, trunk: Mapping[str, Tensor]) -> bool:
    """One linear layer over the trunk's channels; a projection of several layers is none."""
    weight, bias = tensors.get(f"{fc}weight"), tensors.get(f"{fc}bias")
    last = [
        t.shape[0] for name, t in trunk.items() if re.fullmatch(r"layer\d\.\d+\.(conv|bn)3\.weight", name) and t.dim()
    ]
    return (
        weight is not None
        and bias is not None
        and (weight.ndim, bias.ndim) == (2, 1)
        and weight.shape[0] == bias.shape[0]
        and weight.shape[1] == max(last, default=0)
        and sum(name.startswith(fc) for name in tensors) == 2
    )


def _part(name: str, prefix: str) -> str:
    """The name for a tensor that is left out: its module beside, or within, the trunk's."""
    if name.startswith(prefix) and prefix:
        return _branch(prefix) + "." + name.removeprefix(prefix).partition(".")[0]
    name = re.sub(rf"^{_WRAPPERS.pattern}", "", name)
    return name.partition(".")[0]


def _without_common_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of ours without what a program put before all of them."""
    start = next((name for name in tensors if _is_native(name)), "")
    prefix = start.removesuffix("res2.0.conv1.weight")
    if prefix in ("", "backbone.", "backbone.bottom_up.") or not all(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
