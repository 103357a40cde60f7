"""The two-step protocol: an RPN, its proposals in a file, Fast R-CNN on them; and files that are not what they seem."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from resnext_det import UserError
from resnext_det.commands.proposals import main as dump
from resnext_det.commands.train import main as train
from resnext_det.detection.data.loaders import component_of
from resnext_det.detection.data.proposals import attach_proposals, read_proposals, write_proposals
from resnext_det.detection.train import run

RPN = ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "TEST.BEST_METRIC", "AR@1000", "TEST.REPORT", False]
FAST = ["MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "TEST.REPORT", False]


def test_rpn_then_fast_rcnn(tiny_run):
    train = ["SOLVER.MAX_ITER", 60, "SOLVER.BASE_LR", 0.02]
    recall = run(tiny_run.config("rpn", *RPN, *train))["box_proposals"]
    assert recall["AR@100"] > 10
    dump(["--config-file", str(tiny_run.file), *tiny_run.options("rpn", *RPN)])
    files = [
        tiny_run.folder / "rpn" / "proposals" / f"{component_of(name)}.pkl" for name in (tiny_run.train, tiny_run.test)
    ]
    ids, boxes, logits = read_proposals(files[1])
    assert ids == [1, 2, 3] and all(0 < len(b) == len(x) <= 30 for b, x in zip(boxes, logits, strict=True))
    assert max(b[:, 2].max() for b in boxes) <= 80 and max(b[:, 3].max() for b in boxes) <= 64, "the images' pixels"
    settings = [*FAST, *train, "DATASETS.PROPOSAL_FILES_TRAIN", (str(files[0]),)]
    settings += ["DATASETS.PROPOSAL_FILES_TEST", (str(files[1]),), "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", 20]
    assert run(tiny_run.config("fast", *settings, "TEST.VALIDATION_LOSS", True))["bbox"]["AP50"] > 0
    with pytest.raises(UserError, match="none for 3 of 6 images"):
        run(tiny_run.config("fast", *settings, "DATASETS.PROPOSAL_FILES_TRAIN", (str(files[1]),)))
    with pytest.raises(UserError, match="0 files for 1 sets"):
        run(tiny_run.config("fast", *FAST))


def test_proposals_of_a_whole_detector(tiny_run):
    """An untrained Faster R-CNN's RPN proposes too; weights are named on the command line."""
    cfg = tiny_run.config("whole", "SOLVER.MAX_ITER", 1, "TEST.REPORT", False)
    run(cfg)
    weights = ["MODEL.WEIGHTS", tiny_run.folder / "whole" / "model_final.pth"]
    where = ["--dataset", tiny_run.test, "--output", str(tiny_run.folder / "whole" / "p")]
    dump(["--config-file", str(tiny_run.file), *where, *tiny_run.options("whole2", *weights)])
    assert len(read_proposals(tiny_run.folder / "whole" / "p" / f"{component_of(tiny_run.test)}.pkl")[0]) == 3


def records(number: int) -> list[dict]:
    return [{"image_id": i} for i in range(number)]


def test_the_file_is_detectron2s(tmp_path):
    path = tmp_path / "p.pkl"
    boxes = [np.random.rand(5, 4).astype(np.float32) for _ in range(3)]
    logits = [np.random.rand(5).astype(np.float32) for _ in range(3)]
    write_proposals(path, range(3), boxes, logits)
    ours, theirs = attach_proposals(records(3), path), load_proposals_into_dataset(records(3), str(path))
    for own, stock in zip(ours, theirs, strict=True):
        for key in ("proposal_boxes", "proposal_objectness_logits"):
            np.testing.assert_array_equal(own[key], stock[key])
        assert own["proposal_bbox_mode"] == stock["proposal_bbox_mode"]


def test_files_of_detectron_are_read(tmp_path):
    path = tmp_path / "p.pkl"
    old = {"indexes": [4], "boxes": [np.ones((2, 4))], "scores": [np.array([0.1, 0.9])]}
    path.write_bytes(pickle.dumps(old, protocol=2))
    ids, _, logits = read_proposals(path)
    assert ids == [4] and logits[0].tolist() == [np.float32(0.1), np.float32(0.9)]


def test_boxes_with_sizes_become_boxes_with_corners(tmp_path):
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    content = {"ids": [1], "boxes": [boxes], "objectness_logits": [np.zeros(2)], "bbox_mode": BoxMode.XYWH_ABS.value}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol=4))
    assert read_proposals(tmp_path / "p.pkl")[1][0].tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"ids": Evil()}, "runs code"),
        ([1], "holds a list"),
        ({"ids": [1], "boxes": []}, "objectness_logits"),
        ({"ids": [1], "boxes": [], "objectness_logits": []}, "1 ids, 0 boxes"),
        ({"ids": [1], "boxes": [np.ones((2, 4))], "objectness_logits": [np.ones(1)]}, "2 boxes, 1 logits"),
        ({"ids": [1], "boxes": [np.full((1, 4), np.nan)], "objectness_logits": [np.ones(1)]}, "NaN"),
        ({"ids": [1], "boxes": [np.ones(5)], "objectness_logits": [np.ones(1)]}, "reshape"),
        ({"ids": [], "boxes": [], "objectness_logits": [], "bbox_mode": 4}, "boxes of the mode XYWHA_ABS"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(UserError, match=f"p.pkl.*{message}"):
        read_proposals(path)
    with pytest.raises(UserError, match="no such file"):
        read_proposals(tmp_path / "none.pkl")


@pytest.mark.parametrize("main", [train, dump])
def test_the_name_of_a_set_leads_nowhere(main, tiny_run):
    sets = [["../planted", *tiny_run.sets[0][1:]]]
    words = tiny_run.options(
        "named", "DATASETS.REGISTER", sets, "DATASETS.TRAIN", "('../planted',)", "DATASETS.TEST", "()"
    )
    with pytest.raises(UserError, match=r"set '\.\._planted' cannot name a file"):
        main(["--config-file", str(tiny_run.file), *words])
