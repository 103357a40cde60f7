"""What an exception of torch means, said once."""

from __future__ import annotations

import errno
import multiprocessing
import os

import pytest
import torch

from resnext_det.engine.causes import cause_of
from resnext_det.errors import RunFailed, UserError


def test_a_dead_data_worker_is_named_once():
    cause = cause_of(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert isinstance(cause, RunFailed) and str(cause).count("a data worker died") == 1
    assert cause_of(cause) is cause, "a process reports it, and the command again"


def test_a_full_disk_is_the_users_to_fix_and_a_bug_stays_a_bug():
    assert isinstance(cause_of(OSError(errno.ENOSPC, "No space left on device")), UserError)
    bug = KeyError("x")
    assert cause_of(bug) is bug


@pytest.mark.parametrize("name", ["file/below", "folder", "missing/file", "n" * 300])
def test_a_place_that_cannot_be_written_is_the_users_to_fix(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        open(tmp_path / name, "w")
    cause = cause_of(caught.value)
    assert isinstance(cause, UserError) and str(cause).startswith(f"{tmp_path / name}: ")


def test_of_two_paths_the_one_to_be_made_is_named(tmp_path):
    (tmp_path / "part").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        os.replace(tmp_path / "part", tmp_path / "folder")
    assert str(cause_of(caught.value)).startswith(f"{tmp_path / 'folder'}: is a directory; it is a folder")


@pytest.mark.parametrize("size", [10**13, 10**17])
def test_too_little_memory_is_reported_without_a_traceback(size):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(size)
    cause = cause_of(caught.value)
    assert isinstance(cause, UserError) and "out of memory" in str(cause) and "SOLVER.ACCUMULATE" in str(cause)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory"),
        (SystemError("<function _find_and_load at 0x7f> returned NULL without setting an exception"), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("could not create a primitive"), "out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory"),
        (OSError(errno.EMFILE, "Too many open files", "/shared memory/x"), "too many open files"),
        (OSError(errno.ENFILE, "Too many open files in system"), "too many open files"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "too little shared"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "too little shared memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/torch_1_2"), "too little shared memory"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "no more processes or threads"),
        (RuntimeError("can't start new thread"), "no more processes or threads"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/a.json"), "'/out/a.json'; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space"),
        (OSError(errno.EFBIG, "File too large"), "free some space"),
    ],
)  # fmt: skip
def test_each_shortage_is_one_line_with_the_fix(error, line):
    cause = cause_of(error)
    assert isinstance(cause, UserError) and line in str(cause) and "\n" not in str(cause)


def test_a_semaphore_without_shared_memory_is_no_full_disk(monkeypatch):
    def none_left(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", none_left)
    with pytest.raises(OSError) as caught:
        multiprocessing.Lock()
    assert "too little shared memory" in str(cause_of(caught.value))


def test_too_little_memory_on_a_gpu():
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert isinstance(cause_of(error), UserError)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3921", True),
        ("[../gloo/transport/tcp/pair.cc:144] Read error [127.0.0.1]:33: Connection reset by peer", True),
        (
            "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation",
            True,
        ),
        ("NCCL error in: a.cpp:3, remote process exited or there was a network error\nncclRemoteError: A call", True),
        ("NCCL error in: a.cpp:3, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed", False),
        ("gloo: tensors must have identical sizes", False),
        ("Socket must be open", False),
        ("ProcessGroupNCCL is only supported with GPUs, no GPUs found!", False),
    ],
)
def test_only_known_words_mean_a_lost_peer_and_the_rest_keeps_its_traceback(text, lost, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    error = RuntimeError(text)
    cause = cause_of(error)
    assert isinstance(cause, RunFailed) if lost else cause is error


def test_one_value_per_channel_in_a_batch_norm_is_the_users_to_fix():
    with pytest.raises(ValueError) as caught:
        torch.nn.BatchNorm2d(4).train()(torch.ones(1, 4, 1, 1))
    cause = cause_of(caught.value)
    assert isinstance(cause, UserError) and "one value per channel has no variance" in str(cause)
