"""Rows of class layers go by the classes' names."""

from __future__ import annotations

import pytest
import torch

from resnext_det.weights.class_rows import rows_by_name


def predictor(classes: int, start: float, *, agnostic: bool = False) -> dict[str, torch.Tensor]:
    """Each row of class k holds start + k; background start + 99."""
    scores = torch.tensor([*range(classes), 99]) + start
    boxes = torch.full((4,), start) if agnostic else scores[:-1].repeat_interleave(4)
    box = "roi_heads.box_predictor"
    return {
        f"{box}.cls_score.weight": scores[:, None].repeat(1, 3), f"{box}.cls_score.bias": scores,
        f"{box}.1.cls_score.bias": scores,  # of a cascade
        f"{box}.bbox_pred.weight": boxes[:, None].repeat(1, 3), f"{box}.bbox_pred.bias": boxes,
        "roi_heads.mask_head.predictor.weight": scores[:-1, None, None, None].repeat(1, 2, 1, 1),
        "head.cls_score.bias": scores[:-1].repeat(5),  # five anchors, then classes
        "roi_heads.res5.0.conv1.weight": torch.zeros(2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "from_file"),
    [
        ("abc", [0, 1, 2]),
        ("cab", [2, 0, 1]),
        ("abcd", [0, 1, 2, None]),
        ("xc", [None, 2]),
        ("b", [1]),
    ],
)
def test_known_classes_keep_their_rows_and_new_ones_the_models(names, from_file):
    own, given = predictor(len(names), 1000.0), predictor(3, 0.0)
    found = rows_by_name(own, given, names, "abc")
    wanted = torch.tensor([1000.0 + i if j is None else j for i, j in enumerate(from_file)])
    box = "roi_heads.box_predictor"
    for name in (f"{box}.cls_score.bias", f"{box}.1.cls_score.bias"):
        assert torch.equal(found.tensors[name], torch.cat([wanted, torch.tensor([99.0])]))
    assert torch.equal(found.tensors[f"{box}.cls_score.weight"][:-1], wanted[:, None].repeat(1, 3))
    assert torch.equal(found.tensors[f"{box}.bbox_pred.weight"], wanted.repeat_interleave(4)[:, None].repeat(1, 3))
    assert torch.equal(found.tensors["roi_heads.mask_head.predictor.weight"][:, 0, 0, 0], wanted)
    assert torch.equal(found.tensors["head.cls_score.bias"].view(5, -1), wanted.repeat(5, 1))
    assert found.tensors["roi_heads.res5.0.conv1.weight"] is given["roi_heads.res5.0.conv1.weight"]
    assert found.kept == [name for name in names if name in "abc"]
    assert found.new == [name for name in names if name not in "abc"]
    assert found.dropped == [name for name in "abc" if name not in names]
    assert own[f"{box}.cls_score.bias"][0] == 1000, "the model itself is not changed"


def test_layers_that_serve_all_classes_alike_stay():
    own, given = predictor(2, 1000.0, agnostic=True), predictor(3, 7.0, agnostic=True)
    found = rows_by_name(own, given, "ab", "abc")
    assert torch.equal(found.tensors["roi_heads.box_predictor.bbox_pred.bias"], torch.full((4,), 7.0))


def test_names_that_are_not_the_files_match_nothing():
    assert rows_by_name(predictor(2, 0.0), predictor(3, 0.0), "ab", "abcde") is None
    assert rows_by_name({}, {}, "ab", "ab") is None
