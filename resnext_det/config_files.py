"""YAML files: the one reader, and the configurations that come with the package.

They lie in ``configs/`` of a clone, and in ``resnext_det/configs/`` when installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, nearest
from .files import CONFIG_BYTES, expanded, read_regular, shown

YAML_NODES = 100_000
"""Most values of a YAML file, each reference to an anchor counted with all that it stands for."""
YAML_DEPTH = 50
"""Most lists and sections within each other."""
BASE_KEY = "_BASE_"
"""detectron2's key for the file, or files, that a configuration changes."""
_MOST_BASES = 20  # that follow each other

_PACKAGE = Path(__file__).parent
_INSTALLED, _CLONE = _PACKAGE / "configs", _PACKAGE.parent / "configs"


def config_folder() -> Path:
    """The folder that holds ``detection/``, ``imagenet/``, ..."""
    return _INSTALLED if _INSTALLED.is_dir() else _CLONE


def list_configs() -> list[str]:
    """Names that :func:`config_path` takes, such as ``detection/coco/X_50_32x4d_C4_1x.yaml``."""
    folder = config_folder()
    files = (path for path in folder.rglob("*") if path.suffix in (".yaml", ".py"))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def config_path(name: str) -> str:
    """Path of a configuration of this package, as ``cfg.merge_from_file`` and ``LazyConfig.load`` take it.

    ``name`` is relative to ``configs/``; that prefix may stay: a command line of the documentation works away from the
    clone.

    Raises:
        UserError: there is none of that name.
    """
    name = os.path.normpath(name).replace(os.sep, "/").removeprefix("configs/")
    known = list_configs()
    if name not in known:
        raise UserError(f"config {name}: not among the configs of this package{nearest(name, known)}")
    return str(config_folder() / name)


def find_config(file: str) -> str:
    """``file`` itself if it exists, else the package's configuration of that name if there is one; else ``file``.

    Looked up in this order, so that nothing in the package ever hides a file of the user's.
    """
    if not os.path.exists(file) and not os.path.isabs(file):
        try:
            return config_path(file)
        except UserError:
            pass
    return file


def read_yaml(path: str | os.PathLike, what: str = "config file") -> Any:
    """The plain values of a YAML file; nothing in it is run.

    Args:
        what: it is, for the messages.

    Raises:
        UserError: no regular file, larger than ``files.CONFIG_BYTES``, not UTF-8, not YAML, tags that would run code,
            the same key twice, more than :data:`YAML_NODES` values or :data:`YAML_DEPTH` levels.
    """
    name = f"{what} {shown(path)}"
    try:
        text = read_regular(path, CONFIG_BYTES).decode("utf-8-sig")
        return yaml.load(text, _PlainLoader)
    except UserError as error:
        raise UserError(f"{what} {error}") from None
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{name}: {shown(error.problem)}; only plain YAML is read") from None
    except _Refused as error:
        raise UserError(f"{name}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{name}: not YAML: line {line}: {shown(error.problem)}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: not YAML: {shown(error)}") from None


def read_config(config_file: str, seen: tuple[str, ...] = ()) -> dict:
    """The keys and values of a YAML file over those of its ``_BASE_`` files.

    Raises:
        UserError: as :func:`read_yaml`; no keys and values; a base that is no file, or that
            leads back to itself.
    """
    if not os.path.lexists(config_file):
        raise UserError(f"config file {shown(config_file)}: no such file{_similar_file(config_file)}")
    loaded = read_yaml(config_file)
    if not isinstance(loaded, dict):
        raise UserError(f"config file {shown(config_file)}: it or its {BASE_KEY} holds no keys and values")
    bases = loaded.pop(BASE_KEY, [])
    merged: dict = {}
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]:
        path = _base(base, config_file)
        real = os.path.realpath(path)
        if real in seen or real == os.path.realpath(config_file) or len(seen) >= _MOST_BASES:
            raise UserError(f"config file {shown(config_file)}: its {BASE_KEY} {shown(base)} leads back to itself")
        try:
            _lay_over(read_config(path, (*seen, os.path.realpath(config_file))), merged, config_file)
        except UserError as error:
            raise (
                error
                if str(error).startswith(f"config file {config_file}")
                else UserError(f"config file {shown(config_file)}: its {BASE_KEY}: {error}")
            ) from None
    _lay_over(loaded, merged, config_file)
    return merged


def _base(base: object, config_file: str) -> str:
    if not isinstance(base, str):
        raise UserError(f"config file {config_file}: its {BASE_KEY} is {shown(repr(base))}, not the name of a file")
    if "://" in base:
        raise UserError(f"config file {config_file}: its {BASE_KEY} {shown(base)} is an address; give a file")
    return os.path.join(os.path.dirname(config_file), expanded(base))


def _lay_over(new: dict, old: dict, config_file: str) -> None:
    """Merge the sections of ``new`` into ``old``, as fvcore does."""
    for key, value in new.items():
        if isinstance(value, dict) and key in old:
            if not isinstance(old[key], dict):
                raise UserError(f"config file {config_file}: {shown(key)} is a section, in its {BASE_KEY} a value")
            _lay_over(value, old[key], config_file)
        else:
            old[key] = value


def _similar_file(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        here = nearest(name, os.listdir(folder or "."))
    except OSError:
        here = ""
    packaged = nearest(path.removeprefix("configs/"), list_configs())
    return here or packaged or ("" if os.path.isdir(folder or ".") else f" (nor a folder {folder})")


class _Refused(yaml.YAMLError):
    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class _PlainLoader(yaml.SafeLoader):
    """Counts what references expand to while it reads, and takes no key twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes, self.depth = 0, 0
        self.sizes: dict[int, int] = {}  # of whole nodes, by id

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_reference = self.check_event(yaml.AliasEvent)
        before = self.nodes
        self.depth += 1
        if self.depth > YAML_DEPTH:
            raise _Refused(f"more than {YAML_DEPTH} lists and sections within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_reference and node is not None and id(node) not in self.sizes:
            raise _Refused(f"line {node.start_mark.line + 1}: an anchor that holds itself")
        self.nodes += self.sizes[id(node)] if is_reference else 1
        if self.nodes > YAML_NODES:
            raise _Refused(f"more than {YAML_NODES} values")
        self.sizes.setdefault(id(node), self.nodes - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _Refused(f"{shown(key.value)} stands twice, in lines {lines[key.value]} and {line}")
                lines[key.value] = line
        return node
