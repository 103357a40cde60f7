"""A data set in a file that processes map: equal, and never read when it is damaged, another's, or half written."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest

from resnext_det import files
from resnext_det.annotations import column_file
from resnext_det.annotations.check import inspect_document
from resnext_det.annotations.column_file import Unusable, map_columns, write_columns
from resnext_det.annotations.dataset import Texts

POINTS = [1, 2, 2, 3, 4, 0]


def made(name="x"):
    boxes = [[i, 2.5, 10, 20] for i in range(7)]
    return inspect_document(
        {
            "images": [{"id": i, "file_name": f"\u20ac{i}.jpg", "width": 80, "height": 60} for i in (5, 2, 9)],
            "categories": [{"id": 4, "name": name}],
            "annotations": [
                {"id": i + 1, "image_id": (9, 5)[i % 2], "category_id": 4, "bbox": box, "keypoints": POINTS,
                 "segmentation": [[1, 1, 9, 1, 9, 9]]}
                for i, box in enumerate(boxes)
            ],
        },
        "x.json", None,
    ).dataset(masks=True, as_written=True)  # fmt: skip


def assert_equal(one, other):
    for key, value in vars(one).items():
        found = getattr(other, key)
        if isinstance(value, Texts):
            assert list(value) == list(found), key
        elif isinstance(value, np.ndarray):
            assert value.dtype == found.dtype and (value == found).all(), key
        elif not key.startswith("_"):
            assert value == found, key


def test_what_is_mapped_is_what_was_written_and_cannot_be_changed(tmp_path):
    file = tmp_path / "x.columns"
    write_columns(file, made(), "key", {"warnings": ["a"]})
    found, facts = map_columns(file, "key")
    assert facts == {"warnings": ["a"]} and found.points(3) == POINTS and file.stat().st_mode & 0o777 == 0o600
    assert_equal(made(), found)
    with pytest.raises(ValueError, match="read-only"):
        found.boxes[0] = 0


def test_other_files_are_not_read(tmp_path):
    file = tmp_path / "x.columns"
    write_columns(file, made(), "key", None)
    with pytest.raises(Unusable, match="other data or options"):
        map_columns(file, "other")
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(OSError, match="symbolic"):
        map_columns(tmp_path / "link", "key")
    file.chmod(0o620)
    with pytest.raises(Unusable, match="others"):
        map_columns(file, "key")


def test_no_damage_passes(tmp_path):
    file = tmp_path / "x.columns"
    write_columns(file, made(), "key", None)
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    unnoticed = 0
    for at in [*range(0, len(whole), 7), *rng.integers(0, len(whole), 50).tolist()]:
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            try:
                assert_equal(made(), map_columns(file, "key")[0])  # only the bytes between columns may be any
                unnoticed += 1
            except Unusable:
                pass
    assert unnoticed < len(whole) / 14


@pytest.mark.parametrize("write", [1, 2, 5])
def test_one_that_is_killed_while_it_writes_leaves_the_earlier_file(tmp_path, monkeypatch, write):
    file = tmp_path / "x.columns"
    write_columns(file, made("before"), "key", None)

    class Killing:
        def __init__(self, file):
            self.file, self.writes = file, 0

        def fileno(self):
            return self.file.fileno()

        def write(self, data):
            self.writes += 1
            if self.writes == write:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            self.file.write(data)

    def work():
        from contextlib import contextmanager

        real = column_file.atomic_write

        @contextmanager
        def killing(path, mode):
            with real(path, mode) as opened:
                yield Killing(opened)

        monkeypatch.setattr(column_file, "atomic_write", killing)
        write_columns(file, made("after"), "key", None)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert map_columns(file, "key")[0].class_names == ["before"]
    files._swept.clear()
    write_columns(file, made("after"), "key", None)
    assert map_columns(file, "key")[0].class_names == ["after"] and os.listdir(tmp_path) == ["x.columns"]
