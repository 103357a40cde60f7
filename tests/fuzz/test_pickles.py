"""Damaged and hostile weights: each is read or refused in one line; none ends by a signal or a traceback, or hangs.

``RESNEXT_DET_FUZZ_PICKLES=20000 pytest tests/fuzz/test_pickles.py`` runs that many, in child processes.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from resnext_det.errors import UserError
from resnext_det.weights.reading import read_file, read_pickle, read_torch

INPUTS = int(os.environ.get("RESNEXT_DET_FUZZ_PICKLES", 0))
AT_ONCE = 1000  # inputs of one child


def seeds() -> list[bytes]:
    """Whole files of every kind."""
    content = {
        "model": collections.OrderedDict(a=torch.ones(2, 3), b=torch.arange(4).half(), c=torch.tensor([True])),
        "metadata": {"depth": 50, "names": ["x", "y"], "f": 1.5},
        "args": Namespace(lr=0.1),
        "best": np.float64(3.5),
    }
    arrays = {
        "conv1_w": np.ones((2, 3, 1, 1), np.float32),
        "s": np.array([b"ab"]),
        "f": np.asfortranarray(np.ones((2, 3))),
        "ids": [1, 2**70, "x", b"y", None, (1, 2), {3}],
        "o": np.array([{}, []], dtype=object),
        "d": np.zeros(1, [("a", "f4"), ("b", "O")]),
    }
    files = [pickle.dumps(arrays, protocol) for protocol in range(6)]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        files.append(buffer.getvalue())
    return files


OPCODES = [opcode.code.encode("latin1") for opcode in __import__("pickletools").opcodes]
FRAGMENTS = [
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\ntNI-1\nI-1\nI63\ntb",
    b"cnumpy.core.multiarray\nscalar\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nSize\n",
    b"(I-1\nI1099511627776\nt",
    b"\x8a\xff" + b"\xff" * 255,
    b"0", b"2", b"h\x00", b"h\x01", b"\x94", b"R", b"b", b"\x85", b"s",
]  # fmt: skip


def damage(data: bytes, chance: random.Random) -> bytes:
    """One file with one to six changes: bytes, opcodes, fragments, repeats, cuts."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(7)
        if kind == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            changed[place:place] = chance.choice(OPCODES)
        elif kind == 2:
            changed[place:place] = chance.choice(FRAGMENTS)
        elif kind == 3:
            changed[place : place + 1] = chance.choice(OPCODES)
        elif kind == 4:
            changed[place:place] = changed[place : place + chance.randint(1, 64)] * chance.randint(1, 20)
        elif kind == 5:
            del changed[place : place + chance.randint(1, 16)]
        elif chance.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def attack(first: int, count: int, path: Path) -> int:
    """Read inputs number ``first`` to ``first + count``; returns how many were taken."""
    files, taken = seeds(), 0
    for number in range(first, first + count):
        chance = random.Random(number)
        path.write_bytes(damage(chance.choice(files), chance))
        for reader in (read_file, read_pickle, read_torch):
            try:
                str(reader(path))  # a false pointer shows when it is followed
                taken += 1
            except UserError as error:
                assert "\n" not in str(error)
    return taken


def test_whole_files_are_read(tmp_path):
    for data in seeds():
        (tmp_path / "w").write_bytes(data)
        if data[:2] == b"PK":
            assert read_torch(tmp_path / "w")["best"] == 3.5
    assert attack(0, 60, tmp_path / "w") > 5


def test_many_in_children(tmp_path):
    count = min(INPUTS or 100, AT_ONCE)
    for child in range(max(1, INPUTS // AT_ONCE)):
        code = (
            "import pathlib, resource, test_pickles; resource.setrlimit(resource.RLIMIT_CPU, (400, 400)); "
            f"test_pickles.attack({child * count}, {count}, pathlib.Path({str(tmp_path / 'w')!r}))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (child, done.returncode, done.stderr[-2000:])
