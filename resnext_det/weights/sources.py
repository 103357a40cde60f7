"""Weights that torchvision and timm publish, fetched by their own code: ``torchvision://NAME`` and ``timm://NAME``.

``torchvision://resnext50_32x4d`` are the library's default weights, ``torchvision://resnext50_32x4d.IMAGENET1K_V1``
those of that name; ``timm://resnext50_32x4d.a1_in1k`` is timm's own way to write a model and its weights.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import torch

from ..errors import UserError, nearest
from ..variants import parse_name
from .metadata import Metadata, on_255

logger = logging.getLogger(__name__)

_WIDE = ("wide_resnet50_2", "wide_resnet101_2")  # timm's and torchvision's names of resnext50_1x128d, resnext101_1x128d


def locate(path_or_uri: str | os.PathLike) -> tuple[Path, Metadata]:
    """The local file of a path or URI, fetched if need be, and what its publisher says of it (nothing for a path).

    Raises:
        UserError: unknown scheme or name; no network; the line names the file to fetch and its place.
    """
    text = os.fspath(path_or_uri)
    scheme, separator, name = text.partition("://")
    if not separator:
        return Path(text), {}
    if scheme == "torchvision":
        return _torchvision(name)
    if scheme == "timm":
        return _timm(name)
    raise UserError(f"{text}: unknown kind of address; give a file, torchvision://NAME or timm://NAME")


def fetched(model: str) -> str:
    """The URI of torchvision's weights of ``model`` that were fetched before, "" where there are none."""
    from torchvision.models import get_model_weights

    published = get_model_weights(model)
    there = [w.name for w in published if (_cache() / w.url.rsplit("/", 1)[-1]).is_file()]
    return f"torchvision://{model}.{there[0]}" if there else ""


def verify(uri: str, path: Path, digest: str) -> None:
    """Compare a fetched file with the hash that its name states, as torchvision's names do; say where there is none.

    Raises:
        UserError: it is another file.
    """
    stated = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if stated is None:
        logger.info("%s: not verified: neither its name nor its library states a hash", uri)
    elif not digest.startswith(stated[1]):
        raise UserError(f"{uri}: {path} is not the file of that name (its SHA-256 is {digest[:8]}...); remove it")


def _torchvision(name: str) -> tuple[Path, Metadata]:
    from torchvision.models import get_model_weights, list_models

    model, _, version = name.partition(".")
    family = [known for known in list_models() if known.startswith(("resnet", "resnext", "wide_resnet"))]
    family = [known for known in family if known not in ("resnet18", "resnet34")]  # basic blocks
    if model not in family:
        raise UserError(f"torchvision://{name}: not one of {', '.join(family)}{nearest(model, family)}")
    published = get_model_weights(model)
    versions = list(published.__members__)
    if version and version not in versions:
        raise UserError(f"torchvision://{name}: {model} has {', '.join(versions)}{nearest(version, versions)}")
    weights = published[version or "DEFAULT"]
    path = _cache() / weights.url.rsplit("/", 1)[-1]
    if not path.is_file():
        try:
            weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
        except Exception as error:  # URLError, timeouts, a wrong hash: all mean that the file did not arrive
            raise UserError(_not_fetched(f"torchvision://{name}", path.name, path, error)) from error
    transforms = weights.transforms()
    return path, {
        "source": "torchvision",
        "recipe": weights.name,
        "channel_order": "RGB",
        "pixel_mean": on_255(transforms.mean),
        "pixel_std": on_255(transforms.std),
        "input_size": transforms.crop_size[0],
        "class_names": list(weights.meta["categories"]),
        "top1_error": round(100 - weights.meta["_metrics"]["ImageNet-1K"]["acc@1"], 3),
    }


def _timm(name: str) -> tuple[Path, Metadata]:
    try:
        import timm
        from timm.models._hub import download_from_hf
    except ImportError as error:
        raise UserError(f"timm://{name}: needs timm; install it with `pip install timm`") from error
    model = name.partition(".")[0]
    try:
        if model not in _WIDE:
            parse_name(model)  # some of timm's other networks share all tensor names and compute something else
    except UserError as error:
        raise UserError(f"timm://{name}: only timm's plain ResNets and ResNeXts fit: {error}") from error
    known = timm.list_models(f"{model}.*", pretrained=True)
    config = timm.get_pretrained_cfg(name) if name in known or name == model and known else None
    if config is None:
        raise UserError(f"timm://{name}: timm has {', '.join(known) or f'no {model}'}{nearest(name, known)}")
    full_name = f"{model}.{config.tag}"
    path = _cache() / f"{full_name}.safetensors"
    if not path.is_file():
        placed = path
        try:
            path = Path(download_from_hf(config.hf_hub_id, "model.safetensors"))
        except Exception as error:  # offline mode, no connection, no such file: its libraries raise a dozen kinds
            published = f"model.safetensors of {config.hf_hub_id}"
            raise UserError(_not_fetched(f"timm://{name}", published, placed, error)) from error
    return path, {
        "source": "timm",
        "recipe": config.tag,
        "channel_order": "RGB",
        "pixel_mean": on_255(config.mean),
        "pixel_std": on_255(config.std),
        "input_size": config.input_size[-1],
    }


def _cache() -> Path:
    """Where torch, torchvision and timm keep what they fetched (``TORCH_HOME``)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _not_fetched(uri: str, file: str, path: Path, error: Exception) -> str:
    return f"{uri}: could not be fetched ({type(error).__name__}); without a network, put {file} at {path}"
