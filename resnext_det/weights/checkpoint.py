"""A file of weights as one object: tensors under our names, and what is known of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_write, shown
from . import sources
from .metadata import Metadata, architecture_of, check_types, metadata_of_source
from .naming import COUNTER, detect, to_native
from .reading import FLOATS, METADATA, read_file, sha256
from .trunks import find_trunk

logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """Weights in native naming.

    Attributes:
        tensors: {name: tensor} on the CPU; a detector's keep ``backbone.``, ``roi_heads.``, ...
        source: ``torchvision``, ``timm``, ``cadene``, ``detectron2-zoo``, ``detectron2-torchvision``,
            ``detectron2-detector``, ``native-classifier`` or ``native-detector``.
        metadata: see :mod:`resnext_det.weights.metadata`.
        path: the file.
        sha256: of the file.
        entry: their entry in the file, such as ``model_ema`` for the average of a run's weights; "" if the file holds
            the tensors alone.
        branch: what stood before the trunk's names in a larger network, such as ``encoder_q``.
        left_out: {part of that network: tensors}, such as projection heads.
    """

    tensors: dict[str, Tensor]
    source: str
    metadata: Metadata
    path: Path
    sha256: str
    entry: str = ""
    branch: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Such as ``model_final.pth (model_ema)``."""
        return f"{self.path} ({self.entry})" if self.entry else str(self.path)


def read_checkpoint(path_or_uri: str | os.PathLike, *, trust_pickle: bool = False, branch: str = "") -> Checkpoint:
    """Read weights of any known source: a file, ``torchvision://NAME`` or ``timm://NAME``.

    Args:
        trust_pickle: also open pickles that may run code.
        branch: the trunk to take if the file holds several, such as ``encoder_q`` or ``teacher``.

    Raises:
        UserError: the file cannot be fetched or read, holds something else, or contradicts itself.

    Example:
        >>> checkpoint = read_checkpoint("resnext50_32x4d.pth")
        >>> checkpoint.source, checkpoint.metadata["channel_order"]
        ('torchvision', 'RGB')
    """
    path, published = sources.locate(path_or_uri)
    digest = sha256(path) if published else ""
    if published:
        sources.verify(str(path_or_uri), path, digest)
    tensors, written, entry = read_file(path, trust_pickle=trust_pickle)
    where = str(path)
    check_types(written, where)
    trunk = find_trunk(tensors, where, branch)
    tensors = trunk.tensors
    if trunk.branch or trunk.left_out:
        parts = ", ".join(f"{shown(part)} {count}" for part, count in trunk.left_out.items())
        logger.info("%s: trunk of %s; left out: %s", where, shown(trunk.branch) or "the network", parts or "nothing")
    source = detect(tensors, where)
    native = to_native(tensors, source, where)
    for name, tensor in native.items():
        if name.endswith(COUNTER):
            if tensor.dim() or tensor.is_complex() or not tensor >= 0:  # other tools load a converted file strictly
                raise UserError(f"{where}: {name} is not one number of batches; copy or download the file again")
        elif tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: {name} holds numbers of type {kind}; save the float model's state_dict()")
    if published:
        source = published["source"]
    elif source == "native-detector" and not written:
        source = "detectron2-detector"
    architecture = architecture_of(native)
    for key, value in architecture.items():
        if written.get(key, value) != value:
            raise UserError(
                f"{where}: its metadata says {key} {shown(written[key])}, its tensors {value}; convert it again"
            )
    # Later ones know better: the source's habit, what the library publishes of this file, what the file says.
    metadata = {**metadata_of_source(source, architecture), **published, **written, **architecture}
    for key in ("pixel_mean", "pixel_std"):  # detectron2 < 0.5 kept them among a detector's tensors
        if source.endswith("-detector") and key in tensors and key not in metadata:
            metadata[key] = tensors[key].flatten().tolist()
    digest = digest or sha256(path)
    if not written:
        metadata["source_sha256"] = digest
    return Checkpoint(native, source, metadata, path, digest, entry, trunk.branch, trunk.left_out)


Reader = Callable[..., Checkpoint]
""":func:`read_checkpoint` without its ``trust_pickle``."""


class ReadOnce:
    """:func:`read_checkpoint` for the steps of a run: the last weights stay in memory until ``forget`` is called."""

    def __init__(self, trust_pickle: bool = False) -> None:
        self._read = lru_cache(maxsize=1)(partial(read_checkpoint, trust_pickle=trust_pickle))
        self.forget = self._read.cache_clear

    def __call__(self, path_or_uri: str | os.PathLike, branch: str = "") -> Checkpoint:
        return self._read(path_or_uri, branch=branch)


def save_checkpoint(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to ``path``, whole or not at all.

    ``.safetensors`` holds the metadata as JSON in its header; ``.pth`` is ``{"model": ..., "metadata": ...}`` of
    tensors and plain values, which ``torch.load`` opens with ``weights_only=True``. In a project that loads its weights
    with detectron2's own checkpointer, the ``.pth`` finds its places under ``backbone.`` and ``roi_heads.`` by itself.

    Raises:
        UserError: another ending, values that are not plain, or an unwritable path.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"{path}: weights are written as .pth or .safetensors")
    check_types(metadata, str(path))
    try:
        text = json.dumps(dict(metadata))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: metadata may hold plain values only: {error}") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_write(path, "wb") as file:
            if path.suffix == ".pth":
                # Without it detectron2's DetectionCheckpointer wants a detector's full names, and skips all others.
                torch.save({"model": tensors, METADATA: json.loads(text), "matching_heuristics": True}, file)
            else:
                # "format" is what other readers of the format look for. safetensors writes the two in either order.
                data = safetensors.torch.save(tensors, {"format": "pt", METADATA: text})
                pair = b'"format":"pt"', f'"{METADATA}":{json.dumps(text)}'.encode()
                file.write(data.replace(b",".join(pair[::-1]), b",".join(pair), 1))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
