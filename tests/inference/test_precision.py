"""What a dtype and a backend come to on this machine, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from resnext_det import UserError
from resnext_det.inference import precision
from resnext_det.inference.precision import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fp8", CPU), "dtype 'fp8': choose from auto, fp32, bf16, fp16, int8"),
        (("fp32", CPU, "tensorrt"), "backend 'tensorrt': choose from auto, torch, openvino"),
        (("int8", CPU, "torch"), "OpenVINO computes it; set the backend to auto or openvino"),
        (("int8", GPU), "runs on CPUs, not on cuda; set MODEL.DEVICE cpu, or use bf16"),
        (("fp16", CPU, "openvino"), "choose fp32, bf16 or int8"),
        (("fp32", CPU, "openvino", True), "choose one"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)
    with pytest.raises(UserError, match=message):
        choose(*arguments)


def test_without_openvino_pytorch_computes_and_int8_names_what_to_install(monkeypatch, caplog):
    monkeypatch.setattr(precision, "has", lambda package: False)
    assert not choose("fp32", CPU, "openvino").openvino
    assert "it is not installed (pip install openvino); PyTorch computes instead" in caplog.text
    with pytest.raises(UserError, match=r"pip install 'resnext-det\[openvino\]'"):
        choose("int8", CPU)


def test_openvino_is_asked_for_or_int8():
    assert (
        not choose("fp32", CPU).openvino and choose("fp32", CPU, "openvino").openvino and choose("int8", CPU).openvino
    )


@pytest.mark.parametrize("flags, warns", [({"avx2"}, True), ({"avx512_vnni"}, False), (set(), False)])
def test_int8_warns_on_a_processor_without_units_for_it(flags, warns, monkeypatch, caplog):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    choose("int8", CPU)
    assert ("no units for it" in caplog.text) == warns
