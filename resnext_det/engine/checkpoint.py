"""Checkpoints of a run: written whole or not at all, read as plain tensors, resumed from the newest whole one."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..errors import UserError
from ..files import atomic_write
from ..weights import LoadReport

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # detectron2's name for the file that names the newest checkpoint


class RunCheckpointer(Checkpointer):
    """fvcore's checkpointer, made safe.

    A file holds ``{"model", "trainer", "iteration", "metadata"}``: tensors and plain values only, so reading one
    can run no code. It replaces an older file of the same name only when it is on the disk; a full disk loses nothing.

    Args:
        model: or the DistributedDataParallel that wraps it.
        folder: OUTPUT_DIR.
        metadata: plain values that travel inside every file (architecture, colour order, ...).
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, such as the trainer.
    """

    def __init__(self, model: nn.Module, folder: str, metadata: dict[str, Any], **checkpointables: Any) -> None:
        super().__init__(model, folder, **checkpointables)
        self.metadata = metadata

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name``.pth and name it as the newest."""
        data = {"model": self.model.state_dict(), "metadata": self.metadata, **extra}
        for key, value in self.checkpointables.items():
            data[key] = value.state_dict()
        path = Path(self.save_dir) / f"{name}.pth"
        try:
            with atomic_write(path, "wb") as file:
                torch.save(data, file)
            self.tag_last_checkpoint(path.name)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written: {error}; free some space and continue with --resume; "
                "earlier checkpoints are whole"
            ) from error
        logger.info("saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / LAST) as file:
            file.write(last_filename_basename)

    def resume(self, check: Callable[[Mapping[str, Any], str], None] | None = None) -> int | None:
        """Load the newest whole checkpoint of the folder into the model and every checkpointable.

        Args:
            check: told the metadata of the file and its name; raises UserError where they contradict this run.

        Returns:
            The iteration it was saved after; None where the folder has no checkpoint.

        Raises:
            UserError: there are checkpoints, and none can be read or fits the model.
        """
        candidates = self._newest_first()
        for path in candidates:
            try:
                data = read_run_checkpoint(path)
            except UserError as error:
                logger.warning("%s; trying the one before", error)
                continue
            if check is not None:
                check(data.get("metadata", {}), str(path))
            _load_exactly(self.model, data["model"], path)
            for key, value in self.checkpointables.items():
                value.load_state_dict(data[key])
            report = LoadReport.complete(data["model"])
            logger.info("resumed from %s: %s; %s", path, report, ", ".join(self.checkpointables) or "nothing else")
            return data["iteration"]
        if candidates:
            raise UserError(
                f"{self.save_dir}: none of its {len(candidates)} checkpoints can be read; start without --resume"
            )
        return None

    def _newest_first(self) -> list[Path]:
        folder = Path(self.save_dir)
        files = sorted(folder.glob("model_*.pth"), key=_iteration_in_name, reverse=True)
        named = self.get_checkpoint_file() if self.has_checkpoint() else ""
        if named:
            named = Path(named)
            if named in files:
                files.remove(named)
                files.insert(0, named)
            else:
                logger.warning("%s names %s, which is not there", folder / LAST, named.name)
        return files


def _iteration_in_name(path: Path) -> tuple[int, float]:
    number = re.search(r"(\d+)", path.stem)
    return (int(number[1]) if number else -1, os.path.getmtime(path))


def read_run_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file that :class:`RunCheckpointer` wrote, on the CPU, without running any code from it.

    Raises:
        UserError: missing, torn or foreign file.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: torn or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(data, dict) or "model" not in data or "iteration" not in data:
        raise UserError(f"{path}: holds weights but no training state; give it to --init-from instead of --resume")
    return data


def _load_exactly(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} keys do not fit the model of this config, such as {wrong[0]}; "
            "use the config the run began with, or another OUTPUT_DIR"
        )
    model.load_state_dict(state)
