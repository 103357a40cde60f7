"""Checks of the kernels in Triton's interpreter, run as a script by test_grouped_conv.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F

from resnext_det import create_model
from resnext_det.kernels import grouped_conv as kernels
from resnext_det.kernels.layer import grouped_conv3x3, use_grouped_conv

CASES = [  # width, groups, stride, (height, width)
    (4, 8, 1, (9, 7)),
    (8, 4, 2, (7, 10)),
    (4, 16, 2, (4, 5)),
    (16, 1, 1, (1, 1)),
    (32, 2, 2, (6, 7)),
    (64, 1, 2, (3, 3)),
    (2, 8, 1, (4, 4)),
]


def near(value: torch.Tensor, exact: torch.Tensor, what: object, tolerance: float = 1e-6) -> None:
    assert value.shape == exact.shape, what
    assert exact.abs().max() > 0.1, f"{what}: nothing to compare"
    error = (value.double() - exact).norm() / exact.norm()
    assert error < tolerance, f"{what}: {error}"


def problem(width: int, groups: int, size: tuple[int, int], dtype: torch.dtype = torch.float32):
    torch.manual_seed(width * groups)
    channels = width * groups
    x = torch.randn(2, channels, *size, dtype=dtype)
    return x, torch.randn(channels, width, 3, 3, dtype=dtype), torch.rand(channels) + 0.5, torch.randn(channels)


def exact_results(x, weight, scale, shift, stride, groups, relu):
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    y = F.conv2d(x, weight, None, stride, 1, 1, groups)
    y = y if scale is None else y * scale.double()[:, None, None] + shift.double()[:, None, None]
    y = y.relu() if relu else y
    slopes = torch.randn(y.shape)
    return y.detach(), slopes, torch.autograd.grad(y, (x, weight), slopes.double())


def every_cut() -> None:
    """Each configuration of each kernel; warps and stages mean nothing to the interpreter."""
    for width, groups, stride, size in CASES:
        for dtype in (torch.float32, torch.float16) if width == 8 else (torch.float32,):
            x, weight, scale, shift = problem(width, groups, size, dtype)
            tolerance = 1e-6 if dtype == torch.float32 else 2e-3
            plain, slopes, (dx, dw) = exact_results(x, weight, None, None, stride, groups, False)
            full = (plain * scale.double()[:, None, None] + shift.double()[:, None, None]).relu()
            channels = width * groups
            for config in {c[:2]: c for c in kernels.configs(channels, width, dtype)}.values():
                y = kernels.convolve(x, weight, stride, groups, scale, shift, True, config)
                near(y, full, ("forward", width, config), tolerance)
                d = kernels.input_gradient(slopes.to(dtype), weight, stride, groups, size, config)
                near(d, dx, ("input gradient", width, config), tolerance)
            for config in {c[:2]: c for c in kernels.weight_configs(channels, width, dtype)}.values():
                d = kernels.weight_gradient(x, slopes.to(dtype), stride, groups, config)
                near(d, dw, ("weight gradient", width, config), tolerance)


def many_parts() -> None:
    """The weight's gradient cut into several parts, the last one not full."""
    kernels.PROGRAMS = 6
    x, weight, _, _ = problem(16, 1, (13, 11))
    _, slopes, (_, dw) = exact_results(x, weight, None, None, 1, 1, False)
    near(kernels.weight_gradient(x, slopes, 1, 1), dw, "parts")
    again = kernels.weight_gradient(x, slopes, 1, 1)
    assert torch.equal(again, kernels.weight_gradient(x, slopes, 1, 1))


def layer() -> None:
    """Values and gradients of the differentiable layer, with and without the fused epilogue."""
    for (width, groups, stride, size), relu in itertools.product(CASES[:2], (False, True)):
        x, weight, scale, shift = problem(width, groups, size)
        for epilogue in ((scale, shift),) if relu else ((None, None), (scale, shift)):
            y, slopes, gradients = exact_results(x, weight, *epilogue, stride, groups, relu)
            a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
            out = grouped_conv3x3(a, b, *epilogue, stride=stride, groups=groups, relu=relu, mode="triton")
            assert out.is_contiguous(memory_format=torch.channels_last)
            near(out, y, ("layer", width))
            for result, expected in zip(torch.autograd.grad(out, (a, b), slopes), gradients, strict=True):
                near(result, expected, ("layer's gradient", width, relu))


def learned_scale_and_shift() -> None:
    x, weight, scale, shift = problem(8, 4, (5, 4))
    values = [t.clone().requires_grad_() for t in (weight, scale, shift)]
    y = grouped_conv3x3(x, *values, stride=1, groups=4, relu=True, mode="triton")
    exact = [t.double().requires_grad_() for t in (weight, scale, shift)]
    conv = F.conv2d(x.double(), exact[0], None, 1, 1, 1, 4)
    expected = (conv * exact[1][:, None, None] + exact[2][:, None, None]).relu()
    slopes = torch.randn(y.shape)
    found = torch.autograd.grad(y, values, slopes)
    for result, other in zip(found, torch.autograd.grad(expected, exact, slopes.double()), strict=True):
        near(result, other, "learned")


def inputs_of_any_memory() -> None:
    x, weight, _, _ = problem(4, 8, (6, 5))
    expected = grouped_conv3x3(x, weight, groups=8, mode="triton")
    wide = torch.randn(2, 40, 7, 10)
    wide[:, 4:36, 1:, ::2] = x  # a view with gaps everywhere
    for other in (x.contiguous(memory_format=torch.channels_last), wide[:, 4:36, 1:, ::2], x.transpose(2, 3).mT):
        assert torch.equal(grouped_conv3x3(other, weight, groups=8, mode="triton"), expected)
    spread = torch.randn(1, 32, 1, 1).expand(2, 32, 6, 5)  # a gradient of a sum looks like this
    near(kernels.input_gradient(spread, weight, 1, 8, (6, 5)),
         exact_input_gradient(spread, weight), "expanded")  # fmt: skip


def exact_input_gradient(slopes, weight):
    return F.conv_transpose2d(slopes.double(), weight.double(), None, 1, 1, 0, 8)


def empty_batch() -> None:
    x, weight = torch.zeros(0, 32, 7, 5, requires_grad=True), torch.randn(32, 4, 3, 3, requires_grad=True)
    y = grouped_conv3x3(x, weight, stride=2, groups=8, relu=True, mode="triton")
    assert y.shape == (0, 32, 4, 3)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape and torch.equal(dw, torch.zeros_like(weight))


def operators() -> None:
    """What torch.compile and autograd ask of an operator: schema, shapes and strides without data, gradients."""
    x, weight, scale, shift = problem(4, 4, (4, 3))
    x, weight = x.requires_grad_(), weight.requires_grad_()
    arguments = (x, weight, scale, shift, 2, 4, True, "triton")
    torch.library.opcheck(torch.ops.resnext_det.grouped_conv3x3.default, arguments)

    def function(x):
        return grouped_conv3x3(x * 2, weight, groups=4, mode="triton").square()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), function(x))
    gradients = [torch.autograd.grad(f(x).sum(), (x, weight)) for f in (compiled, function)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def autocast() -> None:
    x, weight, _, _ = problem(4, 4, (4, 4))
    with torch.autocast("cpu", torch.float16):
        y = grouped_conv3x3(x, weight, groups=4, mode="triton")
    assert y.dtype == torch.float16
    near(y, F.conv2d(x.double(), weight.double(), None, 1, 1, 1, 4), "autocast", 2e-3)


def in_a_network() -> None:
    """The same names, outputs, gradients and statistics; a copy keeps the switch; "torch" takes it back."""
    from resnext_det.detection.c4_head import PlainSplit
    from resnext_det.detection.optimize import optimize_for_inference

    torch.manual_seed(0)
    plain = create_model("resnext14_4x4d", num_classes=3, stem_out_channels=8, res2_out_channels=16)
    model = copy.deepcopy(plain)
    calls = []
    run, kernels._run = kernels._run, lambda *a: (calls.append(a[0].shape), run(*a))[1]
    assert use_grouped_conv(model, "triton") == 4
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 33, 36)  # large enough that no batch norm has only a few values, which enlarges rounding
    outputs = [m(x) for m in (plain, copy.deepcopy(model), model)]
    assert len(calls) == 8, "two networks of four grouped convolutions"
    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], rtol=1e-4, atol=1e-4)
    (outputs[0].square().sum()).backward()
    (outputs[2].square().sum()).backward()
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-3 * a.grad.abs().max().item(), msg=name)
    for (name, a), b in zip(plain.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=name)
    with torch.autocast("cpu", torch.float16):
        compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), copy.deepcopy(model)(x))
    model.eval()
    expected = model(x)
    del calls[:]
    torch.testing.assert_close(optimize_for_inference(model, "fp32")(x), expected, rtol=1e-4, atol=1e-4)
    head = PlainSplit(list(model.res5))
    conv = model.res5[0].conv2
    maps = torch.randn(2, conv.in_channels, 4, 4)
    for add in (None, torch.randn(2, conv.out_channels, 2, 2)):
        side = torch.zeros(()) if add is None else add
        torch.testing.assert_close(head._conv_relu(conv, maps, add), (conv(maps) + side).relu())
    assert len(calls) == 8, "four in the fused network, four in and beside the head"
    use_grouped_conv(model, "torch")
    del calls[:]
    model(x)
    assert not calls
    kernels._run = run


if __name__ == "__main__":
    for check in (every_cut, inputs_of_any_memory, layer, learned_scale_and_shift, empty_batch, operators, autocast,
                  in_a_network, many_parts):  # fmt: skip
        check()
