"""Exit codes, one line on stderr, and the flags."""

import errno
import os
import subprocess
import sys

import pytest
from common import ROOT

from resnext_det.commands.arguments import parse_training_arguments
from resnext_det.engine.exits import run
from resnext_det.engine.signals import Stopped, Terminated
from resnext_det.errors import RunFailed, UserError
from resnext_det.images import BrokenImage


def ended(error, capsys) -> tuple[object, str]:
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("file.json: field: wrong;\n fix it"), 2, "error: file.json: field: wrong; fix it\n"),
        (BrokenImage("a.jpg: cannot be decoded"), 2, "error: a.jpg: cannot be decoded\n"),
        (RunFailed("a process died"), 1, "error: a process died\n"),
        (Stopped("stopped by SIGTERM"), 75, "stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Terminated("ended by SIGTERM"), 143, "ended by SIGTERM\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left"),
        (UserError("Caught UserError in DataLoader worker process 0.\nOriginal Traceback ...\n"
                   "resnext_det.errors.UserError: a.jpg: broken\n"), 2, "error: a.jpg: broken\n"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1, "a data worker died"),
        (RuntimeError("x_cuda does not have a deterministic implementation, but"), 2, "DETERMINISTIC True: x_cuda"),
    ],
)  # fmt: skip
def test_known_ends(error, code, line, capsys):
    found, text = ended(error, capsys)
    assert found == code and line in text and text.count("\n") == (line != "") and "Traceback" not in text


def test_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="ours"):
        run(lambda: (_ for _ in ()).throw(RuntimeError("ours")))


def test_a_reader_that_leaves_is_no_error():
    program = (
        "from resnext_det.engine.exits import run\nrun(lambda: [print('x' * 99, flush=True) for _ in range(9999)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"{sys.executable}" -c "$1" | head -1', "bash", program],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == "" and done.returncode == 141


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(2)", 2), ("raise UserError('bad')", 2), ("None", 141), ("raise KeyboardInterrupt", 130)],
)
@pytest.mark.parametrize("pipe", ["| true", "2>&1 | true"])
def test_a_reader_that_leaves_does_not_change_the_code(end, code, pipe):
    """What was printed is still in Python's buffer when the command ends."""
    program = (
        "import sys, time\nfrom resnext_det.engine.exits import run\nfrom resnext_det.errors import UserError\n"
        f"def main():\n    print('x')\n    time.sleep(0.3)\n    {end}\nrun(main)"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"{sys.executable}" -c "$1" {pipe}', "bash", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code and "Exception ignored" not in done.stderr and "Traceback" not in done.stderr


def test_flags():
    args = parse_training_arguments("", ["--config-file", "c.yaml", "--num-gpus", "2", "SEED", "3"])
    assert (args.config_file, args.num_gpus, args.opts, args.resume) == ("c.yaml", 2, ["SEED", "3"], False)
    args = parse_training_arguments("", ["--config-file", "c.yaml", "--init-from", "w.pth", "SEED", "3"])
    assert args.opts == ["MODEL.WEIGHTS", "w.pth", "SEED", "3"]


def test_contradicting_and_missing_flags():
    with pytest.raises(UserError, match="give one of them"):
        parse_training_arguments("", ["--config-file", "c", "--resume", "--init-from", "w"])
    with pytest.raises(UserError, match="--config-file is missing"):
        parse_training_arguments("", [])


def test_a_replay_needs_no_config_of_its_own(tmp_path):
    args = parse_training_arguments("", ["--replay", str(tmp_path)])
    assert args.config_file == str(tmp_path / "config.yaml")
    args = parse_training_arguments("", ["--replay", str(tmp_path / "process_1.json")])
    assert args.config_file == str(tmp_path / "config.yaml")


def test_an_error_that_holds_a_name_from_data_obeys_nobody(capsys):
    with pytest.raises(SystemExit):
        run(lambda: raise_error(UserError("class \x1b[31mred\x07: twice")))
    assert capsys.readouterr().err == "error: class \\x1b[31mred\\x07: twice\n"


def raise_error(error):
    raise error
