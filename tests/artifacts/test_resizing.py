"""The resize inside ONNX against Pillow's, and the size against detectron2's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resnext_det.artifacts.resizing import resized, resizing_graph, size_in_testing


@pytest.mark.parametrize(
    ("order", "min_size", "max_size", "sizes"),
    [
        ("BGR", 80, 133, [(48, 64), (150, 200), (37, 411), (1, 5), (80, 100), (301, 97)]),
        ("RGB", 300, 500, [(48, 64), (500, 299)]),
        ("RGB", 0, 500, [(48, 64)]),
    ],
)
def test_pixels_are_pillows(order: str, min_size: int, max_size: int, sizes) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    graph = resizing_graph(order, min_size, max_size, 18)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for size in sizes:
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = resized(pixels, min_size, max_size)
        # Pillow's integers along x, then along y. Pillow 13 shrinks some tall images in the other order.
        one_axis = Image.fromarray(pixels).resize((expected.shape[1], size[0]), Image.Resampling.BILINEAR)
        both = np.asarray(one_axis.resize(expected.shape[1::-1], Image.Resampling.BILINEAR))
        assert np.abs(both.astype(int) - expected).max() <= 1
        images, resized_to, original = session.run(None, {"image": pixels})
        image = images[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(image[:, :, ::-1] if order == "BGR" else image, both)
        assert tuple(resized_to[0]) == expected.shape[:2] and tuple(original[0]) == size


def test_sizes_are_detectron2s() -> None:
    pytest.importorskip("detectron2")
    from detectron2.data.transforms import ResizeShortestEdge

    random = np.random.default_rng(1)
    for _ in range(500):
        height, width = random.integers(1, 3000, 2).tolist()
        least, most = random.choice([1, 128, 600, 800]).item(), random.choice([128, 200, 1000, 1333]).item()
        wanted = ResizeShortestEdge.get_output_shape(height, width, least, most)
        assert size_in_testing(height, width, least, most) == wanted
