"""Fewer regions: nothing changes when off, no detection is lost that calibration has seen, and the bound is exact."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.modeling import build_model

from resnext_det import UserError
from resnext_det.commands import regions as command
from resnext_det.detection.initial_weights import architecture
from resnext_det.detection.prediction.detector import Predictor
from resnext_det.detection.regions import allowed, calibrated
from resnext_det.weights import read_checkpoint, save_checkpoint


@pytest.mark.parametrize("risk, confidence", [(0.01, 0.95), (0.05, 0.9), (0.2, 0.8)])
def test_the_bound_is_the_binomials(risk: float, confidence: float) -> None:
    """By its definition, in exact sums: so few losses, and one more is already likely enough."""

    def at_most(lost: int, number: int) -> float:
        return math.fsum(math.comb(number, k) * risk**k * (1 - risk) ** (number - k) for k in range(lost + 1))

    least = math.ceil(math.log(1 - confidence) / math.log(1 - risk))
    for number in (least, least + 1, 3 * least, 700):
        lost = allowed(number, risk, confidence)
        assert at_most(lost, number) <= 1 - confidence < at_most(lost + 1, number)
    with pytest.raises(UserError, match=f"{least - 1} images: {least} or more are needed"):
        allowed(least - 1, risk, confidence)


def test_the_promise_is_kept_on_images_not_seen() -> None:
    random = np.random.default_rng(0)
    broken = [
        np.mean(random.beta(2, 5, 20_000) < calibrated(random.beta(2, 5, 100), 0.05, 0.9)) > 0.05 for _ in range(400)
    ]
    assert np.mean(broken) <= 0.1 + 3 * math.sqrt(0.09 / 400)


IMAGES = [np.random.default_rng(i).integers(0, 255, (64, 80, 3)).astype(np.uint8) for i in range(4)]


@pytest.fixture(scope="module")
def predictor(tiny_run) -> Predictor:
    torch.manual_seed(0)
    found = Predictor(build_model(tiny_run.config("regions")), min_size=64, max_size=96)
    # Random weights: of each image, one detection in ten counts.
    found.thresholds = float(np.quantile(np.concatenate([one.scores for one in found(IMAGES)]), 0.9))
    return found


def test_no_detection_is_lost_and_off_changes_nothing(predictor: Predictor) -> None:
    heads, seen = predictor._model.roi_heads, []
    whole = [predictor([image])[0] for image in IMAGES]
    needed = [predictor.regions_needed(image) for image in IMAGES]
    assert sum(least < 1 for least, _ in needed) > 1
    handle = heads.box_predictor.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    try:
        for image, wanted, (least, objectness) in zip(IMAGES, whole, needed, strict=True):
            kept = wanted.take(wanted.scores >= predictor.thresholds)
            assert len(kept) == 0 or 0 < least <= 1
            heads.min_objectness = least
            (found,) = predictor([image])
            assert seen.pop() == max(1, int((objectness >= least).sum()))
            found = found.take(found.scores >= predictor.thresholds)
            np.testing.assert_array_equal(found.category_ids, kept.category_ids)
            np.testing.assert_allclose(found.boxes, kept.boxes, atol=1e-3)
            np.testing.assert_allclose(found.scores, kept.scores, atol=1e-5)
            heads.min_objectness = 1.0
            assert len(predictor([image])) == 1 and seen.pop() == 1, "the best is always looked at"
    finally:
        heads.min_objectness = 0.0
        handle.remove()
    for image, wanted in zip(IMAGES, whole, strict=True):
        np.testing.assert_array_equal(predictor([image])[0].scores, wanted.scores)


def test_the_command_writes_weights_that_need_fewer(predictor: Predictor, tiny_run, tmp_path, capsys) -> None:
    cfg = tiny_run.config("regions")
    facts = {
        **architecture(cfg),
        "config": cfg.dump(),
        "class_names": ["red", "blue"],
        "thresholds": [predictor.thresholds] * 2,
    }
    save_checkpoint(tmp_path / "w.pth", predictor._model.state_dict(), facts)
    words = ["--weights", tmp_path / "w.pth", "--input", tiny_run.folder / "test", "--output", tmp_path / "fewer.pth"]
    command.main([*map(str, words), "--risk", "0.7", "MODEL.RESNEXT.INFERENCE_DTYPE", "fp32"])
    stated = float(re.search("MIN_OBJECTNESS ([0-9.e-]+)", capsys.readouterr().out)[1])
    text = read_checkpoint(tmp_path / "fewer.pth").metadata["config"]
    assert float(re.search("MIN_OBJECTNESS: ([0-9.e-]+)", text)[1]) == pytest.approx(stated, rel=1e-5) and stated > 0
    with pytest.raises(UserError, match="3 images: 299 or more"):
        command.main([*map(str, words)])
