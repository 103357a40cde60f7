"""Checkpoints: whole or not there, sealed, and resumed from the newest that is whole."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from common import ROOT
from detectron2.layers import FrozenBatchNorm2d
from toy import ToyRun, equal

from resnext_det import files
from resnext_det.engine import checkpoint as module
from resnext_det.engine.checkpoint import LAST, RunCheckpointer, read_run_checkpoint, seal_holds
from resnext_det.engine.evaluations import read_evaluations
from resnext_det.engine.folder import locked
from resnext_det.engine.logs import start_log
from resnext_det.engine.run import SET_SIZE
from resnext_det.errors import UserError


@pytest.fixture
def run(tmp_path):
    """A finished run: model_0000001, 3, 5 and model_final."""
    ToyRun(tmp_path).train(6)
    return tmp_path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("model_*.pth"))


def tear(path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def flip(path) -> None:
    """One bit in the middle of a tensor's bytes, where torch sees nothing wrong."""
    data = bytearray(path.read_bytes())
    wanted = torch.load(path, weights_only=True)["model"]["linear.weight"].numpy().tobytes()
    data[data.index(wanted) + 5] ^= 1
    path.write_bytes(data)


def test_what_is_in_a_checkpoint(run):
    data = torch.load(run / "model_final.pth", weights_only=True)
    assert set(data) == {"model", "metadata", "iteration", "trainer"}
    assert data["iteration"] == 5 and data["metadata"] == {"kind": "toy"}
    assert names(run) == ["model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_final.pth"]
    assert (run / LAST).read_text() == "model_final.pth"


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    whole = ToyRun(tmp_path / "whole").train(7)
    ToyRun(tmp_path / "parts").train(4)
    assert equal(ToyRun(tmp_path / "parts").train(7, resume=True), whole)
    assert not equal(ToyRun(tmp_path / "other").train(8), whole)


def test_every_file_is_sealed_and_a_flipped_bit_breaks_the_seal(run):
    path = run / "model_0000003.pth"
    assert all(seal_holds(path) is True for path in run.glob("model_*.pth"))
    flip(path)
    torch.load(path, weights_only=True)  # torch does not notice
    assert seal_holds(path) is False
    with pytest.raises(UserError, match="checksum"):
        read_run_checkpoint(path)


def test_files_without_a_seal_are_read(tmp_path):
    torch.save({"model": {}, "iteration": 3}, tmp_path / "model_0000003.pth")
    assert seal_holds(tmp_path / "model_0000003.pth") is None
    assert read_run_checkpoint(tmp_path / "model_0000003.pth")["iteration"] == 3


@pytest.mark.parametrize("damage", [tear, flip, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_case_48_a_torn_or_missing_last_checkpoint_falls_back_and_says_so(run, damage, caplog):
    damage(run / "model_final.pth")
    damage(run / "model_0000005.pth")
    with caplog.at_level(logging.WARNING):
        assert ToyRun(run).resume() == 3
    assert "model_final.pth" in caplog.text and "trying" in caplog.text


def test_case_48_a_stale_last_checkpoint_is_named(run, caplog):
    (run / LAST).write_text("model_0000099.pth")
    with caplog.at_level(logging.WARNING):
        assert ToyRun(run).resume() == 5
    assert "names model_0000099.pth, which is not there" in caplog.text


def test_without_the_name_of_the_last_the_newest_is_found(run):
    (run / LAST).unlink()
    (run / "model_0000005.pth").unlink()
    assert ToyRun(run).resume() == 5, "model_final is newer than model_0000003"


def test_nothing_readable_is_an_error_and_nothing_there_is_none(run, tmp_path):
    for path in run.glob("model_*.pth"):
        tear(path)
    with pytest.raises(UserError, match="none of its 4 checkpoints can be read"):
        ToyRun(run).resume()
    assert ToyRun(tmp_path / "empty").resume() is None


def test_processes_that_see_other_checkpoints_stop(run, monkeypatch):
    """As on machines that do not share the folder."""
    monkeypatch.setattr(module.comm, "all_gather", lambda mine: [mine, 3])
    with pytest.raises(UserError, match=r"different newest checkpoints \(iterations 5, 3\)"):
        ToyRun(run).resume()
    monkeypatch.setattr(module.comm, "all_gather", lambda mine: [mine, 5])
    assert ToyRun(run).resume() == 5


def test_weights_of_another_model_are_refused(run):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match="do not fit"):
        RunCheckpointer(Other(), str(run), {}).resume()


def test_state_that_is_not_in_the_file_is_named(run):
    toy = ToyRun(run)
    toy.checkpointer.add_checkpointable("model_ema", torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="holds no model_ema"):
        toy.resume()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Evil(), "iteration": 1}, tmp_path / "model_0000001.pth")
    with pytest.raises(UserError, match="runs code"):
        read_run_checkpoint(tmp_path / "model_0000001.pth")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_old_checkpoint_whole(run, monkeypatch):
    def full(data, file):
        file.write(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(UserError, match="No space left on device; free some space and continue with --resume"):
        ToyRun(run).save("model_final", iteration=9)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_real_write_that_fails_in_the_middle(run):
    """The system's limit on file sizes stands in for a full disk: torch hides the error that says so."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    toy = ToyRun(run)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, old[1]))
        with pytest.raises(UserError, match="File too large"):
            toy.save("model_final", iteration=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(run.glob(".*.part"))
    assert ToyRun(run).resume() == 5


def test_a_new_run_archives_all_of_an_earlier_one(tmp_path, caplog):
    for lr in (0.1, 0.2):
        start_log(str(tmp_path))
        logging.getLogger("resnext_det").warning("rate %g", lr)
        toy = ToyRun(tmp_path, lr=lr, config=f"lr: {lr}\n")
        toy.run.evaluate_with(lambda model, done, lr=lr: {"AP": lr}, 2, metric="AP")
        toy.train(2)
        (tmp_path / "results.json").write_text(str(lr))
    old = tmp_path / "earlier_run_1"
    assert (old / "config.yaml").read_text() == "lr: 0.1\n" and (tmp_path / "config.yaml").read_text() == "lr: 0.2\n"
    for name in ("metrics.json", "evaluations.jsonl", "model_final.pth", "last_checkpoint", "model_best.pth"):
        assert (old / name).is_file() and (tmp_path / name).is_file()
    assert list(old.glob("events.*")) and (old / "results.json").read_text() == "0.1"
    assert [r["AP"] for r in read_evaluations(old / "evaluations.jsonl")] == [0.1]
    assert "rate 0.1" in (old / "log.txt").read_text() and "rate 0.2" not in (old / "log.txt").read_text()
    log = (tmp_path / "log.txt").read_text()
    assert "rate 0.2" in log and "rate 0.1" not in log and "earlier_run_1" in log


def test_a_second_run_in_the_folder_is_refused_and_the_lock_of_a_dead_one_is_taken_over(tmp_path):
    program = (
        "import sys, time\nfrom resnext_det.engine.folder import locked\n"
        "with locked(sys.argv[1]):\n    print(1, flush=True)\n    time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"another run is writing there .process {other.pid} on"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path), pytest.raises(UserError, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_another_batch_resumes_where_as_many_images_were_seen(tmp_path, caplog):
    ToyRun(tmp_path, batch=4).train(6)
    toy = ToyRun(tmp_path, batch=8)
    toy.run.iterations = 6
    assert toy.run.begin(resume=True) == 3 and "has seen 24 images in 6 iterations" in caplog.text
    assert toy.run.scheduler.last_epoch == 3
    toy = ToyRun(tmp_path, batch=4)
    toy.run.iterations = 6
    assert toy.run.begin(resume=True) == 6 and "nothing is left to train" in caplog.text


def test_what_the_config_no_longer_has_or_cannot_change_is_reported(tmp_path, caplog):
    ToyRun(tmp_path, ema_decay=0.5).train(2)
    toy = ToyRun(tmp_path, given_seed=True)
    toy.trainer.seed = 7
    toy.run.begin(resume=True)
    assert "its model_ema is not used any more" in caplog.text
    assert "SEED 7 has no effect: the run began with 5" in caplog.text


def test_a_checkpoint_of_stock_detectron2_is_refused_with_the_flag_for_it(tmp_path):
    stock = {"model": ToyRun(tmp_path).model.state_dict(), "optimizer": {}, "iteration": 3}
    torch.save(stock, tmp_path / "model_0000003.pth")
    with pytest.raises(UserError, match="holds no trainer.*--init-from .*model_0000003.pth"):
        ToyRun(tmp_path).resume()


def test_a_new_run_archives_each_earlier_one(run, caplog):
    old = (run / "model_final.pth").read_bytes()
    with caplog.at_level(logging.WARNING):
        ToyRun(run, lr=0.2).train(2)
    assert names(run) == ["model_0000001.pth", "model_final.pth"]
    assert (run / "earlier_run_1" / "model_final.pth").read_bytes() == old and "earlier_run_1" in caplog.text
    ToyRun(run).train(2)
    assert (run / "earlier_run_2").is_dir()


def test_what_a_killed_writer_left_is_removed(run):
    part = run / f".model_0000007.pth.99999999_{files._machine()}.part"
    part.write_bytes(b"half")
    earlier = run / "earlier_run_1" / f".log.txt.99999999_{files._machine()}.part"
    earlier.parent.mkdir()
    earlier.write_bytes(b"half")
    files._swept.clear()  # as in a new process
    with locked(run):
        ToyRun(run).train(8, resume=True)
    assert not part.exists() and not earlier.exists()


def test_a_resumed_run_still_keeps_only_the_newest(tmp_path):
    ToyRun(tmp_path, keep=2).train(6)
    assert names(tmp_path) == ["model_0000003.pth", "model_0000005.pth", "model_final.pth"]
    ToyRun(tmp_path, keep=2).train(10, resume=True)
    assert names(tmp_path) == ["model_0000007.pth", "model_0000009.pth", "model_final.pth"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"iteration": "5"}, "its iteration is '5'; take an earlier"),
        ({"iteration": -5}, "its iteration is -5"),
        ({"iteration": 2**70}, "its iteration is 1180591620717411303424"),
        ({"iteration": float("nan")}, "its iteration is nan"),
        ({"metadata": [1]}, "its metadata is not keys and values"),
        ({"model": {"a": 1}}, "its model is not named tensors"),
    ],
)
def test_wrong_content_is_one_line(tmp_path, changes, line):
    path = tmp_path / "model_0000001.pth"
    torch.save({"model": {}, "iteration": 1, "metadata": {}} | changes, path)
    with pytest.raises(UserError, match=line):
        read_run_checkpoint(path)


def test_counters_of_norms_that_are_frozen_now_are_no_mistake(tmp_path):
    """FREEZE_AT turns batch norms into frozen ones, which count no batches."""
    model = torch.nn.BatchNorm2d(3)
    RunCheckpointer(model, tmp_path, {}).save("model_0000000", iteration=0)
    frozen = FrozenBatchNorm2d(3)
    assert RunCheckpointer(frozen, tmp_path, {}).resume() == 0
    assert torch.equal(frozen.weight, model.weight)
    RunCheckpointer(frozen, tmp_path, {}).save("model_0000001", iteration=1)
    assert RunCheckpointer(model, tmp_path, {}).resume() == 1


def test_a_training_set_of_another_size_is_reported(tmp_path, caplog):
    ToyRun(tmp_path, metadata={SET_SIZE: 12}).train(2)
    ToyRun(tmp_path, metadata={SET_SIZE: 12}).train(4, resume=True)
    assert "training set had" not in caplog.text
    ToyRun(tmp_path, metadata={SET_SIZE: 9}).train(6, resume=True)
    assert "model_final.pth: the training set had 12 images and has 9" in caplog.text
