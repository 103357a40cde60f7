"""Stopping signals that come twice, and to data workers as well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common import ROOT
from torch.utils.data import DataLoader

from resnext_det.engine import signals
from resnext_det.engine.causes import cause_of
from resnext_det.engine.signals import STOPPING, StopRequest, begin_worker


def test_the_same_signal_by_two_ways_counts_once_and_a_later_one_ends_the_process(monkeypatch):
    ended = []
    monkeypatch.setattr(signals.os, "kill", lambda pid, number: ended.append(number))
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: None)
    request = StopRequest()
    request(signal.SIGTERM, None)
    request(signal.SIGTERM, None)
    assert request.signal == signal.SIGTERM and not ended
    now = signals.time.monotonic()
    monkeypatch.setattr(signals.time, "monotonic", lambda: now + signals.ECHO + 1)
    request(signal.SIGTERM, None)
    assert ended == [signal.SIGTERM]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no way to see who sent a signal")
def test_a_data_worker_lives_on_when_its_whole_job_is_signalled():
    batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=begin_worker))
    next(batches)
    (worker,) = batches._workers
    for number in STOPPING:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)  # not from the worker's own parent
    assert len(list(batches)) == 99
    batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=begin_worker))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_ctrl_c_to_the_whole_group_does_not_end_a_data_worker():
    batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=begin_worker))
    next(batches)
    (worker,) = batches._workers
    subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    assert len(list(batches)) == 99


PARENT = """
import multiprocessing, os, sys, time
from resnext_det.engine.causes import cause_of
from resnext_det.engine.signals import die_with_parent
def child(pipe):
    die_with_parent()
    pipe.send(os.getpid())
    time.sleep(600)
if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=child, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


class Unsendable:
    def __reduce__(self):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        )


def test_a_batch_that_cannot_be_sent_is_not_waited_for():
    loader = DataLoader([Unsendable()], num_workers=1, collate_fn=list, worker_init_fn=begin_worker)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    assert "too little shared memory" in str(cause_of(caught.value))
