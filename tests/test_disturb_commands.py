"""A short run of ``python tests/disturb_commands.py``, which kills, signals and starves every command."""

from __future__ import annotations

import os
import random

import pytest
from disturb_commands import KILLED, OTHERS, import_all, kill_test, shortage_test, signal_test

from resnext_det import cli


def test_every_command_is_signalled():
    assert {case.name for case in (*KILLED, *OTHERS)} == set(cli.COMMANDS)


@pytest.mark.slow
def test_disturbed_commands_damage_nothing_and_end_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_all()
    light = [case for case in KILLED if case.name in ("predict", "convert", "make-shards", "make-cifar", "check")]
    assert sum(kill_test(tmp_path / "kills", 6, seed=1, cases=light).values()) >= 6
    some = random.Random(2).sample([*light, *OTHERS[:2]], 4)
    assert sum(signal_test(tmp_path / "signals", 4, seed=3, cases=some).values()) == 4
    os.chdir(tmp_path)
    _, finds = shortage_test(tmp_path / "shortages", seed=1, cases=light, most=8)
    assert not finds, finds
