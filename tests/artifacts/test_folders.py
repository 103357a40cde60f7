"""Exports as they are read: whole ones by every door, without torch, and damaged ones in one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from artifacts.made import about, write  # noqa: E402

import resnext_det  # noqa: E402
from resnext_det import UserError  # noqa: E402
from resnext_det.artifacts.about import ABOUT, ONNX, read_about  # noqa: E402
from resnext_det.artifacts.running import ArtifactPredictor  # noqa: E402
from resnext_det.commands import predict  # noqa: E402


@pytest.mark.parametrize("door", ["folder", "file"])
def test_three_lines_of_python(tmp_path: Path, door: str) -> None:
    folder = write(tmp_path / "export")
    detector = resnext_det.load_detector(folder if door == "folder" else folder / ONNX)
    image = np.zeros((40, 50, 3), dtype=np.uint8)
    result = detector(image)
    assert result.names == ["dog"] and result.scores.tolist() == [0.75] and result.category_ids.tolist() == [7]
    assert result.boxes.tolist() == [[2, 3, 12, 23]] and len(detector(image, score_threshold=0.8)) == 0
    with ThreadPoolExecutor(4) as pool:
        assert all(found.names == ["dog"] for found in pool.map(pickle.loads(pickle.dumps(detector)), [image] * 40))
    with pytest.raises(UserError, match="an exported detector gives none"):
        detector(image, features=True)
    with pytest.raises(UserError, match="leave out dtype"):
        resnext_det.load_detector(folder, dtype="int8")


def test_thresholds_of_the_export_count_unless_one_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "export", about(thresholds=[0.1, 0.8]))
    image = np.zeros((40, 50, 3), dtype=np.uint8)
    assert len(resnext_det.load_detector(folder)(image)) == 0, "the dog of 0.75 is below the dogs' own 0.8"
    assert len(resnext_det.load_detector(folder, score_threshold=0.5)(image)) == 1
    Image.fromarray(image).save(tmp_path / "one.png")
    words = ["--weights", folder / ONNX, "--input", tmp_path / "one.png", "--no-drawings", "--output"]
    predict.main([str(word) for word in [*words, tmp_path / "own"]])
    predict.main([str(word) for word in [*words, tmp_path / "named", "--score-threshold", 0.5]])
    numbers = [len(json.loads((tmp_path / n / "detections.json").read_text())["annotations"]) for n in ("own", "named")]
    assert numbers == [0, 1]


def test_predict_in_tiles(tmp_path: Path) -> None:
    """The made detector finds its one box in every tile, at the tile's own place."""
    Image.new("RGB", (250, 100)).save(tmp_path / "wide.png")
    words = ["--weights", write(tmp_path / "export"), "--input", tmp_path / "wide.png", "--no-drawings"]
    words += ["--tile", 100, "--overlap", 0.25, "--output", tmp_path / "out"]
    predict.main([str(word) for word in words])
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]
    assert [a["bbox"] for a in found] == [[2 + left, 3, 10, 20] for left in (0, 75, 150)]
    with pytest.raises(UserError, match="began with tile"):
        predict.main([str(word) for word in [*words, "--resume", "--overlap", 0.5]])


BARE = """
import importlib.abc, sys
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        known = {"numpy", "PIL", "onnxruntime", "resnext_det", "flatbuffers", "coloredlogs", "encodings"}
        if name.split(".")[0] not in known | sys.stdlib_module_names:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing())
import resnext_det
assert resnext_det.load_detector(sys.argv[1]).class_names == ["cat", "dog"]
sys.argv[0] = "resnext-det"
sys.argv.insert(1, "predict")
from resnext_det.cli import main
main()
"""


@pytest.mark.parametrize("form", ["short", "flags", "keys"])
def test_predict_with_onnxruntime_numpy_and_pillow_alone(tmp_path: Path, form: str) -> None:
    folder, photos, out = write(tmp_path / "export"), tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (40 + number, 50)).save(photos / f"{number}.png")
    words = {
        "short": [folder / ONNX, photos, "--output", out],
        "flags": [folder, photos, "--weights", folder, "--output", out],
        "keys": [folder, photos, "--output", out, "--input", photos, "MODEL.WEIGHTS", folder],
    }[form]
    if form != "short":  # the script's own first argument, then the command's
        words = [words[0], *words[1:]]
    done = subprocess.run([sys.executable, "-c", BARE, *map(str, words)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((out / "detections.json").read_text("utf-8"))
    assert [image["width"] for image in found["images"]] == [40, 41, 42]
    assert [a["category_id"] for a in found["annotations"]] == [7, 7, 7] and (out / "0.png").exists()


def changed(key: str, value: object):
    def damage(folder: Path) -> None:
        values = json.loads((folder / ABOUT).read_text("utf-8"))
        if value is None:
            del values[key]
        else:
            values[key] = value
        (folder / ABOUT).write_text(json.dumps(values), encoding="utf-8")

    return damage


def bytes_of(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def turned_over(folder: Path) -> None:
    data = bytearray((folder / ONNX).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / ONNX).write_bytes(data)


def renamed(folder: Path) -> None:
    """Whole, its hash right, and no graph."""
    (folder / ONNX).write_bytes(b"no graph")
    from resnext_det.artifacts.about import sha256

    changed("files", {ONNX: sha256(folder / ONNX)})(folder)


def test_a_detector_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Offline, from the cache that huggingface_hub keeps; the commit is stated."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789" * 4
    model = tmp_path / "models--someone--digits"
    write(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    with caplog.at_level("INFO"):
        for address in ("hf://someone/digits", f"hf://someone/digits@{commit}"):
            assert resnext_det.load_detector(address).class_names == ["cat", "dog"]
    assert caplog.text.count(f"commit {commit}") == 2
    Image.new("RGB", (40, 50)).save(tmp_path / "one.png")
    words = ["hf://someone/digits", tmp_path / "one.png", "--no-drawings", "--output", tmp_path / "out"]
    predict.main([str(word) for word in words])
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]) == 1
    with pytest.raises(UserError, match="hf://someone/letters: cannot be fetched"):
        resnext_det.load_detector("hf://someone/letters")
    with pytest.raises(UserError, match="give hf://USER/MODEL"):
        resnext_det.load_detector("hf://../digits/x")


DAMAGES = {
    "empty description": (bytes_of(ABOUT, b""), "detector.json: not JSON"),
    "half a description": (cut(ABOUT), "detector.json: not JSON"),
    "binary description": (bytes_of(ABOUT, bytes(range(256))), "detector.json: not JSON"),
    "deep description": (bytes_of(ABOUT, b"[" * 100_000), "detector.json: not JSON"),
    "a list": (bytes_of(ABOUT, b"[]"), "does not describe a detector"),
    "another's": (bytes_of(ABOUT, b'{"class_names": []}'), "does not describe a detector"),
    "large description": (bytes_of(ABOUT, b" " * (1 << 21)), "more than the limit"),
    "a later version": (changed("version", 2), "version 2, and this package reads 1"),
    "no class names": (changed("class_names", None), "class_names is missing"),
    "class names of numbers": (changed("class_names", [1, 2]), "class_names is .* not a list of different names"),
    "the same name twice": (changed("class_names", ["cat", "cat"]), "class_names is .* different names"),
    "one id": (changed("category_ids", [3]), "1 category_ids for 2 class_names"),
    "another graph": (changed("graph", "../detector.onnx"), "graph is ../detector.onnx, and not"),
    "another order": (changed("channel_order", "GBR"), "channel_order is GBR, and not RGB or BGR"),
    "a size of text": (changed("min_size", "60"), "min_size is 60, and not a whole number"),
    "sizes crossed": (changed("min_size", 200), "min_size 200 is above max_size 100"),
    "a threshold above 1": (changed("thresholds", [0.5, 1.5]), "thresholds is .* and not a list of scores"),
    "one threshold": (changed("thresholds", [0.5]), "1 thresholds for 2 class_names"),
    "files elsewhere": (changed("files", {"../x": "0"}), "files is .* and not SHA-256 by name"),
    "no file": (changed("files", {"other": "0"}), "files does not name detector.onnx"),
    "graph gone": (lambda folder: (folder / ONNX).unlink(), "detector.onnx: no such file"),
    "half a graph": (cut(ONNX), "detector.onnx: damaged or replaced"),
    "one bit": (turned_over, "detector.onnx: damaged or replaced"),
    "no graph in it": (renamed, "detector.onnx: cannot be opened by onnxruntime"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "export")
    harm, message = DAMAGES[damage]
    assert read_about(folder).class_names == ["cat", "dog"]
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        ArtifactPredictor(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_an_onnx_file_of_others(tmp_path: Path) -> None:
    import onnx

    folder = write(tmp_path / "export")
    model = onnx.load(str(folder / ONNX))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(UserError, match="other.onnx: not a detector of resnext-det export"):
        resnext_det.load_detector(tmp_path / "other.onnx")
    with pytest.raises(UserError, match="none.onnx: no such file"):
        resnext_det.load_detector(tmp_path / "none.onnx")
