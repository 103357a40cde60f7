"""Resizing as detectron2 tests: which size, and Pillow's bilinear filter; in Pillow and as ONNX operators.

The ONNX operators compute Pillow's own integers (``Resample.c``: coefficients in float64, rounded to 22 bits, a pass
along the rows, one along the columns, each rounded to 8 bits). Pillow 13 shrinks some tall images along
the columns first; there they differ by 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import onnx


def size_in_testing(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """detectron2's ``ResizeShortestEdge``: the shorter side to ``min_size``, unless the longer would pass ``max_size``.

    Returns:
        Height and width; those given where ``min_size`` is 0.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def resized(pixels: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """(H, W, 3) uint8 at its size in testing."""
    height, width = size_in_testing(pixels.shape[0], pixels.shape[1], min_size, max_size)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


_SIZES = """
    one = Constant <value = double {{1.0}}> ()
    half = Constant <value = double {{0.5}}> ()
    shorter = Min (h, w)
    least = Constant <value = double {{{min_size}.0}}> ()
    most = Constant <value = double {{{max_size}.0}}> ()
    scale1 = Div (least, shorter)
    h1 = Mul (scale1, h)
    w1 = Mul (scale1, w)
    longer = Max (h1, w1)
    shrink = Div (most, longer)
    scale2 = Min (shrink, one)
    h2 = Mul (h1, scale2)
    w2 = Mul (w1, scale2)
    h3 = Add (h2, half)
    w3 = Add (w2, half)
    new_h = Cast <to = 7> (h3)
    new_w = Cast <to = 7> (w3)
"""
_SAME = """
    new_h = Cast <to = 7> (h)
    new_w = Cast <to = 7> (w)
"""
# 1: float32, 2: uint8, 6: int32, 7: int64, 11: float64.
_MODEL = """
<ir_version: 10, opset_import: ["" : {opset}, "own" : 1]>
resize (uint8[height, width, 3] image) => (float[1, 3, H, W] images, int64[1, 2] sizes, int64[1, 2] original_sizes) {{
    shape = Shape <start = 0, end = 2> (image)
    zero = Constant <value = int64 {{0}}> ()
    first = Constant <value = int64 {{1}}> ()
    batch = Constant <value = int64[1] {{0}}> ()
    h0 = Gather (shape, zero)
    w0 = Gather (shape, first)
    h = Cast <to = 11> (h0)
    w = Cast <to = 11> (w0)
    {size}
    columns_first = Transpose <perm = [1, 0, 2]> (image)
    along_x = own.resample (columns_first, new_w)
    rows_first = Transpose <perm = [1, 0, 2]> (along_x)
    both = own.resample (rows_first, new_h)
    order = Constant <value = int64[3] {{{order}}}> ()
    ordered = Gather <axis = 2> (both, order)
    channels = Transpose <perm = [2, 0, 1]> (ordered)
    numbers = Cast <to = 1> (channels)
    images = Unsqueeze (numbers, batch)
    new_h1 = Unsqueeze (new_h, batch)
    new_w1 = Unsqueeze (new_w, batch)
    size = Concat <axis = 0> (new_h1, new_w1)
    sizes = Unsqueeze (size, batch)
    original_sizes = Unsqueeze (shape, batch)
}}
<domain: "own", opset_import: ["" : {opset}]>
resample (x, out) => (y) {{
    shape = Shape (x)
    zero = Constant <value = int64 {{0}}> ()
    first = Constant <value = int64 {{1}}> ()
    one = Constant <value = double {{1.0}}> ()
    half = Constant <value = double {{0.5}}> ()
    nought = Constant <value = double {{0.0}}> ()
    second_axis = Constant <value = int64[1] {{1}}> ()
    last_axes = Constant <value = int64[2] {{1, 2}}> ()
    units = Constant <value = double {{4194304.0}}> ()
    units32 = Constant <value = int32 {{4194304}}> ()
    largest = Constant <value = int32 {{255}}> ()
    n0 = Gather (shape, zero)
    n = Cast <to = 11> (n0)
    o = Cast <to = 11> (out)
    scale = Div (n, o)
    support = Max (scale, one)
    inverse = Div (one, support)
    i0 = Range (zero, out, first)
    i = Cast <to = 11> (i0)
    i1 = Add (i, half)
    center = Mul (i1, scale)
    below = Sub (center, support)
    below1 = Add (below, half)
    below2 = Max (below1, nought)
    low = Floor (below2)
    above = Add (center, support)
    above1 = Add (above, half)
    above2 = Floor (above1)
    high = Min (above2, n)
    count = Sub (high, low)
    most = ReduceMax <keepdims = 0> (count)
    taps = Cast <to = 7> (most)
    k0 = Range (zero, taps, first)
    k = Cast <to = 11> (k0)
    low1 = Unsqueeze (low, second_axis)
    position = Add (low1, k)
    center1 = Unsqueeze (center, second_axis)
    d0 = Sub (position, center1)
    d1 = Add (d0, half)
    d2 = Mul (d1, inverse)
    d3 = Abs (d2)
    d4 = Sub (one, d3)
    d5 = Max (d4, nought)
    high1 = Unsqueeze (high, second_axis)
    inside = Less (position, high1)
    weight0 = Where (inside, d5, nought)
    total = ReduceSum <keepdims = 1> (weight0, second_axis)
    weight1 = Div (weight0, total)
    weight2 = Mul (weight1, units)
    weight3 = Add (weight2, half)
    weight = Cast <to = 6> (weight3)
    last = Sub (n, one)
    index0 = Min (position, last)
    index = Cast <to = 7> (index0)
    out1 = Unsqueeze (out, zero)
    rest = Shape <start = 1> (x)
    result_shape = Concat <axis = 0> (out1, rest)
    start = ConstantOfShape <value = int32[1] {{2097152}}> (result_shape)
    always = Constant <value = bool {{1}}> ()
    sum = Loop (taps, always, start)
    <body = step (int64 t, bool go, int32[a, b, c] before) => (bool on, int32[a, b, c] after) {{
        on = Identity (go)
        where = Gather <axis = 1> (index, t)
        factor0 = Gather <axis = 1> (weight, t)
        factor = Unsqueeze (factor0, last_axes)
        taken = Gather <axis = 0> (x, where)
        taken1 = Cast <to = 6> (taken)
        product = Mul (taken1, factor)
        after = Add (before, product)
    }}>
    rounded = Div (sum, units32)
    clipped = Min (rounded, largest)
    y = Cast <to = 2> (clipped)
}}
"""


def resizing_graph(channel_order: str, min_size: int, max_size: int, opset: int) -> onnx.ModelProto:
    """uint8 (height, width, 3) RGB -> ``images``, ``sizes`` and ``original_sizes`` of the detector's graph."""
    import onnx.inliner
    import onnx.parser

    size = _SIZES.format(min_size=min_size, max_size=max_size) if min_size else _SAME
    order = "2, 1, 0" if channel_order == "BGR" else "0, 1, 2"
    model = onnx.parser.parse_model(_MODEL.format(opset=opset, size=size, order=order))
    return onnx.inliner.inline_local_functions(model)
