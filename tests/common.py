"""What tests import from each other's side: the root of the repository, and real data that lies outside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_data(name: str) -> Path:
    """The file or folder ``name`` of the real data sets that tests use where they are present; else the test skips.

    They are looked for in ``$RESNEXT_DET_TEST_DATA``, then in ``shared/data`` beside the repository.
    """
    folder = Path(os.environ.get("RESNEXT_DET_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).exists():
        pytest.skip(f"no test data {name}: RESNEXT_DET_TEST_DATA may name the folder that holds it")
    return folder / name
