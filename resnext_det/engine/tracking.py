"""A run's numbers to an experiment tracker, through detectron2's event writers: MLflow and Weights & Biases.

Addresses, projects and keys are the trackers' own environment variables (``MLFLOW_TRACKING_URI``, ``WANDB_PROJECT``,
``WANDB_MODE``, ...). A resumed run goes on in the tracker's run, whose id lies in ``OUTPUT_DIR/tracker.json``.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage

from ..errors import UserError, nearest
from ..files import read_state, write_json
from .folder import TRACKER_FILE

logger = logging.getLogger(__name__)

WINDOW = 20  # iterations that losses are smoothed over, as TensorBoard's


class TrackerWriter(EventWriter):
    """Hands every new number on. The training matters more: after a failure it goes on without the tracker.

    Args:
        folder: OUTPUT_DIR.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder, self.broken, self._last = Path(folder), False, -1
        file = self.folder / TRACKER_FILE
        found = read_state(file, {str: str}, "remove it") if file.is_file() else {}
        self.run_id = self._try(lambda: self.begin(found.get(type(self).__name__)))
        if self.run_id:
            write_json(file, {**found, type(self).__name__: self.run_id})

    @abstractmethod
    def begin(self, run_id: str | None) -> str:
        """Open the run of this id again, or a new one for None; returns its id."""

    @abstractmethod
    def log(self, values: Mapping[str, float], iteration: int) -> None:
        """Hand the numbers of an iteration on."""

    @abstractmethod
    def finish(self) -> None:
        """Everything is logged."""

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[name] = value
        for iteration, values in sorted(by_iteration.items()):
            self._try(lambda values=values, iteration=iteration: self.log(values, iteration))
            self._last = iteration

    def close(self) -> None:
        self._try(self.finish)

    def _try(self, call: Any) -> Any:
        if self.broken:
            return None
        try:
            return call()
        except Exception as error:  # whatever a server, a disk or a library may do
            self.broken = True
            logger.warning("%s: %s; the run goes on without it", type(self).__name__, error)
            return None


class MLflowWriter(TrackerWriter):
    """To MLflow; the run is called like the folder, and holds its ``config.yaml``."""

    def begin(self, run_id: str | None) -> str:
        import mlflow

        client = self.client = mlflow.MlflowClient()
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            found = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if found is None else found.experiment_id
            run_id = client.create_run(experiment, run_name=self.folder.resolve().name).info.run_id
            if (config := self.folder / "config.yaml").is_file():
                client.log_artifact(run_id, str(config))
        client.update_run(run_id, status="RUNNING")
        return run_id

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name.replace("@", "_at_"), value, step=iteration)

    def finish(self) -> None:
        self.client.set_terminated(self.run_id)


class WandbWriter(TrackerWriter):
    """To Weights & Biases; the run is called like the folder."""

    def begin(self, run_id: str | None) -> str:
        import wandb

        self.run = wandb.init(dir=str(self.folder), name=self.folder.resolve().name, id=run_id, resume="allow")
        if (config := self.folder / "config.yaml").is_file():
            self.run.save(str(config), base_path=str(self.folder), policy="now")
        return self.run.id

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        self.run.log(dict(values), step=iteration)

    def finish(self) -> None:
        self.run.finish()


TRACKERS = {"mlflow": MLflowWriter, "wandb": WandbWriter}
"""By the value of the key TRACKER, which is the name of the module and of the extra."""


def check_tracker(name: str) -> None:
    """Raises UserError for an unknown tracker, and for one that is not installed."""
    if name and name not in TRACKERS:
        raise UserError(f"TRACKER {name!r}: choose from {', '.join(TRACKERS)}, or empty{nearest(name, TRACKERS)}")
    if name and find_spec(name) is None:
        raise UserError(f"TRACKER {name}: not installed; pip install 'resnext-det[{name}]' from the clone, or {name}")
