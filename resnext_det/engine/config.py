"""Reading YAML configurations, for people who mistype: every mistake is one line with the nearest right name.

The only YAML accepted is plain data; tags that would run Python are refused (detectron2's own loader runs them).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

from ..config_files import find_config, list_configs
from ..errors import UserError, nearest
from ..files import atomic_write
from .processes import decided_by_main

CONFIG_FILE = "config.yaml"


def load_config(cfg: CfgNode, config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Merge a YAML file (with its ``_BASE_`` files) and ``KEY VALUE`` pairs into ``cfg``, and settle MODEL.DEVICE.

    Args:
        cfg: defaults; every key that may be set is in it. Changed in place.
        config_file: path of the YAML file, or the name of one of the package's (``detection/coco/...yaml``).
        opts: ``["KEY", "VALUE", ...]``, over the file's values.

    Raises:
        UserError: missing or broken file, unknown key, value of another type, no such device.
    """
    config_file = find_config(config_file)
    defaults = dict(_leaves(cfg))
    loaded = _read_yaml(config_file)
    _check_keys(loaded, cfg, config_file)
    _whole_to_float(loaded, cfg)
    _merge(lambda: cfg.merge_from_other_cfg(CfgNode(loaded)), config_file)
    if len(opts) % 2:
        raise UserError(f"settings come as KEY VALUE pairs, and {opts[-1]!r} stands alone")
    known = set(_flatten(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise UserError(f"command line: unknown key {key}{nearest(key, known)}")
        if isinstance(_value(cfg, key), float) and value.lstrip("+-").isdigit():
            value = float(value)
        _merge(lambda key=key, value=value: cfg.merge_from_list([key, value]), f"command line: {key} {value}")
    empty = [key for key, value in _leaves(cfg) if value is None and defaults.get(key) is not None]
    if empty:  # yacs takes None for anything
        raise UserError(f"{config_file} and command line: {empty[0]} has no value; leave it out to have its default")
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty: name the folder that the run writes to")
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    return cfg


def save_config(cfg: CfgNode, folder: str | os.PathLike) -> Path:
    """Write all of ``cfg`` to ``folder/config.yaml``, in the main process; returns its path."""
    return decided_by_main(lambda: write_config(cfg.dump(), folder))


def write_config(text: str, folder: str | os.PathLike) -> Path:
    """Write the YAML ``text`` to ``folder/config.yaml``; returns its path."""
    path = Path(folder) / CONFIG_FILE
    with atomic_write(path) as file:
        file.write(text)
    return path


def resolve_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where there is a GPU and ``cpu`` elsewhere; anything else must exist.

    Raises:
        UserError: a device that this machine or this torch does not have.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"MODEL.DEVICE {name}: not on this machine; set MODEL.DEVICE to auto or cpu") from error
    return name


def _read_yaml(config_file: str) -> dict:
    if not os.path.isfile(config_file):
        raise UserError(f"config file {config_file}: no such file{_similar_file(config_file)}")
    try:
        return CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"config file {config_file}: {error.problem}; only plain YAML is read") from error
    except yaml.YAMLError as error:
        raise UserError(f"config file {config_file}: not YAML: {error}") from error
    except TypeError as error:
        raise UserError(f"config file {config_file}: it or its {BASE_KEY} holds no keys and values") from error
    except (
        AssertionError,
        OSError,
        AttributeError,
        ValueError,
        KeyError,
        OverflowError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise UserError(f"config file {config_file}: cannot be read with its {BASE_KEY}: {error}") from error


def _similar_file(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        here = nearest(name, os.listdir(folder or "."))
    except OSError:
        here = ""
    packaged = nearest(path.removeprefix("configs/"), list_configs())
    return here or packaged or ("" if os.path.isdir(folder or ".") else f" (nor a folder {folder})")


def _flatten(node: dict, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")


def _leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_keys(loaded: dict, cfg: CfgNode, config_file: str) -> None:
    if not isinstance(loaded, dict):
        raise UserError(f"config file {config_file}: holds {type(loaded).__name__}, not keys and values")
    known = set(_flatten(cfg))
    for key in _flatten(loaded):
        if key not in known:
            raise UserError(f"config file {config_file}: unknown key {key}{nearest(key, known)}")


def _whole_to_float(loaded: dict, defaults: CfgNode) -> None:
    """``BASE_LR: 1`` is 1.0 to everybody but yacs, which refuses another type than the default's. In place."""
    for key, value in loaded.items():
        if isinstance(value, dict):
            _whole_to_float(value, defaults[key])
        elif isinstance(defaults[key], float) and type(value) is int:
            loaded[key] = float(value)


def _value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _merge(merge, where: str) -> None:
    try:
        merge()
    except (ValueError, AssertionError, KeyError, SyntaxError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
