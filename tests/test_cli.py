"""`resnext-det`: every tool under one name, each with a `main(argv)` in the package and a shim in tools/."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import resnext_det
from resnext_det import cli
from resnext_det.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SHIMS = sorted(path for path in (ROOT / "tools").glob("*.py") if path.stem not in ("quickstart", "reproduce", "study"))
"""Without those that call other tools of the clone."""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_tells_its_flags(name: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["resnext-det"])
    with pytest.raises(SystemExit) as left:
        cli.call([name, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: resnext-det {name} ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_a_main_of_the_arguments(name: str) -> None:
    parameters = inspect.signature(import_module(cli.COMMANDS[name][0]).main).parameters
    assert list(parameters) == ["argv"] and parameters["argv"].default is None


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.stem)
def test_tools_are_shims_over_a_command(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 10 and "run(main)" in text
    (module,) = [line.split()[1] for line in text.splitlines() if line.endswith(" import main")]
    # The quickstart is made of the clone's own files.
    assert module in {"resnext_det.quickstart", *(module for module, _ in cli.COMMANDS.values())}


def test_help_lists_the_commands(capsys: pytest.CaptureFixture) -> None:
    cli.call([])
    told = capsys.readouterr().out
    cli.call(["--help"])
    assert told == capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in cli.COMMANDS)


def test_mistyped_command_has_a_hint() -> None:
    with pytest.raises(UserError, match="^resnext-det trian: no such command; did you mean train?"):
        cli.call(["trian"])


def test_the_command_itself_away_from_the_clone(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(resnext_det.__file__).parents[1])}

    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "resnext_det.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    table = call("analyze", "resnext50_32x4d")
    assert table.returncode == 0 and "25,028,904" in table.stdout, table.stderr
    wrong = call("analyze", "resnext50_32x4dd")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: unknown model 'resnext50_32x4dd'") and wrong.stderr.count("\n") == 1
