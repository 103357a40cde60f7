"""Pretraining end to end on synthetic images: results, resuming to equal bits, several processes, switches, errors."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from forked import call
from PIL import Image
from reported import Reports, block, reports_of_all
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler
from torchvision.transforms import v2

from resnext_det import UserError, create_model
from resnext_det.classification import train as train_module
from resnext_det.classification.augmentation import SAME_COLORS, Normalize
from resnext_det.classification.config import get_config
from resnext_det.classification.data import ImageFolder
from resnext_det.classification.solver import build_optimizer
from resnext_det.classification.train import (
    Plan,
    TrainingModel,
    build_classifier,
    build_scheduler,
    build_training_model,
    train,
)
from resnext_det.commands.pretrain import main
from resnext_det.engine.config import load_config
from resnext_det.engine.evaluations import read_evaluations, write_evaluations
from resnext_det.engine.launch import launch
from resnext_det.engine.signals import Stopped
from resnext_det.engine.trainer import Trainer
from resnext_det.makers.shards import write_shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 noisy images of each of two colors to train on, 4 to test; the first also as shards."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, color in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(noise.normal(color, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    write_shards(ImageFolder(root / "train"), root / "shards", per_shard=5)
    (root / "config.yaml").write_text(f"""
MODEL: {{NAME: resnext14_2x2d, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, DEVICE: cpu}}
DATASETS: {{TRAIN: {root}/train, TEST: {root}/val}}
DATALOADER: {{NUM_WORKERS: 0, SHUFFLE_WINDOW: 10}}
INPUT: {{CROP_SIZE: 32}}  # 16 leaves res5 a map of one pixel, whose bf16 gradients torch 2.15 takes from unset memory
TEST: {{SHORT_SIDE: 32, CROP_SIZE: 32}}
SOLVER: {{EPOCHS: 4, STEPS: [3], IMS_PER_BATCH: 8, REFERENCE_BATCH: 8, BASE_LR: 0.01, EMA_DECAY: 0.5}}
""")
    return root


def pretrain(folder: Path, out: Path, *arguments: object) -> dict:
    """Train, and read the last checkpoint."""
    main(["--config-file", str(folder / "config.yaml"), *map(str, arguments), "OUTPUT_DIR", str(out)])
    final = out / "model_final.pth"
    return torch.load(final, weights_only=True) if final.is_file() else {}


def pretrain_until_killed(folder: Path, out: Path, step: int, *arguments: object) -> None:
    run_step = Trainer.run_step

    def killing(self: Trainer) -> None:
        if self.iter == step:
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(self)

    Trainer.run_step = killing
    pretrain(folder, out, *arguments)


def test_killed_and_resumed_equals_uninterrupted(folder: Path, tmp_path: Path) -> None:
    """Killed inside an epoch, from shards, resumed with another number of workers: equal bits of everything."""
    arguments = ["SOLVER.CHECKPOINT_PERIOD", 0.34, "DATASETS.TRAIN", folder / "shards"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    theirs = pretrain(folder, whole, *arguments)
    child = multiprocessing.get_context("fork").Process(
        target=pretrain_until_killed, args=(folder, broken, 7, *arguments)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and (broken / "last_checkpoint").read_text() == "model_0000006.pth"
    best = torch.load(whole / "model_best.pth", weights_only=True)
    evaluations = broken / "evaluations.jsonl"
    (first, second) = read_evaluations(evaluations)
    write_evaluations(evaluations, [{**first, "top1_error": -1.0}, second])
    (broken / "model_best.pth").write_bytes(b"damaged")  # it is not read
    ours = pretrain(folder, broken, "--resume", *arguments, "DATALOADER.NUM_WORKERS", 1)
    assert ours["iteration"] == 11 and ours["model_ema"]["n_averaged"] == 12
    for part in ("model", "model_ema"):
        assert all(torch.equal(ours[part][key], theirs[part][key]) for key in theirs[part]), part
    momenta = [run["trainer"]["optimizer"]["state"] for run in (ours, theirs)]
    assert all(torch.equal(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in momenta[1])
    assert "eta: 0:00:00" in (whole / "log.txt").read_text()

    results = json.loads((whole / "results.json").read_text())
    assert results["top1_error"] <= 50 and results["top5_error"] == 0
    facts = theirs["metadata"]
    assert (facts["channel_order"], facts["class_names"], facts["depth"]) == ("RGB", ["blue", "red"], 14)
    assert (broken / "model_best.pth").read_bytes() == b"damaged", "a worse one after resuming replaced the best"
    numbers = [{key: value for key, value in r.items() if key != "seconds"} for r in read_evaluations(evaluations)]
    assert [(r["iteration"], r["epoch"]) for r in numbers] == [(3, 1), (6, 2), (9, 3), (12, 4)]
    assert {key: numbers[-1][key] for key in ("top1_error", "top5_error")} == {
        key: results[key] for key in ("top1_error", "top5_error")
    }
    lines = [json.loads(line) for line in (whole / "metrics.json").read_text().splitlines()]
    assert best["metadata"]["top1_error"] == min(line["top1_error"] for line in lines if "top1_error" in line)
    trained = ("MODEL.WEIGHTS", whole / "model_final.pth")
    pretrain(folder, tmp_path / "e", "--eval-only", *trained)
    assert json.loads((tmp_path / "e" / "results.json").read_text()) == results
    pretrain(folder, tmp_path / "fast", "--eval-only", *trained, "TEST.DTYPE", "fp32")
    assert json.loads((tmp_path / "fast" / "results.json").read_text()) == results


@pytest.mark.parametrize("dtype", ["off", "fp32", "int8"])
def test_the_copy_that_is_evaluated(dtype: str, folder: Path) -> None:
    cfg = get_config()
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.TEST.DTYPE = dtype
    model = build_classifier(cfg, 2)
    model.eval()
    evaluated, autocast_dtype = train_module._as_evaluated(cfg, model, Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD))
    assert autocast_dtype is None and (evaluated is model) == (dtype == "off")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        error = ((evaluated(x) - model(x)).norm() / model(x).norm()).item()
    assert error == 0 if dtype == "off" else error < {"fp32": 1e-5, "int8": 0.2}[dtype]
    assert dtype != "int8" or error > 1e-4


def test_int8_is_shown_images_of_every_class(folder: Path) -> None:
    cfg = get_config()
    cfg.merge_from_file(str(folder / "config.yaml"))
    (batch,) = train_module._examples(cfg, Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD), number=6)
    assert batch.shape == (6, 3, 32, 32)
    assert sorted((image[0] > image[2]).float().mean().round().item() for image in batch) == [0, 0, 0, 1, 1, 1]


def test_an_evaluation_due_at_a_stop_is_made_up_for(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """A signal in the last step of an epoch: the state is saved, and the resume evaluates it first."""
    run_step = Trainer.run_step

    def stopping(self: Trainer) -> None:
        if self.iter == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", stopping)
    with pytest.raises(Stopped):
        pretrain(folder, tmp_path)
    monkeypatch.undo()
    assert [record["iteration"] for record in read_evaluations(tmp_path / "evaluations.jsonl")] == [3]
    saved = torch.load(tmp_path / "model_0000005.pth", weights_only=True)
    pretrain(folder, tmp_path, "--resume", "SOLVER.CHECKPOINT_PERIOD", 10)
    records = {record["iteration"]: record for record in read_evaluations(tmp_path / "evaluations.jsonl")}
    assert list(records) == [3, 6, 9, 12] and records[6]["epoch"] == 2
    (tmp_path / "e").mkdir()
    torch.save(saved, tmp_path / "e" / "model_0000005.pth")
    (tmp_path / "e" / "model_0000008.pth").write_bytes(b"torn")
    pretrain(folder, tmp_path / "e", "--eval-only", "--resume", "MODEL.WEIGHTS", tmp_path / "model_final.pth")
    expected = json.loads((tmp_path / "e" / "results.json").read_text())
    assert all(records[6][key] == expected[key] for key in ("top1_error", "top5_error"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 3, 4]  # the newest at each time of writing


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    """Whole-batch statistics: the same weights up to fp32 rounding after the first epoch; both map one listing."""
    common = ["SOLVER.EPOCHS", 1, "SOLVER.STEPS", "()", "MODEL.NORM", "SyncBN"]
    one = pretrain(folder, tmp_path / "one", *common)["model"]
    listings = shutil.copytree(tmp_path / "one" / "cache", tmp_path / "two" / "cache")
    times = {file: file.stat().st_mtime_ns for file in listings.glob("*.listing")}
    two = pretrain(folder, tmp_path / "two", "--num-gpus", 2, *common)["model"]
    assert len(times) == 2 and times == {file: file.stat().st_mtime_ns for file in listings.glob("*.listing")}
    apart = torch.stack([(two[key] - one[key]).abs().max() for key in one if key.endswith(("weight", "bias"))])
    # A rectifier at zero may tip over by rounding and so move the layers in front of it, which the median leaves out.
    assert apart.median() < 1e-6 and apart.max() < 1e-3


def write_in_vain(folder: Path, out: Path) -> None:
    reported = Reports()
    for name, file in (("config", "config.yaml"), ("results", "results.json")):
        cfg = load_config(
            get_config(), str(folder / "config.yaml"), [*ONE_EPOCH, "OUTPUT_DIR", str(block(out, name, file))]
        )
        reported(name, lambda cfg=cfg: train(cfg))
    reported.write(out)


@pytest.mark.usefixtures("forked")
def test_two_processes_hear_what_the_first_cannot_write(folder: Path, tmp_path: Path) -> None:
    launch(write_in_vain, (folder, tmp_path), processes=2)
    said = reports_of_all(tmp_path)
    assert said["config"].startswith("UserError: ") and "config.yaml: is a directory" in said["config"]
    assert said["results"].startswith("UserError: ") and "results.json: is a directory" in said["results"]


def test_the_loss_is_that_of_smoothed_labels() -> None:
    """1 - s + s / 2 for the right one of two classes, s / 2 for the other; the network's logits are 0 and 2."""
    logits = torch.tensor([[0.0, 2.0]])
    batch = [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), SAME_COLORS[None]]
    model = TrainingModel(lambda x: logits, Normalize((0.5,) * 3, (0.2,) * 3), label_smoothing=0.3)
    with EventStorage() as storage:
        loss = model(batch)["loss"]
        assert storage.latest()["train/top1_error"][0] == 100
    expected = -(torch.log_softmax(logits[0], 0) * torch.tensor([0.85, 0.15])).sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixed_batches_are_torchvisions(mixup: float, cutmix: float) -> None:
    """Its reference mixes normalized images and takes the cross entropy with the mixed labels."""
    cfg = get_config()
    cfg.merge_from_list(["MODEL.NAME", "resnext14_2x2d", "MODEL.DEVICE", "cpu", "SOLVER.LABEL_SMOOTHING", 0.1])
    cfg.merge_from_list(["INPUT.MIXUP", mixup, "INPUT.CUTMIX", cutmix])
    model = build_training_model(cfg, 5).eval()
    images, labels = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8), torch.arange(8) % 5
    kinds = [v2.MixUp(alpha=mixup, num_classes=5)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=5)] if cutmix else []
    for seed in range(4):
        torch.manual_seed(seed)
        with EventStorage():
            loss = model([images, labels, SAME_COLORS.expand(8, 3, 3)])["loss"]
        torch.manual_seed(seed)
        mixed, targets = v2.RandomChoice(kinds)(model.normalize(images, SAME_COLORS.expand(8, 3, 3)), labels)
        expected = nn.CrossEntropyLoss(label_smoothing=0.1)(model.classifier(mixed), targets)
        assert not torch.equal(mixed, model.normalize(images)) and torch.equal(loss, expected)


def test_optimizer_keys() -> None:
    """AdamW is PyTorch's; the norm of all gradients together is bounded, before the step."""
    cfg = get_config()
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "adamw", "SOLVER.WEIGHT_DECAY", 0.05, "SOLVER.CLIP_NORM", 1.0])
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizers = build_optimizer(cfg, ours, 0.01), torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.05)
    for step in range(3):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (100 * (step + 1) * net(torch.ones(1, 3)).square().sum()).backward()
            if net is theirs:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    assert nn.utils.get_total_norm([p.grad for p in ours.parameters()]) == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(ours.weight, theirs.weight)
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "sgd", "SOLVER.NESTEROV", True])
    (group,) = build_optimizer(cfg, ours, 0.01).param_groups
    assert group["nesterov"] and group["momentum"] == 0.9


RECIPES = {
    "paper": ["MODEL.NORM_IMAGES", 4, "MODEL.FC_STD", 0.0, "INPUT.ASPECT", "uniform", "INPUT.INTERPOLATION", "bicubic",
              "SOLVER.NESTEROV", True, "MODEL.NAME", "resnextv2_14_2x2d"],
    "modern": ["INPUT.POLICY", "trivialaugment", "INPUT.ERASING", 0.5, "INPUT.MIXUP", 0.2, "INPUT.CUTMIX", 1.0,
               "SOLVER.OPTIMIZER", "adamw", "SOLVER.CLIP_NORM", 1.0, "SOLVER.PRECISION", "bf16"],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_and_resume_to_equal_bits(name: str, folder: Path, tmp_path: Path) -> None:
    options = [*RECIPES[name], "SOLVER.EPOCHS", 2, "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", 1]
    whole = pretrain(folder, tmp_path / "whole", *options)["model"]
    pretrain(folder, tmp_path / "again", *options)
    (tmp_path / "again" / "model_final.pth").unlink()
    (last,) = (tmp_path / "again").glob("last_checkpoint")
    (first, *_) = sorted(path.name for path in (tmp_path / "again").glob("model_0*.pth"))
    last.write_text(first)
    again = pretrain(folder, tmp_path / "again", "--resume", *options)["model"]
    assert all(torch.equal(again[key], value) for key, value in whole.items())


def test_early_stop(folder: Path, tmp_path: Path) -> None:
    """A rate of zero never gets better: two evaluations, then the final checkpoint and the results."""
    options = ["SOLVER.BASE_LR", "0.0", "TEST.PATIENCE", "1", "SOLVER.EPOCHS", "9", "SOLVER.STEPS", "()"]
    main(["--config-file", str(folder / "config.yaml"), *options, "SOLVER.EMA_DECAY", "0", "OUTPUT_DIR", str(tmp_path)])
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert len(lines) < 9 and (tmp_path / "model_final.pth").is_file() and (tmp_path / "results.json").is_file()


def test_accumulated_parts_equal_the_whole_batch() -> None:
    """With norms that know no batch; batch norm takes each part's own statistics, as it does each process's."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    colors = SAME_COLORS.expand(8, 3, 3)
    batch = [images, torch.arange(8) % 3, colors]
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        net = create_model("resnext14_2x2d", 3, norm=lambda channels: nn.GroupNorm(1, channels), res2_out_channels=16)
        model = TrainingModel(net.double(), Normalize((0.5,) * 3, (0.2,) * 3).double(), label_smoothing=0.1)
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), seed=0, accumulate=parts)
        trainer.set_data_loader([[tensor.chunk(parts)[i] for tensor in batch] for i in range(parts)])
        trainer.iter = 0
        with EventStorage():
            trainer.run_step()
        weights.append(model.state_dict())
    for other in weights[1:]:
        for key, value in weights[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-7)


ONE_EPOCH = ["SOLVER.EPOCHS", "1", "SOLVER.STEPS", "()", "SOLVER.EMA_DECAY", "0"]


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory) -> dict:
    """One epoch with every switch off."""
    return pretrain(folder, tmp_path_factory.mktemp("plain"), *ONE_EPOCH)["model"]


@pytest.mark.parametrize(
    ("switch", "value", "tolerance"),
    [("MODEL.RECOMPUTE", True, 0), ("MODEL.CHANNELS_LAST", True, 1e-4), ("MODEL.COMPILE", True, 1e-4)],
)
def test_a_switch_changes_no_result(
    folder: Path, tmp_path: Path, plain: dict, monkeypatch, switch: str, value: bool, tolerance: float
) -> None:
    traced = []

    def compile(module: nn.Module) -> None:  # tracing is what can go wrong here, and code generation takes a minute
        traced.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile)
    weights = pretrain(folder, tmp_path, *ONE_EPOCH, switch, value)["model"]
    for key in plain:
        torch.testing.assert_close(weights[key], plain[key], rtol=tolerance, atol=tolerance, msg=key)
    assert len(traced) == (switch == "MODEL.COMPILE")


def test_bf16_autocast_keeps_fp32_weights(folder: Path, tmp_path: Path, plain: dict) -> None:
    weights = pretrain(folder, tmp_path, *ONE_EPOCH, "SOLVER.PRECISION", "bf16")["model"]
    for key, value in weights.items():
        assert value.dtype == plain[key].dtype
        if key.endswith("weight"):
            torch.testing.assert_close(value, plain[key], rtol=0.05, atol=0.05, msg=key)
    assert any((weights[key] != plain[key]).any() for key in plain)


def test_learning_rates() -> None:
    """The paper's steps; cosine with warm-up; both scaled to the batch."""
    cfg = get_config()
    cfg.SOLVER.IMS_PER_BATCH = 512
    rates = schedule(cfg, images=512 * 10)  # 10 iterations an epoch
    assert [rates[i] for i in (0, 299, 300, 599, 600, 899, 900, 999)] == pytest.approx(
        [0.2, 0.2, 0.02, 0.02, 2e-3, 2e-3, 2e-4, 2e-4]
    )
    cfg.SOLVER.SCHEDULE, cfg.SOLVER.WARMUP_EPOCHS = "cosine", 5
    rates = schedule(cfg, images=512 * 10)
    assert rates[0] < 0.001 and max(rates) == pytest.approx(0.2, rel=0.01) and 40 < rates.index(max(rates)) < 60
    assert rates[500] == pytest.approx(0.1, rel=0.02) and rates[-1] < 1e-5


def schedule(cfg, images: int) -> list[float]:
    plan = Plan.of(cfg, images, processes=1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], plan.lr)
    scheduler = build_scheduler(cfg, optimizer, plan)
    rates = []
    for _ in range(plan.iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval-only"], "MODEL.WEIGHTS"),
        (["--eval-only", "--resume"], "holds no checkpoint"),
        (["SOLVER.STEPS", "(5,)"], "SOLVER.STEPS"),
        (["SOLVER.IMS_PER_BATCH", "96"], "fall together in a run of only 1 iterations"),
        (["SOLVER.ACCUMULATE", "3"], "not divisible"),
        (["DATASETS.TRAIN", "nowhere"], "no such folder"),
        (["DATASETS.TRAIN", str(ROOT / "requirements")], "no class folders"),
        (["SOLVER.SCHEDUL", "step"], "did you mean SOLVER.SCHEDULE"),
        (["MODEL.COMPILE", "True", "MODEL.RECOMPUTE", "True"], "choose one"),
        (["TEST.EVAL_PERIOD", "0"], "TEST.EVAL_PERIOD"),
        (["--resume", "MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth: no such file"),  # read where nothing is resumed
    ],
)
def test_mistakes_are_named(folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pretrain(folder, tmp_path, *arguments)


def test_the_tool_says_it_in_one_line_and_code_2(folder: Path, tmp_path: Path) -> None:
    """An image that a worker process cannot decode."""
    broken = tmp_path / "train"
    for name in ("blue", "red"):
        (broken / name).mkdir(parents=True)
        (broken / name / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    settings = ["DATASETS.TRAIN", broken, *ONE_EPOCH, "DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", tmp_path / "out"]
    done = call("tools/pretrain.py", "--config-file", folder / "config.yaml", *settings, folder=ROOT)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith(f"error: {broken}/")
    assert "not an image" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_whole_numbers_are_floats_where_floats_are_due(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("SOLVER: {BASE_LR: 1, EPOCHS: 7}\n")
    cfg = load_config(get_config(), str(tmp_path / "c.yaml"), ["INPUT.FLIP", "0"])
    assert (cfg.SOLVER.BASE_LR, cfg.INPUT.FLIP, cfg.SOLVER.EPOCHS) == (1.0, 0.0, 7)
    assert type(cfg.INPUT.FLIP) is float and type(cfg.SOLVER.EPOCHS) is int


def test_compiling_without_a_compiler_is_refused(monkeypatch) -> None:
    def missing() -> str:
        raise InvalidCxxCompiler

    train_module.check_compiler()  # here there is one, or this torch keeps it elsewhere
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(UserError, match=r"MODEL.COMPILE True: .* no C\+\+ compiler; install g\+\+"):
        train_module.check_compiler()
