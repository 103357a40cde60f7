"""Files that cannot be used: each with its line on stderr and exit code 2, none with a traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import call
from helpers import randomise_norms
from torch import nn

from resnext_det import UserError, create_model
from resnext_det.commands.convert import main
from resnext_det.engine import exits as cli
from resnext_det.weights import read_checkpoint, save_checkpoint
from resnext_det.weights.conversion import convert
from resnext_det.weights.naming import from_native

ROOT = Path(__file__).resolve().parents[2]

UNSAFE = "runs code when it is opened; if you trust whoever made it, add --trust-pickle"
AGAIN = "copy or download it again"
FAMILY = "is no part of a ResNet or ResNeXt: another family of networks"


@pytest.fixture(scope="module")
def state() -> dict:
    return randomise_norms(create_model("resnext14_8x14d", num_classes=10)).state_dict()


def saved(content, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def safetensors_of(state: dict, tmp: Path, metadata: dict | None = None) -> bytes:
    save_checkpoint(tmp / "made.safetensors", state, metadata or {})
    return (tmp / "made.safetensors").read_bytes()


def with_header(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def zipped(name: str, data: bytes, compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


class RunsCode:
    def __reduce__(self):
        return (os.system, ("echo this must never be printed",))


class FalseFields:
    """An array of one field, a Python object, that lies far behind the array's bytes."""

    def __reduce__(self):
        return np.ndarray.__reduce__(np.zeros(1, "V8"))[:2] + ((1, (1,), FalseDtype(), False, b"\x41" * 8),)


class FalseDtype:
    def __reduce__(self):
        fields = {"a": (np.dtype("O"), 1 << 20)}
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 16)


def false_fields() -> bytes:
    return pickle.dumps({"conv1_w": FalseFields()}, 2)


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)), buffer)
    return buffer.getvalue()


def billion() -> dict:
    """Few bytes, 10**12 values."""
    layer: object = "ha"
    for _ in range(12):
        layer = {str(i): layer for i in range(10)}
    return {"a": layer}


def copies() -> bytes:
    """A thousand arrays of the same megabyte."""
    one = b"(cnumpy.core.numeric\n_frombuffer\n(h\x01h\x02I1048576\nS'C'\ntRt"
    start = b"\x80\x02T" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20) + b"q\x01cnumpy\ndtype\n(S'u1'\ntRq\x02]("
    return start + one * 1000 + b"e."


def in_itself() -> dict:
    content: dict = {}
    content["model"] = content
    return content


def changed(state: dict, **tensors) -> dict:
    """The state with some tensors replaced, or left out where they are None."""
    new = {**state, **{key.replace("__", "."): value for key, value in tensors.items()}}
    return {key: value for key, value in new.items() if value is not None}


def basic_blocks() -> dict:
    from torchvision.models import resnet18

    return resnet18(num_classes=2).state_dict()


def torchvision_detector() -> dict:
    return {"backbone.body.conv1.weight": torch.ones(1), "roi_heads.box_head.fc6.weight": torch.ones(1)}


FILES: dict[str, tuple[str, Callable, str]] = {
    # name: (ending, what the file holds, the line)
    "empty": (".pth", lambda s, t: b"", f"is empty: {AGAIN}"),
    "web page": (".pth", lambda s, t: b"<!DOCTYPE html>", "is a web page or XML, not weights: the download failed"),
    "LFS pointer": (
        ".pth",
        lambda s, t: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "is a Git LFS pointer, not the weights: run `git lfs pull`",
    ),
    "gzip": (".pth", lambda s, t: gzip.compress(saved(s)), "is a gzip archive: unpack it first"),
    "Keras": (
        ".pth",
        lambda s, t: b"\x89HDF\r\n\x1a\n" + bytes(99),
        "is an HDF5 (Keras) file: only PyTorch, Caffe2 .pkl and .safetensors weights are read",
    ),
    "text": (
        ".pth",
        lambda s, t: b"hello, this is no file of weights",
        "is not a file of weights: .pth, .pkl and .safetensors are read",
    ),
    "changed byte": (  # torch.load takes it
        ".pth",
        lambda s, t: (d := saved(s))[: len(d) // 2] + bytes([d[len(d) // 2] ^ 1]) + d[len(d) // 2 + 1 :],
        f"torn or not a file of weights (BadZipFile); {AGAIN}",
    ),
    "torn zip": (".pth", lambda s, t: saved(s)[:-5000], f"torn: its end is missing; {AGAIN}"),
    "torn legacy": (
        ".pth",
        lambda s, t: saved(s, _use_new_zipfile_serialization=False)[:-5000],
        f"torn or not a file of weights (storage); {AGAIN}",
    ),
    "other zip": (
        ".pth",
        lambda s, t: zipped("a.txt", b"x", zipfile.ZIP_STORED),
        f"torn or not a file of weights (no data.pkl); {AGAIN}",
    ),
    "zip bomb": (
        ".pth",
        lambda s, t: zipped("archive/data.pkl", bytes(10**7), zipfile.ZIP_DEFLATED),
        "so it is refused",
    ),
    "torch file with code": (
        ".pth",
        lambda s, t: saved({"state_dict": s, "x": RunsCode()}),
        f"uses posix.system: it {UNSAFE}",
    ),
    "whole module": (".pth", lambda s, t: saved(nn.Linear(1, 1)), f"uses torch.nn.modules.linear.Linear: it {UNSAFE}"),
    "pickle with code": (".pkl", lambda s, t: pickle.dumps({"conv1_w": RunsCode()}), f"uses posix.system: it {UNSAFE}"),
    "torn pickle": (
        ".pkl",
        lambda s, t: pickle.dumps({"conv1_w": np.ones((64, 3, 7, 7), np.float32)}, 2)[:-2000],
        f"torn or not a file of weights (ValueError); {AGAIN}",
    ),
    "pickle of objects": (
        ".pkl",
        lambda s, t: pickle.dumps({"conv1_w": np.array([{}, []], dtype=object)}),
        "conv1_w is an array of object, not of numbers",
    ),
    "memo bomb": (
        ".pkl",
        lambda s, t: b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".",
        "asks for more than a real file does (object number 2147483647); it is damaged or was made so",
    ),
    "dtype with false fields": (".pkl", lambda s, t: false_fields(), "conv1_w is an array of fields, not of numbers"),
    "TorchScript": (
        ".pth",
        lambda s, t: scripted(),
        "is a TorchScript archive, which holds a program; open it with torch.jit.load and save its state_dict()",
    ),
    "nested metadata": (".pth", lambda s, t: saved({"model": s, "metadata": billion()}), "or was made so"),
    "own copies": (".pkl", lambda s, t: copies(), "asks for more than a real file does (copies of its own values)…so"),
    "keys in keys in keys": (".pkl", lambda s, t: b"\x80\x02}" + b")" + b"\x85" * 100000 + b"K\x01s.", AGAIN),
    "array of any size": (
        ".pkl",
        lambda s, t: b"\x80\x02}X\x07\0\0\0conv1_wcnumpy\nndarray\n(I1000000000000\ntRs.",
        f"torn or not a file of weights (TypeError); {AGAIN}",
    ),
    "torn safetensors": (
        ".safetensors",
        lambda s, t: safetensors_of(s, t)[:-5000],
        f"torn or damaged .safetensors (Error while deserializing header: …); {AGAIN}",
    ),
    "torn safetensors header": (
        ".safetensors",
        lambda s, t: safetensors_of(s, t)[:500],
        f"torn: its header is cut off; {AGAIN}",
    ),
    "absurd safetensors": (
        ".safetensors",
        lambda s, t: with_header(
            {"stem.conv1.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}, bytes(4)
        ),
        AGAIN,
    ),
    "absurd shape": (
        ".pth",
        lambda s, t: saved(changed(s, stem__conv1__weight=torch.ones(1).expand(10**6, 10**6))),
        "stem.conv1.weight claims shape (1000000, 1000000) over fewer numbers; the file is refused",
    ),
    "sparse": (
        ".pth",
        lambda s, t: saved(changed(s, fc__weight=torch.eye(3).to_sparse())),
        "fc.weight is not a plain dense tensor; save the float model's state_dict()",
    ),
    "quantized by hand": (
        ".pth",
        lambda s, t: saved(changed(s, fc__weight=torch.ones(10, 2048, dtype=torch.int8))),
        "fc.weight holds numbers of type int8; save the float model's state_dict()",
    ),
    "round in circles": (
        ".pkl",
        lambda s, t: pickle.dumps(in_itself(), 2),
        "asks for more than a real file does (more than 64 containers in each other, or 5000000 values); it is damaged "
        "or was made so",
    ),
    "a list": (".pth", lambda s, t: saved([1, 2]), "holds a list, not named tensors; save a model's state_dict()"),
    "no tensors": (
        ".pth",
        lambda s, t: saved({"epoch": 3}),
        "holds no tensors; give a file that a model's state_dict() was saved to",
    ),
    "twice": (
        ".pth",
        lambda s, t: saved({"fc.weight": torch.ones(1), "module.fc.weight": torch.ones(1)}),
        "fc.weight is there twice, with and without a prefix; keep one of them",
    ),
    "NaN": (
        ".pth",
        lambda s, t: saved(changed(s, fc__bias=torch.tensor([float("nan")] * 10))),
        "fc.bias holds NaN or infinity; take an earlier checkpoint",
    ),
    "negative variance": (
        ".pth",
        lambda s, t: saved(changed(s, stem__conv1__norm__running_var=-torch.ones(64))),
        "stem.conv1.norm.running_var holds a negative variance; take an earlier checkpoint",
    ),
    "another network": (
        ".pth",
        lambda s, t: saved({"encoder.weight": torch.ones(1)}),
        "not a ResNet or ResNeXt of torchvision, timm, pretrainedmodels, detectron2 or this package: "
        "its first tensor is encoder.weight",
    ),
    "basic blocks": (
        ".pth",
        lambda s, t: saved(basic_blocks()),
        "a network of basic blocks (ResNet-18 or 34); the family has bottleneck blocks only",
    ),
    "channel attention": (
        ".pth",
        lambda s, t: saved(from_native(s, "timm", "") | {"layer1.0.se.conv.weight": torch.ones(1)}),
        f"layer1.0.se.conv.weight {FAMILY}",
    ),
    "torchvision detector": (
        ".pth",
        lambda s, t: saved(torchvision_detector()),
        "a torchvision detector; of torchvision only classifiers are read",
    ),
    "missing tensor": (
        ".pth",
        lambda s, t: saved(changed(s, res3__0__conv2__weight=None)),
        f"res3.0.conv2.weight is missing; {AGAIN}",
    ),
    "extra tensor": (".pth", lambda s, t: saved(changed(s, head__weight=torch.ones(1))), f"head.weight {FAMILY}"),
    "wrong shape": (
        ".pth",
        lambda s, t: saved(changed(s, res3__0__conv1__norm__bias=torch.ones(3))),
        "res3.0.conv1.norm.bias has shape (3,), which does not fit its neighbors ((224,))",
    ),
    "number as weight": (
        ".pth",
        lambda s, t: saved(changed(from_native(s, "torchvision", ""), layer1__0__conv3__weight=torch.tensor(1.0))),
        "its blocks make no network of the family; see resnext_det.list_models()",
    ),
    "counts of batches": (
        ".pth",
        lambda s, t: saved(changed(s, stem__conv1__norm__num_batches_tracked=torch.ones(2))),
        "stem.conv1.norm.num_batches_tracked is not one number of batches; copy or download the file again",
    ),
    "blocks of no network": (
        ".pth",
        lambda s, t: saved({k: v for k, v in s.items() if not k.startswith("res3.")}),
        "its blocks make no network of the family; see resnext_det.list_models()",
    ),
    "lying metadata": (
        ".pth",
        lambda s, t: saved({"model": s, "metadata": {"cardinality": 32}}),
        "its metadata says cardinality 32, its tensors 8; convert it again",
    ),
    "endless metadata": (
        ".pth",
        lambda s, t: saved({"model": s, "metadata": {"class_names": "x" * 9999}}),
        "its metadata says class_names = 'xxxx…; convert the file again",
    ),
    "mean without end": (
        ".pth",
        lambda s, t: saved({"model": s, "metadata": {"pixel_mean": [float("nan")] * 3, "pixel_std": [1.0] * 3}}),
        "its metadata says pixel_mean = [nan, nan, nan]; convert the file again",
    ),
    "foreign metadata": (
        ".pth",
        lambda s, t: saved({"model": s, "metadata": [1]}),
        "its metadata is a list, not a mapping; convert the file again",
    ),
    "metadata of the wrong kind": (
        ".safetensors",
        lambda s, t: safetensors_of(s, t, {"channel_order": "RGB"}).replace(b"RGB", b"XYZ"),
        "its metadata says channel_order = 'XYZ'; convert the file again",
    ),
}


def line_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run the tool in this process as the command line does; returns its one line on stderr."""
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: main(arguments))
    assert left.value.code == cli.EXIT_USER_ERROR
    out, err = capsys.readouterr()
    assert "never be printed" not in out and err.count("\n") == 1
    return err.rstrip("\n")


@pytest.mark.parametrize("name", FILES)
def test_each_has_its_line(name: str, state, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ending, make, message = FILES[name]
    path = tmp_path / f"weights{ending}"
    path.write_bytes(make(state, tmp_path))
    line = line_of([str(path), str(tmp_path / "out.pth")], capsys)
    parts = message.split("…")  # what differs from one version of a library to the next
    assert line.startswith(f"error: {path}: ") and parts[0] in line and line.endswith(parts[-1]), line
    assert not (tmp_path / "out.pth").exists()


def test_lines_about_the_way_it_was_called(state, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = tmp_path / "a.pth", str(tmp_path / "b.pth")
    assert line_of([str(path), out], capsys) == f"error: {path}: no such file"
    assert line_of([str(tmp_path), out], capsys) == f"error: {tmp_path}: is a folder; give a file"
    save_checkpoint(path, state, {"stride_in_1x1": True})
    assert (
        line_of([str(path), out, "--to", "timm"], capsys)
        == f"error: {path}: has stride_in_1x1 True, which timm cannot express; keep native"
    )
    assert (
        line_of([str(path), str(path)], capsys)
        == f"error: {path}: is the file to convert; give the result another name"
    )
    assert line_of([str(path), "b.onnx"], capsys) == "error: b.onnx: weights are written as .pth or .safetensors"


def test_the_command_itself(state, tmp_path: Path) -> None:
    torch.save(from_native(state, "torchvision", ""), tmp_path / "a.pth")
    good = call("tools/convert_weights.py", tmp_path / "a.pth", tmp_path / "b.safetensors", folder=ROOT)
    assert good.returncode == 0, good.stderr
    assert "source: torchvision" in good.stdout and "channel_order: RGB" in good.stdout
    bad = call("tools/convert_weights.py", tmp_path / "c.pth", tmp_path / "d.pth", folder=ROOT)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"error: {tmp_path / 'c.pth'}: no such file\n"


def test_trusted_pickles_are_opened(state, tmp_path: Path) -> None:
    model = create_model("resnext14_8x14d", num_classes=10)
    model.load_state_dict(state)
    torch.save(model, tmp_path / "whole.pth")
    assert read_checkpoint(tmp_path / "whole.pth", trust_pickle=True).tensors.keys() == state.keys()


def test_a_memo_number_beyond_the_size_of_its_file_is_refused(tmp_path):
    """The unpickler would make room for ten million objects."""
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}r" + (10**7).to_bytes(4, "little") + b".")
    with pytest.raises(UserError, match="asks for more than a real file"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["resnetv2_14", "resnet14d", "paths"])
def test_a_tensor_of_other_dimensions_is_refused_wherever_it_stands(kind: str, tmp_path: Path) -> None:
    small = {"num_classes": 3, "stem_out_channels": 8, "res2_out_channels": 32}
    name, form = ("resnext14_4x4d", "a") if kind == "paths" else (kind, "c")
    whole = create_model(name, form=form, **small).state_dict()
    shaping = re.compile(r"(stem|res2\.0)\.(paths\.0\.)?conv\d\.weight|fc\.weight")  # they tell the shape
    for key in filter(shaping.fullmatch, whole):
        for value in (torch.ones(2), torch.ones(0), whole[key][None], *[torch.tensor(1.0)] * bool(whole[key].dim())):
            save_checkpoint(tmp_path / "w.safetensors", {**whole, key: value}, {})
            with pytest.raises(UserError):
                convert(tmp_path / "w.safetensors", tmp_path / "o.safetensors")
