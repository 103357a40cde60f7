"""Evaluation after a training run: detectron2's numbers, what is written, sets without annotations, augmentation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from tiny import write_set

from resnext_det import UserError
from resnext_det.commands.train import main
from resnext_det.detection import evaluate
from resnext_det.detection.data import loaders as data
from resnext_det.detection.evaluate import (
    areas_from_config,
    evaluate_model,
    thresholds_of,
    training_losses,
    validation_loss,
    with_test_time_augmentation,
)
from resnext_det.detection.optimize import for_inference
from resnext_det.detection.train import load_to_evaluate, run
from resnext_det.engine.checkpoint import read_run_checkpoint
from resnext_det.engine.evaluations import read_evaluations
from resnext_det.engine.run import RunOptions

TRAINED = ("SOLVER.MAX_ITER", 60, "SOLVER.BASE_LR", 0.02, "TEST.REPORT", False)


@pytest.fixture(scope="module")
def trained(tiny_run):
    """(config, results) of a run that has learned a little."""
    torch.manual_seed(0)
    cfg = tiny_run.config("trained", *TRAINED)
    return cfg, run(cfg)


def loaded(cfg):
    model = build_model(cfg)
    load_to_evaluate(cfg, model, newest=True)
    return model


def test_training_with_detectron2s_evaluator_gives_the_same_numbers(trained, tiny_run, tmp_path):
    cfg, ours = trained
    stock = COCOEvaluator(tiny_run.test, ("bbox",), False, str(tmp_path), use_fast_impl=False)
    stock = inference_on_dataset(loaded(cfg), data.test_loader_from_config(cfg, tiny_run.test), stock)
    assert ours["bbox"]["AP50"] > 0
    np.testing.assert_array_equal([ours["bbox"][key] for key in stock["bbox"]], list(stock["bbox"].values()))


def test_the_best_thresholds_travel_in_the_checkpoint(trained, tiny_run):
    cfg, results = trained
    found = results["bbox"]
    for name in ("model_final.pth", "model_best.pth"):
        metadata = read_run_checkpoint(f"{cfg.OUTPUT_DIR}/{name}")["metadata"]
        best = [found[f"threshold-{of}"] for of in metadata["class_names"]]
        assert metadata["thresholds"] == [found["threshold"] if np.isnan(value) else value for value in best]
    written = json.loads((tiny_run.folder / "trained" / "results.json").read_text())
    assert len(written["thresholds"]["all"]["f1"]) == 101 and found["F1"] > 0
    assert thresholds_of({"bbox": {"threshold": float("nan")}}, ["a"]) == thresholds_of({}, ["a"]) == {}
    two = {"bbox": {"threshold": 0.5, "threshold-a": 0.25, "threshold-b": float("nan")}}
    assert thresholds_of({"one": two, "other": {}}, ["a", "b"]) == {"thresholds": [0.25, 0.5]}
    for areas in ([["a", 3]], [["a", 9, 3]], ["a"], [[1, 2, 3]]):
        with pytest.raises(UserError, match="TEST.AREAS"):
            areas_from_config(tiny_run.config("areas", "TEST.AREAS", areas))
    assert areas_from_config(tiny_run.config("areas", "TEST.AREAS", [["a", 3, 9]])) == {"a": (3.0, 9.0)}


def test_evaluation_by_another_backend(trained, tiny_run):
    cfg, ours = trained
    openvino = ("MODEL.RESNEXT.INFERENCE_DTYPE", "fp32", "MODEL.RESNEXT.INFERENCE_BACKEND", "openvino")
    result = evaluate_model(tiny_run.config("in_fp32", *TRAINED, *openvino), loaded(trained[0]))
    assert result["bbox"]["AP50"] == pytest.approx(ours["bbox"]["AP50"], abs=1e-4)


@torch.no_grad()
def test_evaluation_in_int8(trained, tiny_run, monkeypatch):
    """What a training ends at differs between processors, so int8 is held to the features of given regions."""
    cfg = tiny_run.config("in_int8", *TRAINED, "MODEL.RESNEXT.INFERENCE_DTYPE", "int8")
    read, made = [], []
    monkeypatch.setattr(
        evaluate, "calibration_inputs", lambda cfg, **_: read.extend(data.calibration_inputs(cfg)) or read
    )
    monkeypatch.setattr(evaluate, "for_inference", lambda *given: made.append(for_inference(*given)) or made[0])
    model = loaded(trained[0])
    assert set(evaluate_model(cfg, model)["bbox"]) == set(trained[1]["bbox"])
    shown = [Path(record["file_name"]).parent.name for batch in read for record in batch]
    assert shown == ["train"] * 6
    assert [len(list(data.calibration_inputs(cfg, n))) for n in (1, 2, 3)] == [1, 2, 3]
    batch = next(iter(data.test_loader_from_config(cfg, tiny_run.test)))
    boxes = [Boxes(torch.tensor([[4.0, 4, 30, 30], [10, 8, 50, 40], [20, 20, 60, 60]]))]
    expected, result = (
        m.roi_heads._shared_roi_transform([m.backbone(m.preprocess_image(batch).tensor)["res4"]], boxes)
        for m in (model.eval(), made[0])
    )
    error = (result - expected).norm() / expected.norm()
    assert 0 < error < 0.25  # one layer rounds by about 1%, there are 13, and 1.4 would be noise alone


def test_what_is_written(trained, tiny_run):
    cfg, results = trained
    folder = tiny_run.folder / "trained"
    written = json.loads((folder / "results.json").read_text())
    assert written["bbox"]["AP50"] == results["bbox"]["AP50"] and written["bbox"]["APl"] is None
    line = f"bbox: AP@0.5 / AP {results['bbox']['AP50']:.1f} / {results['bbox']['AP']:.1f}"
    assert line in (folder / "log.txt").read_text()
    (record,) = read_evaluations(folder / "evaluations.jsonl")
    assert record["iteration"] == 60 and record["bbox"] == written["bbox"]
    (folder / "results.json").unlink()
    again = run(tiny_run.config("trained", *TRAINED), RunOptions(resume=True))  # nothing is left to train
    assert again["bbox"]["AP"] == results["bbox"]["AP"] and (folder / "results.json").exists()
    assert len(read_evaluations(folder / "evaluations.jsonl")) == 1


def test_report_of_an_evaluation(trained, tiny_run):
    cfg = tiny_run.config("trained", *TRAINED, "TEST.REPORT", True, "OUTPUT_DIR", tiny_run.folder / "report")
    evaluate_model(cfg, loaded(trained[0]))
    (page,) = (tiny_run.folder / "report" / "inference").glob("*/report.html")
    assert '"detections":' in page.read_text() and page.stat().st_size > 25_000


def test_a_set_without_annotations_is_predicted_and_saved(trained, tiny_run, tmp_path):
    name = f"{tmp_path}_test-dev"
    entry = [name, *write_set(tmp_path, "dev", 2, annotations=False)]
    cfg = tiny_run.config("dev", *TRAINED, "DATASETS.REGISTER", [*tiny_run.sets, entry], "DATASETS.TEST", (name,))
    data.register_sets(cfg.DATASETS.REGISTER)
    assert evaluate_model(cfg, loaded(trained[0])) == {}
    (file,) = (tiny_run.folder / "dev" / "inference").glob("*/coco_instances_results.json")
    assert {record["category_id"] for record in json.loads(file.read_text())} <= {3, 8}


def test_tiles(trained, tiny_run, tmp_path):
    """Tiles no smaller than the images change nothing; smaller ones find boxes of the whole image."""
    model = loaded(trained[0])

    def rated(tile: int) -> tuple[dict, np.ndarray]:
        cfg = tiny_run.config(f"tiles_{tile}", *TRAINED, "TEST.TILE", tile, "TEST.TILE_OVERLAP", 0.6)
        results = evaluate_model(cfg, model)
        (file,) = Path(cfg.OUTPUT_DIR).rglob("coco_instances_results.json")
        return results["bbox"], np.array([found["bbox"] for found in json.loads(file.read_text())])

    (whole, boxes), (large, same), (small, others) = map(rated, (0, 80, 50))
    assert large == pytest.approx(whole, nan_ok=True, abs=1e-6)
    np.testing.assert_allclose(same, boxes, atol=1e-4)  # from corners to sizes and back
    ends = (others[:, :2] + others[:, 2:]).max(0)
    assert small != whole and (ends > 50).all() and (ends <= (80.01, 64.01)).all()  # beyond the first tile, inside
    with pytest.raises(UserError, match=r"TEST.TILE and TEST.AUG.ENABLED"):
        evaluate_model(tiny_run.config("tiles", *TRAINED, "TEST.TILE", 50, "TEST.AUG.ENABLED", True), model)


def test_test_time_augmentation(trained, tiny_run):
    more = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 64), "TEST.AUG.MAX_SIZE", 96)
    cfg = tiny_run.config("augmented", *TRAINED, *more)
    model = loaded(trained[0])
    once = evaluate_model(tiny_run.config("augmented", *TRAINED, *more[:1], False), model)
    seen = []
    handle = model.backbone.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    augmented = evaluate_model(cfg, model)
    handle.remove()
    images = sum(shape[0] for shape in seen)
    assert images == 3 * 4, "two sizes, each mirrored too"
    assert augmented["bbox"]["AP50"] >= 0 and augmented != once
    with pytest.raises(UserError, match="TEST.AUG.ENABLED"):
        evaluate_model(tiny_run.config("augmented", *more, "MODEL.META_ARCHITECTURE", "ProposalNetwork"), model)


def test_test_time_augmentation_of_masks(tiny_run):
    more = ("MODEL.MASK_ON", True, "TEST.AUG.MIN_SIZES", (48, 64), "TEST.DETECTIONS_PER_IMAGE", 5)
    cfg = tiny_run.config("masks", *more)
    model = build_model(cfg).eval()
    record = {"image": torch.rand(3, 64, 80) * 255, "height": 64, "width": 80}
    with torch.no_grad():
        (output,) = with_test_time_augmentation(cfg, model)([record])
    assert output["instances"].pred_masks.shape == (5, 64, 80) and model.roi_heads.mask_on


@pytest.mark.usefixtures("forked")
def test_two_processes_train_evaluate_and_stop_together(trained, tiny_run):
    more = ["SOLVER.MAX_ITER", 9, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE", 2, "SOLVER.BASE_LR", 0.0]
    more += ["TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1, "TEST.VALIDATION_LOSS", True, "TEST.REPORT", False]
    # Nothing may change between the evaluations: no rate, and no statistics of batches.
    more += ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.WEIGHTS", tiny_run.folder / "trained" / "model_final.pth"]
    main(["--config-file", str(tiny_run.file), "--num-gpus", "2", *tiny_run.options("two", *more)])
    records = read_evaluations(tiny_run.folder / "two" / "evaluations.jsonl")
    assert [record["iteration"] for record in records] == [1, 2]
    cfg, _ = trained
    alone = validation_loss(cfg, loaded(cfg))["total_loss"]
    assert records[0]["validation_loss"]["total_loss"] == pytest.approx(alone, rel=1e-5)


def test_validation_loss_with_more_processes_than_images(trained, monkeypatch):
    cfg, _ = trained
    model = loaded(cfg)
    alone = validation_loss(cfg, model)
    for others in (lambda own: [own, (0, {})], lambda own: [(0, {}), own]):
        monkeypatch.setattr("resnext_det.detection.evaluate.comm.gather", others)
        assert validation_loss(cfg, model) == alone


def test_validation_loss_is_repeatable_and_changes_nothing(trained, tiny_run):
    cfg, _ = trained
    model = loaded(cfg).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = validation_loss(cfg, model)
    assert losses == validation_loss(cfg, model)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "total_loss"}
    assert math.isclose(losses["total_loss"], sum(v for k, v in losses.items() if k != "total_loss"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    with training_losses(model):
        assert model.training and not model.backbone.stem.conv1.norm.training
    untrained = build_model(cfg)
    assert validation_loss(cfg, untrained)["total_loss"] > losses["total_loss"]
