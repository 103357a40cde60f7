"""Every benchmark runs on a small problem and its two sides agree; no times are asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnext_det.benchmarks.command import BENCHMARKS
from resnext_det.benchmarks.measure import Setting

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "c4-memory"])
def test_sides_agree(name):
    outcome = BENCHMARKS[name](Setting(quick=True))
    assert outcome["ratios"] and all(value > 0 for value in outcome["ratios"].values())
    for key, value in outcome["agreement"].items():
        if key.endswith("relative"):
            assert value < (0.05 if "bf16" in key else 1e-4), key
        elif key.startswith("fp32 "):
            assert value < 1e-3, key
    assert outcome["agreement"].get("two runs have equal bits", 1.0) == 1.0


def test_tool_writes_json(tmp_path):
    file = tmp_path / "out.json"
    command = [sys.executable, "tools/benchmark.py", "roi-align", "--quick", "--json", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert {"ratios", "agreement", "machine"} <= json.loads(file.read_text()).keys()
