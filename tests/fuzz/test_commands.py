"""A short, seeded run of the generator of tests/fuzz/generator.py, over the commands that take milliseconds."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generator import child  # noqa: E402

KINDS = ["evaluate", "check", "convert_data", "split", "check_formats", "make_cifar", "make_imagenet_val",
         "make_imagenet5k", "make_minival"]  # fmt: skip


def test_mutated_inputs_end_in_a_right_answer_or_one_line():
    records = list(child(range(200), KINDS))
    wrong = [record for record in records if record["wrong"]]
    assert not wrong, wrong[:3]
    ends = Counter((record["kind"], record["code"]) for record in records)
    assert all(ends[kind, code] for kind in KINDS[:5] for code in (0, 2)), ends
