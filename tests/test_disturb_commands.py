"""A short run of ``python tests/disturb_commands.py kills``; its signals and shortages are run by hand."""

from __future__ import annotations

import pytest
from disturb_commands import KILLED, OTHERS, import_all, kill_test

from resnext_det import cli


def test_every_command_is_signalled():
    assert {case.name for case in (*KILLED, *OTHERS)} == set(cli.COMMANDS)


@pytest.mark.slow
def test_killed_commands_damage_nothing_and_end_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_all()
    light = [case for case in KILLED if case.name in ("make-shards", "make-cifar")]
    assert sum(kill_test(tmp_path, 3, seed=0, cases=light).values()) >= 3
