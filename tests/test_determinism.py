"""DETERMINISTIC and SEED: equal bits from both trainings, with other numbers of data workers, and a replayed step."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det.classification.config import get_config
from resnext_det.classification.replay import replay as replay_classifier
from resnext_det.commands.pretrain import main as pretrain
from resnext_det.commands.train import main as train_detector
from resnext_det.detection.config import setup
from resnext_det.detection.replay import replay
from resnext_det.engine.config import load_config
from resnext_det.errors import UserError
from resnext_det.makers.synthetic import classification_config, detection_config


def in_a_fork(function: Callable, *args: object) -> None:
    """The switch cannot be taken back in a process, so each run has one of its own."""
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(function, *args))
    process.start()
    process.join()
    assert process.exitcode == 0


def _quietly(function: Callable, *args: object) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    function(*args)
    assert torch.are_deterministic_algorithms_enabled()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "config"),
    [
        (train_detector, lambda folder: detection_config(folder, 8)),
        (pretrain, lambda folder: classification_config(folder, 2)),
    ],
    ids=["detector", "classifier"],
)
def test_two_runs_are_equal_bit_for_bit(tmp_path, main, config):
    file = config(tmp_path)
    runs = [("first", 0, 1), ("second", 2, 1), ("other seed", 0, 2)]
    for name, workers, seed in runs:
        options = ["DETERMINISTIC", "True", "DATALOADER.NUM_WORKERS", str(workers), "SEED", str(seed)]
        in_a_fork(main, ["--config-file", str(file), *options, "OUTPUT_DIR", str(tmp_path / name)])
    first, second, other = (weights(tmp_path / name) for name, *_ in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.slow
def test_a_step_that_exploded_is_replayed_with_its_very_losses(tmp_path):
    config = str(detection_config(tmp_path, 6))
    with pytest.raises(UserError, match="the loss is (above|not finite).*--replay"):
        train_detector(["--config-file", config, "SOLVER.BASE_LR", "1e6", "DATALOADER.NUM_WORKERS", "1"])
    (dump,) = (tmp_path / "run").glob("dump_*")
    facts = json.loads((dump / "process_0.json").read_text())
    samples = facts["batches"][0]["samples"]
    document = json.loads((tmp_path / "shapes" / "instances.json").read_text())
    for sample in samples:
        wanted = [a["id"] for a in document["annotations"] if a["image_id"] == sample["image_id"]]
        assert sample["annotation_ids"] == wanted and Path(sample["file_name"]).exists()
    result = replay(setup(str(dump / "config.yaml")), str(dump))
    assert result["losses"] == result["recorded"] and len(result["losses"][0]) == 4
    assert result["gradient_norms"].keys() == facts["gradient_norms"].keys()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_pretraining_is_replayed_with_its_very_losses(tmp_path, processes):
    config = str(classification_config(tmp_path, 2))
    more = ["SOLVER.BASE_LR", "1e6", "SOLVER.ACCUMULATE", "2", "SOLVER.LABEL_SMOOTHING", "0.1"]
    with pytest.raises(UserError, match="the loss is (above|not finite).*--replay"):
        pretrain(["--config-file", config, "--num-gpus", str(processes), *more])
    (dump,) = (tmp_path / "run").glob("dump_*")
    for process in range(processes):
        file = dump / f"process_{process}.json"
        facts = json.loads(file.read_text())
        samples = [sample for batch in facts["batches"] for sample in batch["samples"]]
        assert len(samples) == 8 // processes and all(Path(sample["file_name"]).exists() for sample in samples)
        result = replay_classifier(load_config(get_config(), str(dump / "config.yaml")), str(file))
        assert result["losses"] == result["recorded"] and len(result["losses"]) == 2
        names = {f"classifier.{name}" for name in torch.load(dump / "weights.pth")["model"]}
        assert result["gradient_norms"] and names >= result["gradient_norms"].keys()
    pretrain(["--replay", str(dump)])
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "replayed: learning rate" in log and "the training data is not what it was" not in log
    Path(samples[0]["file_name"]).unlink()
    pretrain(["--replay", str(dump)])
    assert "the training data is not what it was" in (tmp_path / "run" / "log.txt").read_text()
