"""`resnext-det`: every tool under one name, each with a `main(argv)` in the package and a shim in tools/."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import resnext_det
from resnext_det import cli
from resnext_det.engine.exits import run
from resnext_det.errors import UserError
from resnext_det.makers.synthetic import draw_classes, draw_detection_set

ROOT = Path(__file__).resolve().parents[1]
SHIMS = sorted((ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_tells_its_flags(name: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"resnext-det {name}"])
    with pytest.raises(SystemExit) as left:
        cli.call(name, ["--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: resnext-det {name} ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_no_number_is_taken_that_nothing_can_count_with(name: str, monkeypatch) -> None:
    class Found(Exception):
        pass

    def found(parser: argparse.ArgumentParser, *args: object) -> None:
        raise Found(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", found)
    with pytest.raises(Found) as caught:
        import_module(f"resnext_det.commands.{name.replace('-', '_')}").main([])
    for action in caught.value.args[0]._actions:
        if action.type not in (None, str, Path):
            for text in ("9" * 40, "9" * 5000, "-1", "nan", "inf", "1e999", "1/0", "", "\n"):
                with pytest.raises((argparse.ArgumentTypeError, ValueError)):
                    action.type(text)
                    raise AssertionError(f"{action.option_strings} takes {text[:50]!r}")


def test_help_of_no_command_imports_a_heavy_library() -> None:
    code = f"""
import sys
from resnext_det import cli
for name in {list(cli.COMMANDS)}:
    try:
        cli.call(name, ["--help"])
    except SystemExit:
        pass
heavy = {{"torch", "torchvision", "detectron2", "matplotlib", "cv2"}} & sys.modules.keys()
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ") == len(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_a_main_of_the_arguments(name: str) -> None:
    parameters = inspect.signature(import_module(f"resnext_det.commands.{name.replace('-', '_')}").main).parameters
    assert list(parameters) == ["argv"] and parameters["argv"].default is None


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.stem)
def test_tools_are_shims_over_a_command(path: Path) -> None:
    text = path.read_text("utf-8")
    (command,) = re.findall(r'^    main\("(.+)"\)$', text, re.M)
    assert len(text.splitlines()) <= 10 and command in cli.COMMANDS


def test_help_lists_the_commands(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["resnext-det"])
    cli.main()
    reported = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["resnext-det", "--help"])
    cli.main()
    assert reported == capsys.readouterr().out
    assert all(f"\n  {name} " in reported for name in cli.COMMANDS)


def test_mistyped_command_has_a_hint() -> None:
    with pytest.raises(UserError, match="^resnext-det trian: no such command; did you mean train?"):
        cli.call("trian", [])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """What people may have: two small sets, and files that are not what they should be."""
    root = tmp_path_factory.mktemp("inputs")
    draw_detection_set(root, 1)
    draw_classes(root / "train", 1)
    (root / "bytes").write_bytes(bytes(range(256)))
    (root / "empty").touch()
    (root / "word").write_text("hello")
    (root / "none.json").write_text("[]")
    (root / "other.csv").write_text("x,y\n1,2\n")
    (root / "half.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,\n")
    (root / "shards").mkdir()
    (root / "shards" / "0.tar").write_bytes(b"")
    (root / "shards" / "index.json").write_text("{")
    return root


EVALUATE = "evaluate --gt IN/instances.json --dt IN/none.json"
CHECK = "check --json IN/instances.json --images IN/images"
TRAIN = "train --config-file detection/coco/R_50_C4_1x.yaml"


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        (f"{EVALUATE} --out .", "is a directory"), (f"{EVALUATE} --out IN/word/x", "word"),
        (f"{EVALUATE} --report x.html --images nothing", "--images nothing: no such folder"),
        (f"{CHECK} --workers 0", "--workers: 0: must be at least 1"), (f"{CHECK} --list -1", "--list: -1"),
        ("reproduce --table 8 --settings IN/bytes --dry-run", "bytes: not YAML"),
        ("reproduce --table 8 --settings IN/word --dry-run", "word: "),
        ("make-imagenet-val IN/train IN/bytes", "bytes: torn"),
        ("make-imagenet-val IN/train IN/other.csv", "'ImageId'"),
        ("make-imagenet-val IN/train IN/half.csv", "half.csv: torn"),
        ("make-imagenet-val IN/train IN/empty", "empty: holds no labels"),
        ("make-imagenet5k IN/train IN/train --classes IN/bytes", "bytes: is not UTF-8"),
        ("make-imagenet5k IN/train IN/train --extra -1", "--extra: -1"),
        ("make-shards IN/train x --seed -1", "--seed: -1"), ("make-shards --index IN/shards", "index.json: i"),
        ("make-cifar IN/word x", "word: torn"), ("make-shards IN/train IN/word/x", "it is a file"),
        ("analyze resnext50_32x4d --size -7", "--size: -7"),
        ("analyze resnext50_32x4d --num-classes 0", "--num-classes: 0"),
        ("benchmark roi-align --quick --threads -1", "--threads: -1"), ("benchmark classify --device foo", "'foo'"),
        ("benchmark c4-inference --quick --batch -1", "--batch: -1"),
        ("study s.yaml --results x --jobs 0", "--jobs: 0"),
        (f"{TRAIN} OUTPUT_DIR IN/word", "word: file exists"),
        (f"{TRAIN} OUTPUT_DIR IN/word/x", "word/x: not a directory"),
        (f"{TRAIN} --num-gpus -1", "--num-gpus: -1"), (f"{TRAIN} --num-machines 0", "--num-machines: 0"),
        (f"{TRAIN} --num-machines 2 --machine-rank 2", "--machine-rank 2"),
        (f"{TRAIN} --num-machines 2 --dist-url host:80", "--dist-url host:80: give tcp://HOST:PORT"),
        (f"{TRAIN} OUTPUT_DIR EMPTY", "OUTPUT_DIR is empty"),
    ],
)  # fmt: skip
def test_bad_command_lines_end_with_one_error_and_leave_nothing(
    line: str, reported: str, inputs: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("IN/", f"{inputs}/").replace("EMPTY", "") for word in line.split()]
    with pytest.raises(SystemExit) as left:
        run(lambda: cli.call(words[0], words[1:]))
    text = capsys.readouterr().err
    assert left.value.code == 2 and text.count("error: ") == 1 and reported in text.splitlines()[-1], text
    assert not list(tmp_path.iterdir())


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


def test_a_home_that_no_shell_has_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["~/none.pth", "~/out.pth"], ["--trust-pickle", "~/none.pth", "a~b.pth"]):
        with pytest.raises(UserError, match=f"^{tmp_path}/none.pth: no such file"):
            cli.call("convert", words)
    with pytest.raises(UserError, match=f"^{tmp_path}: is a folder"):
        cli.call("evaluate", ["--gt=~", "--dt", "x"])
