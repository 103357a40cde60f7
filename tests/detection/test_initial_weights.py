"""MODEL.WEIGHTS of a detector through the tools: from a classifier and back, presets, contradictions, missing parts."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from tiny import TinyRun
from torch import Tensor, nn

from resnext_det import UserError, create_model
from resnext_det.commands import predict
from resnext_det.commands.convert import main as convert_weights
from resnext_det.commands.train import main
from resnext_det.detection.initial_weights import apply_preset, load_initial_weights
from resnext_det.engine import exits as cli
from resnext_det.weights import load_strictly, read_checkpoint, save_checkpoint
from resnext_det.weights.metadata import DETECTRON2_KEYS, IMAGENET_RGB, MSRA
from resnext_det.weights.naming import from_native

ROOT = Path(__file__).resolve().parents[2]
# The network of tiny.py, and the facts that a pretraining run of it would write.
NAME, CHANNELS = "resnext14_2x4d", {"stem_out_channels": 8, "res2_out_channels": 16}
CAFFE = {**MSRA, "norm_eps": 1e-3}


def classifier(name: str = NAME, **how) -> nn.Module:
    """With norms that have seen data."""
    model = create_model(name, 5, **{**CHANNELS, **how})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    save_checkpoint(tmp_path / "pretrained.pth", classifier().state_dict(), IMAGENET_RGB)
    return str(tmp_path / "pretrained.pth")


def call(run: TinyRun, output: str, *arguments: str, settings: tuple = ()) -> str:
    """Train or evaluate as tools/train_net.py does; returns the log."""
    more = ("SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0, "TEST.REPORT", False, *settings)
    main(["--config-file", str(run.file), *arguments, *run.options(output, *more)])
    return (run.folder / output / "log.txt").read_text()


def line(run: Callable[[], object], capsys: pytest.CaptureFixture) -> str:
    """The last line on stderr of a command that leaves with code 2."""
    with pytest.raises(SystemExit) as left:
        cli.run(run)
    assert left.value.code == cli.EXIT_USER_ERROR
    return capsys.readouterr().err.rstrip("\n").rsplit("\n", 1)[-1]


def same_trunk(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    names = [name for name in theirs if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def test_a_detector_out_of_a_classifier_and_back(tiny_run: TinyRun, pretrained: str, tmp_path: Path) -> None:
    settings = ("SOLVER.BASE_LR", 0.0, "SOLVER.EMA_DECAY", 0.5, "MODEL.RESNETS.NORM", "FrozenBN")
    log = call(tiny_run, "there", "--init-from", pretrained, settings=settings)
    assert (
        "pretrained.pth (model): backbone 65/65, res5 20/20, new: proposal_generator 6 box_predictor 4, unused: fc 2"
        in log
    )
    final = tiny_run.folder / "there" / "model_final.pth"
    read = read_checkpoint(final)
    assert (read.source, read.entry) == ("native-detector", "model_ema")  # the average is preferred
    log = call(tiny_run, "again", "--eval-only", settings=("MODEL.WEIGHTS", final, *settings))
    assert "model_final.pth (model_ema): backbone 65/65, proposal_generator 6/6, res5 20/20, box_predictor 4/4" in log
    theirs = torch.load(pretrained, weights_only=True)["model"]
    back = create_model(NAME, 5, **CHANNELS)
    report = load_strictly(back, read)
    assert str(report) == "backbone 85/85, new: fc 2, unused: proposal_generator 6 box_predictor 4"
    assert same_trunk(back.state_dict(), theirs)
    for to in ("native", "timm"):
        convert_weights([str(final), str(tmp_path / f"{to}.safetensors"), "--to", to])
        converted = read_checkpoint(tmp_path / f"{to}.safetensors")
        assert converted.metadata["class_names"] == ["red", "blue"] and converted.metadata["channel_order"] == "RGB"
    assert same_trunk(converted.tensors, theirs)


def test_other_classes_start_their_layer_anew(tiny_run: TinyRun, tmp_path: Path) -> None:
    detector = build_model(tiny_run.config("x", "MODEL.ROI_HEADS.NUM_CLASSES", 7))
    save_checkpoint(tmp_path / "seven.pth", detector.state_dict(), {})
    log = call(tiny_run, "seven", "--init-from", str(tmp_path / "seven.pth"))
    assert "backbone 65/65, proposal_generator 6/6, res5 20/20, new: box_predictor 4" in log


def test_preset(tiny_run: TinyRun, tmp_path: Path, capsys) -> None:
    save_checkpoint(tmp_path / "caffe.pth", classifier(stride_in_1x1=True).state_dict(), CAFFE)
    log = call(tiny_run, "preset", "--init-from", str(tmp_path / "caffe.pth"), settings=("INPUT.PRESET", "auto"))
    for said in (
        "INPUT.FORMAT BGR (was RGB)",
        "MODEL.PIXEL_MEAN [103.53, 116.28, 123.675] (was [123.675, 116.28, 103.53])",
        "MODEL.PIXEL_STD [1.0, 1.0, 1.0] (was [58.395, 57.12, 57.375])",
        "MODEL.RESNETS.STRIDE_IN_1X1 True (was False)",
        "MODEL.RESNETS.NORM_EPS 0.001 (was 1e-05)",
    ):
        assert f"INPUT.PRESET auto: {said}" in log
    applied = yaml.safe_load((tiny_run.folder / "preset" / "config.yaml").read_text())
    assert (applied["INPUT"]["FORMAT"], applied["INPUT"]["PRESET"]) == ("BGR", "none")
    final = tiny_run.folder / "preset" / "model_final.pth"
    assert CAFFE.items() <= read_checkpoint(final).metadata.items()

    # What it trained is used alike: refused without the preset, by the line that fixes it; right with it.
    fix = "set MODEL.RESNETS.STRIDE_IN_1X1 True MODEL.RESNETS.NORM_EPS 0.001 INPUT.FORMAT BGR"
    evaluate = ("preset_eval", "--eval-only")
    said = line(lambda: call(tiny_run, *evaluate, settings=("MODEL.WEIGHTS", final)), capsys)
    assert fix in said and said.startswith(f"error: {final}: its weights contradict ")
    call(tiny_run, *evaluate, settings=("MODEL.WEIGHTS", final, "INPUT.PRESET", "auto"))
    image = str(next(tiny_run.folder.rglob("*.png")))
    show = ["--config-file", str(tiny_run.file), "--output", str(tmp_path / "out"), "--input", image]
    weights = ["MODEL.WEIGHTS", str(final)]
    assert fix in line(lambda: predict.main([*show, *weights]), capsys)
    predict.main([*show, *weights, "INPUT.PRESET", "auto"])
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 1
    said = line(lambda: call(tiny_run, "preset", "--resume", settings=("SOLVER.MAX_ITER", 2)), capsys)
    assert fix in said


def test_preset_needs_weights_that_know(tiny_run: TinyRun, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", classifier().state_dict(), {"channel_order": "RGB"})
    for settings, message in (
        (("INPUT.PRESET", "caffe"), "INPUT.PRESET 'caffe': choose from none, auto"),
        (("INPUT.PRESET", "auto"), "INPUT.PRESET auto asks MODEL.WEIGHTS, which is empty"),
        (
            ("INPUT.PRESET", "auto", "MODEL.WEIGHTS", tmp_path / "a.pth"),
            "a.pth: does not say its pixel_mean, pixel_std, stride_in_1x1, norm_eps, so INPUT.PRESET cannot be auto",
        ),
    ):
        with pytest.raises(UserError, match=message):
            apply_preset(tiny_run.config("x", *settings))
    cfg = tiny_run.config("x")
    assert apply_preset(cfg) is cfg


@pytest.mark.parametrize("key", DETECTRON2_KEYS)
def test_every_fact_of_a_pretraining_is_checked(key: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Each contradiction by itself, with the setting that fixes it; with that setting the weights load."""
    network = {"depth": "resnext26_2x4d", "cardinality": "resnext14_4x4d", "width": "resnext14_2x8d"}
    network["kind"] = "seresnext14_2x4d"
    channels = {"stem_out_channels": 16, "res2_out_channels": 32}
    facts = {"stride_in_1x1": True, "norm_eps": 1e-3, "channel_order": "BGR"}
    facts |= {"pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]}
    model = classifier(network.get(key, NAME), **{key: channels[key]} if key in channels else {})
    path = tmp_path / "a.pth"
    save_checkpoint(path, model.state_dict(), IMAGENET_RGB | ({key: facts[key]} if key in facts else {}))
    cfg = tiny_run.config("x", "MODEL.WEIGHTS", path)
    with pytest.raises(UserError) as error:
        load_initial_weights(cfg, build_model(cfg))
    before, _, after = str(error.value).partition("; set ")
    fix, _, rest = after.partition(", or take other weights")
    assert before.startswith(f"{path}: its weights contradict {DETECTRON2_KEYS[key]} ") and not rest
    setting, value = fix.split(" ")
    assert setting == DETECTRON2_KEYS[key]
    cfg = tiny_run.config("x", "MODEL.WEIGHTS", path, setting, value)
    load_initial_weights(cfg, build_model(cfg))


def test_frozen_norms_want_weights(tiny_run: TinyRun, tmp_path: Path, capsys) -> None:
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN")
    fix = "set MODEL.WEIGHTS to pretrained weights, or train with MODEL.RESNETS.NORM BN and MODEL.BACKBONE.FREEZE_AT 0"
    said = line(lambda: call(tiny_run, "frozen", settings=frozen), capsys)
    assert said == (
        "error: MODEL.WEIGHTS is empty: backbone.stem.conv1.norm is frozen with the statistics of random weights; "
        + fix
    )
    assert "stem.conv1.norm is frozen" in line(
        lambda: call(tiny_run, "frozen", settings=("MODEL.BACKBONE.FREEZE_AT", 2)), capsys
    )
    save_checkpoint(tmp_path / "untrained.pth", create_model(NAME, 5, **CHANNELS).state_dict(), IMAGENET_RGB)
    untrained = ["--init-from", str(tmp_path / "untrained.pth")]
    assert fix in line(lambda: call(tiny_run, "frozen", *untrained, settings=frozen), capsys)
    call(tiny_run, "frozen")  # batch norm that learns may start from random weights


def test_frozen_and_evaluated_norms_agree(tiny_run: TinyRun, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", classifier().state_dict(), {**IMAGENET_RGB, "norm_eps": 1e-3})
    image = torch.rand(1, 3, 64, 64)
    maps = []
    for norm in ("BN", "FrozenBN"):
        settings = ("MODEL.WEIGHTS", tmp_path / "a.pth", "INPUT.PRESET", "auto", "MODEL.RESNETS.NORM", norm)
        cfg = apply_preset(tiny_run.config("x", *settings))
        model = build_model(cfg).eval()
        load_initial_weights(cfg, model)
        with torch.no_grad():
            maps.append(model.roi_heads.res5(model.backbone(image)["res4"]))
    assert (maps[0] - maps[1]).abs().max() < 1e-5 * maps[0].abs().max()


def test_missing_parts_are_allowed_by_name(tiny_run: TinyRun, tmp_path: Path, capsys) -> None:
    state = build_model(tiny_run.config("x")).state_dict()
    path = tmp_path / "no_rpn.pth"
    save_checkpoint(path, {k: v for k, v in state.items() if not k.startswith("proposal_generator.")}, IMAGENET_RGB)
    for flags in (("--init-from", str(path)), ("--eval-only",)):
        said = line(lambda flags=flags: call(tiny_run, "parts", *flags, settings=("MODEL.WEIGHTS", path)), capsys)
        assert said == (
            f"error: {path}: 6 tensors do not fit, such as proposal_generator.rpn_head.conv.weight is missing; "
            "take weights of the same network, or do without: MODEL.ALLOW_MISSING \"['proposal_generator']\""
        )
        for name in ("proposal_generator", "proposal_generator.rpn_head"):
            allowed = ("MODEL.WEIGHTS", path, "MODEL.ALLOW_MISSING", [name])
            assert "new: proposal_generator 6" in call(tiny_run, "parts", *flags, settings=allowed)


def test_evaluation_wants_a_whole_detector(tiny_run: TinyRun, pretrained: str, capsys) -> None:
    said = line(lambda: call(tiny_run, "whole", "--eval-only", settings=("MODEL.WEIGHTS", pretrained)), capsys)
    assert said.endswith("has no weights for proposal_generator, box_predictor; give a detector of this config")
    assert "--eval-only needs weights" in line(lambda: call(tiny_run, "whole", "--eval-only"), capsys)


def test_pickles_that_run_code_need_the_flag(tiny_run: TinyRun, tmp_path: Path, capsys) -> None:
    torch.save(classifier(), tmp_path / "whole.pth")
    flags = ("--init-from", str(tmp_path / "whole.pth"))
    assert line(lambda: call(tiny_run, "trust", *flags), capsys).endswith("add --trust-pickle")
    assert "backbone 65/65" in call(tiny_run, "trust", "--trust-pickle", *flags)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch and timm, and no network."""
    pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    monkeypatch.setattr("resnext_det.weights.sources.verify", lambda *args: None)  # the files here are made
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


PUBLISHED = {
    "torchvision://resnext50_32x4d.IMAGENET1K_V1": "resnext50_32x4d-7cdf4587.pth",
    "timm://resnext50_32x4d.a1_in1k": "resnext50_32x4d.a1_in1k.safetensors",
}


def published() -> tuple:
    """Settings of a ResNeXt-50 on wrong colors, which the preset fixes."""
    network = {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256}
    settings = [part for key, value in network.items() for part in (f"MODEL.RESNETS.{key}", value)]
    return (*settings, "MODEL.RESNETS.NORM", "FrozenBN", "INPUT.PRESET", "auto", "INPUT.FORMAT", "BGR")


def fill(cache: Path, file: str) -> None:
    model = classifier("resnext50_32x4d", stem_out_channels=64, res2_out_channels=256)
    state = from_native(model.state_dict(), "timm", "test")
    if file.endswith(".pth"):
        torch.save(state, cache / file)
    else:
        save_checkpoint(cache / file, state, {})


@pytest.mark.parametrize("uri", PUBLISHED)
def test_published_weights(uri: str, tiny_run: TinyRun, cache: Path, capsys) -> None:
    settings = published()
    said = line(lambda: call(tiny_run, "uri", "--init-from", uri, settings=settings), capsys)
    assert said.startswith(f"error: {uri}: could not be fetched (ConnectionError); without a network, put ")
    assert said.endswith(f" at {cache / PUBLISHED[uri]}")
    fill(cache, PUBLISHED[uri])
    cfg = apply_preset(tiny_run.config("uri", *settings, "MODEL.WEIGHTS", uri))
    assert cfg.INPUT.FORMAT == "RGB"
    load_initial_weights(cfg, build_model(cfg))


def test_a_run_reads_its_files_once(tiny_run: TinyRun, pretrained: str, tmp_path: Path) -> None:
    file = os.open(tmp_path / "opened", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, given: tuple) -> None:
        if event == "open":
            os.write(file, f"{given[0]}\n".encode())

    def opened_by(*words: object) -> Counter:
        os.truncate(file, 0)
        done = forked.call(*words, before=lambda: sys.addaudithook(note))
        assert done.returncode == 0, done.stderr
        return Counter((tmp_path / "opened").read_text().split("\n"))

    more = ("SOLVER.MAX_ITER", 1, "TEST.REPORT", False, "INPUT.PRESET", "auto", "MODEL.WEIGHTS", pretrained)
    opened = opened_by("train", "--config-file", tiny_run.file, *tiny_run.options("opened", *more))
    assert opened[pretrained] == 2, "to read and to hash it"
    assert [opened[labels] for _, labels, _ in tiny_run.sets] == [3, 3], "format, hash for the cache, content"
    final, images = tiny_run.folder / "opened" / "model_final.pth", tiny_run.sets[1][2]
    assert opened_by("predict", final, images, "--output", tmp_path / "out")[str(final)] == 2


@pytest.mark.slow
def test_published_weights_through_the_tool(tiny_run: TinyRun, cache: Path) -> None:
    uri, file = next(iter(PUBLISHED.items()))
    fill(cache, file)
    log = call(tiny_run, "published", "--init-from", uri, settings=published())
    assert "INPUT.PRESET auto: INPUT.FORMAT RGB (was BGR)" in log
    assert f"{cache / file}: backbone 215/215, res5 50/50, new: proposal_generator 6 box_predictor 4" in log


def test_the_command_itself(tiny_run: TinyRun) -> None:
    settings = tiny_run.options("command", "MODEL.RESNETS.NORM", "FrozenBN")
    done = forked.call("tools/train_net.py", "--config-file", tiny_run.file, *settings, folder=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.rstrip("\n").rsplit("\n", 1)[-1].startswith("error: MODEL.WEIGHTS is empty: backbone.stem.conv1")
