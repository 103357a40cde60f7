"""Reading YAML configurations, for people who mistype: every mistake is one line with the nearest right name.

The only YAML accepted is plain data; tags that would run Python are refused (detectron2's own loader runs them).
"""

from __future__ import annotations

import ast
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ..config_files import find_config, read_config
from ..errors import UserError
from ..files import SHOWN, atomic_write, expanded, shown
from .processes import decided_by_main

CONFIG_FILE = "config.yaml"
_PATHS = re.compile(r"OUTPUT_DIR|.*\bWEIGHTS|DATASETS\..*")  # keys whose texts may be paths


def load_config(cfg: CfgNode, config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Merge a YAML file (with its ``_BASE_`` files) and ``KEY VALUE`` pairs into ``cfg``, and choose MODEL.DEVICE.

    Args:
        cfg: defaults; every key that may be set is in it. Changed in place.
        config_file: path of the YAML file, or the name of one of the package's (``detection/coco/...yaml``).
        opts: ``["KEY", "VALUE", ...]``, over the file's values.

    Raises:
        UserError: missing or broken file, unknown key, value of another type, no such device.
    """
    config_file = find_config(expanded(config_file))
    defaults = dict(_leaves(cfg))
    loaded = read_config(config_file)
    _check_keys(loaded, cfg, config_file)
    _whole_to_float(loaded, cfg)
    for key, value in _leaves(loaded):
        _check_sequence(_value(cfg, key), value, key, f"config file {config_file}")
    _merge(lambda: cfg.merge_from_other_cfg(CfgNode(loaded)), config_file)
    for word in opts:
        if re.match(r"--[a-z]", word):
            raise UserError(f"command line: {word} stands behind the settings; write it before them")
    if len(opts) % 2:
        raise UserError(f"settings come as KEY VALUE pairs, and {opts[-1]!r} stands alone")
    known = set(_flatten(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise UserError(f"command line: unknown key {shown(key)}{_nearest_key(key, known)}")
        if isinstance(_value(cfg, key), float) and re.fullmatch(r"[+-]?[0-9]+", value):
            value = float(value)
        _check_sequence(_value(cfg, key), value, key, "command line")
        _merge(lambda key=key, value=value: cfg.merge_from_list([key, value]), f"command line: {key} {shown(value)}")
    empty = [key for key, value in _leaves(cfg) if value is None and defaults.get(key) is not None]
    if empty:  # yacs takes None for anything
        raise UserError(f"{config_file} and command line: {empty[0]} has no value; leave it out to have its default")
    for key, value in list(_leaves(cfg)):
        if not _is_finite(value) and _is_finite(defaults.get(key)):
            raise UserError(f"{config_file} and command line: {key} is {value}, not a finite number")
        if _PATHS.fullmatch(key) and (path := _expanded(value)) != value:
            _merge(lambda key=key, path=path: cfg.merge_from_list([key, path]), key)
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
        raise UserError(f"MODEL.DEVICE {shown(name)}: not on this machine; set MODEL.DEVICE to auto or cpu") from error
    return name


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
            raise UserError(f"config file {config_file}: unknown key {shown(key)}{_nearest_key(key, known)}")


def _whole_to_float(loaded: dict, defaults: CfgNode) -> None:
    """``BASE_LR: 1`` is 1.0 to everybody but yacs, which refuses another type than the default's. In place."""
    for key, value in loaded.items():
        if isinstance(value, dict):
            _whole_to_float(value, defaults[key])
        elif isinstance(defaults[key], float) and type(value) is int:
            with suppress(OverflowError):  # 400 digits: yacs refuses it
                loaded[key] = float(value)


def _check_sequence(default: object, value: object, key: str, where: str) -> None:
    """Text for a key that takes several values is mostly one value without its parentheses."""
    if isinstance(default, list | tuple) and isinstance(value, str):
        try:
            is_sequence = isinstance(ast.literal_eval(value), list | tuple)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            is_sequence = False
        if not is_sequence:
            raise UserError(f'{where}: {key} takes several values, not {shown(value)!r}; write ("{shown(value)}",)')


def _nearest_key(key: str, known: Iterable[str]) -> str:
    """A hint only where the last part is alike: most keys of a section are alike by its name."""

    def likeness(other: str) -> tuple[float, float]:
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return last, difflib.SequenceMatcher(None, key, other).ratio()

    best = max(known, key=likeness)
    return f"; did you mean {best}?" if likeness(best)[0] >= 0.7 else ""


def _is_finite(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _expanded(value: object) -> object:
    """Every text in ``value`` as a path."""
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    return expanded(value) if isinstance(value, str) else value


def _value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _merge(merge, where: str) -> None:
    try:
        merge()
    except (ValueError, AssertionError, KeyError, SyntaxError, AttributeError, TypeError) as error:
        text = str(error)
        if len(text) > 2 * SHOWN:  # its end names the key
            text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
        raise UserError(f"{where}: {shown(text, len(text))}") from error
