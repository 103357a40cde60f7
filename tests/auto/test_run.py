"""``resnext-det auto`` from labels to results: formats and splits, resuming from every step, running late."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det import UserError
from resnext_det.auto import run as auto
from resnext_det.auto import timing
from resnext_det.auto.choices import Measured
from resnext_det.auto.data import make_sets, read_roles
from resnext_det.auto.run import Pace, Request, shorten
from resnext_det.commands.auto import main
from resnext_det.config_files import read_config
from resnext_det.detection.config import setup
from resnext_det.detection.initial_weights import apply_preset
from resnext_det.engine import signals
from resnext_det.engine.signals import Stopped
from resnext_det.makers.synthetic import SHAPES, detection_config, draw_detection_set
from resnext_det.resnext import create_model
from resnext_det.weights import read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file and its images."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_detection_set(folder, 12)
    return folder


@pytest.fixture
def labels(drawn: Path, tmp_path: Path) -> Path:
    """The file and its images as people have them, beside each other."""
    image_root = next(path for path in drawn.iterdir() if path.is_dir())
    shutil.copytree(image_root, tmp_path / "set")
    shutil.copy(drawn / "instances.json", tmp_path / "set" / "labels.json")
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests before are no part of a command's start."""
    monkeypatch.setattr(auto, "LOADING", 0.0)


class Programs:
    """Stands in for the commands that ``auto`` starts: writes what each makes. ``fails`` names one that ends badly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[list[str]] = []
        self.fails, self.code = "", 0
        monkeypatch.setattr(signals, "run_command", self)
        monkeypatch.setattr(signals, "start_command", self.start)
        monkeypatch.setattr(signals, "end_command", lambda *children, **more: None)
        monkeypatch.setattr(timing, "measure", lambda cfg, read: Measured(0.5, 0.01))
        monkeypatch.setattr(auto, "POLL", 0)

    def start(self, line: Sequence[str]) -> Programs:
        self.returncode = self(line)
        return self

    def poll(self) -> int:
        return self.returncode

    def __call__(self, line: Sequence[str]) -> int:
        tool, flags = line[3], line[4:]
        self.lines.append(list(line[3:]))
        if tool == self.fails:
            return self.code
        if tool == "export":
            folder = Path(flags[flags.index("--output") + 1])
            folder.mkdir()
            (folder / "detector.json").write_text("{}")
            return 0
        file, *words = flags[flags.index("--config-file") + 1 :]
        cfg = setup(file, [word for word in words if not word.startswith("--")])
        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(exist_ok=True)
        (folder / "model_final.pth").touch()
        numbers = {"AP": 10.0, "AP50": 20.0, "F1": 30.0, **{f"threshold-{name}": 0.5 for name in SHAPES}}
        (folder / "results.json").write_text(json.dumps({"bbox": numbers}))
        return 0


def request(labels: Path, **changes) -> Request:
    values = {"images": None, "output": labels.parent / "out", "minutes": 10.0, "weights": "none", "seed": 0}
    return Request(labels, **values | changes)


def test_every_step_is_made_once(labels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    programs, asked = Programs(monkeypatch), request(labels)
    for fails, kind in (("train", UserError), ("export", UserError), ("", None)):
        programs.fails, programs.code = fails, 2
        if kind:
            with pytest.raises(kind, match="the same command"):
                auto.run(asked)
        else:
            assert auto.run(asked)["bbox"]["AP50"] == 20.0
    assert [line[0] for line in programs.lines] == ["train", "train", "export", "export"]
    said = capsys.readouterr().out
    assert said.count("no validation set: ") == 1 and said.count("is taken as it stands") == 2
    assert "disc 0.50" in said and (asked.output / "auto.txt").read_text() in said
    cfg = read_config(str(asked.output / "config.yaml"))
    sets = {name: json.loads(Path(file).read_text()) for name, file, _ in cfg["DATASETS"]["REGISTER"]}
    assert sorted(sets) == ["out_train", "out_val"]
    assert sorted(image["id"] for found in sets.values() for image in found["images"]) == list(range(1, 13))
    with pytest.raises(UserError, match="begun with other --minutes"):
        auto.run(request(labels, minutes=11.0))
    (labels / "labels.json").touch()
    with pytest.raises(UserError, match="was made from other labels"):
        auto.run(asked)


@pytest.mark.slow  # 40 s: it trains and exports in processes of their own, as users see it
def test_a_whole_run(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "measure", lambda cfg, read: Measured(22.0, 0.0))
    asked = request(labels)
    assert {"AP", "AP50", "F1"} <= auto.run(asked)["bbox"].keys()
    trained = read_checkpoint(asked.output / "run" / "model_final.pth")
    assert trained.metadata["class_names"] == list(SHAPES)
    assert (asked.output / "artifact" / "detector.onnx").is_file()
    made = [*asked.output.rglob("*.pth"), *asked.output.rglob("*.onnx"), *asked.output.rglob("*.json*")]
    before = {path: path.stat().st_mtime_ns for path in made if path.name != auto.STATE}
    auto.run(asked)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_timing_runs_the_training_and_writes_nothing(tmp_path: Path) -> None:
    cfg = setup(str(detection_config(tmp_path, 2)))
    before = set(tmp_path.rglob("*"))
    measured = timing.measure(cfg)
    assert 0 < measured.step < math.inf and 0 < measured.image < math.inf
    assert set(tmp_path.rglob("*")) == before


def test_slow_steps_are_not_timed_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG", 0.0)
    timed: list[int] = []
    monkeypatch.setattr(timing.statistics, "median", lambda values: timed.append(len(values)) or values[0])
    assert 0 < timing.measure(setup(str(detection_config(tmp_path, 2)))).step < math.inf
    assert timed == [1, 3], "one step, after one to warm up; three images"


def test_weights_of_the_users_choice(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = timing.measure
    Programs(monkeypatch)
    monkeypatch.setattr(timing, "measure", real)
    model = create_model("resnext14_4x2d", stem_out_channels=8, res2_out_channels=16)
    facts = {"channel_order": "BGR", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [9.0, 8.0, 7.0]}
    facts |= {"stride_in_1x1": False, "norm_eps": 1e-3}
    weights = labels.parent / "w.pth"
    save_checkpoint(weights, model.state_dict(), facts | {"depth": 14, "cardinality": 4, "width": 2})
    asked = request(labels, weights=str(weights), minutes=100.0)
    auto.run(asked)
    cfg = apply_preset(setup(str(asked.output / "config.yaml")))
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.RESNETS.NORM_EPS) == ("BGR", [1.0, 2.0, 3.0], 1e-3)
    assert (cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (4, 16)
    save_checkpoint(labels.parent / "mute.pth", model.state_dict(), {})
    with pytest.raises(UserError, match="mute.pth: does not say its channel_order, pixel_mean"):
        auto.run(request(labels, weights=str(labels.parent / "mute.pth"), output=labels.parent / "other"))


def test_a_stopped_training_stops_it(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(monkeypatch)
    programs.fails, programs.code = "train", 75
    with pytest.raises(Stopped, match="the same command resumes"):
        auto.run(request(labels))


def test_too_little_time_names_how_much_it_takes(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Programs(monkeypatch)
    with pytest.raises(UserError, match=r"--minutes 0.2: .* give --minutes [23]"):
        auto.run(request(labels, minutes=0.2))
    assert not (labels.parent / "out" / "config.yaml").exists()
    auto.run(request(labels, minutes=3.0))


def test_flags(labels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(labels), "--minutes", "-1"])
    assert "argument --minutes: -1: give a number above 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="within the labels' folder"):
        main([str(labels), "--output", str(labels / "out")])
    monkeypatch.chdir(labels.parent)
    with pytest.raises(UserError, match="w.pth"):
        main(["set", "--weights", "w.pth", "--output", "out"])


ROBOFLOW = {role: f"{split}/_annotations.coco.json" for role, split in (("train", "train"), ("val", "valid"))}
INSTANCES = {role: f"annotations/instances_{role}2017.json" for role in ("train", "val", "test")}
SPLIT = {role: f"instances_{role}.json" for role in ("train", "val")}


@pytest.mark.parametrize("places", [ROBOFLOW, INSTANCES, SPLIT])
def test_splits_of_coco_folders(drawn: Path, tmp_path: Path, places: dict[str, str]) -> None:
    image_root = next(path for path in drawn.iterdir() if path.is_dir())
    for place in places.values():
        file = tmp_path / place
        split = file.parent.name if places is ROBOFLOW else file.stem.removeprefix("instances_")
        shutil.copytree(image_root, tmp_path / split)
        file.parent.mkdir(exist_ok=True)
        shutil.copy(drawn / "instances.json", file)
    if places is INSTANCES:
        (tmp_path / "annotations" / "instances_train_old.json").write_text("{}")  # without a folder of images
    found = read_roles(tmp_path, None)
    assert found.keys() == places.keys()
    for source in found.values():
        assert (Path(source.image_root) / source.document["images"][0]["file_name"]).is_file()
    said: list[str] = []
    make_sets(tmp_path, None, tmp_path.parent / f"{tmp_path.name}_out", 0, said.append)
    assert any("12 images of val are in train too" in line for line in said)


def test_two_sets_of_one_kind_are_refused(drawn: Path, tmp_path: Path) -> None:
    for split in ("train1", "train2"):
        (tmp_path / split).mkdir()
        shutil.copy(drawn / "instances.json", tmp_path / f"instances_{split}.json")
    with pytest.raises(UserError, match="several sets of one kind"):
        read_roles(tmp_path, None)


def test_a_slow_machine_shortens_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 999}\n')  # of an earlier part of the run
    pace = Pace(tmp_path)

    def at(iteration: int, time: float, left: float) -> int | None:
        nonlocal now
        now = time
        with open(metrics, "a") as file:
            file.write(f'{{"iteration": {iteration - 1}, "total_loss": 1.0}}\n{{"iterat')
        found = pace.shorter_schedule(1000, left, 25.0)
        metrics.write_text(metrics.read_text().removesuffix('{"iterat'))
        return found

    assert pace.shorter_schedule(1000, 100.0, 25.0) is None
    assert at(100, 0.0, 500.0) is None, "no pace yet"
    assert at(130, 29.0, 1.0) is None, "a moment is not the pace"
    assert at(130, 130.0, 1.0) is None, "no news"
    assert at(200, 100.0, 800.0) is None, "one iteration a second, 800 left"
    assert at(300, 200.0, 425.0) == 300 + 400
    assert at(850, 750.0, 120.0) is None, "30 seconds late; starting again takes 25"
    assert at(920, 820.0, 1.0) is None, "no longer worth a new start"


def test_shortening_changes_the_schedule_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "# mine\nSOLVER:\n  BASE_LR: 0.5  # edited\n  MAX_ITER: 1000\n  STEPS: [700, 900]\nINPUT:\n  X: 1\n"
    )
    shorten(config, 100)
    assert config.read_text() == (
        "# mine\nSOLVER:\n  BASE_LR: 0.5  # edited\n  MAX_ITER: 100\n  STEPS: [80, 95]\nINPUT:\n  X: 1\n"
    )
