"""Class names are part of a checkpoint: resuming, fine-tuning and evaluating hold the data's against them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tiny import TinyRun

from resnext_det.detection.coco_evaluator import metric_names
from resnext_det.detection.config import setup
from resnext_det.detection.evaluate import check_metric
from resnext_det.detection.initial_weights import load_initial_weights
from resnext_det.detection.replay import replay
from resnext_det.detection.train import run
from resnext_det.engine.checkpoint import read_run_checkpoint
from resnext_det.engine.run import RunOptions
from resnext_det.errors import UserError

BOX = "roi_heads.box_predictor"
FAST = ("TEST.REPORT", False, "TEST.EVAL_PERIOD", 0)


def rewritten(tiny: TinyRun, change) -> TinyRun:
    """The same images in files under other names, their categories changed."""
    other = object.__new__(TinyRun)
    other.__dict__ |= tiny.__dict__
    other.train, other.test = f"{tiny.train} {change.__name__}", f"{tiny.test} {change.__name__}"
    other.sets = []
    for name, (_, file, images) in zip((other.train, other.test), tiny.sets, strict=True):
        document = json.loads(Path(file).read_text())
        change(document)
        changed = Path(file).with_name(f"{change.__name__}_{Path(file).name}")
        changed.write_text(json.dumps(document))
        other.sets.append([name, str(changed), images])
    return other


def swapped(document: dict) -> None:
    """Blue comes before red."""
    for record in document["categories"]:
        record["id"] = 11 - record["id"]
    for record in document["annotations"]:
        record["category_id"] = 11 - record["category_id"]


def renamed(document: dict) -> None:
    document["categories"][1]["name"] = "azure"


def more(document: dict) -> None:
    document["categories"].insert(0, {"id": 1, "name": "green"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TinyRun:
    """Two iterations, of four."""
    tiny = TinyRun(tmp_path_factory.mktemp("names"))
    run(tiny.config("two", "SOLVER.MAX_ITER", 2, *FAST))
    return tiny


def weights(tiny: TinyRun, output: str) -> dict:
    return read_run_checkpoint(tiny.folder / output / "model_final.pth")


def resumed(data: TinyRun, tiny: TinyRun, output: str, *pairs: object) -> None:
    folder = tiny.folder / output
    folder.mkdir()
    (folder / "model_0000001.pth").write_bytes((tiny.folder / "two" / "model_final.pth").read_bytes())
    run(data.config(output, "SOLVER.MAX_ITER", 4, *FAST, *pairs), RunOptions(resume=True))


def test_a_run_resumes_on_data_that_numbers_its_classes_otherwise(trained: TinyRun, caplog):
    run(trained.config("whole", "SOLVER.MAX_ITER", 4, *FAST))
    resumed(rewritten(trained, swapped), trained, "swapped")
    whole, other = weights(trained, "whole"), weights(trained, "swapped")
    assert all(torch.equal(whole["model"][name], other["model"][name]) for name in whole["model"])
    assert other["metadata"]["class_names"] == ["red", "blue"]
    found = json.loads((trained.folder / "whole/results.json").read_text())["bbox"]
    assert set(metric_names(["red", "blue"])) <= set(found)  # what TEST.BEST_METRIC may be
    assert (trained.folder / "whole/results.json").read_bytes() == (
        trained.folder / "swapped/results.json"
    ).read_bytes()


def test_a_step_of_a_run_resumed_in_another_order_is_replayed(trained: TinyRun):
    data = rewritten(trained, swapped)
    with pytest.raises(UserError, match="--replay"):
        resumed(data, trained, "exploded", "SOLVER.BASE_LR", 1e9)
    (dump,) = (trained.folder / "exploded").glob("dump_*")
    result = replay(setup(str(dump / "config.yaml")), str(dump))
    assert result["losses"] == result["recorded"]
    with pytest.raises(UserError, match="it has 'azure' and lacks 'blue'"):
        replay(rewritten(trained, renamed).config("exploded"), str(dump))


def test_a_run_on_renamed_classes_is_not_resumed(trained: TinyRun):
    with pytest.raises(UserError, match="it has 'azure' and lacks 'blue'.*--init-from .*model_0000001.pth keeps"):
        resumed(rewritten(trained, renamed), trained, "renamed")


def test_an_unchecked_set_in_another_order_is_refused(trained: TinyRun):
    with pytest.raises(UserError, match="in another order, blue, red; .* set DATASETS.CHECK to auto"):
        resumed(rewritten(trained, swapped), trained, "unchecked", "DATASETS.CHECK", "off")
    final = str(trained.folder / "two" / "model_final.pth")
    words = ("MODEL.WEIGHTS", final, "DATASETS.CHECK", "off", *FAST)
    with pytest.raises(UserError, match="has its classes in another order than the weights"):
        run(rewritten(trained, swapped).config("evaluated", *words), RunOptions(eval_only=True))


def loaded(tiny: TinyRun, names: list[str], *pairs: object) -> tuple[dict, dict, dict]:
    """(tensors at first, as loaded, of the file) of a model for ``names``."""
    final = tiny.folder / "two" / "model_final.pth"
    cfg = tiny.config("fine", "MODEL.WEIGHTS", str(final), "MODEL.ROI_HEADS.NUM_CLASSES", len(names), *pairs)
    model = build_model(cfg)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_initial_weights(cfg, model, class_names=names)
    return before, model.state_dict(), read_run_checkpoint(final)["model"]


def test_fine_tuning_keeps_the_classes_that_the_weights_know(trained: TinyRun, caplog):
    before, after, file = loaded(trained, ["green", "blue"])
    score, delta = f"{BOX}.cls_score.weight", f"{BOX}.bbox_pred.weight"
    assert torch.equal(after[score], torch.stack([before[score][0], file[score][1], file[score][2]]))
    assert torch.equal(after[delta], torch.cat([before[delta][:4], file[delta][4:]]))
    assert "kept blue; new green; left out red; for classes that were only renamed" in caplog.text
    caplog.clear()
    before, after, file = loaded(trained, ["blue", "green", "red"])  # more of them
    assert torch.equal(after[score], torch.stack([file[score][1], before[score][1], file[score][0], file[score][2]]))
    assert "kept blue, red; new green" in caplog.text and "renamed" not in caplog.text
    backbone = next(name for name in file if name.startswith("backbone."))
    assert torch.equal(after[backbone], file[backbone])


def test_renamed_classes_keep_their_rows_where_the_user_says_so(trained: TinyRun, caplog):
    _, after, file = loaded(trained, ["azure", "red"], "MODEL.WEIGHTS_CLASSES", ["red", "azure"])
    score = f"{BOX}.cls_score.weight"
    assert torch.equal(after[score], file[score][[1, 0, 2]]) and "kept azure, red" in caplog.text
    with pytest.raises(UserError, match="MODEL.WEIGHTS_CLASSES: 3 names, and .* no predictor of so many"):
        loaded(trained, ["red", "blue"], "MODEL.WEIGHTS_CLASSES", ["a", "b", "c"])


def test_a_class_is_added_in_a_run(trained: TinyRun):
    final = str(trained.folder / "two" / "model_final.pth")
    data = rewritten(trained, more)
    run(data.config("added", "MODEL.WEIGHTS", final, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "SOLVER.MAX_ITER", 1,
                    "SOLVER.BASE_LR", 0.0, *FAST))  # fmt: skip
    after, file = weights(trained, "added"), weights(trained, "two")
    score = f"{BOX}.cls_score.weight"
    assert after["metadata"]["class_names"] == ["green", "red", "blue"]
    assert torch.equal(after["model"][score][1:], file["model"][score])


def test_weights_without_names_are_taken_in_the_datas_order_and_reported(trained: TinyRun, tmp_path: Path, caplog):
    torch.save(weights(trained, "two")["model"], tmp_path / "bare.pth")
    cfg = trained.config("bare", "MODEL.WEIGHTS", str(tmp_path / "bare.pth"))
    load_initial_weights(cfg, build_model(cfg), class_names=["red", "blue"])
    assert "does not say its class names: taken to be those of the data, red, blue" in caplog.text


@pytest.mark.parametrize("metric", ["AP5O", "total_loss", "AP-green", "AR@1000"])
def test_an_unknown_best_metric_is_refused_at_the_start(trained: TinyRun, metric: str):
    with pytest.raises(UserError, match=f"TEST.BEST_METRIC '{metric}': choose from AP, AP50, .*AR100.*AP-CLASS"):
        run(trained.config("metric", "TEST.BEST_METRIC", metric))
    assert not list((trained.folder / "metric").glob("*.pth"))


@pytest.mark.parametrize("metric", ["", "AP50", "AP-red"])
def test_known_metrics_pass(metric: str):
    check_metric(metric, ["red", "blue"], 100, proposals=False)
    check_metric("ARs@100", [], 100, proposals=True)
