"""Checkpoints of a run: written whole or not at all, sealed with a checksum, resumed from the newest whole one.

A checkpoint is a zip archive, as torch writes it; the SHA-256 of all of it stands in the archive's comment, at the very
end. torch itself does not notice bits that have changed in a file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..errors import UserError
from ..files import CONFIG_BYTES, atomic_write, open_regular, read_regular, safe_component, shown
from ..weights import LoadReport
from ..weights.naming import COUNTER
from ..weights.reading import read_torch

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # detectron2's name for the file that names the newest checkpoint
SEAL = b"sha256:"
_DIGEST = 64  # letters


class RunCheckpointer(Checkpointer):
    """fvcore's checkpointer, made safe.

    A file holds ``{"model", "trainer", "iteration", "metadata"}``: tensors and plain values only, so reading one
    can run no code. It replaces an older file of the same name only when it is on the disk; a full disk loses nothing.

    Args:
        model: or the DistributedDataParallel that wraps it.
        folder: OUTPUT_DIR.
        metadata: plain values that travel inside every file (architecture, color order, ...).
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
            with atomic_write(path, "w+b") as file:
                torch.save(data, file)
                seal(file)
            self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__  # torch hides the former
            if not isinstance(cause, OSError):
                raise
            raise UserError(
                f"{path}: cannot be written: {cause.strerror or cause}; free some space and continue with --resume; "
                "earlier checkpoints are whole"
            ) from error
        logger.info("saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / LAST) as file:
            file.write(last_filename_basename)

    def resume(self, check: Callable[[Mapping[str, Any], str], None] | None = None) -> int | None:
        """Load the newest whole checkpoint of the folder into the model and every checkpointable, in every process.

        Args:
            check: called with the metadata of the file and its name; raises UserError if they contradict this run.

        Returns:
            The iteration it was saved after; None where the folder has no checkpoint.

        Raises:
            UserError: there are checkpoints, and none can be read or fits the model; or processes found different ones.
        """
        path, data = self.newest_whole()
        if path is None:
            return None
        if check is not None:
            check(data.get("metadata", {}), str(path))
        load_exactly(self.model, data["model"], path)
        for key, value in self.checkpointables.items():
            if key not in data:
                raise UserError(
                    f"{path}: holds no {key}, as a run with these settings saves it; resume with the config the run "
                    f"began with, or start a new run from its weights with --init-from {path}"
                )
            try:
                value.load_state_dict(data[key])
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{path}: its {key} does not fit this run ({type(error).__name__}: {shown(error)}); resume with "
                    f"the config the run began with, or start a new run from its weights with --init-from {path}"
                ) from error
        unused = sorted(set(data) - {"model", "metadata", "iteration", *self.checkpointables})
        if unused:
            logger.warning(f"{path}: its {', '.join(unused)} is not used any more: this run's config has none")
        report = LoadReport.complete(data["model"])
        logger.info("resumed from %s: %s; %s", path, report, ", ".join(self.checkpointables) or "nothing else")
        return data["iteration"]

    def periodic_checkpoints(self) -> list[str]:
        """The files ``model_NNNNNNN.pth`` of the folder, oldest first."""
        return sorted(str(path) for path in Path(self.save_dir).glob("model_*.pth") if path.stem[6:].isdigit())

    def newest_whole(self) -> tuple[Path, dict] | tuple[None, None]:
        """The newest whole checkpoint of the folder, and its content: the same in every process.

        Raises:
            UserError: there are checkpoints, and none can be read; or processes found different ones.
        """
        path, data = self._read_newest()
        found = comm.all_gather(None if data is None else data["iteration"])
        if len(set(found)) > 1:
            raise UserError(
                f"{self.save_dir}: the processes find different newest checkpoints (iterations "
                f"{', '.join(map(str, found))}); every machine must see the same OUTPUT_DIR"
            )
        return path, data

    def _read_newest(self) -> tuple[Path, dict] | tuple[None, None]:
        candidates = self._newest_first()
        for path in candidates:
            try:
                return path, read_run_checkpoint(path)
            except UserError as error:
                logger.warning("%s; trying the one before", error)
        if candidates:
            raise UserError(
                f"{self.save_dir}: none of its {len(candidates)} checkpoints can be read; start without --resume"
            )
        return None, None

    def _newest_first(self) -> list[Path]:
        folder = Path(self.save_dir)
        files = sorted(folder.glob("model_*.pth"), key=_iteration, reverse=True)
        name = last_checkpoint(folder)
        if name:
            named = folder / name
            if named in files:
                files.remove(named)
                files.insert(0, named)
            else:
                logger.warning(
                    "%s names %s, which is not there; trying the newest of the others", folder / LAST, named.name
                )
        return files


def last_checkpoint(folder: str | os.PathLike) -> str:
    """The name that ``last_checkpoint`` in ``folder`` holds; "" where there is none, or it holds something else."""
    path = Path(folder) / LAST
    if not path.exists():
        return ""
    try:
        return safe_component(read_regular(path, CONFIG_BYTES).decode().strip(), f"{path}: checkpoint")
    except UnicodeDecodeError:
        logger.warning("%s: holds no name of a checkpoint", path)
    except UserError as error:
        logger.warning("%s", error)
    return ""


class BestCheckpointer(RunCheckpointer):
    """Writes the best checkpoint; resuming still starts from the newest."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


def _iteration(path: Path) -> int:
    """From the name, or for ``model_final`` and the like from inside; -1 if unreadable."""
    number = re.search(r"(\d+)", path.stem)
    if number:
        return int(number[1])
    try:
        found = read_torch(path, tensors=False)["iteration"]
    except (UserError, TypeError, LookupError):  # resuming will say what is wrong with the file
        return -1
    return found if type(found) is int else -1


def seal(file: IO[bytes]) -> None:
    """Write the checksum of the zip archive in ``file``, open for reading and writing, into its comment."""
    file.flush()
    end = file.seek(-2, os.SEEK_END)
    if file.read(2) != b"\0\0":
        raise RuntimeError("the archive has a comment already")
    comment = SEAL + _digest(file, end)
    file.seek(end)
    file.write(len(comment).to_bytes(2, "little") + comment)


def seal_holds(path: str | os.PathLike) -> bool | None:
    """Whether the file is as it was sealed; None for one without a seal."""
    length = len(SEAL) + _DIGEST
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size < length + 2:
            return None
        file.seek(size - length)
        comment = file.read()
        if not comment.startswith(SEAL):
            return None
        return comment == SEAL + _digest(file, size - length - 2)


def _digest(file: IO[bytes], end: int) -> bytes:
    """SHA-256 of the first ``end`` bytes, in letters."""
    digest = hashlib.sha256()
    file.seek(0)
    while end:
        chunk = file.read(min(end, 1 << 22))
        digest.update(chunk)
        end -= len(chunk)
        if not chunk:
            break
    return digest.hexdigest().encode("ascii")


def read_run_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file that :class:`RunCheckpointer` wrote, on the CPU, without running any code from it.

    Raises:
        UserError: missing, torn, changed or foreign file.
    """
    sealed = seal_holds(path)
    if sealed is False:
        raise UserError(f"{path}: damaged (its checksum does not match)")
    if sealed is None:
        logger.warning("%s: has no checksum of its own, so changed bits would not be seen", path)
    data = read_torch(path)
    if not isinstance(data, dict) or "model" not in data or "iteration" not in data:
        raise UserError(f"{path}: holds weights but no training state; give it to --init-from instead of --resume")
    model, iteration = data["model"], data["iteration"]
    wrong = {
        "iteration": not (type(iteration) is int and 0 <= iteration < 1 << 50) and f"is {shown(repr(iteration))}",
        "metadata": not isinstance(data.get("metadata", {}), dict) and "is not keys and values",
        "model": not is_state(model) and "is not named tensors",
    }
    for key, reason in wrong.items():
        if reason:
            raise UserError(f"{path}: its {key} {reason}; take an earlier checkpoint")
    return data


def is_state(value: object) -> bool:
    """Whether ``value`` is named tensors."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in value.items())


def load_exactly(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load every tensor of ``state``, read from ``path``, into the model.

    Raises:
        UserError: other names or shapes than the model's.
    """
    own = model.state_dict()  # frozen batch norms lack the counter of the others
    wrong = [
        key for key in own if (not key.endswith(COUNTER) if key not in state else state[key].shape != own[key].shape)
    ]
    wrong += [key for key in state if not key.endswith(COUNTER) and key not in own]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} keys do not fit the model of this config, such as {wrong[0]}; "
            "use the config the run began with, or another OUTPUT_DIR"
        )
    model.load_state_dict({**own, **{key: value for key, value in state.items() if key in own}})
