"""A detector's export without a detector: an ONNX of the same form that finds one box in every image."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from resnext_det.artifacts.about import METADATA, ONNX, About, write_about
from resnext_det.artifacts.running import text_of


def about(**more) -> About:
    values = {
        "graph": ONNX, "precision": "fp32", "class_names": ["cat", "dog"], "category_ids": [3, 7],
        "channel_order": "RGB", "min_size": 60, "max_size": 100, "model_threshold": 0.05,
    }  # fmt: skip
    return About(**{**values, **more})


def write(folder: Path, described: About | None = None) -> Path:
    """A folder whose graph finds, in any image, a dog of score 0.75 in (2, 3, 12, 23)."""
    described = described or about()
    values = {
        "boxes": (TensorProto.FLOAT, [1, 4], [2.0, 3.0, 12.0, 23.0]),
        "scores": (TensorProto.FLOAT, [1], [0.75]),
        "classes": (TensorProto.INT64, [1], [1]),
    }
    constants = [helper.make_tensor(f"of_{name}", *value) for name, value in values.items()]
    nodes = [helper.make_node("Identity", [f"of_{name}"], [name]) for name in values]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])
    outputs = [helper.make_tensor_value_info(name, *value[:2]) for name, value in values.items()]
    graph = helper.make_graph(nodes, "made", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA: text_of(described)})
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / ONNX))
    described.files = {ONNX: ""}
    write_about(folder, described)
    return folder
