"""Where a process stands under torchrun and Slurm, and runs of two processes that are killed, stopped or wrong."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from reported import Reports, block, reports_of_all
from toy import ToyRun, equal

from resnext_det.engine import launch as module
from resnext_det.engine import run as run_module
from resnext_det.engine.config import save_config
from resnext_det.engine.evaluations import Evaluations
from resnext_det.engine.launch import Place, _place_from_slurm, _place_from_torchrun, launch
from resnext_det.engine.logs import start_log
from resnext_det.engine.processes import decided_by_main, enough_open_files
from resnext_det.engine.signals import Stopped
from resnext_det.errors import RunFailed, UserError
from resnext_det.files import write_json

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "70000",
    "SLURM_JOB_NODELIST": "node1,node2", "SLURM_STEP_ID": "0",
}  # fmt: skip


def test_torchrun():
    assert _place_from_torchrun(TORCHRUN) == Place(3, 4, 1, 2, "env://")
    assert _place_from_torchrun({}) is None and _place_from_torchrun({"RANK": "0"}) is None


def test_slurm():
    place = _place_from_slurm(SLURM)
    assert place == Place(3, 4, 1, 2, f"tcp://node1:{49152 + 70000 % 16384}")
    assert _place_from_slurm({**SLURM, "MASTER_ADDR": "head"}).url.startswith("tcp://head:")
    assert _place_from_slurm({**SLURM, "SLURM_STEP_NODELIST": "node2"}).url.startswith("tcp://node2:")


@pytest.mark.parametrize(
    "change", [{"SLURM_NTASKS": "1"}, {"SLURM_JOB_NAME": "bash"}, {"SLURM_JOB_NAME": "interactive"}]
)
def test_one_task_and_interactive_shells_are_no_slurm_run(change):
    assert _place_from_slurm({**SLURM, **change}) is None
    assert _place_from_slurm({}) is None


def test_slurm_mistakes():
    with pytest.raises(UserError, match="as many tasks"):
        _place_from_slurm({**SLURM, "SLURM_NTASKS": "5"})
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        _place_from_slurm({**SLURM, "SLURM_JOB_NODELIST": "node[1-2]", "PATH": ""})


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("MASTER_PORT", "x"), ("WORLD_SIZE", None)])
def test_torchrun_variables_that_are_no_numbers(name, value):
    environment = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "1", name: value}
    with pytest.raises(UserError, match=f"environment variable {name} is"):
        _place_from_torchrun({key: value for key, value in environment.items() if value is not None})


def test_slurm_variables_that_are_no_numbers():
    with pytest.raises(UserError, match="SLURM_NTASKS is 'x'"):
        _place_from_slurm({"SLURM_NTASKS": "x"})
    with pytest.raises(UserError, match="SLURM_LOCALID is not set"):
        _place_from_slurm({key: value for key, value in SLURM.items() if key != "SLURM_LOCALID"})


@pytest.mark.parametrize("change", [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "2"}])
def test_variables_that_contradict_each_other_are_refused_before_anything_waits(change, monkeypatch):
    monkeypatch.setattr(module.os, "environ", {**TORCHRUN, **change})
    with pytest.raises(UserError, match="counted from 0"):
        launch(print, ())


def test_a_batch_script_without_srun_and_a_task_without_a_node_list():
    with pytest.raises(UserError, match="put srun before the command"):
        _place_from_slurm({key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"})
    with pytest.raises(UserError, match="SLURM_JOB_NODELIST is not set"):
        _place_from_slurm({key: value for key, value in SLURM.items() if key != "SLURM_JOB_NODELIST"})


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:99999", "tcp://127.0.0.1:0", "127.0.0.1:3000"])
def test_a_meeting_point_that_is_none(url):
    with pytest.raises(UserError, match="--dist-url .*: give tcp://HOST:PORT"):
        launch(print, (), processes=1, machines=2, url=url)


def test_a_taken_port_and_a_process_that_never_comes(monkeypatch, capsys):
    monkeypatch.setattr(module, "MEETING", 1.0)
    monkeypatch.setattr(module, "NOTICE", 0.2)
    with module.socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: the port is taken"):
            module._meet(Place(0, 2, 0, 1, f"tcp://127.0.0.1:{port}"))
    port = module.free_port()
    with pytest.raises(UserError, match=f"1 of 2 processes did not come to 127.0.0.1:{port}"):
        module._meet(Place(0, 2, 0, 1, f"tcp://127.0.0.1:{port}"))
    assert f"waiting for 1 of 2 processes at 127.0.0.1:{port}" in capsys.readouterr().err
    port = module.free_port()
    with pytest.raises(UserError, match=f"127.0.0.1:{port}: process 1 of 2 cannot meet the others"):
        module._meet(Place(1, 2, 0, 1, f"tcp://127.0.0.1:{port}"))
    assert f"waiting for process 0 of 2 at 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_compressed_node_list_is_read_by_slurms_own_tool(tmp_path, monkeypatch):
    tool = tmp_path / "scontrol"
    tool.write_text("#!/bin/sh\necho node7\necho node8\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    assert _place_from_slurm({**SLURM, "SLURM_JOB_NODELIST": "node[7-8]"}).url.startswith("tcp://node7:")


def test_one_process_needs_no_group():
    assert launch(lambda x: x + 1, (2,)) == 3
    with pytest.raises(UserError, match="needs --dist-url"):
        launch(print, (), processes=1, machines=2)
    with pytest.raises(UserError, match="--num-gpus 99"):
        launch(print, (), processes=99, device="cuda")


def train_two(folder, end, ready):
    """Two processes train; ``end`` says how it ends."""
    if end == "bad loss, then error":
        with pytest.raises(UserError, match="the loss is not finite at iteration 3"):
            ToyRun(folder, period=100).train(10, poison={3: float("nan")})
        assert (folder / "dump_0000003" / f"process_{comm.get_rank()}.json").exists()
    run = ToyRun(folder, period=100)
    trainer = run.trainer
    original = trainer.run_step

    def step():
        if trainer.iter == 3:
            (ready / str(comm.get_rank())).write_text(str(os.getpid()))
            limit = time.monotonic() + 60
            while end in ("kill", "signal") and not (ready / "go").exists() and time.monotonic() < limit:
                time.sleep(0.02)
            if end == "bad loss, then error" and comm.get_rank() == 1:
                raise UserError("rank 1 met a broken image")
        original()

    trainer.run_step = step
    weights = run.train(10, resume=end == "resume")
    if end == "resume":
        assert equal(ToyRun(folder / "whole", period=100).train(10), weights)
        (folder / f"equal_{comm.get_rank()}").touch()


@pytest.fixture
def two(tmp_path):
    """Start two processes in ``tmp_path/run``; ``act`` is called with their ids once both are in iteration 3."""

    def start(end, act=None):
        folder, ready = tmp_path / "run", tmp_path / f"ready_{end}"
        folder.mkdir(exist_ok=True)
        ready.mkdir()

        def wait():
            while not ((ready / "0").exists() and (ready / "1").exists()):
                time.sleep(0.05)
            time.sleep(0.1)
            pids = [int((ready / str(rank)).read_text()) for rank in (0, 1)]
            act(pids)
            time.sleep(0.2)
            (ready / "go").touch()

        if act is not None:
            threading.Thread(target=wait, daemon=True).start()
        launch(train_two, (folder, end, ready), processes=2)
        return folder

    return start


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_other_ends_with_the_cause(two):
    pids = []

    def kill(found):
        pids.extend(found)
        os.kill(found[1], signal.SIGKILL)

    with pytest.raises(RunFailed, match="process 1 of 2 was ended by SIGKILL.*continue with --resume"):
        two("kill", kill)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_signal_to_one_of_two_saves_and_both_leave_then_resume(two, tmp_path):
    with pytest.raises(Stopped, match="SIGUSR1 after iteration 3; saved model_0000003.pth"):
        two("signal", lambda pids: os.kill(pids[1], signal.SIGUSR1))
    folder = two("resume")
    assert (folder / "equal_0").exists() and (folder / "equal_1").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_bad_loss_is_dumped_by_both_and_an_error_in_one_process_ends_both(two):
    with pytest.raises(UserError, match="rank 1 met a broken image"):
        two("bad loss, then error")


def decide_badly(folder):
    def decide(error=None):
        if error is not None:
            raise error
        return comm.get_rank()

    def reported(error):
        try:
            decided_by_main(lambda: decide(error))
        except Exception as found:
            return f"{type(found).__name__}: {found}"

    said = [reported(UserError("bad file")), reported(ZeroDivisionError("by 0"))]
    said.append(str(decided_by_main(lambda: time.sleep(3) or decide())))
    (folder / str(comm.get_rank())).write_text("\n".join(said))


@pytest.mark.usefixtures("forked")
def test_what_the_main_process_decides_reaches_all_and_so_does_any_error(tmp_path, monkeypatch):
    """Also when it takes longer than the group would wait."""
    monkeypatch.setattr(module, "TIMEOUT", timedelta(seconds=2))
    launch(decide_badly, (tmp_path,), processes=2)
    first, second = ((tmp_path / rank).read_text().splitlines() for rank in "01")
    assert first == ["UserError: bad file", "ZeroDivisionError: by 0", "0"]
    assert second == ["UserError: bad file", "RunFailed: process 0 of 2 failed: ZeroDivisionError: by 0", "0"]


class Once(HookBase):
    """Sends this process SIGTERM in its first step."""

    def before_step(self):
        if self.trainer.iter == 0 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def write_in_vain(folder):
    """Everything that only the first process writes, where it cannot be written."""
    reported = Reports()
    (folder / "file").touch()
    (folder / "aside").touch()

    def training(name, *hooks, **options):
        run = ToyRun(folder / name, **options)
        run.trainer.register_hooks(hooks)
        return lambda: run.train(2)

    def evaluations(where, **choices):
        return Evaluations(lambda done: {"AP": 1.0}, 1, where, **choices)

    reported("log", lambda: start_log(str(folder / "file" / "run")))
    reported("config", lambda: save_config(CfgNode(), block(folder, "run", "config.yaml")))
    block(folder, "metrics", "metrics.json")
    reported("metrics", training("metrics"))
    run_module.archive = lambda folder: Path(folder, "aside").mkdir()
    reported("aside", training("aside"))
    run_module.archive = lambda folder: None
    block(folder, "periodic", "model_0000000.pth")
    reported("periodic", training("periodic", period=1))
    block(folder, "final", "model_final.pth")
    reported("final", training("final"))
    block(folder, "stopped", "model_0000000.pth")
    reported("stopped", training("stopped", Once()))
    reported("evaluated", training("evaluated", evaluations(block(folder, "evaluated", "evaluations.jsonl"))))
    reported("best", training("best", evaluations(folder / "best", save_best=lambda done: write_much(folder))))
    (folder / "broken.jsonl").write_text("{")
    broken = evaluations(folder)
    broken.path = folder / "broken.jsonl"
    reported("broken", training("broken", broken))
    reported.write(folder)


def write_much(folder):
    """The system's limit on file sizes stands in for a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, old[1]))
    try:
        write_json(folder / "much.json", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.usefixtures("forked")
def test_what_only_the_first_process_writes_ends_both_when_it_cannot_be_written(tmp_path):
    launch(write_in_vain, (tmp_path,), processes=2)
    said = reports_of_all(tmp_path)
    for name, words in (
        ("log", "file/run: not a directory"), ("config", "config.yaml: is a directory"),
        ("metrics", "metrics.json: is a directory"), ("aside", "aside/aside: not a directory"),
        ("periodic", "model_0000000.pth: cannot be written"), ("final", "model_final.pth: cannot be written"),
        ("stopped", "model_0000000.pth: cannot be written"), ("evaluated", "evaluations.jsonl: is a directory"),
        ("best", "File too large: '"), ("broken", "broken.jsonl: line 1"),
    ):  # fmt: skip
        assert said[name].startswith("UserError: ") and words in said[name], (name, said[name])


def test_stopping_signals_are_passed_on_to_the_processes(monkeypatch):
    class Process:
        exitcode, pid, sentinel = None, 12345, 0

        def is_alive(self):
            return self.exitcode is None

        def join(self, timeout):
            pass

    process, sent = Process(), []

    def kill(pid, number):
        sent.append((pid, number))
        process.exitcode = 75

    monkeypatch.setattr(module.connection, "wait", lambda waiting, left: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(module.os, "kill", kill)
    assert module._supervise([process]) == ([75], {signal.SIGTERM}) and sent == [(12345, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ([0, -9], RunFailed), ([2, -11], RunFailed), ([1, 2], UserError), ([75, 75], Stopped), ([1, 0], RunFailed),
        ([130, 0], KeyboardInterrupt), ([75, None], RunFailed), ([None, 2], UserError),
    ],
)  # fmt: skip
def test_the_cause_among_several_exit_codes(codes, kind, tmp_path):
    assert type(module._cause(codes, tmp_path)) is kind


def test_last_words_that_cannot_be_written_do_not_change_the_code(tmp_path, monkeypatch, capsys):
    def join(*arguments):
        raise UserError("no space left; free some")

    monkeypatch.setattr(module, "_join", join)
    with pytest.raises(SystemExit) as end:
        module._worker(0, [None], "cpu", print, (), str(tmp_path / "none"))
    assert end.value.code == 2 and capsys.readouterr().err == "no space left; free some\n"


class Slow:
    """A process that ends with ``code`` at a moment of a clock that only waiting moves."""

    def __init__(self, clock, seconds, code):
        self._clock, self._seconds, self._code, self.ended = clock, seconds, code, False
        self.sentinel = self

    @property
    def exitcode(self):
        if self.ended:
            return -signal.SIGTERM
        return self._code if self._clock[0] >= self._seconds else None

    def is_alive(self):
        return self.exitcode is None

    def terminate(self):
        self.ended = True


@pytest.mark.parametrize(
    ("ends", "codes"),
    [
        ([(1, 75), (400, 75)], [75, 75]), ([(1, 75), (1e6, 75)], [75, None]), ([(1, 1), (400, 1)], [1, None]),
        ([(1, 1), (9, 1)], [1, 1]), ([(1, 75), (5, 1), (400, 75)], [75, 1, None]), ([(1, 0), (1e6, 0)], [0, 0]),
    ],
)  # fmt: skip
def test_patient_with_those_who_save_and_short_with_a_failure(ends, codes, monkeypatch):
    clock = [0.0]

    def wait(running, left):
        clock[0] = min([p._seconds for p in running] + ([] if left is None else [clock[0] + left]))

    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.connection, "wait", wait)
    assert module._supervise([Slow(clock, *end) for end in ends])[0] == codes


def test_too_few_open_files_for_the_workers(monkeypatch):
    limits = [256, 1000]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.__setitem__(slice(None), pair))
    enough_open_files(8, 10)
    assert limits == [1000, 1000], "as many as the system grants"
    with pytest.raises(UserError, match="NUM_WORKERS 8: at most 1000 files may be open here, .* set it to 6, or"):
        enough_open_files(8, 16)
    enough_open_files(6, 16)
    enough_open_files(0, 1000)
