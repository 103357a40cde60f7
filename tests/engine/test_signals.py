"""Stopping signals that come twice, and to data workers as well."""

from __future__ import annotations

import signal
import subprocess

import pytest
from torch.utils.data import DataLoader

from resnext_det.engine import signals
from resnext_det.engine.signals import STOPPING, StopRequest, outlive_stopping_signals


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
    batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=outlive_stopping_signals))
    next(batches)
    (worker,) = batches._workers
    for number in STOPPING:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)  # not from the worker's own parent
    assert len(list(batches)) == 99
    batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=outlive_stopping_signals))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
