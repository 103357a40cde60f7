"""Experiment trackers: what they are handed, one run across a resume, and that their failures cost nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from toy import ToyRun, equal

from resnext_det import UserError
from resnext_det.engine import tracking
from resnext_det.engine.tracking import TRACKERS, TrackerWriter, check_tracker


class Recorder(TrackerWriter):
    """A tracker that keeps what it is handed; ``fails`` after so many calls."""

    runs: dict[str, dict[tuple[str, int], float]] = {}
    fails = 10**6

    def begin(self, run_id: str | None) -> str:
        run_id = run_id or f"run{len(self.runs)}"
        self.values = self.runs.setdefault(run_id, {})
        return run_id

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        if len(self.values) >= self.fails:
            raise ConnectionError("the server is gone")
        self.values |= {(name, iteration): value for name, value in values.items()}

    def finish(self) -> None:
        self.values["finished", 0] = 1.0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "runs", {})
    monkeypatch.setitem(TRACKERS, "recorder", Recorder)
    return Recorder


def written(folder: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {(name, line["iteration"]): v for line in lines for name, v in line.items() if name != "iteration"}


def test_a_tracker_gets_what_metrics_json_has_in_one_run(tmp_path: Path, recorder: type[Recorder]) -> None:
    ToyRun(tmp_path, tracker="recorder").train(4)
    ToyRun(tmp_path, tracker="recorder").train(6, resume=True)
    assert list(recorder.runs) == ["run0"]
    values = dict(recorder.runs["run0"])
    assert values.pop(("finished", 0)) == 1.0
    losses = {key: value for key, value in written(tmp_path).items() if "loss" in key[0]}
    assert losses and losses.items() <= values.items()
    ToyRun(tmp_path, tracker="recorder").train(2)
    assert list(recorder.runs) == ["run0", "run1"], "a new run in the folder is a new one there"


def test_a_tracker_that_fails_costs_nothing(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder, "fails", 0)
    weights = ToyRun(tmp_path / "tracked", tracker="recorder").train(4)
    assert equal(weights, ToyRun(tmp_path / "plain").train(4))
    assert caplog.text.count("the server is gone; the run goes on without it") == 1


def test_unknown_and_absent_trackers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("")
    with pytest.raises(UserError, match="choose from mlflow, wandb, or empty; did you mean mlflow"):
        check_tracker("mflow")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed"):
        check_tracker("wandb")


def test_mlflow_in_its_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow prefers a database
    folder = tmp_path / "run"
    ToyRun(folder, tracker="mlflow", config="SEED: 5\n").train(4)
    ToyRun(folder, tracker="mlflow").train(6, resume=True)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("cells").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    history = client.get_metric_history(run.info.run_id, "total_loss")
    expected = [(i, value) for (name, i), value in written(folder).items() if name == "total_loss"]
    assert [(metric.step, metric.value) for metric in history] == expected


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ToyRun(tmp_path, tracker="wandb").train(4)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "tracker.json").read_text()).keys() == {"WandbWriter"}
