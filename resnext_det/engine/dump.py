"""The dump of a step that went wrong, and how to run that very step again.

``OUTPUT_DIR/dump_0000123/`` holds ``config.yaml``, ``weights.pth`` (as they were before the step) and one
``process_R.json`` for each process::

    iteration, seed, process, processes, accumulate, precision, learning_rate, reason
    class_names      in the order of the model
    losses           {name: value} for each part of the step, of this process
    gradient_norms   {parameter: norm} of the whole step
    batches          for each part its number and the samples in it: position in the data's order, index in the set,
                     and what the data loader says of them (file, image id, annotation ids)
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..files import COUNT, atomic_write, read_state, shown, write_json
from ..weights.reading import read_torch
from .checkpoint import is_state, load_exactly
from .config import CONFIG_FILE

logger = logging.getLogger(__name__)

WEIGHTS = "weights.pth"
_MANY = range(1, 1 << 20)
_FACTS = {
    "iteration": COUNT, "seed": COUNT, "process": range(1 << 20), "processes": _MANY, "accumulate": _MANY,
    "precision": str, "learning_rate": [(float, None)], "losses": [{str: (float, None)}],
    "class_names?": [str],
    "batches": [{"batch": COUNT, "samples": [{"index": COUNT}]}],
}  # fmt: skip
"""Schema of a ``process_R.json``: what a replay needs."""


def dump_folder(output_dir: str | Path, iteration: int) -> Path:
    """Where the dump of that iteration is."""
    return Path(output_dir) / f"dump_{iteration:07d}"


def write_dump(folder: Path, process: int, facts: dict[str, Any], model: nn.Module) -> None:
    """Write one process' share; the first one's holds the weights and the run's configuration.

    A disk too full for it is logged and otherwise ignored: the cause of the dump matters more.
    """
    try:
        write_json(folder / f"process_{process}.json", facts)
        if process == 0:
            with atomic_write(folder / WEIGHTS, "wb") as file:
                torch.save({"model": model.state_dict()}, file)
            if (folder.parent / CONFIG_FILE).is_file():
                shutil.copyfile(folder.parent / CONFIG_FILE, folder / CONFIG_FILE)
    except (OSError, RuntimeError) as error:
        logger.warning("%s: the dump is not complete: %s", folder, error)


def read_dump(path: str | Path) -> dict[str, Any]:
    """The facts of a dump: of the process that a ``process_R.json`` names, or, for a folder, of the one at fault.

    Raises:
        UserError: not a dump.
    """
    path = Path(path)
    files = sorted(path.glob("process_*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--replay {path}: holds no process_*.json; give a folder dump_NNNNNNN of a run")
    read = []
    for file in files:
        facts = read_state(file, _FACTS, "it is not what a run has dumped: give another to --replay")
        if facts["process"] >= facts["processes"]:
            raise UserError(f"{shown(file)}: process {facts['process']} of {facts['processes']}; give another dump")
        read.append((_badness(facts["losses"]), {**facts, "folder": str(file.parent)}))
    return max(read, key=lambda pair: pair[0])[1]


def _badness(losses: list[dict[str, float | None]]) -> float:
    """The largest loss; JSON writes one that is not finite as null."""
    return max((math.inf if v is None else abs(v) for part in losses for v in part.values()), default=0.0)


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """The weights of the dump in ``folder``, every one of them.

    Raises:
        UserError: no such file, or weights of another model.
    """
    path = Path(folder) / WEIGHTS
    if not path.exists():
        raise UserError(f"{path}: no such file; the process with the weights could not write them")
    content = read_torch(path)
    state = content.get("model") if isinstance(content, dict) else None
    if not is_state(state):
        raise UserError(f"{path}: holds no weights of a dump; run the training again")
    load_exactly(model, state, path)


def summary(facts: dict[str, Any]) -> str:
    """The dump on one line."""
    samples = [sample for batch in facts["batches"] for sample in batch["samples"]]
    names = ", ".join(shown(sample.get("file_name", sample["index"])) for sample in samples[:4])
    losses = "; ".join(", ".join(f"{shown(k)} {_shown(v)}" for k, v in part.items()) for part in facts["losses"])
    rates = ", ".join(map(_shown, facts["learning_rate"]))
    more = f" and {len(samples) - 4} more" if len(samples) > 4 else ""
    return f"learning rate {rates}, losses: {losses}; images {names}{more}"


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
