"""RoIAlign against torchvision's: values, gradients, odd boxes, equal bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from resnext_det.detection.roi_align import axis_weights, box_weights, pool, roi_align, sparse_bins

SCALE = 1 / 16


def random_boxes(number: int, images: int = 1, height: int = 320, width: int = 480) -> Tensor:
    corner = torch.rand(number, 2, dtype=torch.float64) * torch.tensor([width, height]) - 20
    extent = torch.rand(number, 2, dtype=torch.float64) ** 3 * 500
    image = torch.randint(images, (number, 1)).double()
    return torch.cat([image, corner, corner + extent], 1)


ODD_BOXES = torch.tensor(
    [
        [0, 0, 0, 480, 320],  # the whole image
        [1, 0, 0, 480, 320],
        [0, -1000, -1000, 2000, 2000],  # far beyond it
        [0, 100, 100, 100.5, 100.25],  # tiny
        [1, 100, 100, 100, 100],  # a point
        [0, 100, 50, 100, 200],  # a line
        [0, 200, 200, 100, 100],  # corners exchanged
        [0, 200, 100, 100, 200],
        [0, -300, -300, -200, -200],  # outside on every side
        [1, 600, 400, 900, 800],
        [0, 470, 310, 480, 320],  # the last pixel of the map
        [0, 464, 304, 500, 340],
        [0, -16, -16, 8, 8],
        [0, 8, 8, 232, 232],  # lengths that are whole multiples of the bins
        [1, 8, 8, 456, 316.0],
        [0, 0, 0, 224, 224],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("bins", [14, 7, (3, 5), 1])
@pytest.mark.parametrize("boxes", ["random", "odd", "none"])
def test_equals_torchvision_in_value_and_gradient(sampling_ratio, bins, boxes):
    rois = {"random": random_boxes(60, images=2), "odd": ODD_BOXES, "none": torch.zeros(0, 5).double()}[boxes]
    if sampling_ratio == 0:  # torchvision's own adaptive sampling fails on some boxes with exchanged corners
        rois = rois[((rois[:, 3:] - rois[:, 1:3]) >= 0).all(1)]
    features = torch.randn(2, 6, 20, 30, dtype=torch.float64)
    results = []
    for function in (
        lambda x: torchvision_roi_align(x, rois, bins, SCALE, sampling_ratio, True),
        lambda x: roi_align(x, rois, bins, SCALE, sampling_ratio),
    ):
        x = features.clone().requires_grad_()
        y = function(x)
        torch.manual_seed(1)
        (y * torch.randn(y.shape, dtype=y.dtype)).sum().backward()
        results.append((y, x.grad))
    (expected, expected_gradient), (y, gradient) = results
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-11)
    if boxes != "none":
        assert expected.abs().max() > 0.1


def test_single_precision_takes_the_samples_torchvision_takes():
    # In float32 the lengths of many of these boxes round to just above or just below a multiple of 14 map pixels.
    length = torch.arange(1, 40)[:, None] * 14.0 + torch.tensor([-2e-5, -1e-5, 0.0, 1e-5, 2e-5])
    x1 = (torch.rand(length.numel()) * 50).float()
    x2 = x1 + (length.flatten() * 16).float()
    rois = torch.stack([torch.zeros_like(x1), x1, x1 / 2, x2, x1 / 2 + 100], 1)
    features = torch.randn(1, 3, 40, 50)
    expected = torchvision_roi_align(features, rois, 14, SCALE, 0, True)
    torch.testing.assert_close(roi_align(features, rois, 14, SCALE), expected, rtol=0, atol=2e-5)


def test_boxes_with_exchanged_corners_have_no_samples():
    rois = torch.tensor([[0, 200, 200, 100, 100], [0, 200, 100, 100, 200.0]])
    assert not roi_align(torch.ones(1, 2, 20, 30), rois, 14, SCALE).any()


def test_gradcheck():
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 3, 5, 60, 70], [1, -10, 20, 90, 44], [1, 40, 40, 41, 41]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 3, SCALE), (features,))


def test_half_precision_maps():
    features = torch.randn(1, 64, 20, 30).bfloat16()
    rois = random_boxes(40).float()
    exact = roi_align(features.float(), rois, 14, SCALE)
    y = roi_align(features, rois, 14, SCALE)
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() / exact.norm() < 4e-3


def test_gradient_has_equal_bits_whatever_the_threads():
    features, rois = torch.randn(2, 32, 20, 30), random_boxes(200, images=2).float()
    gradients = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        x = features.clone().requires_grad_()
        roi_align(x, rois, 14, SCALE).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_rows_of_a_box_inside_the_map_sum_to_one():
    rows = axis_weights(torch.tensor([2.3, 0.0]), torch.tensor([17.9, 19.0]), 20, 14)
    torch.testing.assert_close(rows.sum(2), torch.ones(2, 14))


def test_result_is_channels_last():
    y = roi_align(torch.randn(1, 8, 20, 30), random_boxes(3).float(), 14, SCALE)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sizes", [1, 7, 30, 100])
def test_split_matrices_pool_what_the_whole_pools(sizes):
    maps = torch.randn(2, 20, 30, 6, dtype=torch.float64)
    rois = random_boxes(30, images=2)
    rows, columns, image = box_weights(rois, maps.permute(0, 3, 1, 2), (14, 7), SCALE, 0)
    bins = sparse_bins(rows, columns, image)
    parts = bins.split(sizes)
    assert sum(part.shape[0] for part in parts) == 30 and max(part.shape[0] for part in parts) <= sizes
    assert torch.equal(torch.cat([pool(maps, part) for part in parts]), pool(maps, bins))


def test_shift_and_relu_inside_the_pooling():
    maps = torch.randn(1, 20, 30, 6, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(6, dtype=torch.float64, requires_grad=True)
    rows, columns, image = box_weights(random_boxes(20), maps.permute(0, 3, 1, 2), (4, 4), SCALE, 0)
    bins = sparse_bins(rows, columns, image)
    y = pool(maps, bins, shift, relu=True)
    expected = (pool(maps, bins) + shift).relu()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(y)
    gradients = torch.autograd.grad((y * weight).sum(), (maps, shift))
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weight).sum(), (maps, shift)))
    (alone,) = torch.autograd.grad((pool(maps.detach(), bins, shift, relu=True) * weight).sum(), shift)
    torch.testing.assert_close(alone, gradients[1])


class Pooled(torch.nn.Module):
    def forward(self, features, boxes):
        return roi_align(features, boxes, (7, 5), 1 / 16)


GRAPHS = {
    "script": lambda *given: torch.jit.script(Pooled()),
    "trace": lambda *given: torch.jit.trace(Pooled(), given),
    "fx": lambda *given: torch.fx.symbolic_trace(Pooled()),
    "export": lambda *given: torch.export.export(Pooled(), given).module(),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_in_a_graph_it_counts_the_samples_of_the_boxes_it_gets(kind):
    features = torch.randn(2, 4, 20, 24)
    boxes = [torch.tensor([[0, 3, 4, 90, size], [1, 10, 5, 200, 20 + size]]) for size in (80.0, 300.0)]
    graph = GRAPHS[kind](features, boxes[0])
    for given in boxes:
        torch.testing.assert_close(graph(features, given), Pooled()(features, given))
