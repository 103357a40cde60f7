"""One file of weights into another format or another library's names."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_write, shown
from ..resnext import Classifier, make_stages, make_stem
from ..variants import Variant
from .checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from .loading import part_of
from .metadata import Metadata, same
from .naming import COUNTER, classifier_tensors, from_native, is_detector, trunk_name

# Settings that networks of torchvision and timm lack: with other values the same tensors compute something else.
_FOREIGN_FUNCTION: Metadata = {"stride_in_1x1": False, "norm_eps": 1e-5, "form": "c", "residual": True, "kind": "plain"}


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str = "native",
    *,
    trust_pickle: bool = False,
    branch: str = "",
) -> tuple[Checkpoint, dict[str, int]]:
    """Read ``source``, check that it is a whole network, and write it to ``target`` under the names of ``to``.

    A detector stays whole under native names; of another library's names only its trunk has any.

    Args:
        source: a file, ``torchvision://NAME`` or ``timm://NAME``.
        target: a ``.pth`` or ``.safetensors`` file; a ``.pkl`` for ``detectron2``.
        to: ``native``, ``torchvision``, ``timm`` or ``detectron2``, whose tools then need nothing of this package.
        branch: as for :func:`read_checkpoint`.

    Returns:
        (the checkpoint that was read, {part that ``to`` has no place for: number of tensors}).

    Raises:
        UserError: as :func:`read_checkpoint` and :func:`save_checkpoint`; tensors are missing or left over; the network
            cannot be expressed in ``to``.
    """
    checkpoint = read_checkpoint(source, trust_pickle=trust_pickle, branch=branch)
    where = str(checkpoint.path)
    if Path(target).resolve() == checkpoint.path.resolve():
        raise UserError(f"{target}: is the file to convert; give the result another name")
    tensors = classifier_tensors(checkpoint.tensors, where)
    check_whole(tensors, checkpoint.metadata, where)
    dropped: Counter[str] = Counter()
    if to in ("native", "detectron2"):
        tensors = checkpoint.tensors
    else:
        for key, value in _FOREIGN_FUNCTION.items():
            if not same(checkpoint.metadata.get(key, value), value):
                raise UserError(
                    f"{where}: has {key} {shown(checkpoint.metadata[key])}, which {to} cannot express; keep native"
                )
        tensors = from_native(tensors, to, where)
        if is_detector(checkpoint.tensors):
            dropped.update(part_of(name) for name in checkpoint.tensors if not trunk_name(name))
    if to == "detectron2":
        _save_pickle(target, tensors)
    else:
        save_checkpoint(target, tensors, checkpoint.metadata)
    return checkpoint, {**checkpoint.left_out, **dropped}


def _save_pickle(target: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """What detectron2's DetectionCheckpointer reads: names of its own, found in a detector by their ends."""
    if Path(target).suffix != ".pkl":
        raise UserError(f"{target}: detectron2's form is a .pkl file")
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    content = {"model": arrays, "__author__": "resnext_det", "matching_heuristics": True}
    with atomic_write(target, "wb") as file:
        pickle.dump(content, file, protocol=4)


def check_whole(tensors: Mapping[str, Tensor], architecture: Metadata, where: str) -> None:
    """Compare a classifier's tensors with the network that their names and shapes describe.

    ``fc`` may be absent, and stages behind the last one that is there.

    Raises:
        UserError: naming the first tensor that is missing, left over or of the wrong shape.
    """
    expected = _skeleton(tensors, architecture, where)
    stages = {name.split(".")[0] for name in tensors}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    for name, shape in expected.items():
        if name not in given and name.split(".")[0] in stages:
            raise UserError(f"{where}: {name} is missing; copy or download it again")
        if given.get(name, shape) != shape:
            raise UserError(f"{where}: {name} has shape {given[name]}, which does not fit its neighbors ({shape})")
    left = [name for name in given if name not in expected]
    if left:
        raise UserError(f"{where}: {left[0]} is no part of a ResNet or ResNeXt: another family of networks")


def _skeleton(tensors: Mapping[str, Tensor], architecture: Metadata, where: str) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the network, without the counters; built without allocating it."""
    first, fc = tensors.get("stem.conv1.weight"), tensors.get("fc.weight")
    known = {"depth", "cardinality", "stem_out_channels", "res2_out_channels"} <= architecture.keys()
    if not known or first is None or first.ndim != 4:
        raise UserError(f"{where}: its blocks make no network of the family; see resnext_det.list_models()")
    cifar = architecture["cifar"]
    kind = architecture["kind"]
    variant = Variant(architecture["depth"], architecture["cardinality"], architecture["width"], cifar, kind)
    channels = architecture["stem_out_channels"]
    with torch.device("meta"):
        model: nn.Module = Classifier(
            make_stem(kind, first.shape[1], channels, nn.BatchNorm2d, cifar=cifar),
            make_stages(
                variant.blocks,
                channels,
                cardinality=variant.cardinality,
                width=variant.width,
                res2_out_channels=architecture["res2_out_channels"],
                residual=architecture["residual"],
                form=architecture["form"],
                kind=kind,
                last_stage=len(variant.blocks) - 1,
            ),
            num_classes=fc.shape[0] if fc is not None and fc.dim() else 1,
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}


def summary(checkpoint: Checkpoint) -> str:
    """One paragraph on a checkpoint: source, network, color order and statistics."""
    known = checkpoint.metadata
    entry = f" ({checkpoint.entry})" if checkpoint.entry else ""
    lines = [f"source: {checkpoint.source}{entry}, {len(checkpoint.tensors)} tensors, SHA-256 {checkpoint.sha256}"]
    lines += [f"{key}: {known[key]}" for key in known if key not in ("source", "class_names", "source_sha256")]
    if checkpoint.branch:
        lines.insert(1, f"branch: {checkpoint.branch}")
    if "class_names" in known:
        lines.append(f"class_names: {len(known['class_names'])}")
    return "\n".join(lines)
