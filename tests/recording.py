"""Which keys of a configuration a run reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import yacs.config
from yacs.config import CfgNode

ELSEWHERE = ("yacs", "fvcore", "detectron2/config", "config_check.py", "stock_keys.py", "engine/config.py")
"""Files that go through keys to copy, merge, print or refuse them: no use of any."""
CHECKS = ("check_solver", "check_config")
"""Functions that refuse values and do not act on them."""


def leaves(node: dict, prefix: str = "") -> Iterator[str]:
    """The full names of the keys that hold a value, such as ``SOLVER.BASE_LR``."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@contextmanager
def recorded_reads() -> Iterator[set[str]]:
    """The full names of all keys that are read while the block runs, in this process.

    A key is read by ``cfg.A.B``, ``cfg.A["B"]`` or ``cfg.A.get("B")`` outside of :data:`ELSEWHERE` and :data:`CHECKS`.
    """
    read: set[str] = set()
    attribute, item = CfgNode.__getattr__, dict.__getitem__

    def note(node: CfgNode, key: str, value: object) -> object:
        caller = sys._getframe(2)
        if caller.f_code.co_name == "__getattr__":
            caller = caller.f_back or caller
        prefix = node.__dict__.get("__recorded__", "")  # copies of a section have it too
        if isinstance(value, CfgNode):
            value.__dict__["__recorded__"] = f"{prefix}{key}."
        elif caller.f_code.co_name not in CHECKS and not any(p in caller.f_code.co_filename for p in ELSEWHERE):
            read.add(prefix + key)
        return value

    def getattr_(self: CfgNode, name: str) -> object:
        if name in self:
            return note(self, name, item(self, name))
        return attribute(self, name)

    def getitem(self: CfgNode, name: str) -> object:
        return note(self, name, item(self, name))

    def get(self: CfgNode, name: str, default: object = None) -> object:
        return note(self, name, item(self, name)) if name in self else default

    CfgNode.__getattr__, CfgNode.__getitem__, CfgNode.get = getattr_, getitem, get
    try:
        yield read
    finally:
        CfgNode.__getattr__ = attribute
        del CfgNode.__getitem__, CfgNode.get
        assert yacs.config.CfgNode.__getitem__ is dict.__getitem__
