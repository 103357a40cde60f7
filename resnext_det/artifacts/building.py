"""Graphs of a detector as files: one ONNX from pixels to boxes, and OpenVINO's in float or 8 bits.

Both begin with the ONNX of :func:`resnext_det.detection.export.graph.export_onnx`: ``images``, ``sizes`` and
``original_sizes`` in, padded ``boxes``, ``scores``, ``classes`` and ``count`` out, and ``masks`` where it has them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from ..inference import runtime
from .about import METADATA, About
from .resizing import resizing_graph
from .running import needed_openvino, text_of

logger = logging.getLogger(__name__)

PARTS = {"trunk": ("backbone.",), "proposals": ("rpn_head.",), "regions": ("regions.", "box_head.", "mask_head.")}
"""Parts that int8 may leave in float, by the beginning of their weights' names."""


def write_onnx(core: str | os.PathLike, path: str | os.PathLike, about: About) -> None:
    """Put resizing before and a cut to the real number of detections behind the graph ``core``, and ``about`` into it.

    The file takes ``image``, uint8 (height, width, 3) in RGB, and gives ``boxes`` (N, 4) float32 ``x1, y1, x2, y2`` in
    pixels of the image, ``scores`` (N,) and ``classes`` (N,) int64, best first; and ``masks`` (N, M, M) float32, the
    probabilities of each box's cells, if ``core`` has them.
    """
    import onnx
    import onnx.compose
    from onnx import TensorProto, helper

    model = onnx.load(os.fspath(core))
    opset = model.opset_import[0].version
    before = resizing_graph(about.channel_order, about.min_size, about.max_size, opset)
    before.ir_version = model.ir_version
    names = ("images", "sizes", "original_sizes")
    whole = onnx.compose.merge_models(
        onnx.compose.add_prefix(before, "resize/"), model, io_map=[(f"resize/{name}", name) for name in names]
    )
    graph = whole.graph
    sides = {output.name: [d.dim_value for d in output.type.tensor_type.shape.dim[2:]] for output in graph.output}
    for node in graph.node:
        node.input[:] = ["image" if name == "resize/image" else name for name in node.input]
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3]))
    constants = {"cut/zero": [0], "cut/rows": [1]}
    for name, value in constants.items():
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], value))
    outputs: list[tuple[str, int, list[str | int | None]]] = [
        ("boxes", TensorProto.FLOAT, ["found", 4]),
        ("scores", TensorProto.FLOAT, ["found"]),
        ("classes", TensorProto.INT64, ["found"]),
        *([("masks", TensorProto.FLOAT, ["found", *sides["masks"]])] if "masks" in sides else []),
    ]
    for name, kind, shape in outputs:
        for node in graph.node:
            for side in (node.input, node.output):
                side[:] = [f"padded/{name}" if known == name else known for known in side]
        graph.node.append(
            helper.make_node("Slice", [f"padded/{name}", "cut/zero", "count", "cut/rows"], [f"cut/{name}"])
        )
        graph.node.append(helper.make_node("Squeeze", [f"cut/{name}", "cut/zero"], [name]))
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    helper.set_model_props(whole, {METADATA: text_of(about)})
    onnx.checker.check_model(whole)
    with atomic_path(path) as unfinished:
        onnx.save(whole, os.fspath(unfinished))


def openvino_model(core: str | os.PathLike) -> Any:
    """OpenVINO's model of the graph ``core``, in float."""
    return needed_openvino().Core().read_model(os.fspath(core))


def parts_of(model: Any) -> dict[str, list[str]]:
    """{part of :data:`PARTS`: names of its convolutions}."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for operation in model.get_ops():
        if operation.get_type_name() in ("Convolution", "GroupConvolution"):
            weight = operation.input_value(1).get_node()
            while weight.get_type_name() != "Constant":
                weight = weight.input_value(0).get_node()
            part = next((p for p, begin in PARTS.items() if weight.get_friendly_name().startswith(begin)), None)
            if part is not None:
                found[part].append(operation.get_friendly_name())
    return found


def _in_8_bits(model: Any, kept: set[str]) -> set[str]:
    """Names of the convolutions but for ``kept``, of what leads to each from the ones before, and of the constants."""
    inside, left = set(), []
    for operation in model.get_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        if kind == "Constant" or (kind in ("Convolution", "GroupConvolution") and name not in kept):
            inside.add(name)
            left += operation.input_values()
    while left:
        node = left.pop().get_node()
        name = node.get_friendly_name()
        if name not in inside and node.get_type_name() in ("Add", "Relu", "MaxPool", "Reshape"):
            inside.add(name)
            left += node.input_values()
    return inside


def quantized(
    core: str | os.PathLike, examples: Iterable[Sequence[np.ndarray]], float_parts: Iterable[str] = ()
) -> Any:
    """OpenVINO's model with its convolutions in 8 bits; their ranges are the extremes on ``examples``, the inputs.

    Args:
        float_parts: of :data:`PARTS`, that stay in float.
    """
    import nncf

    model = openvino_model(core)
    parts = parts_of(model)
    inside = _in_8_bits(model, {name for part in float_parts for name in parts[part]})
    # Sampling regions, decoding boxes and scores stay in float: NMS and thresholds look at their last digits. Named one
    # by one, since NNCF takes any sum or product for a layer.
    others = [name for operation in model.get_ops() if (name := operation.get_friendly_name()) not in inside]
    ignored = nncf.IgnoredScope(names=others, validate=False)
    return runtime.quantized(model, list(examples), ignored_scope=ignored)


def quantized_onnx(
    core: str | os.PathLike,
    path: str | os.PathLike,
    examples: Iterable[Sequence[np.ndarray]],
    float_parts: Iterable[str] = (),
) -> None:
    """Write the graph ``core`` with its convolutions in 8 bits, between ONNX's QuantizeLinear and DequantizeLinear.

    Arguments are those of :func:`quantized`. Weights have a range for each channel and 7 bits: the file may be run
    without VNNI, where the sum of two products of 8 bits overflows its 16.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    model = onnx.load(os.fspath(core))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    kept = tuple(begin for part in float_parts for begin in PARTS[part])
    names = [graph_input.name for graph_input in model.graph.input]

    class Examples(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(examples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            arrays = next(self._left, None)
            return None if arrays is None else dict(zip(names, arrays, strict=True))

    excluded = [node.name for node in convolutions if kept and node.input[1].startswith(kept)]
    quantize_static(
        model, os.fspath(path), Examples(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        nodes_to_exclude=excluded,
    )  # fmt: skip


def save_openvino(model: Any, folder: Path) -> list[str]:
    """Write the two files of an OpenVINO model; returns their names."""
    names = ["detector.xml", "detector.bin"]
    needed_openvino().serialize(model, *(str(folder / name) for name in names))
    return names
