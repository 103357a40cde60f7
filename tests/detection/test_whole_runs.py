"""Whole runs: early stop, rates after a resume, the average of the weights."""

from __future__ import annotations

import json
import resource

import pytest
import torch
from forked import call
from reported import Reports, block, reports_of_all
from tiny import TinyRun

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats

from resnext_det.detection.data.loaders import component_of, train_loader_from_config
from resnext_det.detection.dump_proposals import run as dump
from resnext_det.detection.train import run
from resnext_det.engine import run as run_module
from resnext_det.engine.checkpoint import read_run_checkpoint
from resnext_det.engine.evaluations import read_evaluations
from resnext_det.engine.launch import launch
from resnext_det.engine.run import RunOptions
from resnext_det.engine.sampler import seed_everything


def write_in_vain(cfgs, folder):
    reported = Reports()
    run_module.archive = lambda folder: None  # it would move what blocks the last checkpoint
    reported("config", lambda: run(cfgs["config"]))
    reported("early", lambda: run(cfgs["early"]))
    reported("sound", lambda: run(cfgs["sound"]))
    reported("proposals", lambda: dump(cfgs["sound"], cfgs["sound"].DATASETS.TEST, str(folder), False, False))
    reported.write(folder)


@pytest.mark.usefixtures("forked")
def test_two_processes_hear_what_the_first_cannot_write(tmp_path):
    tiny_run = TinyRun(tmp_path)
    more = ["SOLVER.MAX_ITER", 1, "TEST.REPORT", False]
    early = ["SOLVER.MAX_ITER", 9, "TEST.REPORT", False, "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1]
    early += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0]
    cfgs = {
        "config": tiny_run.config(block(tmp_path, "config", "config.yaml"), *more),
        "early": tiny_run.config(tmp_path / "early", *early),
        "sound": tiny_run.config(tmp_path / "sound", *more),
    }
    block(tmp_path, "early", "model_final.pth")
    block(tmp_path, f"{component_of(tiny_run.test)}.pkl")
    launch(write_in_vain, (cfgs, tmp_path), processes=2)
    said = reports_of_all(tmp_path)
    assert said.keys() == {"config", "early", "proposals"}
    assert all(text.startswith("UserError: ") for text in said.values())
    assert "config.yaml: is a directory" in said["config"] and "model_final.pth" in said["early"]
    assert f"{component_of(tiny_run.test)}.pkl: is a directory" in said["proposals"]


@pytest.mark.usefixtures("forked")
def test_a_full_disk_ends_both_processes_with_one_line(tiny_run):
    """A limit on the size of files stands in for it: log and metrics are below, checkpoints are not."""
    words = ["train", "--num-gpus", 2, "--config-file", tiny_run.file]
    words += tiny_run.options("full", "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.REPORT", False)
    limit = (1 << 16, resource.RLIM_INFINITY)
    done = call(*words, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == done.stderr.splitlines()[-1] and "model_0000000.pth: cannot be written" in line
    assert not list((tiny_run.folder / "full").glob("*.pth"))


def test_a_run_stops_early_and_can_go_on(tiny_run):
    more = ["SOLVER.MAX_ITER", 40, "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1, "TEST.REPORT", False]
    more += ["SOLVER.BASE_LR", 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0]  # nothing detected: AP stays 0
    results = run(tiny_run.config("stopped", *more))
    folder = tiny_run.folder / "stopped"
    assert results["bbox"]["AP"] == 0
    assert [record["iteration"] for record in read_evaluations(folder / "evaluations.jsonl")] == [1, 2]
    assert read_run_checkpoint(folder / "model_best.pth")["iteration"] == 0
    assert read_run_checkpoint(folder / "model_final.pth")["iteration"] == 1
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    run(tiny_run.config("stopped", *more, "TEST.PATIENCE", 0, "SOLVER.MAX_ITER", 3), RunOptions(resume=True))
    assert read_evaluations(folder / "evaluations.jsonl")[-1]["iteration"] == 3


def test_a_resumed_run_takes_the_rates_of_its_config(tiny_run):
    run(tiny_run.config("rates", "TEST.REPORT", False))
    more = ["SOLVER.MAX_ITER", 5, "SOLVER.BASE_LR", 0.002, "SOLVER.WEIGHT_DECAY", 0.5, "TEST.REPORT", False]
    run(tiny_run.config("rates", *more), RunOptions(resume=True))
    log = (tiny_run.folder / "rates" / "log.txt").read_text()
    assert "initial_lr 0.01 -> 0.002" in log and "weight_decay 0.0001 -> 0.5" in log
    state = read_run_checkpoint(tiny_run.folder / "rates" / "model_final.pth")["trainer"]
    group = state["optimizer"]["param_groups"][0]
    assert group["lr"] == group["initial_lr"] == 0.002 and group["weight_decay"] == 0.5
    assert state["hooks"]["LRScheduler"]["base_lrs"][0] == 0.002
    metrics = (tiny_run.folder / "rates" / "metrics.json").read_text().splitlines()
    rates = {line["iteration"]: line["lr"] for line in map(json.loads, metrics) if "lr" in line}
    assert rates == {3: 0.01, 4: 0.002}, "from the first step after the resume on"


def test_the_average_of_the_weights_is_kept_and_evaluated(tiny_run):
    more = ["SOLVER.EMA_DECAY", 0.5, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.REPORT", False]
    run(tiny_run.config("average", *more))
    files = ["model_0000000.pth", "model_0000001.pth", "model_final.pth"]
    states = [read_run_checkpoint(tiny_run.folder / "average" / name) for name in files]
    name = "roi_heads.box_predictor.cls_score.weight"
    expected = states[0]["model"][name]
    for decay, state in ((2 / 11, states[1]), (3 / 12, states[2])):  # still less than 0.5
        assert not torch.equal(state["model"][name], states[0]["model"][name])
        expected = decay * expected + (1 - decay) * state["model"][name]
    torch.testing.assert_close(states[-1]["model_ema"]["module." + name], expected)

    from resnext_det.detection.train import load_to_evaluate

    for settings, newest in ((["MODEL.WEIGHTS", tiny_run.folder / "average" / files[-1]], False), ([], True)):
        cfg = tiny_run.config("average", *more, *settings)
        model = build_model(cfg)
        load_to_evaluate(cfg, model, newest=newest)
        torch.testing.assert_close(model.state_dict()[name], expected)


def test_a_run_without_a_test_set_trains_and_says_so(tiny_run):
    results = run(tiny_run.config("untested", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2))
    folder = tiny_run.folder / "untested"
    assert results == {} and (folder / "model_final.pth").is_file()
    assert "DATASETS.TEST is empty: nothing is evaluated" in (folder / "log.txt").read_text()


def test_a_preset_is_resumed_without_the_first_weights(tiny_run):
    first = ["SOLVER.MAX_ITER", 1, "TEST.REPORT", False]
    run(tiny_run.config("first", *first, "INPUT.FORMAT", "RGB"))
    weights = tiny_run.folder / "weights.pth"
    (tiny_run.folder / "first" / "model_final.pth").rename(weights)
    more = ["TEST.REPORT", False, "INPUT.PRESET", "auto", "MODEL.WEIGHTS", weights]
    run(tiny_run.config("second", *more, "SOLVER.MAX_ITER", 1))
    weights.unlink()
    run(tiny_run.config("second", *more, "SOLVER.MAX_ITER", 2), RunOptions(resume=True))
    assert read_run_checkpoint(tiny_run.folder / "second" / "model_final.pth")["iteration"] == 1


def test_precise_batch_norm_is_fvcores_and_saved_and_resumable(tiny_run):
    more = ["TEST.REPORT", False, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3]
    more += ["SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2]
    run(tiny_run.config("plain", "TEST.REPORT", False))
    cfg = tiny_run.config("precise", *more)
    run(cfg)
    final = read_run_checkpoint(tiny_run.folder / "precise" / "model_final.pth")["model"]
    plain = read_run_checkpoint(tiny_run.folder / "plain" / "model_final.pth")["model"]
    for key in plain:  # what is trained is untouched, what is measured is not
        assert torch.equal(final[key], plain[key]) != ("running_" in key or "num_batches" in key), key
    # fvcore's own function on the same weights and data
    model = build_model(cfg)
    model.load_state_dict(plain)
    model.train()
    seed_everything((cfg.SEED, 4))
    with EventStorage():
        update_bn_stats(model, train_loader_from_config(cfg, cfg.SEED, 4), 3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, final[key]) or "num_batches" in key, key
    # from the checkpoint after the second step
    folder = tiny_run.folder / "precise"
    (folder / "model_final.pth").unlink()
    (folder / "model_0000003.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    run(cfg, RunOptions(resume=True))
    again = read_run_checkpoint(folder / "model_final.pth")["model"]
    assert all(torch.equal(again[key], final[key]) for key in final)
