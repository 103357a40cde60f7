"""Parts that OpenVINO computes against the modules they were."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from resnext_det import UserError, create_model
from resnext_det.inference.openvino import Recorder, compile_parts
from resnext_det.inference.trunks import optimize_classifier


class Two(nn.Module):
    """Of two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x, y):
        return self.conv(x).relu(), x + y


@torch.no_grad()
def test_any_size_or_a_fixed_one_filled_up():
    module = Two().eval()
    free = Recorder(module, [torch.zeros(1, 4, 8, 8)] * 2, dynamic=(0, 2, 3))
    fixed = Recorder(module, [torch.zeros(5, 4, 8, 8)] * 2)
    parts = nn.ModuleList([free, fixed])
    compile_parts(parts, "fp32", None)
    for part, shapes in zip(parts, ([(3, 4, 9, 7), (1, 4, 8, 8)], [(5, 4, 8, 8), (2, 4, 8, 8)]), strict=True):
        for shape in shapes:
            x, y = torch.randn(shape), torch.randn(shape)
            for result, expected in zip(part(x, y), module(x, y), strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_a_part_sees_is_a_sample_of_its_calls():
    part = Recorder(Two().eval(), [torch.zeros(4, 4, 8, 8)] * 2, every=2, rows=3)
    calls = [torch.randn(4, 4, 8, 8) for _ in range(5)]
    for x in calls:
        part(x, x)
    assert len(part.seen) == 3 and all(
        torch.equal(seen, x[::3]) for (seen, _), x in zip(part.seen, calls[::2], strict=True)
    )


@torch.no_grad()
def test_int8_ranges_are_those_of_the_images_it_was_shown():
    model = create_model("resnext14_8x4d", num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    near = optimize_classifier(model, "int8", calibration=[x])(x)
    far = optimize_classifier(model, "int8", calibration=[x / 20])(x)  # everything beyond its ranges is cut off
    near, far = ((y - expected).norm() / expected.norm() for y in (near, far))
    assert near < 0.1 < 0.3 < far


def test_int8_without_images():
    with pytest.raises(UserError, match="give calibration images"):
        optimize_classifier(create_model("resnext14_8x4d", num_classes=10), "int8")


def test_nothing_is_reported_home():
    code = (
        "import sys; from resnext_det.inference.runtime import load; load('openvino'); load('nncf'); "
        "assert sys.modules['openvino_telemetry'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


SIGNALLED = """
import ctypes, faulthandler, gc, os, signal, torch
from torch import nn
from resnext_det.inference.openvino import Recorder, compile_parts
from resnext_det.inference.runtime import StackT

def stack():
    found = StackT()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.ss_sp

faulthandler.enable()  # has a signal stack of its own, as pytest's has
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
kept, before = [], stack()
for dtype in ("int8", "fp32", "int8", "fp32"):
    part = nn.Sequential(Recorder(nn.Conv2d(4, 4, 3), [torch.zeros(1, 4, 8, 8)]))
    compile_parts(part, dtype, [torch.randn(1, 4, 8, 8)])
    part(torch.randn(1, 4, 8, 8))
    kept.append(part)
    assert stack() == before
while kept:
    kept.pop(0)
    gc.collect()
assert stack() == before
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's signal stack")
def test_a_signal_is_heard_after_openvino_has_come_and_gone():
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert done.returncode == 0 and "heard" in done.stdout, (done.returncode, done.stderr[-500:])
