"""What OpenVINO has compiled is kept, and taken back only where it is whole, the user's own and of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

for package in ("onnx", "openvino"):
    pytest.importorskip(package)

from artifacts.made import write_openvino  # noqa: E402

from resnext_det.artifacts import cache, running  # noqa: E402
from resnext_det.artifacts.running import ArtifactPredictor  # noqa: E402

IMAGE = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_openvino(tmp_path / "int8")


def kept(folder: Path) -> list[Path]:
    return sorted(folder.parent.glob("cache/resnext_det/openvino/*"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets a name whenever a graph is read to be compiled."""
    read, names = running._read_openvino, []
    monkeypatch.setattr(running, "_read_openvino", lambda graph: names.append(graph) or read(graph))
    return names


def test_the_second_start_compiles_nothing_and_gives_equal_bits(folder: Path, compiled: list[str]) -> None:
    first = ArtifactPredictor(folder).arrays(IMAGE)
    (file,) = kept(folder)
    assert file.stat().st_mode & 0o777 == 0o600 and len(compiled) == 1
    second = ArtifactPredictor(folder).arrays(IMAGE)
    assert len(compiled) == 1 and kept(folder) == [file]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and len(first[1]) == 1


@pytest.mark.parametrize("name", ["processor", "threads", "graph", "version"])
def test_another_machine_version_or_graph_compiles_its_own(
    folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ArtifactPredictor(folder, threads=1)
    if name == "processor":
        monkeypatch.setattr(running, "processor", lambda: "another")
    elif name == "version":
        monkeypatch.setattr(running.needed_openvino(), "get_version", lambda: "another")
    elif name == "graph":
        (folder / "detector.json").write_text((folder / "detector.json").read_text().replace('"cat"', '"cow"'))
    ArtifactPredictor(folder, threads=2 if name == "threads" else 1)
    assert len(compiled) == (1 if name == "graph" else 2), "names of classes are no part of a graph"
    assert len(kept(folder)) == len(compiled)


@pytest.mark.parametrize("harm", ["bit", "cut", "empty", "nonsense", "others", "link"])
def test_what_is_damaged_or_can_be_anothers_is_not_taken(
    folder: Path, compiled: list[str], caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    wanted = ArtifactPredictor(folder).arrays(IMAGE)
    (file,) = kept(folder)
    data = file.read_bytes()
    if harm == "nonsense":  # of another build, say: whole, and OpenVINO does not know it
        cache.keep(file, b"\0" * 100)
    elif harm == "others":
        file.chmod(0o666)
    elif harm == "link":
        file.rename(file.with_name("other"))
        file.symlink_to(folder / "detector.json")
    else:
        changed = bytes([*data[:-1], data[-1] ^ 1])
        file.write_bytes({"bit": changed, "cut": data[:-1], "empty": b""}[harm])
    found = ArtifactPredictor(folder).arrays(IMAGE)
    assert len(compiled) == 2 and all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert harm not in ("others", "nonsense") or len(caplog.records) == 1
    assert cache.recall(file) and not file.is_symlink(), "made anew"


def test_a_cache_that_cannot_be_written_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert len(ArtifactPredictor(folder).arrays(IMAGE)[1]) == 1
    assert "cannot be kept" in caplog.text and len(caplog.records) == 1


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = [cache.place("kind", i) for i in range(cache.MOST)]
    for i, path in enumerate(paths):
        cache.keep(path, b"x")
        os.utime(path, (i, i))
    assert cache.recall(paths[0]) == b"x"  # used: no longer the oldest
    cache.keep(cache.place("kind", "new"), b"x")
    assert cache.recall(paths[0]) == b"x" and cache.recall(paths[1]) is None
