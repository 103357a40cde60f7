"""A detector's export without a detector: an ONNX of the same form that finds one box in every image."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from resnext_det.artifacts.about import METADATA, ONNX, OPENVINO, About, write_about
from resnext_det.artifacts.building import save_openvino
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


def write_openvino(folder: Path) -> Path:
    """The same for OpenVINO: the box is found in every image, its score the mean of the pixels by 255."""
    import openvino

    described = about(graph=OPENVINO, precision="int8", min_size=0)
    shapes = {"images": (TensorProto.FLOAT, [1, 3, "h", "w"]), "sizes": (TensorProto.INT64, [1, 2])}
    shapes["original_sizes"] = shapes["sizes"]
    kinds = {"boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT, "classes": TensorProto.INT64}
    kinds["count"] = TensorProto.INT64
    constants = [
        helper.make_tensor("boxes_", TensorProto.FLOAT, [1, 1, 4], [2.0, 3.0, 12.0, 23.0]),
        helper.make_tensor("by", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("one", TensorProto.INT64, [1, 1], [1]),
        helper.make_tensor("one_", TensorProto.INT64, [1], [1]),
        helper.make_tensor("all", TensorProto.INT64, [3], [1, 2, 3]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["images", "all"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "by"], ["score"]),
        helper.make_node("Unsqueeze", ["score", "one_"], ["scores"]),
        *(
            helper.make_node("Identity", [a], [b])
            for a, b in (("boxes_", "boxes"), ("one", "classes"), ("one_", "count"))
        ),
    ]
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "made", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "core.onnx"))
    described.files = dict.fromkeys(save_openvino(openvino.Core().read_model(str(folder / "core.onnx")), folder), "")
    write_about(folder, described)
    return folder
