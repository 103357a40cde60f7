"""A short run of ``python tests/fuzz_readers.py``: no reader ends by anything but its result or one line."""

from __future__ import annotations

import pytest
from fuzz_readers import READERS, attack, fuzz, pickled_files

from resnext_det.engine.checkpoint import read_run_checkpoint
from resnext_det.weights.reading import read_torch

INPUTS = {"images": 60, "json": 40, "checkpoints": 60}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_ends_by_a_signal_a_traceback_or_a_hang(name):
    assert fuzz(name, INPUTS.get(name, 80)) == []


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name, tmp_path):
    reader = READERS[name]
    files = reader.files(tmp_path)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else reader.encode(content))
    if name == "pickles":  # no one reader takes all of them
        assert read_torch(tmp_path / "zipped.pth")["best"] == 3.5
    elif name == "checkpoints":  # of a model that is no ResNeXt
        assert read_run_checkpoint(tmp_path / "model_final.pth")["iteration"] == 1
    else:
        for file in set(files) - {"w.pth"}:  # which has not all tensors, to be small
            reader.read(tmp_path, file)


def test_an_exception_is_a_find(tmp_path, monkeypatch):
    def broken(folder, file):
        raise KeyError("x")

    monkeypatch.setitem(READERS, "pickles", READERS["pickles"].__class__(pickled_files, broken))
    assert "KeyError" in attack("pickles", 0, 1, tmp_path)[0]
