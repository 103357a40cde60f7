"""DETERMINISTIC and SEED: equal bits from both trainings, with other numbers of data workers, and a replayed step."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to mend)

# isort: split
from resnext_det.classification.command import main as pretrain
from resnext_det.detection.replay import replay
from resnext_det.detection.train import main as train_detector
from resnext_det.detection.train import setup
from resnext_det.errors import UserError
from resnext_det.made_data import classification_config, detection_config


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
